"""Checks of exercise 15."""

import numpy as np

INSIDE = np.array([0.2, 0.5, 0.7, 0.9, 0.97])


def share(x):
    return 1 / (1 + np.exp(-x))


def logit(p):
    return np.log(p / (1 - p))


SHIFTED = share(0.9 * logit(INSIDE) - 1.5)  # exactly on a line between logits


def check_expected_on_the_line(answer):
    """points that lie on a line: it goes through them"""
    for x, y in zip(INSIDE, SHIFTED):
        found = float(answer.expected(INSIDE, SHIFTED, x))
        assert not np.isclose(found, 0.9 * logit(x) - 1.5), (
            f"{found:.2f} is a logit: bring it back with 1 / (1 + exp(−z))")
        assert np.isclose(found, y), (
            f"a supervised model with {x} in domain has {y:.3f} here, not {found:.3f}; fit the "
            "line between logits of both axes, not between accuracies")
    found = float(answer.expected(INSIDE, SHIFTED, 0.999))
    assert 0 < found < 1, f"an accuracy lies between 0 and 1, not {found}"
    scattered = share(logit(SHIFTED) + np.array([0.3, -0.3, 0.0, -0.3, 0.3]))
    found, y = (float(f(INSIDE, scattered, 0.999)) for f in (answer.expected, a_logit))
    assert np.isclose(found, share(y)), (
        f"points near a line: it says {share(y):.3f} of 0.999, not {found:.3f}; fit one straight "
        "line to all points, np.polyfit(logits in domain, logits under the shift, 1)")


def check_effective_robustness(answer):
    """on the line it is 0, above it positive"""
    for x, y in zip(INSIDE, SHIFTED):
        found = answer.effective_robustness(INSIDE, SHIFTED, x, y)
        assert np.isclose(found, 0), (
            f"a supervised model on the line has none: 0, not {found:.3f}; compare with what the "
            "line expects at *its* accuracy in domain")
    found = answer.effective_robustness(INSIDE, SHIFTED, 0.7, SHIFTED[2] + 0.2)
    assert not np.isclose(found, -0.2), "what it has, less what was expected: above the line is +"
    assert np.isclose(found, 0.2), f"0.2 above the line at 0.7: 0.2, not {found:.3f}"


def check_better_everywhere_is_not_robust(answer):
    """a better model is expected to be better under the shift, too"""
    found = answer.effective_robustness(INSIDE, SHIFTED, 0.97, 0.8)
    assert np.isclose(found, 0.8 - SHIFTED[4]), (
        f"with 0.97 in domain one expects {SHIFTED[4]:.3f}; with 0.8 it is {0.8 - SHIFTED[4]:.3f} "
        f"above, not {found:.3f}")


def check_interval(answer):
    """a better on 30 of 100 images: an interval around 0.3"""
    a, b = np.arange(100) < 80, np.arange(100) < 50
    low, high = answer.difference_interval(a, b, 2000, np.random.default_rng(0))
    assert low < high, (
        f"from {low:.3f} to {high:.3f}: each draw takes images *with* replacement, so that they "
        "differ; rng.integers(N, size=N)")
    assert low < 0.3 < high, f"the difference is 0.3, not within {low:.3f} to {high:.3f}"
    assert abs(low - 0.21) < 0.025 and abs(high - 0.39) < 0.025 and 0.165 < high - low < 0.195, (
        f"about 0.21 to 0.39, not {low:.3f} to {high:.3f}: from the 2.5th to the 97.5th "
        "percentile, of draws of as many images as there are, the same ones for both models")


def check_equal_models_differ_by_nothing(answer):
    """a model and itself: exactly 0 to 0"""
    a = np.random.default_rng(1).random(50) < 0.5
    low, high = answer.difference_interval(a, a, 200, np.random.default_rng(0))
    assert (low, high) == (0, 0), (
        f"a model is no better than itself, on any draw: 0 to 0, not {low:.3f} to {high:.3f}; give "
        "both models the same images in each draw")


def between_accuracies(inside, shifted, x):
    return float(np.polyval(np.polyfit(inside, shifted, 1), x))


def a_logit(inside, shifted, x):
    return float(np.polyval(np.polyfit(logit(inside), logit(shifted), 1), logit(x)))


def plain_drop(inside, shifted, x, y):
    return y - x


def wrong_sign(inside, shifted, x, y):
    return share(a_logit(inside, shifted, x)) - y


def unpaired(a, b, draws, rng):
    found = [rng.choice(a, len(a)).mean() - rng.choice(b, len(b)).mean() for _ in range(draws)]
    return tuple(np.percentile(found, [2.5, 97.5]))


def without_replacement(a, b, draws, rng):
    found = [(a.astype(float) - b)[rng.permutation(len(a))].mean() for _ in range(draws)]
    return tuple(np.percentile(found, [2.5, 97.5]).round(12))


def narrow(a, b, draws, rng):
    found = [(a.astype(float) - b)[rng.integers(len(a), size=len(a))].mean()
             for _ in range(draws)]
    return tuple(np.percentile(found, [25, 75]))


def between_the_points(inside, shifted, x):
    return float(np.interp(x, inside, shifted))


def ninety(a, b, draws, rng):
    found = [(a.astype(float) - b)[rng.integers(len(a), size=len(a))].mean()
             for _ in range(draws)]
    return tuple(np.percentile(found, [5, 95]))


WRONG = {
    "no line at all": ({"expected": between_the_points}, "one straight line"),
    "the middle 90 %": ({"difference_interval": ninety}, "97.5th"),
    "a line between accuracies": ({"expected": between_accuracies}, "logits of both axes"),
    "a logit for an accuracy": ({"expected": a_logit}, "bring it back"),
    "the drop for the robustness": (
        {"effective_robustness": plain_drop}, "at *its* accuracy in domain"),
    "below the line counted as robust": (
        {"effective_robustness": wrong_sign}, "above the line is +"),
    "other images for each model": ({"difference_interval": unpaired}, "the same images"),
    "no replacement": ({"difference_interval": without_replacement}, "*with* replacement"),
    "the middle half": ({"difference_interval": narrow}, "97.5th"),
}
