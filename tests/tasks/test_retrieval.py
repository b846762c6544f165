"""Tests of miniclip/evaluate.py: ranks against brute force, ties, chunks, planted classifiers."""

import json
import os
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from miniclip import evaluate
from miniclip.config import MODELS
from miniclip.data import MEAN, STD, Pairs
from miniclip.evaluate import (
    class_vectors,
    embed_images,
    embed_texts,
    ranks,
    recalls,
    retrieval,
    shapes_report,
    zero_shot,
)
from miniclip.model import CLIP


def by_hand(images, texts, owner):
    """Ranks, one query at a time: 1 + how many wrong answers score at least as high."""
    scores = images.double() @ texts.double().T
    image_ranks = []
    for i, row in enumerate(scores.tolist()):
        best = max(s for s, o in zip(row, owner) if o == i)
        image_ranks.append(1 + sum(s >= best for s, o in zip(row, owner) if o != i))
    text_ranks = []
    for j, column in enumerate(scores.T.tolist()):
        wrong = [s for i, s in enumerate(column) if i != owner[j]]
        text_ranks.append(1 + sum(s >= column[owner[j]] for s in wrong))
    return image_ranks, text_ranks


def check_ranks(images, texts, owner):
    found = ranks(images, texts, np.array(owner))
    assert [r.tolist() for r in found] == list(by_hand(images, texts, owner))


