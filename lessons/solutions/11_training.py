"""Solution 11: batches, and a loop that must overfit."""

import numpy as np
import torch

from miniclip import CLIP, clip_loss


def one_epoch(counts: np.ndarray, batch_size: int, rng: np.random.Generator):
    """A permutation has no repeats; cut it into pieces."""
    first = np.cumsum(counts) - counts  # each image's first caption in the long list
    order = rng.permutation(len(counts))
    rows = (first + rng.integers(counts))[order]  # integers: 0 to counts - 1, for each image
    whole = len(counts) // batch_size * batch_size
    return [(order[i:i + batch_size], rows[i:i + batch_size]) for i in range(0, whole, batch_size)]


def overfit(model: CLIP, pixels: torch.Tensor, tokens: torch.Tensor, steps: int,
            learning_rate: float = 1e-3) -> list[float]:
    """The loop of chapter 11 without all that makes it good in the long run."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
    losses = []
    for _ in range(steps):
        loss = clip_loss(*model(pixels, tokens))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.clamp_scale_()
    return losses
