"""Checks of exercise 2."""

import math

import numpy as np

ROW = np.array([2.0, -1.0, 0.5, 3.0])


def truth(row, right):
    return math.log(sum(math.exp(x) for x in row)) - row[right]


def check_one_row(answer):
    """info_nce gives −log softmax(row)[right]"""
    for right in range(4):
        found = answer.info_nce(ROW, right)
        assert not math.isclose(found, -truth(ROW, right)), (
            "the sign is turned round: a cost is −log p, and never negative")
        assert not math.isclose(found, math.exp(-truth(ROW, right))), (
            "that is the probability itself; the cost is minus its logarithm")
        assert not math.isclose(found, truth(ROW, right) / math.log(2)), (
            "that is in bits: the natural logarithm is meant")
        assert math.isclose(found, truth(ROW, right), rel_tol=1e-6), (
            f"for {ROW} and right={right} it should be {truth(ROW, right):.4f}, not {found:.4f}")


def check_large_similarities(answer):
    """info_nce stays finite for similarities of 1,000"""
    row, rest = np.array([1000.0, 999.0, -1000.0]), math.log(1 + math.exp(-1))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        found, lowest = answer.info_nce(row, 1), answer.info_nce(row, 2)
    assert math.isfinite(found), "exp(1000) overflows: take the row's largest out of it first"
    assert math.isclose(found, 1 + rest, rel_tol=1e-6), (
        "taking the maximum out must change nothing: subtract it from row[right] as well")
    assert math.isclose(lowest, 2000 + rest, rel_tol=1e-6), (
        f"right=2 should cost {2000 + rest:.4f}, not {lowest:.4f}: its probability is too small "
        "for a float. Take no logarithm of it: the cost is log Σ exp − row[right]")


def check_a_uniform_row_costs_log_n(answer):
    """a row of equal similarities costs log N, whatever their height"""
    for n in (2, 8, 100):
        for height in (0.0, 5.0):
            assert math.isclose(answer.info_nce(np.full(n, height), 0), math.log(n)), (
                f"{n} equal similarities should cost log {n} = {math.log(n):.4f}")


def check_blind_guess(answer):
    """blind_guess(n) is log n"""
    found = answer.blind_guess(8)
    assert not math.isclose(found, 1 / 8), "1/n is the probability; its cost is −log(1/n)"
    assert math.isclose(found, math.log(8)), f"for 8 it should be {math.log(8):.4f}"
    assert answer.blind_guess(1) == 0, "with one text there is nothing to guess: it costs 0"


def without_the_maximum(row, right):
    return float(np.log(np.exp(row).sum()) - row[right])


def maximum_forgotten_at_the_end(row, right):
    return float(np.log(np.exp(row - row.max()).sum()) - row[right])


def logarithm_of_a_probability(row, right):
    p = np.exp(row - row.max())
    return float(-np.log(p[right] / p.sum()))


def positive(row, right):
    return float(row[right] - np.log(np.exp(row).sum()))


WRONG = {
    "exp overflows": ({"info_nce": without_the_maximum}, "overflows"),
    "the maximum taken out once": ({"info_nce": maximum_forgotten_at_the_end}, "should"),
    "the logarithm of 0": ({"info_nce": logarithm_of_a_probability}, "too small"),
    "log p instead of −log p": ({"info_nce": positive}, "sign"),
    "a probability for a cost": ({"blind_guess": lambda n: 1 / n}, "probability"),
}
