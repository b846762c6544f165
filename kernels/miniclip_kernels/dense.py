"""Plain PyTorch, as most people run it. It keeps M × N matrices for the backward pass."""

import torch
import torch.nn.functional as F

from .autograd import without_autocast


def dense_loss(I, T, scale, labels):  # noqa: E741
    """The loss (), through PyTorch's own autograd.

    Call backward() outside autocast, as PyTorch asks. Inside, the backward products are rounded.
    """
    with without_autocast(I.device.type):
        S = scale * (I @ T.T).to(scale.dtype)  # (M, N); sums of exponentials need float32
        truth = torch.arange(len(I), device=I.device) + labels.label_offset  # (M,)
        if labels.image_ids is not None:
            same = labels.image_ids[:, None] == labels.text_ids[None, :]
            S = S.masked_fill(same.scatter(1, truth[:, None], False), -torch.inf)
        rows = F.cross_entropy(S, truth)
        if not labels.both:
            return rows
        return (rows + F.cross_entropy(S.T, truth)) / 2
