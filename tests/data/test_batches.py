"""Batches: augmentation, order, captions, dropped words."""


import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.config import TrainConfig
from miniclip.data.batches import Batches, augment, drop_words
from miniclip.data.images import MEAN, STD, normalize
from miniclip.data.pairs import Pairs


def test_captions_in_one_list():
    pairs = Pairs(np.zeros((3, 1, 1, 3), np.uint8), [["a", "b"], ["c"], ["d", "e", "f"]], "", "")
    texts, owner = pairs.flat_captions()
    assert texts == list("abcdef") and owner.tolist() == [0, 0, 1, 2, 2, 2]


# ------------------------------------------------------------------------------- augmentation

STILL = TrainConfig(crop=1.0, jitter=0.0, batch_size=4)


def scenes(count=16, side=24):
    """Smooth random images, no two alike and none its own mirror."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 3, 4, 3), np.uint8)
    return torch.from_numpy(np.stack([
        np.asarray(Image.fromarray(s).resize((side, side), Image.Resampling.BICUBIC))
        for s in small]))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_augment_without_crop_and_colour_only_mirrors():
    images = scenes()
    found, plain = augment(images, 24, STILL, seeded()), normalize(images)
    same = (found - plain).abs().amax((1, 2, 3)) < 1e-3
    mirrored = (found - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-3
    assert (same ^ mirrored).all() and 3 < same.sum() < 13  # each image has a coin of its own


@pytest.mark.parametrize("config", [STILL, TrainConfig(crop=0.3, jitter=0.5), TrainConfig()])
def test_augment_is_a_function_of_its_generator(config):
    images = scenes()
    torch.manual_seed(0)
    first = augment(images, 20, config, seeded(1))
    torch.manual_seed(1)
    assert first.shape == (16, 3, 20, 20) and first.dtype == torch.float32
    assert torch.equal(first, augment(images, 20, config, seeded(1)))
    assert not torch.equal(first, augment(images, 20, config, seeded(2)))
    assert first.isfinite().all() and first.abs().max() < 5


def test_each_image_gets_a_crop_of_its_own():
    """A ramp in both directions: what is seen of its range is what is seen of the image."""
    ramp = torch.arange(0, 250, 5, dtype=torch.uint8)  # 50 pixels
    image = torch.zeros(50, 50, 3, dtype=torch.uint8)
    image[..., 0], image[..., 1] = ramp, ramp[:, None]
    config = TrainConfig(crop=0.5, jitter=0.0)
    found = augment(image.expand(200, -1, -1, -1), 50, config, seeded())
    red, green = ((found[:, c] * STD[c] + MEAN[c]) * 255 for c in (0, 1))
    width, height = ((x.amax((1, 2)) - x.amin((1, 2))) / 245 for x in (red, green))
    area = width * height
    assert area.min() > 0.42 and area.min() < 0.55 and area.max() > 0.9  # from a half to the whole
    assert 0.65 < area.mean() < 0.8
    ratio = width / height
    assert 0.7 < ratio.min() < 0.85 and 1.18 < ratio.max() < 1.4  # 3:4 to 4:3
    left, top = red.amin((1, 2)), green.amin((1, 2))  # crops lie everywhere, and inside
    for offset, side in ((left, width), (top, height)):
        assert offset.min() >= -0.1 and (offset + 245 * side).max() <= 245.1
        assert offset.max() > 55 and offset.min() < 5
    assert len(np.unique(area.numpy().round(4))) > 150


def test_crops_stay_within_the_colours_of_the_image():
    images = scenes()
    found = augment(images, 24, TrainConfig(crop=0.3, jitter=0.0), seeded())
    plain = normalize(images)
    for c in range(3):
        assert (found[:, c].amax((1, 2)) <= plain[:, c].amax((1, 2)) + 1e-4).all()
        assert (found[:, c].amin((1, 2)) >= plain[:, c].amin((1, 2)) - 1e-4).all()


def test_jitter_changes_brightness_contrast_and_saturation():
    """Undone one by one: the mean, the spread of gray, the spread of colour around gray."""
    image = scenes(1)
    found = augment(image.expand(300, -1, -1, -1), 24, TrainConfig(crop=1.0, jitter=0.3), seeded())
    plain = normalize(image)
    gray, plain_gray = found.mean(1, keepdim=True), plain.mean(1, keepdim=True)
    brightness = (found.mean((1, 2, 3)) - plain.mean())
    contrast = gray.std((1, 2, 3)) / plain_gray.std() - 1
    colour = (found - gray).std((1, 2, 3)) / (plain - plain_gray).std()
    saturation = colour / (1 + contrast) - 1
    for change in (brightness, contrast, saturation):
        assert -0.301 < change.min() < -0.27 and 0.27 < change.max() < 0.301
        assert change.mean().abs() < 0.05
    changes = torch.stack([brightness, contrast, saturation])
    assert torch.corrcoef(changes).fill_diagonal_(0).abs().max() < 0.2  # each drawn for itself


# ------------------------------------------------------------------------------- batches

START, END = 90, 99


def number_tokenizer(texts):
    """ "image 7 caption 2" → start, 7, 2 twice or more, end: longer for later captions."""
    tokens = torch.zeros(len(texts), 12, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        _, image, _, caption = text.split()
        ids = [START, int(image), *[40 + int(caption)] * (2 + int(caption)), END]
        row[:len(ids)] = torch.tensor(ids)
    return tokens


def numbered(count=23, captions=None) -> Pairs:
    """Image i is all of value 10 i and has 1 + i % 5 captions that name it."""
    images = np.broadcast_to(10 * np.arange(count, dtype=np.uint8)[:, None, None, None],
                             (count, 6, 6, 3))
    return Pairs(images, [[f"image {i} caption {k}" for k in range(1 + i % 5)]
                          for i in range(count)], "numbered:train", "")


def read_batch(batch):
    """Which images, and which (image, caption) the texts are of."""
    pixels, tokens, _ = batch
    values = (pixels[:, 0, 3, 3] * STD[0] + MEAN[0]) * 255
    return ((values / 10).round().long().tolist(),
            [(int(row[1]), int(row[2]) - 40) for row in tokens])


def batches_of(pairs=None, **changes) -> Batches:
    settings = {"batch_size": 5, "crop": 1.0, "jitter": 0.0} | changes
    return Batches(pairs or numbered(), number_tokenizer, 6, TrainConfig(**settings))


def test_no_image_twice_in_an_epoch_and_captions_belong():
    batches = batches_of()
    assert batches.per_epoch == 4  # 23 images: three are left out, others in each epoch
    drawn, orders = set(), []
    for epoch in range(40):
        seen = []
        for step in range(4 * epoch, 4 * epoch + 4):
            images, captions = read_batch(batches[step])
            assert len(images) == 5 and [i for i, _ in captions] == images
            seen += images
            drawn |= set(captions)
        assert len(set(seen)) == len(seen) == 20
        orders.append(tuple(seen))
    assert len(set(orders)) == 40
    assert drawn == {(i, k) for i in range(23) for k in range(1 + i % 5)}  # all of them, in time


def test_captions_are_drawn_evenly_and_afresh():
    batches = batches_of(numbered(5))
    counts = np.zeros(5)
    for step in range(400):
        counts[dict(read_batch(batches[step])[1])[4]] += 1
    assert counts.sum() == 400 and counts.min() > 50  # of image 4, which has five


def test_a_batch_is_a_function_of_seed_and_step():
    """So that a resumed run sees what an uninterrupted one would have."""
    changes = {"crop": 0.5, "jitter": 0.2, "word_dropout": 0.3}
    first, again = batches_of(**changes), batches_of(**changes)
    other = batches_of(**changes, seed=1)
    forward = [first[step] for step in range(9)]
    torch.manual_seed(5)
    np.random.seed(5)
    for step in reversed(range(9)):
        for a, b in zip(forward[step][:2], again[step][:2], strict=True):
            assert torch.equal(a, b)
        assert read_batch(other[step]) != read_batch(forward[step])
    for a, b in zip(forward, forward[1:]):  # no step repeats another's draws
        assert not torch.equal(a[0], b[0])


def test_crops_differ_from_step_to_step_and_from_seed_to_seed():
    """The same five images in every batch: which places are flipped must vary."""
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
    pairs = Pairs(images, [[f"image {i} caption 0"] for i in range(5)], "five", "")

    def flips(seed):
        batches = batches_of(pairs, seed=seed)
        for step in range(8):
            pixels, tokens, _ = batches[step]
            change = pixels - normalize(images)[tokens[:, 1]]
            yield tuple((change.abs().amax((1, 2, 3)) > 1e-3).tolist())

    first, other = list(flips(0)), list(flips(1))
    assert len(set(first)) > 4 and first != other


def test_an_image_whose_caption_names_a_side_is_never_mirrored():
    """A mirrored arrow would point the other way; the others are mirrored as before."""
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 6, 3), np.uint8)
    names = [["image 0 caption 0", "image 0 left 1"], ["image 1 caption 0"], ["image 2 right 0"],
             ["image 3 caption 0"]]
    batches = batches_of(Pairs(images, names, "arrows", ""), batch_size=4)
    assert batches.sided.tolist() == [True, False, True, False]
    changed = np.zeros(4)
    for step in range(40):
        pixels, tokens, _ = batches[step]
        change = pixels - normalize(images)[tokens[:, 1]]
        changed[tokens[:, 1].numpy()] += (change.abs().amax((1, 2, 3)) > 1e-3).numpy()
    assert changed[[0, 2]].tolist() == [0, 0] and (changed[[1, 3]] > 10).all()


def test_equal_captions_have_equal_ids():
    """Two images may have the same caption: neither is a wrong answer to it."""
    same = [["image 1 caption 0"], ["image 2 caption 0"], ["image 1 caption 0"]]
    pairs = Pairs(np.zeros((3, 6, 6, 3), np.uint8), same, "same", "")
    batches = batches_of(pairs, batch_size=3, word_dropout=0.5)
    for step in range(5):
        images, _ = batches.numbers(step)
        _, _, ids = batches[step]
        expected = np.array(["one", "two", "one"])[images]
        assert ids.dtype == torch.int64
        assert (ids[:, None] == ids).tolist() == (expected[:, None] == expected).tolist()
    assert all(batches_of()[step][2] is None for step in range(4)), "all differ"


def test_tokens_end_with_the_longest_text():
    batches = batches_of()
    widths = set()
    for step in range(20):
        tokens = batches[step][1]
        ends = (tokens == END).nonzero()[:, 1]
        assert len(ends) == 5 and tokens.shape[1] == ends.max() + 1
        assert tokens.dtype == torch.int64
        widths.add(tokens.shape[1])
    assert len(widths) > 1


def test_words_are_dropped_only_if_asked():
    kept = torch.cat([batches_of()[step][1].ne(0).sum(1) for step in range(20)])
    fewer = torch.cat([batches_of(word_dropout=0.5)[step][1].ne(0).sum(1) for step in range(20)])
    assert (fewer <= kept).all() and fewer.sum() < 0.85 * kept.sum()


def test_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size 24 is larger than the 23 images of "
                                         "numbered:train; set --batch-size 23 or ") as error:
        batches_of(batch_size=24)
    assert "\n" not in str(error.value)
    images, _ = read_batch(batches_of(batch_size=23)[0])
    assert sorted(images) == list(range(23))


def test_too_few_images_give_advice_that_can_be_followed():
    with pytest.raises(ValueError, match="train has 1 image: contrast needs 2 at least, beside"):
        batches_of(numbered(1), batch_size=2)
    assert len(read_batch(batches_of(numbered(2), batch_size=2)[0])[0]) == 2


# ------------------------------------------------------------------------------- dropped words


def rows_of(*lengths):
    tokens = torch.zeros(len(lengths), 14, dtype=torch.int64)
    for row, length in zip(tokens, lengths):
        row[:length + 2] = torch.tensor([START, *range(1, length + 1), END])
    return tokens


def test_dropped_words_leave_the_order_and_both_ends():
    tokens = rows_of(0, 1, 5, 12, 7)
    for seed in range(30):
        found = drop_words(tokens, 0.4, seeded(seed))
        assert found.shape == tokens.shape and found.dtype == tokens.dtype
        for before, after in zip(tokens.tolist(), found.tolist()):
            end = after.index(END)
            inner = after[1:end]
            assert after[0] == START and not any(after[end + 1:])
            assert inner == sorted(set(inner)) and set(inner) <= set(before[1:before.index(END)])
    assert torch.equal(drop_words(tokens, 0.4, seeded(3)), drop_words(tokens, 0.4, seeded(3)))
    assert tokens.equal(rows_of(0, 1, 5, 12, 7))  # what was given is as it was


def test_how_many_words_are_dropped():
    tokens = rows_of(*[12] * 500)
    assert torch.equal(drop_words(tokens, 0.0, seeded()), tokens)
    kept = drop_words(tokens, 0.25, seeded()).ne(0).sum(1) - 2
    assert kept.float().mean().item() == pytest.approx(9, abs=0.3) and kept.min() < kept.max()
    bare = drop_words(tokens, 0.999999, seeded())
    assert bare[:, :2].tolist() == [[START, END]] * 500 and not bare[:, 2:].any()
