"""How exact the loss and gradients of a backend have to be.

test_parity.py checks the backends. test_mutants.py checks copies with one mistake each, to show
that the rule can tell right from wrong.

The rule. Loss, dI, dT and ds are compared with `reference` in float64, on exactly the backend's
inputs. The largest error of each may be twice that of plain PyTorch ("dense") at the same
precision, plus an allowance for small sizes, where plain PyTorch is exact by luck:

    ulps · s/2N Σ_j (P + Q + 2δ)_ij |T_j|  +  ε · s/2N Σ_j |P + Q − 2δ|_ij |T_j|  +  least number

(This is for dI; dT, ds and direction "rows" are alike. The loss gets the ulps alone, for any type.)
ulps has two parts. The first is 4 times the spacing of float32 at the largest |S|, or at 1 if that
is more: an error of one ulp in S is a relative error of that size in P and Q. The second is √N / 2
times the spacing at 1: the error of N additions in float32, in any order. ε is for 16-bit features
only: G and the result are both rounded to their type, by ε/2 each. A number that underflows is off
by at most the type's least number.
"""

from dataclasses import dataclass, field
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from miniclip_kernels import clip_loss, reference
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TRITON, BLOCKS = (pytest.param(name, marks=pytest.mark.skipif(
    find_spec("triton") is None, reason="the package triton is not installed"))
    for name in ("triton", "blocks"))
FALLBACK = tuple(  # NumPy's warnings in Triton's interpreter where a sum fails and is done again
    f"ignore:{what} encountered in {where}:RuntimeWarning" for what, where in (
        ("overflow", "exp2"), ("overflow", "reduce"), ("overflow", "add"),
        ("divide by zero", "log2"), ("invalid value", "")))
UPSTREAM = 0.75  # the upstream gradient of the loss


def skip_where_wrong(backend, dtype):
    """Skip a test of Triton's kernels in bfloat16 where there is no GPU."""
    if backend in ("triton", "blocks") and (dtype, DEVICE) == (torch.bfloat16, "cpu"):
        pytest.skip("Triton's interpreter multiplies bfloat16 as the integers of its bits: this "
                    "dtype can only be tested on CUDA")


@dataclass
class Case:
    """One input of `clip_loss`; options are label_offset, direction, image_ids and text_ids."""

    images: Tensor
    texts: Tensor
    scale: float
    options: dict = field(default_factory=dict)

    def arrays(self):
        """images, texts, scale as the backends see them, exactly, in float64."""
        return (self.images.double().cpu().numpy(), self.texts.double().cpu().numpy(),
                torch.tensor(self.scale).double().item())


