"""Segmentation: maps, filter and scores against loops written out, and planted pictures."""

import doctest

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from colour_model import BLUE, GREEN, RED, Colours, colour_tokenizer

from miniclip.data.annotated import IGNORED, Annotated
from miniclip.data.images import normalize
from miniclip.tasks import segment as room
from miniclip.tasks.segment import (
    Overlaps,
    Vocabulary,
    backgrounds_there,
    centre_mask,
    guess,
    guided_filter,
    label_maps,
    mean_share,
    segment,
    segmentation_report,
    similarity_maps,
    window_sizes,
)


def halves(height=16, width=16, left=RED, right=GREEN) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    picture[:, :width // 2], picture[:, width // 2:] = left, right
    return picture


def test_the_examples():
    assert doctest.testmod(room).failed == 0


@pytest.mark.parametrize("shape, windows", [((16, 16), (1.0,)), ((16, 16), (0.5, 0.75)),
                                            ((16, 27), (0.5,)), ((25, 16), (1.0,))])
def test_maps_against_loops(loaded, shape, windows):
    """Every window, every patch, every pixel, one after the other."""
    model = loaded[0]
    size = model.config.image_size
    picture = np.random.default_rng(0).integers(0, 256, (2 * shape[0], 2 * shape[1], 3), np.uint8)
    vectors = F.normalize(torch.randn(3, model.config.embed_dim,
                                      generator=torch.Generator().manual_seed(1)), dim=1)
    total, count = np.zeros((3, *picture.shape[:2])), np.zeros(picture.shape[:2])
    for part in windows:
        window = round(part * min(picture.shape[:2]))
        margin = window // 2 if part < 1 else 0
        wide = np.pad(normalize(picture[None])[0].numpy(),
                      ((0, 0), (margin, margin), (margin, margin)), mode="reflect")
        stride = window // 4 if part < 1 else window // 2
        for top in range(wide.shape[1]):
            for left in range(wide.shape[2]):
                last = (wide.shape[1] - window, wide.shape[2] - window)
                if top > last[0] or left > last[1] or (top % stride and top != last[0]) or (
                        left % stride and left != last[1]):
                    continue
                crop = torch.tensor(wide[None, :, top:top + window, left:left + window])
                if window != size:
                    crop = F.interpolate(crop, size=(size, size), mode="bicubic", antialias=True)
                with torch.no_grad():
                    dense = F.normalize(model.vision.dense(crop)[0], dim=-1)  # (G, G, D)
                cosines = (dense @ vectors.T).numpy()
                G = len(cosines)
                for y in range(window):
                    for x in range(window):
                        at = (top + y - margin, left + x - margin)
                        if 0 <= at[0] < picture.shape[0] and 0 <= at[1] < picture.shape[1]:
                            total[:, at[0], at[1]] += cosines[y * G // window, x * G // window]
                            count[at] += 1
    found = similarity_maps(model, vectors, picture, windows)
    assert found.shape == total.shape
    np.testing.assert_allclose(found.numpy(), total / count, atol=2e-5)


def test_the_filter_against_a_regression_around_each_pixel():
    """He et al., equations 11 to 13: a linear function of the colours for each window, averaged."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (9, 8, 3), np.uint8)
    maps = torch.tensor(rng.normal(size=(2, 9, 8)), dtype=torch.float32)
    radius, epsilon = 2, 0.01
    colours = picture / 255
    slopes, offsets = np.zeros((2, 9, 8, 3)), np.zeros((2, 9, 8))
    for y in range(9):
        for x in range(8):
            near = (slice(max(0, y - radius), y + radius + 1),
                    slice(max(0, x - radius), x + radius + 1))
            own = colours[near].reshape(-1, 3)
            centred = own - own.mean(0)
            for k in range(2):
                p = maps[k].double().numpy()[near].reshape(-1)
                a = np.linalg.solve(centred.T @ centred / len(own) + epsilon * np.eye(3),
                                    centred.T @ (p - p.mean()) / len(own))
                slopes[k, y, x], offsets[k, y, x] = a, p.mean() - a @ own.mean(0)
    expected = np.zeros((2, 9, 8))
    for y in range(9):
        for x in range(8):
            near = (slice(max(0, y - radius), y + radius + 1),
                    slice(max(0, x - radius), x + radius + 1))
            for k in range(2):
                expected[k, y, x] = (slopes[k][near].reshape(-1, 3).mean(0) @ colours[y, x]
                                     + offsets[k][near].mean())
    found = guided_filter(picture, maps, radius, epsilon)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_filter_moves_an_edge_to_the_pictures():
    blurred = torch.linspace(1, -1, 32).expand(1, 32, 32)  # crosses zero in the middle
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[:, 12:] = 255  # the picture's edge lies elsewhere
    found = guided_filter(picture, blurred, 16)[0]
    assert found[:, :12].min() > found[:, 12:].max()


def test_planted_halves_are_found_exactly():
    words = Vocabulary(Colours(), colour_tokenizer, ["green"])
    said = segment(words.model, words, halves(), ["blue", "red"])
    assert said.dtype == np.uint8
    assert (said[:, :8] == 2).all() and (said[:, 8:] == 0).all()
    wide = segment(words.model, words, halves(16, 40, BLUE, RED), ["blue", "red"])
    assert (wide[:, :20] == 1).all() and (wide[:, 20:] == 2).all()


def test_without_a_background_every_pixel_is_somebodys():
    words = Vocabulary(Colours(), colour_tokenizer, [])
    said = segment(words.model, words, halves(), ["blue", "red"])
    assert (said[:, :8] == 2).all() and (said > 0).all()


def test_a_background_that_is_not_there_takes_no_pixels():
    """A tenth of the picture would rather be blue than green; blue is no background here."""
    maps = torch.zeros(3, 10, 10)
    maps[1] = 1
    maps[2, 0] = 2
    assert backgrounds_there(maps) == [1]
    maps[2, :3] = 2
    assert backgrounds_there(maps) == [1, 2]
    assert backgrounds_there(torch.randn(9, 10, 10)) != [] and backgrounds_there(maps[:0]) == []


def test_a_lead_is_the_label_less_the_best_background():
    words = Vocabulary(Colours(), colour_tokenizer, ["green", "blue"])
    picture = np.full((16, 16, 3), GREEN, np.uint8)
    picture[:, :3] = RED  # a fifth, where blue fits better than green
    lead = label_maps(words.model, words, picture, ["red"], (1.0,))
    both = similarity_maps(words.model, words.vectors(["red"]), picture, (1.0,))
    both = guided_filter(picture, both[:2], round(0.35 * 16))  # blue is not there
    assert torch.allclose(lead, both[:1] - both[1:], atol=1e-6)


def test_a_label_does_not_compete_with_itself():
    """ "grass" may be asked for, though it is one of the usual backgrounds."""
    words = Vocabulary(Colours(), colour_tokenizer, ["green", "red"])
    assert len(words.vectors(["blue"])) == 3 and len(words.vectors([" red ", "blue"])) == 3
    said = segment(words.model, words, halves(), ["red"])
    assert (said[:, :8] == 1).all() and (said[:, 8:] == 0).all()
    everywhere = segment(words.model, words, halves(), ["red", "green"])
    assert (everywhere > 0).all()  # no background is left


def test_each_labels_vector_is_made_once(monkeypatch):
    made = []
    words = Vocabulary(Colours(), colour_tokenizer, ["green"])
    real = room.class_vectors
    monkeypatch.setattr(room, "class_vectors", lambda m, t, names, *rest: made.extend(names) or
                        real(m, t, names, *rest))
    first = words.vectors(["red", "blue"])
    assert torch.equal(words.vectors(["blue", "red"])[:2], first[[1, 0]]) and len(first) == 3
    assert made == ["red", "blue"]
    for wrong in ([], ["red", " "]):
        with pytest.raises(ValueError, match="a class needs a name"):
            words.vectors(wrong)


def test_windows_are_small_where_patches_are_few():
    assert window_sizes(Colours(16, 4)) != (1.0,) and window_sizes(Colours(56, 4)) == (1.0,)


def test_intersection_over_union_counted_by_hand():
    truth = np.array([[1, 1, 0], [2, 2, IGNORED]])
    said = np.array([[1, 0, 1], [1, 2, 2]])
    overlaps = Overlaps()
    overlaps.add(("a", "b"), truth, said)
    # a: one shared pixel of (two true, three said, together four); b: one of two
    assert overlaps.iou() == {"a": 25.0, "b": 50.0} and overlaps.mean() == 37.5
    overlaps.add(("b", "c"), np.array([[1, 0]]), np.array([[2, 2]]))
    assert overlaps.iou() == {"a": 25.0, "b": pytest.approx(100 / 3)}  # c has no true pixel
    with pytest.raises(ValueError, match="no picture has a true mask"):
        Overlaps().mean()


def test_the_interval_of_the_mean_against_pictures_drawn_one_by_one():
    rng = np.random.default_rng(0)
    rows = [(("a", "b"), rng.integers(0, 3, (5, 5)), rng.integers(0, 3, (5, 5)))
            for _ in range(6)]
    overlaps = Overlaps()
    for row in rows:
        overlaps.add(*row)
    weights = np.array([[2, 0, 1, 3, 0, 0], [1, 1, 1, 1, 1, 1]])
    drawn = Overlaps()
    for row, n in zip(rows, weights[0]):
        for _ in range(n):
            drawn.add(*row)
    assert overlaps.means(weights) == pytest.approx([drawn.mean(), overlaps.mean()])
    low, high = overlaps.interval()
    assert low < overlaps.mean() < high


def test_baselines():
    share = (centre_mask((40, 60), 3, 0.25) == 3).mean()
    assert abs(share - 0.25) < 0.01 and centre_mask((41, 41), 3, 0.01)[20, 20] == 3
    said = guess(("a", "b", "c"), np.zeros((60, 60)), np.random.default_rng(0))
    assert np.allclose(np.bincount(said.ravel()) / 3600, 0.25, atol=0.03)


def planted():
    mask = np.zeros((16, 16), np.uint8)
    mask[:, :8] = 1
    return [Annotated(halves(), ("red", "blue"), mask), Annotated(
        halves(left=BLUE), ("blue", "red"), mask)]


def test_the_report_on_planted_pictures():
    words = Vocabulary(Colours(), colour_tokenizer, ["green"])
    figures = segmentation_report(words.model, words, planted)
    assert figures["mean_iou"] == 100 and figures["labels"] == {"blue": 100.0, "red": 100.0}
    assert figures["pictures"] == 2 and 10 < figures["guessing"] < 40 < 60 < figures["mean_iou"]
    assert 20 < figures["centre"] < 80
    assert mean_share(planted()) == 0.5


def test_reports_refuse():
    words = Vocabulary(Colours(), colour_tokenizer, ["green"])
    with pytest.raises(ValueError, match="there is no picture"):
        segmentation_report(words.model, words, lambda: [])
    with pytest.raises(ValueError, match="boxes and no masks: use `miniclip detect`"):
        segmentation_report(words.model, words, lambda: [Annotated(halves(), ("red",), None, ())])
    with pytest.raises(ValueError, match="254 labels"):
        segment(words.model, words, halves(), ["red"] * 255)
