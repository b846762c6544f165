"""Solution 1: what a label knows of its neighbours."""

import numpy as np


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    """Row k of the identity matrix is the one-hot vector of class k."""
    return np.eye(classes)[labels]


def distances(X: np.ndarray) -> np.ndarray:
    """(N, 1, D) − (1, N, D) is every difference; its length is the distance."""
    return np.linalg.norm(X[:, None] - X[None, :], axis=2)
