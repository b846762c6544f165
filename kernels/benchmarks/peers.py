"""The implementations of the loss that are compared: ours, plain PyTorch's, and other people's.

Each takes images I (N, D), texts T (N, D) and the scale s, a tensor (), and gives the loss (). A
peer's package is imported where it is called: a missing one costs only its own row.
"""

from functools import cache, partial

import torch
import torch.nn.functional as F
from miniclip_kernels import clip_loss

TEMPERATURE = 0.07
CHUNK = 2048  # rows at a time of the chunked peer


def eager(I, T, s):  # noqa: E741
    """The formula of open_clip 3.3.0's ClipLoss: two N × N matrices in the features' type."""
    labels = torch.arange(len(I), device=I.device)
    return (F.cross_entropy(s * I @ T.T, labels) + F.cross_entropy(s * T @ I.T, labels)) / 2


@cache
def fused(function):
    """torch.compile with fixed shapes; made at the first use, as its import takes seconds."""
    return torch.compile(function, dynamic=False)


def chunk_sums(S, s):
    """S (C, N) before the scale → sums of exp(s·S − s) over rows (C,) and columns (N,)."""
    E = torch.exp(s * S - s)
    return E.sum(1), E.sum(0)


def chunk_gradient(S, s, row_sums, column_sums, labels, dtype):
    """G = P + Q − 2δ (C, N) in the features' type, the 2 subtracted before the cast."""
    E = torch.exp(s * S - s)
    pair = labels[:, None] == torch.arange(S.shape[1], device=S.device)
    return (E * (1 / row_sums)[:, None] + E * (1 / column_sums) - 2.0 * pair).to(dtype)


def product(A, B):
    """A @ B of 16-bit matrices in float32; CPUs have no such product, but the tests need one."""
    return torch.mm(A, B, out_dtype=torch.float32) if A.is_cuda else A.float() @ B.float()


class Chunked(torch.autograd.Function):
    """The best that plain PyTorch can do in C × N of memory: 4 products, all of them cuBLAS's.

    exp(S − s) can't overflow for unit vectors. On CUDA, torch.compile fuses the work on a chunk
    between its products.
    """

    @staticmethod
    def forward(ctx, I, T, s):  # noqa: E741
        sums = fused(chunk_sums) if I.is_cuda else chunk_sums
        rows, columns = torch.empty_like(I[:, 0], dtype=s.dtype), s.new_zeros(len(T))
        for i in range(0, len(I), CHUNK):
            rows[i:i + CHUNK], part = sums(product(I[i:i + CHUNK], T.T), s)
            columns += part
        ctx.save_for_backward(I, T, s, rows, columns)
        positives = s * torch.linalg.vecdot(I.float(), T.float())
        return (s + (rows.log() + columns.log()) / 2 - positives).mean()

    @staticmethod
    def backward(ctx, upstream):
        I, T, s, rows, columns = ctx.saved_tensors  # noqa: E741
        gradient = fused(chunk_gradient) if I.is_cuda else chunk_gradient
        labels, factor = torch.arange(len(I), device=I.device), upstream / (2 * len(I))
        dI, dT, ds = torch.empty_like(I), torch.zeros_like(T, dtype=s.dtype), 0
        for i in range(0, len(I), CHUNK):
            here = slice(i, i + CHUNK)
            G = gradient(product(I[here], T.T), s, rows[here], columns, labels[here], I.dtype)
            part = product(G, T)  # (C, D)
            dI[here] = part * (s * factor)
            ds += (part * I[here]).sum()
            dT += product(G.T, I[here])
        return dI, (dT * (s * factor)).to(T.dtype), ds * factor


def memeff(I, T, s):  # noqa: E741
    """memeff 0.3.1. Its temperature is a float: no gradient of the scale."""
    from memeff import MemoryEfficientCLIPLoss

    loss = MemoryEfficientCLIPLoss(TEMPERATURE, normalized_inputs=True, stable=False)
    return loss(I, T)


def inf_cl(I, T, s):  # noqa: E741
    """inf-cl 1.2.1: losses of the rows (N,), so both ways; D must be a multiple of 256."""
    from inf_cl import cal_flash_loss

    return (cal_flash_loss(I, T, scale=s).mean() + cal_flash_loss(T, I, scale=s).mean()) / 2


def cut_cross_entropy(I, T, s):  # noqa: E741
    """cut-cross-entropy 25.1.1, both ways, without the filter that drops small probabilities."""
    from cut_cross_entropy import linear_cross_entropy

    labels = torch.arange(len(I), device=I.device)
    return (linear_cross_entropy(s * I, T, labels, filter_eps=None)
            + linear_cross_entropy(s * T, I, labels, filter_eps=None)) / 2


def liger(I, T, s):  # noqa: E741
    """liger-kernel 0.8.5's fused linear cross-entropy: images among texts only."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss()(T, s * I, torch.arange(len(I), device=I.device))


def quack(I, T, s):  # noqa: E741
    """quack-kernels 0.6.5's chunked linear cross-entropy: images among texts only."""
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(s * I, T, torch.arange(len(I), device=I.device))


def siglip_kernel(I, T, s, bias):  # noqa: E741
    """siglip-kernel 0.1.2's sigmoid loss, by the way that it chooses itself."""
    from siglip_kernel import fused_siglip_loss

    return fused_siglip_loss(I, T, s.log(), bias)


CPU_IMPLS = {name: partial(clip_loss, backend=name) for name in ("dense", "tiled", "numpy")}
GPU_IMPLS = {
    "miniclip": clip_loss,  # "auto": "triton" for few pairs, then "hopper", or "blocks"
    "blocks": partial(clip_loss, backend="blocks"),
    "registers": partial(clip_loss, backend="triton"), "chunked": Chunked.apply,
    "compile": lambda *features: fused(eager)(*features), "eager": eager, "memeff": memeff,
    "cut-cross-entropy": cut_cross_entropy, "inf-cl": inf_cl, "tiled": CPU_IMPLS["tiled"]}
OURS = ("miniclip", "blocks", "registers", "tiled")
TRUSTED = ("chunked", "eager", "dense", "registers")  # the first one measured is the standard
