"""Tests of reference.py: the formula in plain Python loops, and central differences.

Everything else is compared with the reference, so the reference is compared with no project code.
"""

import math

import numpy as np
import pytest
from miniclip_kernels.reference import logsumexp, loss_and_gradients

# M, N, label_offset, direction
SHAPES = [(1, 1, 0, "both"), (2, 2, 0, "both"), (5, 5, 0, "both"), (5, 5, 0, "rows"),
          (1, 4, 2, "rows"), (3, 7, 0, "rows"), (3, 7, 4, "rows")]
IDS = [None, ([1, 1, 2, 3, 1], [1, 1, 2, 3, 1, 1, 2])]
every_case = pytest.mark.parametrize("M, N, offset, direction", SHAPES)
with_and_without_ids = pytest.mark.parametrize("ids", IDS, ids=["plain", "ids"])


def loop(I, T, s, offset, direction, image_ids=None, text_ids=None):  # noqa: E741
    """The loss in words: for every question, minus the logarithm of the right answer's odds.

    A question is an image among the texts, or a text among the images. Wrong answers that show the
    same image are left out.
    """
    def similarity(i, j):
        return s * sum(I[i][d] * T[j][d] for d in range(len(I[0])))

    def counts(i, j):
        return j == i + offset or image_ids is None or image_ids[i] != text_ids[j]

    M, N, total = len(I), len(T), 0.0
    for i in range(M):
        odds = sum(math.exp(similarity(i, j)) for j in range(N) if counts(i, j))
        total -= math.log(math.exp(similarity(i, i + offset)) / odds) / M
    if direction == "rows":
        return total
    for j in range(N):
        odds = sum(math.exp(similarity(i, j)) for i in range(M) if counts(i, j))
        total -= math.log(math.exp(similarity(j, j)) / odds) / N
    return total / 2


def some(M, N, offset, ids, seed=0):
    """Features (M, 3) and (N, 3) of any length, and the ids cut to size."""
    rng = np.random.default_rng(seed)
    cut = () if ids is None else (ids[0][:M], ids[1][:N])
    return rng.normal(size=(M, 3)), rng.normal(size=(N, 3)), [np.array(x) for x in cut]


def slopes(function, array, step=1e-5):
    """The gradient of a function of one array by central differences."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


@every_case
@with_and_without_ids
@pytest.mark.parametrize("s", [0.1, 2.0])
def test_the_loss_is_the_loops(M, N, offset, direction, ids, s):
    I, T, cut = some(M, N, offset, ids)  # noqa: E741
    found = loss_and_gradients(I, T, s, offset, direction, *cut)[0]
    assert found == pytest.approx(loop(I, T, s, offset, direction, *cut), rel=1e-12, abs=1e-12)


@every_case
@with_and_without_ids
def test_gradients_are_the_slopes(M, N, offset, direction, ids):
    I, T, cut = some(M, N, offset, ids, seed=1)  # noqa: E741
    s, rest = np.array(1.7), (offset, direction, *cut)
    _, dI, dT, ds = loss_and_gradients(I, T, s, *rest)
    for found, expected in [
            (dI, slopes(lambda x: loss_and_gradients(x, T, s, *rest)[0], I)),
            (dT, slopes(lambda x: loss_and_gradients(I, x, s, *rest)[0], T)),
            (ds, slopes(lambda x: loss_and_gradients(I, T, x, *rest)[0], s))]:
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


def test_ids_leave_something_out():
    """Otherwise the cases with ids above would be the same as those without."""
    I, T, cut = some(3, 7, 4, IDS[1])  # noqa: E741
    assert abs(loss_and_gradients(I, T, 2.0, 4, "rows", *cut)[0]
               - loss_and_gradients(I, T, 2.0, 4, "rows")[0]) > 0.1


def test_the_arguments_are_left_alone():
    given = I, T, ids = some(5, 5, 0, IDS[1])  # noqa: E741
    before = [np.copy(x) for x in (*given[:2], *ids)]
    loss_and_gradients(I, T, 2.0, 0, "both", *ids)
    assert all((x == y).all() for x, y in zip((I, T, *ids), before, strict=True))


@pytest.mark.parametrize("top", [-1e6, 0, 1e6])
def test_logsumexp_of_large_numbers(top):
    S = top + np.log(np.array([[1.0, 2.0, 5.0], [1.0, 1.0, 1.0]]))
    np.testing.assert_allclose(logsumexp(S, 1) - top, np.log([8, 3]), atol=1e-9)
    np.testing.assert_allclose(logsumexp(S, 0) - top, np.log([2, 3, 6]), atol=1e-9)


def test_what_is_left_out_may_be_minus_infinity():
    assert logsumexp(np.array([[-np.inf, 0.0], [3.0, -np.inf]]), 1).tolist() == [0, 3]


def test_large_similarities_give_numbers():
    I, T, _ = some(5, 5, 0, None)  # noqa: E741
    assert all(np.isfinite(x).all() for x in loss_and_gradients(1000 * I, 1000 * T, 100.0))
