"""Exercise 16: many processes, one loss. `make check N=16` tells at once what is right."""

import torch


def merged(parts: list[torch.Tensor]) -> torch.Tensor:
    """K tensors (N,) → (N,): log Σ exp of whole columns.

    parts[k][j] is the logarithm of the sum of exponentials of column j, over the rows of process k
    only. Numbers of a thousand must not overflow: take the largest of each column out first.
    """
    raise NotImplementedError


def local_loss(I: torch.Tensor, T: torch.Tensor, s: float, rank: int, K: int):  # noqa: E741
    """Process `rank`'s part of the symmetric loss, (), so that the *mean* over all K processes is
    the loss of all N pairs, and has its gradient.

    I, T (N, D): the features of all processes, in the order of ranks, gathered with their
    gradients. Each process owns M = N / K of the pairs. It computes the rows of its own images and
    the columns of its own texts (two slabs), and nothing else.
    """
    raise NotImplementedError


def cached(tower, x: torch.Tensor, loss_of, size: int) -> torch.Tensor:
    """Gradient caching: fill the .grad of the tower's parameters, `size` rows of x at a time.

    x (N, …); loss_of takes the features of all N at once. → the loss, (). At no time may the
    activations of more than `size` rows be kept.
    """
    raise NotImplementedError
