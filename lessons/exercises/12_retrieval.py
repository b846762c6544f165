"""Exercise 12: ranks and recall. `make check N=12` counts by brute force whether they are right."""

import numpy as np


def image_ranks(S: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """S (N, M): scores of N images with M sentences; owner (M,): the image of each sentence.

    For every image: where does the best of its own sentences stand among all, 1 being the top?
    Count the wrong sentences that score at least as high, and add 1. Every image has at least one
    sentence, but not all have equally many, and they stand in any order. → (N,), whole numbers
    """
    raise NotImplementedError


def text_ranks(S: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """For every sentence: where does its own image stand among all N? Ties as above. → (M,)"""
    raise NotImplementedError


def recall_at(ranks: np.ndarray, k: int) -> float:
    """R@K, in percent: the share of ranks that are k or better."""
    raise NotImplementedError