def pairs(M, N, D, *, seed=0, scale=14.3, dtype=torch.float32, norm=1.0, near=1.0, offset=None,
          captions=None) -> Case:
    """Random features of one length whose texts lie near their images, as after some training.

    M < N, or an offset: direction "rows". captions: about how many rows share an image, as in a
    data set with several captions for each photograph.
    """
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(n, D, generator=generator) for n in (M, N))
    options = {}
    if M != N or offset is not None:
        options = {"direction": "rows", "label_offset": offset or 0}
    texts[offset or 0:][:M] += near * images
    images, texts = (F.normalize(x).mul(norm).to(DEVICE, dtype) for x in (images, texts))
    if captions:
        ids = torch.randint(-(-N // captions), (N,), generator=generator).to(DEVICE)
        options |= {"text_ids": ids, "image_ids": ids[offset or 0:][:M].clone()}
    return Case(images, texts, scale, options)


def run(case, backend, loss=clip_loss) -> dict[str, np.ndarray]:
    """Loss and gradients of one backend, as float64 arrays. loss: a copy's clip_loss."""
    leaves = [x.detach().requires_grad_() for x in (case.images, case.texts)]
    scale = torch.tensor(case.scale, device=case.images.device, requires_grad=True)
    result = loss(*leaves, scale, backend=backend, **case.options)
    (UPSTREAM * result).backward()
    found = result, leaves[0].grad, leaves[1].grad, scale.grad
    return {name: x.detach().double().cpu().numpy()
            for name, x in zip(("loss", "dI", "dT", "ds"), found)}


def truth(case) -> dict[str, np.ndarray]:
    """The same four from `reference`."""
    options = {key: value.cpu().numpy() if isinstance(value, Tensor) else value
               for key, value in case.options.items()}
    loss, *gradients = reference.loss_and_gradients(*case.arrays(), **options)
    return {"loss": loss} | {
        name: UPSTREAM * x for name, x in zip(("dI", "dT", "ds"), gradients)}


def matrices(case):
    """S, P, Q and δ in float64, each (M, N); Q is None with direction "rows"."""
    I, T, s = case.arrays()  # noqa: E741
    S = s * I @ T.T
    δ = reference.labels(*S.shape, case.options.get("label_offset", 0))
    if "image_ids" in case.options:
        ids = (case.options[name].cpu().numpy() for name in ("image_ids", "text_ids"))
        S[np.equal.outer(*ids) & ~δ] = -np.inf
    P = np.exp(S - reference.logsumexp(S, 1)[:, None])
    rows = case.options.get("direction") == "rows"
    return S, P, None if rows else np.exp(S - reference.logsumexp(S, 0)), δ


def allowance(case) -> dict[str, float]:
    """The part of the rule that does not depend on plain PyTorch."""
    I, T, s = case.arrays()  # noqa: E741
    S, P, Q, δ = matrices(case)
    ulps = (4.0 * np.spacing(np.float32(max(1, np.abs(S[np.isfinite(S)]).max())))
            + len(T)**0.5 / 2 * np.finfo(np.float32).eps)
    terms, G = ((P + δ, P - δ) if Q is None else ((P + Q + 2 * δ) / 2, (P + Q - 2 * δ) / 2))
    least = half = 0.0
    if torch.finfo(case.images.dtype).bits == 16:
        half = torch.finfo(case.images.dtype).eps
        least = torch.finfo(case.images.dtype).smallest_normal * half
    error = (ulps * terms + half * np.abs(G)) * UPSTREAM / len(I)  # of ∂L/∂S
    I, T = np.abs(I), np.abs(T)  # noqa: E741
    return {"loss": ulps, "dI": (s * error @ T).max() + least,
            "dT": (s * error.T @ I).max() + least, "ds": (error * (I @ T.T)).sum()}


def excess(case, backend, plain=2, loss=clip_loss) -> dict[str, float]:
    """{loss, dI, dT, ds: largest error over what the rule allows}: right if none is above 1.

    plain: how many times plain PyTorch's error is allowed; none of it where that overflows.
    loss: a copy's clip_loss.
    """
    true, allowed = truth(case), allowance(case)
    found, dense = ({name: np.abs(x - true[name]).max() for name, x in results.items()}
                    for results in (run(case, backend, loss), run(case, "dense")))
    excused = {name: plain * x if np.isfinite(x) else 0.0 for name, x in dense.items()}
    ratios = {name: found[name] / (excused[name] + allowed[name]) for name in true}
    return {name: np.inf if np.isnan(x) else float(x) for name, x in ratios.items()}


def check_no_tile_is_missed(backend, dtype, N, D, loss=True):
    """All features are alike, so every row and column of G is 2/N − 2δ, with the sum 0. If a tile
    is left out or counted twice, the sum is off by its share. Between different pairs, 16 bits
    would hide that.

    N: a power of 2, so that no type rounds 2/N, and at most 2¹⁵, so that a tile's share shows.
    """
    features = F.normalize(torch.ones(N, D)).to(DEVICE, dtype)
    case = Case(features, features, 14.3)
    found = run(case, backend)
    if loss:
        assert abs(found["loss"] - np.log(N)) < 1e-3
    unit = UPSTREAM * case.scale / (2 * N) * features[0, 0].item()
    for name in ("dI", "dT"):
        assert np.abs(found[name]).max() <= 2**-8 * unit, name


def check(case, backend, plain=2):
    """Assert the rule."""
    ratios = excess(case, backend, plain)
    assert max(ratios.values()) <= 1, f"{backend}: errors over what is allowed {ratios}"
