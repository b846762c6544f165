"""How far a figure could be off: bootstrap intervals (Efron and Tibshirani 1993, chapter 13)."""

import math
from collections.abc import Callable

import numpy as np

DRAWS = 2000  # samples drawn with replacement


def bootstrap(values: np.ndarray, statistic: Callable = np.mean, level: float = 0.95,
              draws: int = DRAWS, seed: int = 0) -> list[float]:
    """Values (N, …), one row for each image, run or picture → the interval of their statistic.

    Each draw takes N rows with replacement; the interval holds the middle `level` of what the
    statistic gives on them (the percentile method). With fewer than about ten rows it is too
    narrow: see `mean_interval`. ValueError for no values.

    >>> bootstrap(np.array([0.0, 1.0] * 50))
    [0.4, 0.6]
    """
    values = np.asarray(values, float)
    if not len(values):
        raise ValueError("an interval needs at least one value")
    rng = np.random.default_rng(seed)
    found = [statistic(values[rng.integers(len(values), size=len(values))]) for _ in range(draws)]
    return percentiles(found, level)


def draws_of(count: int, draws: int, seed: int = 0) -> np.ndarray:
    """How often each of `count` rows comes in each draw with replacement: (draws, count) int64.

    For statistics of weighted rows, which are faster than those of rows that are drawn one by one.
    """
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)


def percentiles(values: np.ndarray, level: float = 0.95) -> list[float]:
    """What a statistic gave on many draws → the ends of the middle `level` of it."""
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return [round(float(low), 4), round(float(high), 4)]


def accuracy_of(right: np.ndarray) -> dict:
    """Is each image right? (N,) bool → {"accuracy", "interval": 95 % bootstrap}, in percent."""
    low, high = bootstrap(100 * right)
    return {"accuracy": round(100 * float(np.mean(right)), 2),
            "interval": [round(low, 2), round(high, 2)]}


# The 97.5th percentile of Student's t with 1, 2, … degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179,
           2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093)


def mean_interval(values) -> tuple[float, float]:
    """A few values, such as those of five seeds → 95 % interval of their mean (Student's t).

    For one value it is infinitely wide. ValueError for none.

    >>> mean_interval([1.0, 2.0, 3.0])
    (-0.484, 4.484)
    """
    values = np.asarray(values, float)
    if not len(values):
        raise ValueError("an interval needs at least one value")
    if len(values) == 1:
        return -np.inf, np.inf
    t = STUDENT[len(values) - 2] if len(values) - 2 < len(STUDENT) else 1.96 + 2.5 / (
        len(values) - 1)
    half = t * values.std(ddof=1) / len(values) ** 0.5
    return round(float(values.mean() - half), 3), round(float(values.mean() + half), 3)


def runs_and_images(runs: np.ndarray, images: list[float], value: float) -> tuple[float, float]:
    """95 % interval of a figure that comes from R runs, all tested on the same images.

    Both are samples: other seeds and other images would have given another figure. Each half of the
    interval is the root of the sum of two squares: Student's half width over the runs, and what the
    images alone make of it. With a single run only the second is known.

    Args:
        runs: (R,), the figure of each run.
        images: the ends of the interval over images, all runs together.
        value: the figure itself.

    >>> runs_and_images(np.array([0.5]), [0.4, 0.6], 0.5)
    (0.4, 0.6)
    >>> runs_and_images(np.array([1.0, 2.0, 3.0]), [1.5, 2.5], 2.0)
    (-0.5338, 4.5338)
    """
    spread = mean_interval(runs)[1] - float(np.mean(runs)) if len(runs) > 1 else 0.0
    low, high = (math.hypot(end - value, spread) for end in images)
    return round(value - low, 4), round(value + high, 4)
