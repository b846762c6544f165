"""`tiled` for accelerators that Triton's kernels here don't run on: large tiles, 16-bit products.

A tile of 4096 × 4096 keeps a GPU busy with one product, where `tiled` would launch 64 times as many
kernels for tiles that fit a CPU's cache. It takes 64 MiB in float32, and about three times as much
with what is made of it. Products of 16-bit features stay in 16 bits (`products`).
"""

from . import tiled
from .backends import EVERY_GRADIENT

TILE = 4096
BASE = tiled.BASE


def forward(I, T, scale, labels):  # noqa: E741
    """As `tiled.forward`."""
    return tiled.forward(I, T, scale, labels, TILE)


def sigmoid(I, T, scale, bias, labels, needs):  # noqa: E741
    """As `tiled.sigmoid`."""
    return tiled.sigmoid(I, T, scale, bias, labels, needs, TILE)


def logsumexps(I, T, scale, labels):  # noqa: E741
    """As `tiled.logsumexps`."""
    return tiled.logsumexps(I, T, scale, labels, TILE)


def backward(upstream, I, T, scale, r, c, labels, needs=EVERY_GRADIENT):  # noqa: E741
    """As `tiled.backward`."""
    return tiled.backward(upstream, I, T, scale, r, c, labels, needs, TILE)
