"""Retrieval and zero-shot classification: what a CLIP can do without being taught it.

Features are of unit length, (N, D) float32; a similarity is their dot product.
"""

import numpy as np
import torch
import torch.nn.functional as F

from miniclip import shapes
from miniclip.data import Pairs, fit, normalize

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a drawing of a {}", "there is a {}", "a {}")
CHUNK_FLOATS = 2**25  # of similarities held at once: 128 MiB, whatever the number of images


@torch.no_grad()
def embed_images(model, images: np.ndarray, batch_size: int = 250) -> torch.Tensor:
    """uint8 (N, S, S, 3) → unit vectors (N, D), float32, on the CPU."""
    device = model.logit_scale.device
    batches = (images[i:i + batch_size] for i in range(0, len(images), batch_size))
    return torch.cat([
        model.encode_image(normalize(b).to(device), normalize=True).float().cpu() for b in batches])


@torch.no_grad()
def embed_texts(model, tokenizer, texts: list[str], batch_size: int = 500) -> torch.Tensor:
    """M texts → unit vectors (M, D), float32, on the CPU."""
    device = model.logit_scale.device
    tokens = tokenizer(texts)
    return torch.cat([
        model.encode_text(t.to(device), normalize=True).float().cpu()
        for t in tokens.split(batch_size)])


def check_finite(*features: torch.Tensor):
    """NaN compares as smaller than everything: without this a broken model would win."""
    if not all(torch.isfinite(f).all() for f in features):
        raise ValueError("features hold NaN or infinite values: the model has diverged")


def ranks(image_features: torch.Tensor, text_features: torch.Tensor, owner: np.ndarray):
    """Where the first right answer stands, 1 being the top → (N,) for images, (M,) for texts.

    owner (M,): the image that each text belongs to. Image → text: the best placed of the image's
    own texts. Ties count against the model: a wrong answer that scores just as high stands before
    the right one. In chunks: no N × M matrix is held.
    """
    check_finite(image_features, text_features)
    N, M = len(image_features), len(text_features)
    owner = torch.as_tensor(owner)
    if len(torch.unique(owner)) != N:
        raise ValueError("every image needs at least one caption to be searched for")
    image_ranks, text_ranks = [], []
    for part in chunks(N, M):
        scores = image_features[part] @ text_features.T  # (n, M)
        own = owner == part[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        image_ranks.append(1 + ((scores >= best) & ~own).sum(1))
    for part in chunks(M, N):
        scores = text_features[part] @ image_features.T  # (m, N)
        right = scores.gather(1, owner[part, None])
        text_ranks.append((scores >= right).sum(1))  # the right one counts itself: 1 is the top
    return torch.cat(image_ranks), torch.cat(text_ranks)


def chunks(rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """Row numbers in even parts, of about CHUNK_FLOATS scores each.

    Never a part of one row: for it BLAS takes another path, on which equal features can get scores
    that differ in the last bit, and a tie would be lost.
    """
    most = max(3, CHUNK_FLOATS // columns)
    return torch.arange(rows).tensor_split(-(-rows // most))


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


def class_vectors(model, tokenizer, names: list[str], templates=TEMPLATES) -> torch.Tensor:
    """One unit vector for each class → (C, D): normalise, mean over the templates, normalise.

    Prompt ensembling in the latent space (Radford et al. 2021, section 3.1.4).
    """
    prompts = [template.format(name) for name in names for template in templates]
    vectors = embed_texts(model, tokenizer, prompts).view(len(names), len(templates), -1)
    return F.normalize(vectors.mean(dim=1), dim=-1)


def zero_shot(model, tokenizer, images: np.ndarray, labels: np.ndarray, names: list[str]) -> float:
    """Share, in percent, of images (N, S, S, 3) whose nearest class among `names` is labels (N,).

    Nothing is trained: the classes are sentences (Radford et al. 2021, section 3.1; lecture,
    minute 18:44).
    """
    images, classes = embed_images(model, images), class_vectors(model, tokenizer, names)
    check_finite(images, classes)
    scores = images @ classes.T  # (N, C)
    return round(100 * (scores.argmax(1) == torch.as_tensor(labels)).double().mean().item(), 2)


def shapes_report(model, tokenizer, seed: int = 9) -> dict:
    """What a model trained on `shapes` makes of what it never saw, in percent.

    held_out: colour × shape combinations of no training scene, among all 100 (chance 1), plain
    and in each shifted style; relations: the right caption against the one with its two objects
    swapped (chance 50).
    """
    size = model.config.image_size

    def held_out(style):
        images, labels = shapes.held_out_set(20, seed, style)
        return zero_shot(model, tokenizer, fit(images, size), labels, shapes.class_names())

    images, right, swapped = shapes.relation_set(500, seed)
    images = embed_images(model, fit(images, size))
    right, swapped = (embed_texts(model, tokenizer, texts) for texts in (right, swapped))
    wins = ((images * right).sum(1) > (images * swapped).sum(1)).double().mean().item()
    return {"held_out": {style: held_out(style) for style in shapes.STYLES},
            "relations": round(100 * wins, 2)}
