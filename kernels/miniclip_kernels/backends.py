"""The backends, the choice among them, and their common interface.

A backend is a module with two functions ("dense" alone is a function that autograd follows):

    forward(I, T, scale, labels)                   → loss (), r (M,), c (N,) (or (0,) for rows)
    backward(upstream, I, T, scale, r, c, labels)  → dI (M, D), dT (N, D), ds ()

Loss and ds have the dtype of the scale. r and c are a backend's own: only its `backward` reads
them, and Triton's are in base 2.

To add one: write the module, name it in `module` and BACKENDS (and in TRITON if it needs Triton),
refuse in `check` what it can't take, and add its name to the lists of tests/kernels/test_parity.py
and test_clip_loss.py. `best` decides when "auto" uses it.
"""

import importlib.util
import warnings
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None  # once: torch.compile can't look
TRITON = ("triton", "blocks", "hopper")  # need the package triton
BACKENDS = ("auto", *TRITON, "tiled", "dense", "numpy")

TRITON_FEATURES = 2048  # D, at most
HOPPER_FEATURES = 512  # D, at most: a block of I has to fit into shared memory
FEW_OPERATIONS = 2**28  # up to this M·N·D, one more launch costs more than it saves
FEW_FEATURES = 64  # up to this D, storing G costs more than the product that it saves


class Labels(NamedTuple):
    """Which pairs are true and which entries count: an argument of every backend."""

    label_offset: int  # column i + label_offset belongs to row i
    both: bool  # both directions, or rows only
    image_ids: Tensor | None = None  # int64 (M,)
    text_ids: Tensor | None = None  # int64 (N,)

    def block(self, rows: slice, columns: slice) -> "Labels":
        """The same for a block of S; its offset may be negative, or beyond the block."""
        offset = self.label_offset + rows.start - columns.start
        if self.image_ids is None:
            return Labels(offset, self.both)
        return Labels(offset, self.both, self.image_ids[rows], self.text_ids[columns])


def module(backend: str):
    """The backend's module. Triton is imported only where it is used."""
    if backend == "triton":
        from . import triton_loss as found
    elif backend == "blocks":
        from . import triton_blocks as found
    elif backend == "hopper":
        from . import triton_hopper as found
    elif backend == "tiled":
        from . import tiled as found
    else:
        from . import numpy_loss as found
    return found


def check_name(backend):
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")


def choose(backend: str, features: Tensor, N: int) -> str:
    """The backend that "auto" stands for, for these features (M, D) and N others.

    ValueError for a named backend that can't run here.
    """
    if backend == "auto":
        return best(features, N)
    check(backend, features)
    return backend


def best(features: Tensor, N: int) -> str:
    """The fastest backend, or nearly, for these M features and N others, as measured on an H200."""
    M, D = features.shape
    if not (features.is_cuda and HAS_TRITON):
        return "tiled"
    from .triton_tiles import INTERPRETED, architecture

    capability = architecture(features.device)
    if INTERPRETED or capability < (8, 0):  # older GPUs have too little shared memory
        return "tiled"
    if features.dtype == torch.float64 or D > TRITON_FEATURES:
        return "tiled"
    if D <= FEW_FEATURES or M * N * D <= FEW_OPERATIONS:
        return "triton"
    fits = capability[0] == 9 and features.itemsize == 2 and D <= HOPPER_FEATURES
    return "hopper" if fits and has_hopper(features.device) else "blocks"


@cache
def has_hopper(device) -> bool:
    """Whether this version of Triton can run "hopper"; if not, warn once.

    "hopper" is written in Gluon, which is experimental: another version may not import or compile
    it. The test is to run the smallest possible input.
    """
    try:
        features = torch.ones(1, 16, dtype=torch.bfloat16, device=device)
        scale, labels = torch.ones((), device=device), Labels(label_offset=0, both=True)
        hopper = module("hopper")
        _, r, c = hopper.forward(features, features, scale, labels)
        hopper.backward(scale, features, features, scale, r, c, labels)
        return True
    except Exception as error:  # Triton's compiler raises many kinds
        import triton

        reason = " ".join(str(error).split())[:200]
        warnings.warn(f"backend 'hopper' does not work with triton {triton.__version__} "
                      f"({type(error).__name__}: {reason}); 'blocks' is used instead",
                      RuntimeWarning, stacklevel=2)
        return False


def check(backend: str, features: Tensor):
    """Raise ValueError, in one line, if this backend can't take these features."""
    if backend not in TRITON:
        return
    if not HAS_TRITON:
        raise ValueError(f"backend {backend!r} needs the package triton: not installed")
    from .triton_tiles import INTERPRETED, architecture

    D, dtype = features.shape[1], str(features.dtype).removeprefix("torch.")
    if backend == "hopper":
        if features.itemsize != 2 or D > HOPPER_FEATURES:
            raise ValueError(f"backend 'hopper' takes bfloat16 or float16 and D up to "
                             f"{HOPPER_FEATURES}, not {D} in {dtype}")
        if not features.is_cuda or INTERPRETED or architecture(features.device)[0] != 9:
            raise ValueError("backend 'hopper' needs a GPU of compute capability 9 (H100, H200)")
        return
    refused = [torch.float64]
    if INTERPRETED:  # its product reads the bits of bfloat16 as integers
        refused.append(torch.bfloat16)
    if features.dtype in refused:
        raise ValueError(f"backend {backend!r} takes no {dtype} here; tiled, dense and numpy do")
    if D > TRITON_FEATURES:
        raise ValueError(f"backend {backend!r} takes D up to {TRITON_FEATURES}, not {D}")
    if not features.is_cuda and not INTERPRETED:
        raise ValueError(f"backend {backend!r} needs CUDA tensors, not {features.device.type}; "
                         "on a CPU set TRITON_INTERPRET=1 before triton is first imported")
