"""Classes read from captions: the rule, case by case, and balanced sets."""

import doctest

import numpy as np
import pytest

from miniclip.data import caption_classes
from miniclip.data.caption_classes import NAMES, balanced_examples, class_of, parted
from miniclip.data.pairs import Pairs


def test_the_examples():
    assert doctest.testmod(caption_classes).failed == 0


@pytest.mark.parametrize("captions, expected", [
    (["A dog runs ."] * 3 + ["An animal ."] * 2, "dog"),
    (["A dog runs ."] * 2 + ["An animal ."] * 3, None),  # two of five are too few
    (["A dog and a man ."] * 5, "dog"),  # a thing goes before the person who holds it
    (["A man on a bike ."] * 3 + ["A man ."] * 2, "bicycle"),
    (["A man on a bike ."] * 2 + ["A man ."] * 3, None),  # is it the bicycle or the man?
    (["A dog on a bicycle ."] * 5, None),
    (["A man walks ."] * 4 + ["A boy walks ."], None),  # they don't agree who it is
    (["A man walks ."] * 3 + ["Somebody walks ."] * 2, "man"),
    (["Two women talk ."] * 3 + ["Ladies ."] * 2, "woman"),
    (["A girl ."] * 5, "girl"), (["A boyish girl ."] * 5, "girl"), (["Mango ."] * 5, None),
    (["A Puppy!"] * 5, "dog"), (["A child ."] * 5, None)])
def test_the_rule(captions, expected):
    assert class_of(captions) == expected


def pairs_of(counts):
    captions = [[f"a {name}"] * 5 for name, n in counts.items() for _ in range(n)]
    order = np.random.default_rng(0).permutation(len(captions))
    images = np.zeros((len(captions), 4, 4, 3), np.uint8)
    images[:, 0, 0, 0] = order
    return Pairs(images, [captions[i] for i in order], "some pairs", "")


def test_each_class_has_as_many_as_the_rarest():
    pairs = pairs_of(dict.fromkeys(NAMES, 9) | {"bicycle": 4, "tree": 5})
    examples = balanced_examples(pairs, seed=0)
    assert np.bincount(examples.labels).tolist() == [4] * 6 and examples.names == NAMES
    for image, captions, label in zip(examples.images, examples.captions, examples.labels):
        assert captions == [f"a {NAMES[label]}"] * 5
        assert pairs.captions[pairs.images[:, 0, 0, 0].tolist().index(image[0, 0, 0])] == captions
    again = balanced_examples(pairs, seed=0)
    assert (again.images == examples.images).all()


def test_a_missing_class_is_named():
    with pytest.raises(ValueError, match="some pairs: by its captions no image shows a bicycle"):
        balanced_examples(pairs_of({"dog": 3, "man": 3}), seed=0)


def test_parts_share_nothing_and_lose_nothing():
    examples = balanced_examples(pairs_of(dict.fromkeys(NAMES, 5)), seed=0)
    most, few = parted(examples, 0.2, seed=1)
    assert (len(most.labels), len(few.labels)) == (24, 6)
    marks = np.concatenate([most.images, few.images])[:, 0, 0, 0]
    assert sorted(marks) == sorted(examples.images[:, 0, 0, 0])
    assert all(c == [f"a {NAMES[label]}"] * 5 for c, label in zip(few.captions, few.labels))
