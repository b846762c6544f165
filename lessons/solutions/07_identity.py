"""Solution 7: a matrix of cosines read by hand."""

from collections import Counter

import numpy as np


def row_accuracy(C: np.ndarray) -> float:
    """How many rows hold only one entry as large as their own: their own."""
    return float(((C >= C.diagonal()[:, None]).sum(axis=1) == 1).mean())


def column_accuracy(C: np.ndarray) -> float:
    """The columns of C are the rows of its transpose."""
    return row_accuracy(C.T)


def least_loss(sentences: list[str]) -> float:
    """Among k equal sentences the right one gets 1/k at most: ln k, for each of the k."""
    times = Counter(sentences)
    return float(np.mean([np.log(times[sentence]) for sentence in sentences]))
