"""Checks of exercise 1."""

import math

import numpy as np

LABELS = np.array([2, 0, 2, 1])
POINTS = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0], [-6.0, 8.0]])


def check_one_hot(answer):
    """one_hot puts a single 1 where the label says"""
    found = answer.one_hot(LABELS, 5)
    found = np.asarray(found)
    assert found.shape != (5, 4), "that is (classes, B): a row for each label is wanted"
    assert found.shape[1:] != (3,), (
        "as many columns as there are *classes*, not as many as occur here: 5 are asked for")
    assert found.shape == (4, 5), f"4 labels of 5 classes should give (4, 5), not {found.shape}"
    assert (found.sum(axis=1) == 1).all() and ((found == 0) | (found == 1)).all(), (
        "each row should hold one 1 and else zeros")
    assert (found.argmax(axis=1) == LABELS).all(), (
        f"the ones should stand at {LABELS}; they stand at {found.argmax(axis=1)}")


def check_distances(answer):
    """distances gives the Euclidean distance of every two rows"""
    with np.errstate(invalid="ignore"):
        found = answer.distances(POINTS)
    found = np.asarray(found)
    assert found.shape == (4, 4), f"four points should give (4, 4), not {found.shape}"
    assert not np.isnan(found).any(), (
        "NaN: |a|² + |b|² − 2ab can come out a hair below 0; clip it at 0 before the root")
    assert not math.isclose(found[0, 1], 25), "that is the distance squared: take the root"
    assert not math.isclose(found[0, 1], 7), (
        "that is the sum of the differences' sizes; Euclid takes the root of the sum of squares")
    assert not math.isclose(found[0, 1], 4), (
        "that is the largest difference; Euclid takes the root of the sum of squares")
    assert np.allclose(found[0], [0, 5, 3, 10], atol=1e-6), (
        f"from (0, 0) to (3, 4), (3, 0) and (−6, 8) it is 5, 3 and 10; not {found[0, 1:]}")
    assert np.allclose(found, found.T, atol=1e-6), "from a to b is as far as from b to a"


def check_distances_are_numbers(answer):
    """a row is at distance 0 from itself, never NaN, whatever the rounding"""
    X = np.random.default_rng(0).normal(size=(50, 128))
    with np.errstate(invalid="ignore"):
        found = np.diag(answer.distances(X))
    assert not np.isnan(found).any(), (
        "NaN: |a|² + |b|² − 2ab can come out a hair below 0; clip it at 0 before the root")
    assert np.allclose(found, 0, atol=1e-5), "the diagonal should be 0"


def check_all_labels_are_root_2_apart(answer):
    """different labels are all √2 apart, equal ones 0, in 3 classes and in 1,000"""
    for classes in (3, 1000):
        labels = np.array([0, 1, 2, 2, classes - 1])
        with np.errstate(invalid="ignore"):
            found = answer.distances(answer.one_hot(labels, classes))
        truth = np.where(labels[:, None] == labels, 0, math.sqrt(2))
        assert np.allclose(found, truth, atol=1e-6), (
            f"of labels {labels} it should be √2 = 1.4142 between different ones and 0 between "
            f"equal ones; the first row is {np.round(found[0], 4)}")


def as_many_columns_as_occur(labels, classes):
    return np.eye(labels.max() + 1)[labels]


def a_column_for_each_label(labels, classes):
    return np.eye(classes)[labels].T


def squared(X):
    return ((X[:, None] - X[None]) ** 2).sum(axis=2)


def city_blocks(X):
    return np.abs(X[:, None] - X[None]).sum(axis=2)


def root_of_a_negative(X):
    squares = (X**2).sum(axis=1)
    return np.sqrt(squares[:, None] + squares - 2 * X @ X.T - 1e-12)  # as rounding may have it


WRONG = {
    "classes counted in the batch": ({"one_hot": as_many_columns_as_occur}, "as many columns"),
    "rows and columns exchanged": ({"one_hot": a_column_for_each_label}, "(classes, B)"),
    "the root forgotten": ({"distances": squared}, "take the root"),
    "Manhattan for Euclid": ({"distances": city_blocks}, "root of the sum of squares"),
    "the root of a tiny negative": ({"distances": root_of_a_negative}, "NaN"),
}
