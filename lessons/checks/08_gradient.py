"""Checks of exercise 8. Nothing here is derived: gradients are compared with slopes of the loss."""

import numpy as np

STEP = 1e-5


def loss_of(S):
    """The loss from S, from its definition."""
    n = np.arange(len(S))
    rows, columns = (np.log(np.exp(X - X.max()).sum(1)) + X.max() - X[n, n] for X in (S, S.T))
    return (rows.mean() + columns.mean()) / 2


def slopes(function, x):
    """All the slopes of a function of one array, or of one number."""
    x = np.asarray(x, float)
    found = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        nudge = np.zeros(x.shape)
        nudge[index] = STEP
        found[index] = (function(x + nudge) - function(x - nudge)) / (2 * STEP)
    return found


def same(found, true):
    return np.shape(found) == np.shape(true) and np.allclose(found, true, rtol=1e-5, atol=1e-8)


def batch(N=4, D=3, s=1.7):
    rng = np.random.default_rng(8)
    return rng.normal(size=(N, D)), rng.normal(size=(N, D)), s


def compare(name, found, true):
    """Equal, or a hint that knows the usual mistakes."""
    assert np.shape(found) == np.shape(true), (
        f"{name} has the shape {np.shape(found)}; it must be {np.shape(true)}")
    assert not same(found, -true), (
        f"the sign of {name} is turned round: it is softmax minus truth, P − δ, not δ − P")
    ratio = np.sum(found * true) / np.sum(true * true)
    assert np.ndim(true) == 0 or not same(found, ratio * true) or same(found, true), (
        f"{name} is right but for a factor: it is {ratio:.3g} times what it should be. Each "
        "direction is a mean over N questions, and the loss half of both (here N = 4, s = 1.7)")
    assert same(found, true), (
        f"{name} does not agree with the slopes of the loss: its first entries are "
        f"{np.ravel(found)[:3].round(4)}, the slopes {np.ravel(true)[:3].round(4)}")


def check_force(answer):
    """force(S) is the slope of the loss in every entry of S"""
    I, T, s = batch()  # noqa: E741
    S = s * I @ T.T
    found, true = answer.force(S), slopes(loss_of, S)
    for factor in (0.5, 1, 2, 4):
        assert not same(found, factor * only_rows(S)), (
            "only the rows: every column asks a question too, and gives Q − δ")
    compare("G", found, true)


def check_large_similarities(answer):
    """force(S) stays finite for similarities of 1,000"""
    S = np.array([[1000.0, 0.0], [999.0, 1000.0]])
    with np.errstate(over="ignore", invalid="ignore"):
        found = answer.force(S)
    assert np.isfinite(found).all(), (
        "exp(1000) overflows: take the largest of each row, or column, out of it first")
    p = 1 / (1 + np.exp(-1))
    assert np.allclose(found, [[(p - 1) / 4, 0], [(1 - p) / 2, (p - 1) / 4]]), (
        f"for S = {S.tolist()} it should be about [[−0.067, 0], [0.134, −0.067]]")
    S = np.array([[1000.0, 0.0], [0.0, 0.0]])
    with np.errstate(under="ignore", invalid="ignore"):
        found = answer.force(S)
    assert np.allclose(found, [[0, 0.125], [0.125, -0.25]]), (
        f"for S = {S.tolist()} it should be [[0, 0.125], [0.125, −0.25]]: all of row 1 vanishes if "
        "the largest of the whole matrix is taken out; take that of its row, or column")


def check_features(answer):
    """gradients gives ∂L/∂I and ∂L/∂T: the slopes in every feature"""
    I, T, s = batch()  # noqa: E741
    found = answer.gradients(I, T, s)
    assert len(found) == 3, "gradients returns three things: dI, dT, ds"
    true = slopes(lambda x: loss_of(s * x @ T.T), I), slopes(lambda x: loss_of(s * I @ x.T), T)
    G = slopes(loss_of, s * I @ T.T)
    assert not same(found[1], s * G @ I), (
        "dT = s · Gᵀ I, not s · G I: text j stands in column j, so it adds up a column of G")
    assert not same(found[0], G @ T), (
        "dI lacks the factor s: S = s · I Tᵀ, so a feature feels S with slope s · T")
    compare("dI", found[0], true[0])
    compare("dT", found[1], true[1])


