"""Exercise 7: a matrix of cosines read by hand. `make check N=07` tells at once what is right."""

import numpy as np


def row_accuracy(C: np.ndarray) -> float:
    """C (N, N): cosines, images in rows, sentences in columns → share of rows that are right.

    A row is right if its own entry, C[i, i], is larger than every other entry of the row. A tie is
    wrong: whoever says the same of every sentence has found nothing.
    """
    raise NotImplementedError


def column_accuracy(C: np.ndarray) -> float:
    """The same for the columns: given a sentence, is its own image the closest?"""
    raise NotImplementedError


def least_loss(sentences: list[str]) -> float:
    """The least contrastive loss of a batch with these N sentences, whatever the towers do.

    Equal sentences have equal vectors. The images are all different.
    """
    raise NotImplementedError
