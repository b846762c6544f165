"""The optimisers: Muon for matrices, AdamW for the rest, and the schedule of both."""

import math

import torch
from torch import nn

from miniclip.config import TrainConfig
from miniclip.device import bf16_is_fast
from miniclip.model import CLIP

NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)  # coefficients of the quintic, from Jordan et al.


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: all directions get about the same length (Jordan et al. 2024).

    A matrix's update is approximately the orthogonal matrix nearest to its momentum. So rare
    directions move as far as frequent ones. With bfloat16 products the result is that of
    torch.optim.Muon, bit for bit; but that one does not take convolutions. A kernel (out, in, k, k)
    is also a matrix, (out, in · k · k), which multiplies patches. So each kernel has a second
    parameter that shares its memory, but has a matrix's shape and its own gradient.

    Products are computed in bfloat16 where the device has hardware for it, as in the original. On
    other CPUs bfloat16 would take 30 times as long as float32, so float32 is used.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float,
                 momentum: float = 0.95):
        self.kernels = [p for p in parameters if p.ndim == 4]
        self.matrices = [nn.Parameter(p.data.view(len(p), -1)) for p in self.kernels]
        plain = [p for p in parameters if p.ndim == 2]
        super().__init__([*plain, *self.matrices],
                         {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        """One step → what `closure` gives, if there is one: it computes the loss and gradients."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kernel, matrix in zip(self.kernels, self.matrices):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
            kernel.grad = None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(p)
                momentum = state["momentum_buffer"].lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalized(p.grad.lerp(momentum, group["momentum"]))  # Nesterov's
                p.mul_(1 - group["lr"] * group["weight_decay"])
                stretch = math.sqrt(max(1, p.shape[0] / p.shape[1]))  # of tall matrices
                p.add_(update, alpha=-group["lr"] * stretch)
        return loss


def orthogonalized(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """(m, n) → (m, n) with the same singular vectors, and singular values near 1.

    This is a Newton-Schulz iteration: an odd polynomial of a matrix changes only its singular
    values. Five steps bring those above about a thousandth of the matrix's norm to between 0.5 and
    1.5. Smaller ones stay smaller (Jordan et al. 2024).
    """
    a, b, c = NEWTON_SCHULZ
    X = matrix
    if matrix.dtype != torch.float64:
        X = matrix.to(torch.bfloat16 if bf16_is_fast(matrix.device) else torch.float32)
    tall = X.shape[0] > X.shape[1]
    if tall:
        X = X.T
    X = X / X.norm().clamp(min=1e-7)  # no singular value above 1
    for _ in range(steps):
        A = X @ X.T
        B = torch.addmm(A, A, A, beta=b, alpha=c)  # b A + c A²
        X = torch.addmm(X, B, X, beta=a)  # a X + (b A + c A²) X
    return X.T if tall else X


def build_optimizers(model: CLIP, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for matrices and convolutions, AdamW for gains, biases, embeddings and the scale.

    Weight decay applies only to the first kind. With a muon_learning_rate of 0, AdamW takes both.
    What is locked is left out.
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        plain = parameter.ndim < 2 or name.endswith(("positions", "tokens.weight"))
        (rest if plain else matrices).append(parameter)
    groups = [{"params": rest, "weight_decay": 0.0}]
    if not config.muon_learning_rate:
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
    optimizers = [torch.optim.AdamW(
        groups, config.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)]
    if config.muon_learning_rate and matrices:
        optimizers.append(Muon(matrices, config.muon_learning_rate, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
    warmup = config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, config.steps - warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
