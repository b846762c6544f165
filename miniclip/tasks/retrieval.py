"""Retrieval: does an image find its captions, and a caption its image?"""

import numpy as np
import torch

from miniclip.data.pairs import Pairs
from miniclip.tasks.features import check_finite, embed_images, embed_texts

CHUNK_FLOATS = 2**24  # similarities at once: 128 MiB in float64, whatever the number of images


def ranks(image_features: torch.Tensor, text_features: torch.Tensor, owner: np.ndarray):
    """Rank of the first right answer, counted from 1 → (N,) for images, (M,) for texts.

    owner (M,): the image that each text belongs to. An image's rank is that of the best of its own
    texts. Ties count against the model: a wrong answer with the same score ranks before the right
    one. The scores are computed in chunks, so no N × M matrix is held.
    """
    check_finite(image_features, text_features)
    N, M = len(image_features), len(text_features)
    owner = torch.as_tensor(owner)
    if len(torch.unique(owner)) != N:
        raise ValueError("every image needs at least one caption to be searched for")
    image_ranks, text_ranks = [], []
    for part in chunks(N, M):
        scores = cosines(image_features[part], text_features)  # (n, M)
        own = owner == part[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        image_ranks.append(1 + ((scores >= best) & ~own).sum(1))
    for part in chunks(M, N):
        scores = cosines(text_features[part], image_features)  # (m, N)
        right = scores.gather(1, owner[part, None])
        text_ranks.append((scores >= right).sum(1))  # the right one counts itself: 1 is the top
    return torch.cat(image_ranks), torch.cat(text_ranks)


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n, D), (m, D) → (n, m) float32. Equal features get equal scores in every row and column.

    BLAS may sum two columns in different orders. In float32, equal features could get different
    scores, and a tie would be lost. In float64, the rounding to float32 removes the difference.
    """
    return (a.double() @ b.double().T).float()


def chunks(rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """Row numbers in even parts, of about CHUNK_FLOATS scores each."""
    return torch.arange(rows).tensor_split(-(-rows // max(1, CHUNK_FLOATS // columns)))


def recalls(ranks: torch.Tensor) -> dict[str, float]:
    """Ranks → R@1, R@5, R@10 in percent, and the median rank."""
    result = {f"R@{k}": round(100 * (ranks <= k).double().mean().item(), 4) for k in (1, 5, 10)}
    return result | {"median_rank": float(np.median(ranks.numpy()))}


def retrieval(model, tokenizer, pairs: Pairs) -> dict:
    """The standard protocol (Hodosh et al. 2013, JAIR 47; Karpathy and Fei-Fei 2015).

    Every image against all captions of every image, and every caption against all images →
    {"image_to_text": {"R@1", "R@5", "R@10", "median_rank"}, "text_to_image": {…}, "images",
    "captions"}, recalls in percent.
    """
    texts, owner = pairs.flat_captions()
    image_ranks, text_ranks = ranks(
        embed_images(model, pairs.images), embed_texts(model, tokenizer, texts), owner)
    return {"image_to_text": recalls(image_ranks), "text_to_image": recalls(text_ranks),
            "images": len(pairs), "captions": len(texts)}
