"""Retrieval: does an image find its captions, and a caption its image?"""

import numpy as np
import torch

from miniclip.data.captions import sentence_numbers
from miniclip.data.pairs import Pairs
from miniclip.tasks.features import check_finite, embed_images, embed_texts

CHUNK_FLOATS = 2**24  # similarities at once: 128 MiB in float64, whatever the number of images


def ranks(image_features: torch.Tensor, text_features: torch.Tensor, owner: np.ndarray,
          sentences: np.ndarray | None = None):
    """Rank of the first right answer, counted from 1 → (N,) for images, (M,) for texts.

    Ties count against the model: a wrong answer with the same score ranks before the right one. The
    scores are computed in chunks, so no N × M matrix is held.

    Args:
        image_features, text_features: (N, D) and (M, D).
        owner: (M,), the image that each text belongs to.
        sentences: (M,), equal numbers for equal texts. Whichever image brought it, an equal text is
            a right answer to every image that has such a text, and each of these images to it.
            None: all texts differ.
    """
    check_finite(image_features, text_features)
    N, M = len(image_features), len(text_features)
    owner = torch.as_tensor(owner)
    if len(torch.unique(owner)) != N:
        raise ValueError("every image needs at least one caption to be searched for")
    sentences = torch.arange(M) if sentences is None else torch.as_tensor(sentences)
    image_ranks, text_ranks = [], []
    for part in chunks(N, M):
        scores = cosines(image_features[part], text_features)  # (n, M)
        own = incidence(owner, sentences, part)[:, sentences]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        image_ranks.append(1 + ((scores >= best) & ~own).sum(1))
    for part in chunks(M, N):
        scores = cosines(text_features[part], image_features)  # (m, N)
        own = incidence(sentences, owner, sentences[part])
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        text_ranks.append(1 + ((scores >= best) & ~own).sum(1))
    return torch.cat(image_ranks), torch.cat(text_ranks)


def incidence(keys: torch.Tensor, values: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
    """M pairs of numbers (key, value), n keys → (n, largest value + 1) bool: which belong to it."""
    table = torch.zeros(len(asked), int(values.max()) + 1, dtype=torch.bool)
    order = torch.argsort(keys)
    starts = torch.searchsorted(keys[order], asked)
    counts = torch.searchsorted(keys[order], asked, right=True) - starts
    row = torch.repeat_interleave(counts)  # of each pair that is found
    within = torch.arange(len(row)) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    table[row, values[order][starts[row] + within]] = True
    return table


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
    "captions", "different_captions"}, recalls in percent. An identical sentence is a right answer,
    whichever image it was written for.
    """
    texts, owner = pairs.flat_captions()
    sentences = sentence_numbers(texts)
    image_ranks, text_ranks = ranks(
        embed_images(model, pairs.images), embed_texts(model, tokenizer, texts), owner, sentences)
    return {"image_to_text": recalls(image_ranks), "text_to_image": recalls(text_ranks),
            "images": len(pairs), "captions": len(texts),
            "different_captions": len(np.unique(sentences))}
