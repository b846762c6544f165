"""Exercise 15: how robust, and how sure? `make check N=15` tells at once what is right."""

import numpy as np


def expected(inside: np.ndarray, shifted: np.ndarray, x: float) -> float:
    """What a supervised model of accuracy x in domain should have under a shift.

    inside, shifted (N,): accuracies of N supervised models in domain and under the shift, between 0
    and 1. On logits, log(p / (1 − p)), they lie near a straight line: fit it by least squares
    (np.polyfit), and bring what it says of x back to an accuracy.
    """
    raise NotImplementedError


def effective_robustness(inside: np.ndarray, shifted: np.ndarray, x: float, y: float) -> float:
    """A model with accuracy x in domain and y under the shift: by how much is it above the line?

    Positive: it holds better than supervised models that are as good as it is. Uses expected.
    """
    raise NotImplementedError


def difference_interval(a: np.ndarray, b: np.ndarray, draws: int,
                        rng: np.random.Generator) -> tuple[float, float]:
    """Two models on the same N images → 95 % bootstrap interval of accuracy a − accuracy b.

    a, b (N,) bool: is image i right? Each draw takes N images with replacement, the *same* ones for
    both models, and looks at the difference. The interval reaches from the 2.5th to the 97.5th
    percentile of the differences (np.percentile).
    """
    raise NotImplementedError
