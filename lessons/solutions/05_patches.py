"""Solution 5: from pixels to tokens."""

import torch


def patchify(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """Name the axes, bring the two of the grid to the front, glue."""
    B, C, S, _ = pixels.shape
    grid = S // size
    x = pixels.reshape(B, C, grid, size, grid, size)  # picture, channel, row, y, column, x
    x = x.permute(0, 2, 4, 1, 3, 5)  # picture, row, column, channel, y, x
    return x.reshape(B, grid * grid, C * size * size)


def embed(pixels: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each kernel, written as one row, times each square."""
    return patchify(pixels, weight.shape[-1]) @ weight.flatten(1).T
