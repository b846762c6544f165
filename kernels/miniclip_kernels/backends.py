"""The backends, the choice among them, and their common interface.

A backend is a module with these functions ("dense" alone is a function that autograd follows):

    forward(I, T, scale, labels)                          → loss (), r (M,), c (N,) or (0,)
    backward(upstream, I, T, scale, r, c, labels, needs)  → dI (M, D), dT (N, D), ds ()
    logsumexps(I, T, scale, labels)                       → r (M,), c (N,) of these rows alone
    sigmoid(I, T, scale, bias, labels, needs)             → Σ loss, Σ G (), G T (M, D), Gᵀ I (N, D)

Loss and ds have the dtype of the scale. r and c are logarithms to the BASE that the module names;
Triton's are in base 2. `logsumexps` is for several processes (distributed.py); "numpy" has none.
`sigmoid` is the other loss, in one pass (sigmoid_loss.py); its sums have the scale's dtype. That of
Triton's backends is in modules of its own: ask the function `sigmoid` below.
`needs` says which gradients somebody wants. The others may be None, and should cost nothing: in
LiT, or with features computed beforehand, one side is frozen.

To add one: write the module, name it in `module` and BACKENDS (and in TRITON if it needs Triton),
refuse in `check` what it can't take, and add its name to the lists of tests/kernels/test_parity.py
and test_clip_loss.py. `best` decides when "auto" uses it.
"""

import importlib.util
import math
import warnings
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None  # once: torch.compile can't look
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TRITON = ("triton", "blocks", "hopper")  # need the package triton
BACKENDS = ("auto", *TRITON, "chunked", "tiled", "dense", "numpy")

TRITON_FEATURES = 2048  # D, at most
HOPPER_FEATURES = 512  # D up to which "auto" takes it; wider features were never measured
FEW_OPERATIONS = 2**28  # up to this M·N·D, one more launch costs more than it saves
FEW_FEATURES = 64  # up to this D, storing G costs more than the product that it saves


class Labels(NamedTuple):
    """Which pairs are true and which entries count: an argument of every backend."""

    label_offset: int  # column i + label_offset belongs to row i
    both: bool  # both directions, or rows only
    image_ids: Tensor | None = None  # int64 (M,)
    text_ids: Tensor | None = None  # int64 (N,)

    def without_ids(self) -> "Labels":
        return Labels(self.label_offset, self.both)

    def block(self, rows: slice, columns: slice) -> "Labels":
        """The same for a block of S; its offset may be negative, or beyond the block."""
        offset = self.label_offset + rows.start - columns.start
        if self.image_ids is None:
            return Labels(offset, self.both)
        return Labels(offset, self.both, self.image_ids[rows], self.text_ids[columns])


class Needs(NamedTuple):
    """Which gradients are wanted: an argument of every backward pass."""

    images: bool
    texts: bool
    scale: bool


EVERY_GRADIENT = Needs(True, True, True)


def module(backend: str):
    """The backend's module. Triton is imported only where it is used."""
    if backend == "triton":
        from . import triton_loss as found
    elif backend == "blocks":
        from . import triton_blocks as found
    elif backend == "hopper":
        from . import triton_hopper as found
    elif backend == "chunked":
        from . import chunked as found
    elif backend == "tiled":
        from . import tiled as found
    else:
        from . import numpy_loss as found
    return found


def sigmoid(backend: str, features: Tensor, N: int):
    """The function of the sigmoid loss of this backend, for these features (M, D) and N others."""
    if backend == "auto":  # "hopper" has not been measured for this loss
        name = best(features, N, hopper=False)
        if torch.version.hip and name in TRITON:
            name = "chunked"  # `works` tries the other loss's kernels
    else:
        name = choose(backend, features, N)
    if name == "triton":
        from .triton_sigmoid import in_registers as found
    elif name == "blocks":
        from .triton_sigmoid import in_blocks as found
    elif name == "hopper":
        from .triton_hopper_sigmoid import write
        from .triton_sigmoid import in_blocks

        found = partial(in_blocks, write=write)
    else:
        found = module(name).sigmoid
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


