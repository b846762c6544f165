"""Checks of exercise 7."""

import math
from collections import Counter

import numpy as np

# Row 1 prefers sentence 2; in every column the diagonal is the largest.
C = np.array([[0.8, 0.1, 0.2, 0.0],
              [0.1, 0.5, 0.6, 0.1],
              [0.0, 0.3, 0.7, 0.2],
              [0.1, 0.0, 0.1, 0.9]])
BATCH = ["a red ring", "a car", "a red ring", "a cat", "a red ring", "a car", "a bird", "a plane"]


def by_hand(C):
    wins = sum(all(C[i, i] > C[i, j] for j in range(len(C)) if j != i) for i in range(len(C)))
    return wins / len(C)


def compare(accuracy, C, right, other, what):
    name, found = f"{what}_accuracy", accuracy(C.copy())  # its own: it may be written to
    assert not math.isclose(found, other) or math.isclose(right, other), (
        f"that is the other question: {name} compares the entries of one {what} "
        f"(axis={int(what == 'row')}) with each other")
    assert math.isclose(found, right), f"it should be {right}, not {found}, for\n{C}"


def check_rows(answer):
    """row_accuracy: given an image, its own sentence is the closest"""
    compare(answer.row_accuracy, C, 0.75, 1.0, "row")
    compare(answer.row_accuracy, C.T, 1.0, 0.75, "row")


def check_columns(answer):
    """column_accuracy: given a sentence, its own image is the closest"""
    compare(answer.column_accuracy, C, 1.0, 0.75, "column")
    compare(answer.column_accuracy, C.T, 0.75, 1.0, "column")


def check_ties(answer):
    """a tie with a rival is wrong, in rows and in columns"""
    for name in ("row_accuracy", "column_accuracy"):
        accuracy = getattr(answer, name)
        for n in (2, 8):
            found = accuracy(np.full((n, n), 0.3))
            assert found == 0, (
                f"a model that says 0.3 of everything has found nothing, but {name} gives {found}: "
                "argmax and >= count a tie as right; the own entry must be *larger* than each "
                "of the others")
        twins = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.8], [0.0, 0.8, 0.8]])
        found = accuracy(twins)
        assert math.isclose(found, 1 / 3), (
            f"with two equal pairs in three only one is found; {name} gives {found}")


def check_any_matrix(answer):
    """both agree with a count by hand on random matrices, negative cosines included"""
    for seed in range(5):
        random = np.random.default_rng(seed).uniform(-1, 1, size=(7, 7)) + np.eye(7)
        for found, right in ((answer.row_accuracy(random.copy()), by_hand(random)),
                             (answer.column_accuracy(random.copy()), by_hand(random.T))):
            assert math.isclose(found, right), f"it should be {right}, not {found}"
    assert answer.row_accuracy(np.eye(3) - 1) == 1, "cosines may be negative: compare them"


def check_least_loss(answer):
    """least_loss: each pair whose sentence comes k times costs ln k"""
    times = Counter(BATCH)
    total = sum(math.log(times[sentence]) for sentence in BATCH)
    found = answer.least_loss(BATCH)
    assert not math.isclose(found, total), "that is the sum; the loss is a mean over the N pairs"
    assert not math.isclose(found, sum(map(math.log, times.values())) / len(BATCH)), (
        "ln k is paid by each of the k pairs, not once for each different sentence")
    assert not math.isclose(found, sum(map(math.log, times.values())) / len(times)), (
        "the mean goes over the 8 pairs, not over the 5 different sentences")
    assert math.isclose(found, total / len(BATCH)), (
        f"three, two and three single sentences: (3 ln 3 + 2 ln 2) / 8 = {total / len(BATCH):.4f}, "
        f"not {found:.4f}")


def check_extremes(answer):
    """different sentences: nothing to pay; all the same: ln N, a blind guess"""
    assert answer.least_loss(["a", "b", "c"]) == 0, "three different sentences can be told apart: 0"
    assert math.isclose(answer.least_loss(["a"] * 6), math.log(6)), (
        "six equal sentences leave nothing but a blind guess: ln 6")


def loosely(C):
    return float((C >= C.max(axis=1, keepdims=True)).diagonal().mean())


WRONG = {
    "rows and columns exchanged": (
        {"row_accuracy": lambda C: by_hand(C.T), "column_accuracy": by_hand}, "other question"),
    "argmax takes the first of a tie": (
        {"row_accuracy": lambda C: float((C.argmax(1) == np.arange(len(C))).mean())}, "argmax"),
    "a tie counts as right": ({"row_accuracy": loosely}, "argmax and >="),
    "ln k once per different sentence": (
        {"least_loss": lambda sentences: sum(
            math.log(k) for k in Counter(sentences).values()) / len(sentences)}, "each of the k"),
    "the sum for the mean": (
        {"least_loss": lambda sentences: sum(
            math.log(sentences.count(sentence)) for sentence in sentences)}, "the sum"),
}
