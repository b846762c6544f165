"""Ranks against brute force, ties, chunks, and planted models."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import gray_images, stub, stub_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode

from miniclip.data.pairs import Pairs
from miniclip.tasks.retrieval import ranks, recalls, retrieval


def by_hand(images, texts, owner, sentences=None):
    """Ranks, one query at a time: 1 + how many wrong answers score at least as high."""
    scores, names = images.double() @ texts.double().T, sentences or range(len(texts))
    right = {(o, name) for o, name in zip(owner, names)}  # an image, a sentence that it has
    ranked = []
    for rows, belong in ((scores, lambda i, j: (i, names[j]) in right),
                         (scores.T, lambda j, i: (i, names[j]) in right)):
        ranked.append([])
        for query, row in enumerate(rows.tolist()):
            best = max(s for answer, s in enumerate(row) if belong(query, answer))
            ranked[-1].append(1 + sum(s >= best for answer, s in enumerate(row)
                                      if not belong(query, answer)))
    return tuple(ranked)


def check_ranks(images, texts, owner, sentences=None):
    given = None if sentences is None else np.array(sentences)
    found = ranks(images, texts, np.array(owner), given)
    assert [r.tolist() for r in found] == list(by_hand(images, texts, owner, sentences))


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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("miniclip.tasks.retrieval.CHUNK_FLOATS",
                      data.draw(st.sampled_from([1, 7, 30, 2**24])))
        check_ranks(images, texts, owner)
        check_ranks(images, texts, owner, data.draw(
            st.lists(st.integers(0, 3), min_size=len(owner), max_size=len(owner))))


def test_an_identical_sentence_is_a_right_answer():
    """800 images captioned with four colours: a perfect model finds them all."""
    colours = np.arange(800) % 4
    features = torch.eye(4)[colours]
    for found in ranks(features, features, np.arange(800), colours):
        assert set(found.tolist()) == {1}
    for found in ranks(features, features, np.arange(800)):  # as if the sentences differed
        assert set(found.tolist()) == {200}
    confused = features[:, [1, 0, 2, 3]]  # takes red for green and green for red
    image_ranks, text_ranks = ranks(confused, features, np.arange(800), colours)
    assert image_ranks[:4].tolist() == [601, 601, 1, 1] == text_ranks[:4].tolist()


def test_a_model_that_says_the_same_of_everything_comes_last():
    owner = np.repeat(np.arange(8), 5)
    same = F.normalize(torch.randn(1, 192, generator=torch.Generator().manual_seed(0)), dim=1)
    image_ranks, text_ranks = ranks(same.expand(8, -1), same.expand(40, -1), owner)
    assert image_ranks.tolist() == [1 + 35] * 8  # every wrong caption stands before its own
    assert text_ranks.tolist() == [8] * 40


@pytest.mark.parametrize("floats", [1, 160, 301, 2**25])
def test_a_caption_that_two_images_share_is_a_tie(floats, monkeypatch):
    """Also where a chunk ends: BLAS may sum a single row in another order than many."""
    monkeypatch.setattr("miniclip.tasks.retrieval.CHUNK_FLOATS", floats)
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
    monkeypatch.setattr("miniclip.tasks.retrieval.CHUNK_FLOATS", floats)
    for a, b in zip(whole, ranks(images, texts, owner), strict=True):
        assert a.tolist() == b.tolist()


def test_memory_stays_within_a_chunk(monkeypatch):
    """2,000 images and 10,000 captions: 20 million scores, never many of them at once."""
    monkeypatch.setattr("miniclip.tasks.retrieval.CHUNK_FLOATS", 2**18)

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


def test_retrieval_gives_the_json_that_others_read():
    model = stub()
    captions = [[str(5 * i + j) for j in range(1 + i % 5)] for i in range(40)]
    model.texts[::5] += 2 * model.images  # the first caption of each image is near it
    pairs = Pairs(gray_images(range(40)), captions, "planted", "")
    found = json.loads(json.dumps(retrieval(model, stub_tokenizer, pairs)))
    assert list(found) == ["image_to_text", "text_to_image", "images", "captions",
                           "different_captions"]
    assert (found["images"], found["captions"]) == (40, sum(map(len, captions)))
    assert found["different_captions"] == found["captions"]
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
