"""Solution 15: how robust, and how sure?"""

import numpy as np


def logit(p):
    return np.log(p / (1 - p))


def expected(inside: np.ndarray, shifted: np.ndarray, x: float) -> float:
    """The line is straight between the logits, so go there, and come back."""
    slope, intercept = np.polyfit(logit(inside), logit(shifted), 1)
    return 1 / (1 + np.exp(-(slope * logit(x) + intercept)))


def effective_robustness(inside: np.ndarray, shifted: np.ndarray, x: float, y: float) -> float:
    """What it has, less what the line expects of one that is as good in domain."""
    return y - expected(inside, shifted, x)


def difference_interval(a: np.ndarray, b: np.ndarray, draws: int,
                        rng: np.random.Generator) -> tuple[float, float]:
    """Images that are hard for both cancel out, since both get the same ones."""
    difference = a.astype(float) - b  # (N,), of −1, 0 and 1
    found = [difference[rng.integers(len(a), size=len(a))].mean() for _ in range(draws)]
    low, high = np.percentile(found, [2.5, 97.5])
    return low, high
