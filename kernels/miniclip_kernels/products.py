"""Matrix products of 16-bit features whose sums are float32, on whatever device there is."""

import torch


def product(A, B, wide):
    """A (m, k) B (k, n) → (m, n) in `wide`, which 16-bit features sum in.

    CUDA multiplies 16-bit matrices into float32. A CPU has no such product, so there they are cast
    before. Other accelerators round the result, as plain PyTorch does.
    """
    if A.dtype == wide:
        return A @ B
    if A.is_cuda:
        return torch.mm(A, B, out_dtype=wide)
    if A.device.type == "cpu":
        return A.to(wide) @ B.to(wide)
    return (A @ B).to(wide)


def add_product(total, A, B, first=False):
    """total (m, n) float32 or float64 += A (m, k) B (k, n), or = if it is the first."""
    if A.is_cuda and A.dtype != total.dtype:
        torch.addmm(total, A, B, beta=int(not first), out=total, out_dtype=total.dtype)
    elif A.dtype == total.dtype or A.device.type == "cpu" or A.dtype == torch.float16:
        # In float16, G is so large (`boost`) that a product of that type might overflow.
        torch.addmm(total, A.to(total.dtype), B.to(total.dtype), beta=int(not first), out=total)
    elif first:
        total.copy_(A @ B)
    else:
        total += A @ B


def boost(dtype):
    """The factor of G before its cast: the smallest normal number of float16 is 6e-5."""
    return 1024.0 if dtype == torch.float16 else 1.0
