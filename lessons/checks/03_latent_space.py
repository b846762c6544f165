"""Checks of exercise 3."""

import math

import numpy as np

QUERY = np.array([2.0, 0.0])
ITEMS = np.array([[3.0, 3.0], [0.5, 0.0], [0.0, 4.0], [-1.0, 0.0]])  # 45°, 0°, 90°, 180°
TRUTH = np.array([math.sqrt(0.5), 1.0, 0.0, -1.0])


def check_cosines(answer):
    """cosines gives 0.71, 1, 0, −1 for angles of 45°, 0°, 90°, 180°"""
    found = answer.cosines(QUERY, ITEMS)
    found = np.asarray(found)
    assert found.shape == (4,), f"four items should give shape (4,), not {found.shape}"
    assert not np.allclose(found, ITEMS @ QUERY), (
        "these are dot products: divide by both lengths")
    assert not np.allclose(found, ITEMS @ QUERY / 2), (
        "divided by the query's length alone: long items still win, divide by theirs as well")
    assert not np.allclose(found, ITEMS @ QUERY / np.linalg.norm(ITEMS, axis=1)), (
        "divided by the items' lengths alone: divide by the query's as well, or it is no cosine")
    assert not np.allclose(found, ITEMS @ QUERY / (np.linalg.norm(ITEMS) * 2)), (
        "np.linalg.norm(items) is one number for the whole matrix: give it axis=1")
    assert np.allclose(found, TRUTH), (
        f"for items at 45°, 0°, 90° and 180° it should be {TRUTH.round(2)}, not {found.round(2)}")


def check_length_changes_no_cosine(answer):
    """a vector made 1,000 times longer, or shorter, keeps its cosine"""
    rng = np.random.default_rng(0)
    query, items = rng.normal(size=64), rng.normal(size=(9, 64))
    before = answer.cosines(query, items)
    longer = items * np.array([1000, 1e-3, 1, 1, 1, 1, 1, 1, 1])[:, None]
    assert np.allclose(answer.cosines(query, longer), before), (
        "items 0 and 1 changed their length, not their direction; their cosines changed: "
        "divide each by its own length, once and not squared")
    assert np.allclose(answer.cosines(1000 * query, items), before), (
        "the query changed its length, not its direction: divide by its length as well")


def check_ranking(answer):
    """ranking names the nearest item first"""
    found = np.asarray(answer.ranking(QUERY, ITEMS)).tolist()
    assert found != [3, 2, 0, 1], "that is the farthest first: np.argsort sorts upwards"
    assert found != [0, 1, 2, 3], (
        "item 0 is longest, not nearest; rank by the cosine and not by the dot product")
    assert found == [1, 0, 2, 3], (
        f"angles of 45°, 0°, 90° and 180° should give [1, 0, 2, 3], not {found}")


def check_ranking_gives_items_not_places(answer):
    """ranking holds the items' numbers in order, not each item's place"""
    angles = np.radians([90, 10, 60, 20])  # in order: items 1, 3, 2, 0; their places: 3, 0, 2, 1
    found = np.asarray(answer.ranking(QUERY, np.stack([np.cos(angles), np.sin(angles)], 1)))
    assert found.tolist() != [3, 0, 2, 1], (
        "these are the places of items 0, 1, 2, 3; wanted are the items, nearest first: "
        "[1, 3, 2, 0]. One argsort is enough")
    assert found.tolist() == [1, 3, 2, 0], (
        f"angles of 90°, 10°, 60° and 20° should give [1, 3, 2, 0], not {found.tolist()}")


def check_length_changes_no_ranking(answer):
    """the longest item does not win"""
    rng = np.random.default_rng(1)
    query, items = rng.normal(size=64), rng.normal(size=(20, 64))
    before = np.asarray(answer.ranking(query, items))
    lengths = np.exp(rng.normal(size=20) * 3)[:, None]
    assert (np.asarray(answer.ranking(query, lengths * items)) == before).all(), (
        "the same directions with other lengths should be ranked alike: rank by the cosine")


def dot_products(query, items):
    return items @ query


def by_the_square(query, items):
    return items @ query / (items**2).sum(axis=1) / np.linalg.norm(query)


def length_of_the_matrix(query, items):
    return items @ query / (np.linalg.norm(items) * np.linalg.norm(query))


def _cosines(query, items):
    return items @ query / np.linalg.norm(items, axis=1)


def farthest_first(query, items):
    return np.argsort(_cosines(query, items))


def places(query, items):
    return np.argsort(np.argsort(-_cosines(query, items)))


def by_dot_product(query, items):
    return np.argsort(-(items @ query))


WRONG = {
    "a dot product for a cosine": ({"cosines": dot_products}, "divide by both lengths"),
    "divided by the length squared": ({"cosines": by_the_square}, "not squared"),
    "one length for all items": ({"cosines": length_of_the_matrix}, "axis=1"),
    "sorted upwards": ({"ranking": farthest_first}, "farthest first"),
    "ranked by dot product": ({"ranking": by_dot_product}, "not by the dot product"),
    "places for items": ({"ranking": places}, "One argsort"),
}