def best(features: Tensor, N: int, hopper: bool = True) -> str:
    """The fastest backend, or nearly, for these M features and N others, as measured on an H200.

    hopper: whether "hopper" may be chosen.
    """
    M, D = features.shape
    if features.device.type == "cpu":
        return "tiled"
    if not (features.is_cuda and HAS_TRITON):
        return "chunked"
    from .triton_tiles import INTERPRETED, architecture

    capability = architecture(features.device)
    if INTERPRETED or capability < (8, 0):  # older GPUs have too little shared memory
        return "chunked"
    if features.dtype == torch.float64 or D > TRITON_FEATURES:
        return "chunked"
    few = D <= FEW_FEATURES or M * N * D <= FEW_OPERATIONS
    found = "triton" if few else "blocks"
    if torch.version.hip:  # AMD's GPUs: nothing here was ever run on one
        return found if works(found, features.device, features.dtype, "chunked") else "chunked"
    fits = capability[0] == 9 and features.itemsize == 2 and D <= HOPPER_FEATURES
    if few or not fits or not hopper:
        return found
    return "hopper" if works("hopper", features.device, features.dtype, found) else found


@cache
def works(backend: str, device, dtype, otherwise: str) -> bool:
    """Whether this backend finds on this device what plain PyTorch finds; if not, warn once.

    For what may fail: "hopper" is written in Gluon, which is experimental, so another version of
    Triton may not import or compile it; and other vendors' GPUs. The test takes a fraction of a
    second once everything is compiled. otherwise: what is used instead, for the warning.
    """
    try:
        worst = difference(backend, device, dtype)
        if worst <= 1:
            return True
        reason = f"its results are {worst:.3g} times as far from plain PyTorch's as is allowed"
    except Exception as error:  # Triton's compiler raises many kinds
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    import triton

    warnings.warn(f"backend {backend!r} does not work with triton {triton.__version__} ({reason}); "
                  f"{otherwise!r} is used instead", RuntimeWarning, stacklevel=2)
    return False


@torch.inference_mode(False)  # a first call may be a validation: nothing would be recorded there
def difference(backend: str, device, dtype) -> float:
    """Loss and gradients of 150 pairs, beside "dense" in float32: the largest difference over what
    is allowed, 1 % of the largest entry (of 16 bits; 0.01 % of 32).
    """
    from .dense import dense_loss

    generator = torch.Generator().manual_seed(0)
    usual = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are
    I, T = (torch.randn(150, 48, generator=generator, **usual) / 48**0.5  # noqa: E741
            for _ in range(2))
    I, T = (x.to(device, dtype) for x in (I, T + I))  # noqa: E741
    ids = torch.arange(150, device=device) // 2
    labels = Labels(0, True, ids, ids)
    scale = torch.full((), 9.0, dtype=torch.float32, device=device)
    with torch.enable_grad():  # it may be off: this is asked within a forward pass
        leaves = [x.detach().float().requires_grad_() for x in (I, T, scale)]
        loss = dense_loss(*leaves, labels)
        expected = [loss.detach(), *torch.autograd.grad(loss, leaves)]
    run = module(backend)
    loss, r, c = run.forward(I, T, scale, labels)
    found = [loss, *run.backward(torch.ones_like(scale), I, T, scale, r, c, labels)]
    allowed = 1e-2 if dtype.itemsize == 2 else 1e-4
    ratios = [((x.float() - y).abs().max() / (allowed * y.abs().max())).item()
              for x, y in zip(found, expected, strict=True)]
    return max(float("inf") if math.isnan(ratio) else ratio for ratio in ratios)


def check(backend: str, features: Tensor):
    """Raise ValueError, in one line, if this backend can't take these features."""
    if backend not in TRITON:
        return
    if not HAS_TRITON:
        raise ValueError(f"backend {backend!r} needs the package triton: not installed")
    from .triton_tiles import INTERPRETED, architecture

    D, dtype = features.shape[1], str(features.dtype).removeprefix("torch.")
    if backend == "hopper":
        if features.itemsize != 2 or D > TRITON_FEATURES:
            raise ValueError(f"backend 'hopper' takes bfloat16 or float16 and D up to "
                             f"{TRITON_FEATURES}, not {D} in {dtype}")
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
