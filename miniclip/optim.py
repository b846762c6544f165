"""The optimisers: Muon for matrices, AdamW for the rest, and the schedule of both."""

import math

import torch
from torch import nn

from miniclip.config import TrainConfig
from miniclip.model import CLIP


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) that takes convolutions too.

    It replaces a matrix's momentum by nearly the nearest orthogonal matrix, so that every direction
    of the update has about the same length, the rare ones too. A kernel (out, in, k, k) is a matrix
    as well: (out, in · k · k), which multiplies patches. Hence a second parameter for each kernel,
    over the same numbers in memory, with a matrix's shape and a gradient of its own.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float):
        self.kernels = [p for p in parameters if p.ndim == 4]
        self.matrices = [nn.Parameter(p.data.view(len(p), -1)) for p in self.kernels]
        plain = [p for p in parameters if p.ndim == 2]
        super().__init__([*plain, *self.matrices], lr=lr, weight_decay=weight_decay)

    def step(self):
        for kernel, matrix in zip(self.kernels, self.matrices):
            matrix.grad, kernel.grad = kernel.grad.flatten(1), None
        super().step()


def build_optimizers(model: CLIP, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for every matrix that features pass through, AdamW for the rest.

    Only those matrices decay: not gains, biases, embeddings and the scale.
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name.endswith(("positions", "tokens.weight"))
        (rest if plain else matrices).append(parameter)
    groups = [{"params": rest, "weight_decay": 0.0}]
    if not config.muon_learning_rate:
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
    optimizers = [torch.optim.AdamW(
        groups, config.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)]
    if config.muon_learning_rate:
        optimizers.append(Muon(matrices, config.muon_learning_rate, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))