def check_scale(answer):
    """gradients gives ∂L/∂s: the slope in the multiplier"""
    I, T, s = batch()  # noqa: E741
    found, true = answer.gradients(I, T, s)[2], slopes(lambda x: loss_of(x * I @ T.T), s)
    assert not same(found, s * true), (
        "ds is s times too large: S_ij = s · C_ij has the slope C_ij in s, without s in it")
    compare("ds", found, true)


def check_slope(answer):
    """slope is a central difference, good to h², and leaves x alone"""
    x = np.array([[1.0, 2.0], [3.0, 4.0]])
    found = answer.slope(lambda a: float(np.sum(a**3)), x, (1, 0), 1e-3)
    assert np.array_equal(x, [[1, 2], [3, 4]]), (
        "x was changed: up = x is not a copy but x itself; x.copy() is one")
    assert not np.isclose(found, 54, rtol=1e-3), (
        "twice too large: from x − h to x + h it is a way of 2h, not h")
    assert abs(found - 27) < 1e-4, (
        f"for Σ a³ at a = 3 it should be 27.000001 with h = 10⁻³, not {found:.6f}: a step to one "
        "side only is wrong by about h, one to both sides by h²")


# ------------------------------------------------------------------------------ known mistakes


def softmax(S, axis):
    E = np.exp(S - S.max(axis=axis, keepdims=True))
    return E / E.sum(axis=axis, keepdims=True)


def both(S):
    return (softmax(S, 1) + softmax(S, 0) - 2 * np.eye(len(S))) / (2 * len(S))


def only_rows(S):
    return (softmax(S, 1) - np.eye(len(S))) / len(S)


def one_maximum(S):
    E = np.exp(S - S.max())
    return (E / E.sum(1, keepdims=True) + E / E.sum(0) - 2 * np.eye(len(S))) / (2 * len(S))


def overflowing(S):
    E = np.exp(S)
    return (E / E.sum(1, keepdims=True) + E / E.sum(0) - 2 * np.eye(len(S))) / (2 * len(S))


def not_transposed(I, T, s):  # noqa: E741
    C = I @ T.T
    return s * both(s * C) @ T, s * both(s * C) @ I, np.sum(both(s * C) * C)


def without_s(I, T, s):  # noqa: E741
    C = I @ T.T
    return both(s * C) @ T, both(s * C).T @ I, np.sum(both(s * C) * C)


def scale_from_s(I, T, s):  # noqa: E741
    S = s * I @ T.T
    return s * both(S) @ T, s * both(S).T @ I, np.sum(both(S) * S)


def scale_from_the_diagonal(I, T, s):  # noqa: E741
    return *scale_from_s(I, T, s)[:2], np.trace(both(s * I @ T.T) * (I @ T.T))


def one_sided(loss, x, index, h):
    up = x.copy()
    up[index] += h
    return (loss(up) - loss(x)) / h


def in_place(loss, x, index, h):
    up = down = x
    up[index] += h
    high = loss(up)
    down[index] -= 2 * h
    return (high - loss(down)) / (2 * h)


WRONG = {
    "only the rows": ({"force": only_rows}, "only the rows"),
    "the half forgotten": ({"force": lambda S: 2 * both(S)}, "right but for a factor"),
    "1/N forgotten": ({"force": lambda S: len(S) * both(S)}, "right but for a factor"),
    "truth minus softmax": ({"force": lambda S: -both(S)}, "turned round"),
    "exp overflows": ({"force": overflowing}, "overflows"),
    "one maximum for the whole matrix": ({"force": one_maximum}, "take that of its row"),
    "G not transposed for dT": ({"gradients": not_transposed}, "Gᵀ I"),
    "s forgotten in the features": ({"gradients": without_s}, "lacks the factor s"),
    "the diagonal's slope for the scale": (
        {"gradients": scale_from_the_diagonal}, "does not agree with the slopes"),
    "Σ G ∘ S for the scale": ({"gradients": scale_from_s}, "s times too large"),
    "a step to one side": ({"slope": one_sided}, "one side only"),
    "x changed in place": ({"slope": in_place}, "x was changed"),
}