def random_features(n, owner, d=16, seed=0):
    """Unit vectors, the texts near their images, so that ranks are neither 1 nor chance."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, d, generator=generator)
    texts = images[owner] + 2 * torch.randn(len(owner), d, generator=generator)
    return F.normalize(images, dim=1), F.normalize(texts, dim=1)


# ------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("n", [1, 2, 30])
def test_ranks_against_brute_force(n):
    owner = [i for i in range(n) for _ in range(5)]
    images, texts = random_features(n, owner)
    check_ranks(images, texts, owner)
    if n == 30:
        assert len(set(ranks(images, texts, np.array(owner))[1].tolist())) > 5


small_int = st.integers(-1, 1).map(float)


@given(data=st.data())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_ranks_with_ties_and_any_number_of_captions(data):
    """Small whole numbers: sums are exact, and most scores are shared."""
    counts = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    owner = data.draw(st.permutations([i for i, count in enumerate(counts) for _ in range(count)]))
    vector = st.lists(small_int, min_size=2, max_size=2)
    images = torch.tensor([data.draw(vector) for _ in counts])
    texts = torch.tensor([data.draw(vector) for _ in owner])
    before = evaluate.CHUNK_FLOATS
    try:
        evaluate.CHUNK_FLOATS = data.draw(st.sampled_from([1, 7, 30, before]))
        check_ranks(images, texts, owner)
    finally:
        evaluate.CHUNK_FLOATS = before


def test_a_model_that_says_the_same_of_everything_comes_last():
    owner = np.repeat(np.arange(8), 5)
    same = F.normalize(torch.randn(1, 192, generator=torch.Generator().manual_seed(0)), dim=1)
    image_ranks, text_ranks = ranks(same.expand(8, -1), same.expand(40, -1), owner)
    assert image_ranks.tolist() == [1 + 35] * 8  # every wrong caption stands before its own
    assert text_ranks.tolist() == [8] * 40


@pytest.mark.parametrize("floats", [1, 160, 301, 2**25])
def test_a_caption_that_two_images_share_is_a_tie(floats, monkeypatch):
    """Also where a chunk ends: BLAS may sum a single row in another order than many."""
    monkeypatch.setattr(evaluate, "CHUNK_FLOATS", floats)
    for seed in range(10):
        d = (3, 64, 192, 768)[seed % 4]
        owner = np.arange(50) // 2
        images, texts = random_features(25, owner, d=d, seed=seed)
        texts[2::2] = texts[0]  # the first caption of every image is the same
        texts[3::2] = texts[1]
        image_ranks, text_ranks = ranks(images, texts, owner)
        # Whichever of the two is the better one, 24 others have it too, and perhaps both are.
        assert set(image_ranks.tolist()) == {25}
        assert sorted(text_ranks[::2].tolist()) == list(range(1, 26))
    twins = torch.cat([images, images])  # every image twice: its copy stands before it
    _, text_ranks = ranks(twins, torch.cat([texts, texts]), np.arange(100) // 2)
    assert text_ranks.min() == 2


@pytest.mark.parametrize("floats", [1, 100, 777, 5000])
def test_chunks_change_nothing(floats, monkeypatch):
    owner = np.random.default_rng(0).permutation(np.arange(150) % 41)
    images, texts = random_features(41, owner)
    whole = ranks(images, texts, owner)
    monkeypatch.setattr(evaluate, "CHUNK_FLOATS", floats)
    for a, b in zip(whole, ranks(images, texts, owner), strict=True):
        assert a.tolist() == b.tolist()


def test_memory_stays_within_a_chunk(monkeypatch):
    """2,000 images and 10,000 captions: 20 million scores, never many of them at once."""
    monkeypatch.setattr(evaluate, "CHUNK_FLOATS", 2**18)

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, arguments=(), options=None):
            out = function(*arguments, **(options or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.size = max(self.size, tensor.numel())
            return out

    owner = np.repeat(np.arange(2000), 5)
    images, texts = random_features(2000, owner, d=2)
    with Largest() as largest:
        image_ranks, text_ranks = ranks(images, texts, owner)
    assert 2**17 < largest.size <= 2**18
    assert len(image_ranks) == 2000 and len(text_ranks) == 10_000


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_features_that_are_no_numbers_are_refused(bad):
    good, broken = torch.eye(3), torch.eye(3)
    broken[1, 2] = bad
    for images, texts in ((good, broken), (broken, good)):
        with pytest.raises(ValueError, match="NaN or infinite values"):
            ranks(images, texts, np.arange(3))


def test_an_image_without_a_caption_is_refused():
    with pytest.raises(ValueError, match="every image needs at least one caption"):
        ranks(torch.eye(3), torch.eye(3), np.array([0, 1, 1]))


def test_recalls_are_percent_and_the_median_a_rank():
    found = recalls(torch.tensor([1, 2, 5, 6, 10, 11, 1, 1, 200, 3]))
    assert found == {"R@1": 30, "R@5": 60, "R@10": 80, "median_rank": 4}
    assert recalls(torch.tensor([1, 7, 30]))["R@1"] == 33.3333
    assert recalls(torch.tensor([1, 7, 30]))["median_rank"] == 7


# ------------------------------------------------------------------------------- whole models


class Stub(torch.nn.Module):
    """A model that looks features up: an image of gray level i is row i, a text "i" row i."""

    def __init__(self, images, texts):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.images, self.texts, self.sizes = images, texts, []

    def look_up(self, table, index, normalize):
        self.sizes.append(len(index))
        return F.normalize(table[index], dim=1) if normalize else table[index]

    def encode_image(self, pixels, normalize=False):
        gray = (pixels[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
        return self.look_up(self.images, gray.round().long(), normalize)

    def encode_text(self, tokens, normalize=False):
        return self.look_up(self.texts, tokens[:, 0], normalize)


def stub_tokenizer(texts):
    """ "a photo of 7" → [[7]]"""
    return torch.tensor([[int("".join(filter(str.isdigit, text)))] for text in texts])


def gray_images(levels, size=4):
    levels = np.asarray(levels, np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), size, size, 3))


def stub(n=40, m=200, d=8):
    generator = torch.Generator().manual_seed(3)
    return Stub(torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator))


def test_embedding_keeps_the_order_and_the_batch_size():
    model = stub()
    levels = list(range(40))[::-1]
    found = embed_images(model, gray_images(levels), batch_size=16)
    torch.testing.assert_close(found, F.normalize(model.images, dim=1)[levels])
    assert model.sizes == [16, 16, 8] and not found.requires_grad
    model.sizes.clear()
    found = embed_texts(model, stub_tokenizer, [str(i) for i in range(33)], batch_size=16)
    torch.testing.assert_close(found, F.normalize(model.texts, dim=1)[:33])
    assert model.sizes == [16, 16, 1] and found.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"])
def test_features_have_length_1_in_any_precision(dtype):
    """Norms are taken in float32, whatever the model computes in."""
    config = replace(MODELS["tiny"], image_size=16, vision_width=48, text_width=48, embed_dim=16)
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0)).eval()
    tokens = torch.randint(1, 500, (9, 12), generator=torch.Generator().manual_seed(1))
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    exact = embed_images(model, images), embed_texts(model, lambda texts: tokens, ["a"] * 9)
    model = model if dtype == "autocast" else model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        found = embed_images(model, images), embed_texts(model, lambda texts: tokens, ["a"] * 9)
    for features, expected in zip(found, exact):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(9))
        torch.testing.assert_close(features, expected, rtol=0, atol=0.03)
        assert not features.equal(expected)


def test_retrieval_gives_the_json_that_others_read():
    model = stub()
    captions = [[str(5 * i + j) for j in range(1 + i % 5)] for i in range(40)]
    model.texts[::5] += 2 * model.images  # the first caption of each image is near it
    pairs = Pairs(gray_images(range(40)), captions, "planted", "")
    found = json.loads(json.dumps(retrieval(model, stub_tokenizer, pairs)))
    assert list(found) == ["image_to_text", "text_to_image", "images", "captions"]
    assert (found["images"], found["captions"]) == (40, sum(map(len, captions)))
    owner = [i for i, texts in enumerate(captions) for _ in texts]
    texts = model.texts[[int(text) for texts in captions for text in texts]]
    expected = by_hand(F.normalize(model.images, dim=1), F.normalize(texts, dim=1), owner)
    for way, each in zip(("image_to_text", "text_to_image"), expected, strict=True):
        assert list(found[way]) == ["R@1", "R@5", "R@10", "median_rank"]
        for k in (1, 5, 10):
            share = sum(rank <= k for rank in each) / len(each)
            assert found[way][f"R@{k}"] == pytest.approx(100 * share, abs=0.01)
        assert found[way]["median_rank"] == np.median(each)
    assert 5 < found["text_to_image"]["R@1"] < 95


def test_a_diverged_model_is_not_given_figures():
    model = stub()
    model.images[3] = torch.nan
    pairs = Pairs(gray_images(range(40)), [[str(i)] for i in range(40)], "planted", "")
    with pytest.raises(ValueError, match="diverged"):
        retrieval(model, stub_tokenizer, pairs)


def test_threads_have_the_next_while_the_caller_has_these():
    """In order, every item once, never more than two portions ahead; a stop leaves none waiting."""
    done, began = [], threading.Event()

    def double(x):
        done.append(x)
        if x == 3:
            began.set()
        return 2 * x

    portions = evaluate.in_threads(double, iter(range(8)), 3)
    assert next(portions) == [0, 2, 4]
    assert began.wait(30) and max(done) <= 5  # 3 to 5 come without being asked for
    assert [*portions] == [[6, 8, 10], [12, 14]] and sorted(done) == [*range(8)]
    assert [*evaluate.in_threads(double, iter(()), 3)] == []

    done, released = [], threading.Event()

    def slow(x):
        done.append(x)
        return x < 50 or released.wait(30)

    portions = evaluate.in_threads(slow, iter(range(100)), 50)
    next(portions)
    threading.Timer(0.2, released.set).start()
    portions.close()  # as when Ctrl-C ends the caller's loop
    assert len(done) <= 50 + os.cpu_count()


def test_class_vectors_normalise_average_normalise():
    """Vectors of very different lengths: each template has one vote."""
    model = stub()
    model.texts *= torch.logspace(-2, 2, 200)[:, None]
    found = class_vectors(model, stub_tokenizer, ["3", "4"], ["{}", "1{} of them", "{}0 here"])
    for vector, rows in zip(found, ([3, 13, 30], [4, 14, 40]), strict=True):
        mean = sum(model.texts[row] / model.texts[row].norm() for row in rows) / 3
        torch.testing.assert_close(vector, mean / mean.norm())
    assert len(class_vectors(model, stub_tokenizer, ["5"])) == 1  # with templates of its own


def test_zero_shot_counts_the_nearest_class():
    model = Stub(torch.eye(10), torch.eye(10))
    names = [str(i) for i in range(10)]
    images, labels = gray_images([0, 1, 2, 3, 9, 9, 7]), np.array([0, 1, 2, 3, 9, 8, 0])
    assert zero_shot(model, stub_tokenizer, images, labels, names) == round(100 * 5 / 7, 2)
    assert zero_shot(model, stub_tokenizer, images[:5], labels[:5], names) == 100
    # The order of the names is the numbering of the labels.
    assert zero_shot(model, stub_tokenizer, images[:1], np.array([9]), names[::-1]) == 100


def test_the_report_on_shapes(monkeypatch):
    """Planted: a model that knows every class but those of sketches, and no relation."""
    names = evaluate.shapes.class_names()
    asked = []

    def held_out_set(per_class, seed, style="plain"):
        asked.append(style)
        labels = np.array([3, 50, 99])
        return gray_images(labels + (style == "sketch"), 64), labels

    def relation_set(n, seed):
        return gray_images([1, 2, 3, 4], 64), ["1", "2", "9", "8"], ["9", "8", "3", "7"]

    monkeypatch.setattr(evaluate.shapes, "held_out_set", held_out_set)
    monkeypatch.setattr(evaluate.shapes, "relation_set", relation_set)
    numbers = {f"a {name}": i for i, name in enumerate(names)}
    monkeypatch.setattr(evaluate, "class_vectors", lambda model, tokenizer, given: torch.eye(101)[
        [numbers[f"a {name}"] for name in given]])
    model = Stub(torch.eye(101), torch.eye(101))
    model.config = type("Config", (), {"image_size": 32})
    report = shapes_report(model, stub_tokenizer)
    assert asked == list(evaluate.shapes.STYLES) == list(report["held_out"])
    assert report["held_out"].pop("sketch") == 0
    assert set(report["held_out"].values()) == {100}
    assert report["relations"] == 50  # right, right, wrong, and a tie, which is wrong too
