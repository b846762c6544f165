"""Exercise 5: from pixels to tokens. `make check N=05` tells at once what is right."""

import torch


def patchify(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Cut pictures into squares: (B, 3, S, S) → (B, T, 3 · size · size), T = (S / size)².

    The squares stand row by row, from the top left. The numbers of one square stand in the order
    channel, row, column, as in pixels[b, :, :size, :size].flatten().
    Use view, reshape, permute, transpose or flatten: no loop and no unfold is needed.
    """
    raise NotImplementedError


def embed(pixels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Tokens, as a convolution with stride = kernel would give them, but by one matrix product.

    pixels (B, 3, S, S), weight (C, 3, P, P): the kernels of the convolution → (B, T, C).
    Call patchify; no convolution.
    """
    raise NotImplementedError
