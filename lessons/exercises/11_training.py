"""Exercise 11: batches, and a loop that must overfit. `make check N=11` tells what is right."""

import numpy as np
import torch

from miniclip import CLIP, clip_loss  # noqa: F401  (clip_loss is for you)


def one_epoch(counts: np.ndarray, batch_size: int, rng: np.random.Generator):
    """One epoch of batches in random order → a list of (images, rows), each an array (batch_size,).

    counts (N,): how many captions each image has, at least one. The captions of all images stand in
    one long list, those of image 0 first, then those of image 1, and so on.
    images: numbers of images. No image comes twice in the epoch. What is left when no whole batch
    can be made is dropped.
    rows: for each of these images the place, in the long list, of one of its captions, each of them
    with the same chance.
    """
    raise NotImplementedError


def overfit(model: CLIP, pixels: torch.Tensor, tokens: torch.Tensor, steps: int,
            learning_rate: float = 1e-3) -> list[float]:
    """Train `model` on this one batch, `steps` times, with torch.optim.AdamW → the losses.

    model(pixels, tokens) gives (image features, text features, multiplier s), as clip_loss wants
    them. losses[k] is the loss before step k, so losses[0] is that of the untrained model. After
    each step s must be 100 at most: the model has a method for it.
    """
    raise NotImplementedError
