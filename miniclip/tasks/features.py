"""Images and texts → unit vectors, batch by batch: what every task begins with.

Features are of unit length, (N, D) float32, on the CPU; a similarity is their dot product.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from miniclip.data.images import normalize


@torch.no_grad()
def embed_images(model, images: np.ndarray, batch_size: int = 250) -> torch.Tensor:
    """uint8 (N, S, S, 3) → unit vectors (N, D), float32, on the CPU.

    The norm is taken in float32, even if the model computes in bfloat16.
    """
    batches = (images[i:i + batch_size] for i in range(0, len(images), batch_size))
    parts = [model.encode_image(normalize(b).to(model.logit_scale)).float().cpu() for b in batches]
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def embed_texts(model, tokenizer, texts: list[str], batch_size: int = 500) -> torch.Tensor:
    """M texts → unit vectors (M, D), float32, on the CPU."""
    device = model.logit_scale.device
    batches = tqdm(tokenizer(texts).split(batch_size), "texts", leave=False, unit="batch",
                   disable=len(texts) < 20_000)  # so many take minutes
    # Columns after the longest text's end token can't change a result: leave them out.
    batches = (t[:, : int(t.argmax(1).max()) + 1].to(device) for t in batches)
    return F.normalize(torch.cat([model.encode_text(t).float().cpu() for t in batches]), dim=-1)


def progress(rows: Iterable, unit: str) -> Iterator:
    """The same rows, with a bar on a terminal that goes away when they end."""
    return tqdm(rows, unit=unit, dynamic_ncols=True, leave=False)


def untrained(model):
    """A model of the same shape with fresh weights, the same ones in every run: a baseline."""
    fresh = type(model)(model.config).init_weights(torch.Generator().manual_seed(0))
    return fresh.to(model.logit_scale).eval()


def check_finite(*features: torch.Tensor):
    """ValueError for NaN: every comparison with it is false, so a broken model would rank first."""
    if not all(torch.isfinite(f).all() for f in features):
        raise ValueError("features hold NaN or infinite values: the model has diverged")
