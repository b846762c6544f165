"""Exercise 8: the gradient of the loss. `make check N=08` tells at once what is right."""

from collections.abc import Callable

import numpy as np


def force(S: np.ndarray) -> np.ndarray:
    """G = ∂L/∂S (N, N) of the loss in both directions; S (N, N) is already multiplied by s.

    L = ½ (mean_i [r_i − S_ii] + mean_j [c_j − S_jj]). The similarities may be as large as 1,000:
    np.exp(1000) is infinite, no entry of G is.
    """
    raise NotImplementedError


def gradients(I: np.ndarray, T: np.ndarray, s: float):  # noqa: E741
    """∂L/∂I (N, D), ∂L/∂T (N, D) and ∂L/∂s, a float. I, T (N, D): features; s: the multiplier.

    S = s · I Tᵀ. Use `force`.
    """
    raise NotImplementedError


def slope(loss: Callable, x: np.ndarray, index: tuple, h: float) -> float:
    """∂loss/∂x[index] by central differences; x itself must be left as it was.

    loss: takes an array like x and returns a float.
    """
    raise NotImplementedError
