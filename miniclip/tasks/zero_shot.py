"""Zero-shot classification: the classes are sentences, and nothing is trained.

    class names ──templates──▶ prompts ──text tower, mean──▶ (C, D) ┐
                                                                    ├─▶ cosines (N, C): the largest
    images ──image tower──▶ (N, D) ─────────────────────────────────┘   names the class
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from miniclip.data import scenes
from miniclip.data.images import decode, fit, read_image
from miniclip.data.labelled import decoded_batches
from miniclip.tasks.features import check_finite, embed_images, embed_texts

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a drawing of a {}", "there is a {}", "a {}")
DRAWN_CLASSES = 1000  # at most, in a confusion picture


def class_vectors(model, tokenizer, names: list[str], templates=TEMPLATES) -> torch.Tensor:
    """One unit vector for each class → (C, D): normalise, mean over the templates, normalise.

    Prompt ensembling in the latent space (Radford et al. 2021, section 3.1.4). ValueError for a
    missing or empty name, and for a template without {}.
    """
    if isinstance(names, str) or not names or not all(map(str.strip, names)):
        raise ValueError("a class needs a name: give at least one label, and no empty one")
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"the template {wrong[0]!r} has no {{}}, where the label goes")
    prompts = [template.replace("{}", name) for name in names for template in templates]
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
    """Scores of a model trained on `shapes`, on what it never saw, in percent.

    held_out: colour × shape combinations absent from training, among all 100 (chance 1), plain
    and in each shifted style; relations: the right caption against the one with its two objects
    swapped (chance 50).
    """
    size = model.config.image_size

    def held_out(style):
        images, labels = scenes.held_out_set(20, seed, style)
        return zero_shot(model, tokenizer, fit(images, size), labels, scenes.class_names())

    images, right, swapped = scenes.relation_set(500, seed)
    images = embed_images(model, fit(images, size))
    right, swapped = (embed_texts(model, tokenizer, texts) for texts in (right, swapped))
    wins = ((images * right).sum(1) > (images * swapped).sum(1)).double().mean().item()
    return {"held_out": {style: held_out(style) for style in scenes.STYLES},
            "relations": round(100 * wins, 2)}


def classify(images, labels: list[str], loaded, templates=TEMPLATES) -> torch.Tensor:
    """Paths of N images, C labels → probabilities (N, C), float32: softmax of scale · cosine.

    loaded: (model, tokenizer, transform), as `miniclip.load` gives them. Nothing is trained: the
    labels are put into the templates (Radford et al. 2021, section 3.1; Figure 1, steps 2 and 3).
    ValueError for an image that can't be opened, no or empty labels, a template without {}.
    """
    model, tokenizer, transform = loaded
    pixels = np.stack([*ThreadPoolExecutor().map(lambda x: read_image(x, transform.size), images)])
    classes = class_vectors(model, tokenizer, labels, templates)
    features = embed_images(model, pixels)
    scores = model.logit_scale.exp().item() * features @ classes.T  # (N, C)
    check_finite(scores)
    return scores.softmax(dim=1)


def zero_shot_report(loaded, rows: Iterator, names: list[str], templates=TEMPLATES):
    """Every image against every class → (figures, confusion (C, C) int64: truth by prediction).

    Args:
        loaded: (model, tokenizer, transform), as `miniclip.load` gives them.
        rows: (image as `decode` takes it, class number), as `labelled_images` gives them.
        names: of the C classes.
        templates: of the prompts; {} stands for the name.

    Returns:
        figures: {"top1", "top5", "images", "unreadable", "classes": [{"name", "images", "top1",
            "top5", "mistaken_for"}, …]}, in percent, only of classes that have images.
        confusion: None for more than 1,000 classes: 10,000 × 10,000 numbers take a gigabyte.
    """
    model, tokenizer, transform = loaded
    classes = class_vectors(model, tokenizer, names, templates)
    truth, predicted, unreadable = [], [], 0

    def decoder(image):
        return decode(image, transform.size)[0]

    with tqdm(unit="image", dynamic_ncols=True) as bar:
        for batch in decoded_batches(rows, decoder):
            bar.update(len(batch.labels) + batch.unreadable)
            unreadable += batch.unreadable
            if len(batch.labels):
                images = embed_images(model, batch.pixels[0])
                check_finite(images, classes)
                nearest = (images @ classes.T).topk(min(5, len(names))).indices  # (n, 5)
                predicted.append(nearest)
                truth += batch.labels.tolist()
    if not truth:
        raise ValueError(f"none of the {unreadable:,} images can be opened")
    truth, predicted = torch.tensor(truth), torch.cat(predicted)  # (N,), (N, 5)
    figures = top_figures(truth, predicted, names) | {"unreadable": unreadable}
    return figures, confusion_matrix(truth, predicted[:, 0], len(names))


def top_figures(truth: torch.Tensor, predicted: torch.Tensor, names: list[str]) -> dict:
    """truth (N,), the five nearest classes (N, 5) → accuracy, of all and class by class."""
    hits = (predicted == truth[:, None]).double()  # (N, 5)

    def accuracy(rows):
        return {f"top{k}": round(100 * hits[rows, :k].amax(1).mean().item(), 2) for k in (1, 5)}

    mistaken_for = most_frequent_mistakes(truth, predicted[:, 0])
    classes = []
    for c in truth.unique().tolist():
        rows = truth == c
        mistake = mistaken_for.get(c)
        classes.append({"name": names[c], **accuracy(rows), "images": rows.sum().item(),
                        "mistaken_for": None if mistake is None else names[mistake]})
    return {**accuracy(truth >= 0), "images": len(truth), "classes": classes}


def most_frequent_mistakes(truth: torch.Tensor, predicted: torch.Tensor) -> dict[int, int]:
    """{class: the wrong class that it is most often taken for}; of equals the first."""
    counts = Counter(zip(truth.tolist(), predicted.tolist()))
    mistakes = {}
    for (a, b), _ in sorted(counts.items(), key=lambda item: (-item[1], item[0][1])):
        if a != b:
            mistakes.setdefault(a, b)
    return mistakes


def confusion_matrix(truth: torch.Tensor, predicted: torch.Tensor, C: int) -> torch.Tensor | None:
    """(N,), (N,) → counts (C, C), truth by prediction; None for more classes than can be drawn."""
    if C > DRAWN_CLASSES:
        return None
    return torch.bincount(truth * C + predicted, minlength=C * C).view(C, C)
