"""Does it hold when the world shifts? Zero-shot CLIP beside a supervised network, six times.

The lecture's figure (minute 13:50; Radford et al. 2021, Figure 13): on ImageNet both are equal, on
five sets that show the same classes otherwise they are far apart.

    each set ──labelled_images──▶ every image, decoded for both
        ──CLIP: the nearest class──▶ right or wrong        ──▶ accuracy, 95 % interval
        ──supervised: the largest of the outputs that stand for the set's classes──▶ right or wrong
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from miniclip.data.images import decode
from miniclip.data.labelled import LabelledSet, decoded_batches
from miniclip.tasks.features import check_finite, embed_images, progress
from miniclip.tasks.intervals import accuracy_of
from miniclip.tasks.zero_shot import TEMPLATES, class_vectors
from miniclip.weights.supervised import Classifier


@dataclass(frozen=True)
class Shift:
    """One column of the lecture's figure.

    supervised, clip: what the lecture shows, in percent. published: OpenAI's ViT-L/14@336px as
    CLIP_benchmark measured it.
    """

    name: str
    data: str
    supervised: float
    clip: float
    published: float


IMAGENET = "clip-benchmark/wds_imagenet1k"
SHIFTS = (
    Shift("ImageNet", IMAGENET, 76.2, 76.2, 76.55),
    Shift("ImageNet-V2", "clip-benchmark/wds_imagenetv2", 64.3, 70.1, 70.74),
    Shift("ImageNet-R", "clip-benchmark/wds_imagenet-r", 37.7, 88.9, 89.12),
    Shift("ObjectNet", "clip-benchmark/wds_objectnet", 32.6, 72.3, 71.78),
    Shift("ImageNet-Sketch", "clip-benchmark/wds_imagenet_sketch", 25.2, 60.2, 61.05),
    Shift("ImageNet-A", "clip-benchmark/wds_imagenet-a", 2.7, 77.1, 77.39))

# ObjectNet's 113 classes that ImageNet has too, in the order of their folders, each with its
# classes there: `objectnet_to_imagenet_1k.json` of the data set's authors (Barbu et al. 2019).
OBJECTNET = tuple(tuple(map(int, numbers.split("+"))) for numbers in """
    409+530 414 954 419 790 434 440 703 444+671 446 455 930 462 463 499 473 470 487 423+559+765
    588 550 507 673 846 533 539 578 630 740 968 729 549 545 567 589 587 518+560 606 608 508 618 619
    620 951 623 626 629 644 647 651 659 664 504 677 679 950 695 696 700 418+563+749 720 721 725 728
    923 731 737 811 742 761 769 770 772 773 774 783 792 601+655+689 797 804 806 809 813 632 732+759
    828 850 834 837 841 842 610 851 849 752 457+906 859 999 412 868 879 882 883 893 531 898 543 778
    479+694 902 907 658 909""".split())


def outputs_of(names: list[str], imagenet: list[str], where: str) -> list[tuple[int, ...]]:
    """A set's class names → for each the outputs of an ImageNet classifier that stand for it.

    Where a set has the names of ImageNet's own list, they say it (a name that the list has twice
    stands for both). ObjectNet has names of its own; its authors published which are which.
    ValueError for a set of which neither is known.
    """
    places: dict[str, list[int]] = {}
    for number, name in enumerate(imagenet):
        places.setdefault(name.lower(), []).append(number)
    if names == imagenet:  # in their order: so names that occur twice are no matter
        return [(number,) for number in range(len(names))]
    unknown = [name for name in names if name.lower() not in places]
    if not unknown:
        return [tuple(places[name.lower()]) for name in names]
    if len(names) == len(OBJECTNET) and len(imagenet) == 1000 and "objectnet" in where.lower():
        return list(OBJECTNET)
    raise ValueError(f"{where}: ImageNet has no class {unknown[0]!r}, so a classifier of ImageNet "
                     "can't be asked; use --supervised none")


def supervised_scores(logits: torch.Tensor, outputs: list[tuple[int, ...]]) -> torch.Tensor:
    """Logits (B, 1000) → (B, C): of each class the largest of its outputs."""
    return torch.stack([logits[:, list(places)].amax(1) for places in outputs], dim=1)


def both_right(loaded, classifier: Classifier | None, found: LabelledSet, rows: Iterator,
               outputs: list | None):
    """Is each image right? → zero-shot (N,) bool, supervised (N,) bool or None, images unreadable.

    ValueError if no image can be opened.
    """
    model, tokenizer, transform = loaded
    vectors = class_vectors(model, tokenizer, found.names, found.templates or TEMPLATES)

    def ours(image):
        return decode(image, transform.size)[0]

    def theirs(image):
        return decode(image, classifier.size, classifier.resize)[0]

    decoders = [ours] if classifier is None else [ours, theirs]

    clip, supervised, unreadable = [], [], 0
    for batch in progress(decoded_batches(rows, *decoders), "batch"):
        unreadable += batch.unreadable
        if not len(batch.labels):
            continue
        labels = torch.from_numpy(batch.labels)
        features = embed_images(model, batch.pixels[0])
        check_finite(features, vectors)
        clip.append((features @ vectors.T).argmax(1) == labels)
        if classifier is not None:
            logits = classifier.logits(batch.pixels[1])
            check_finite(logits)
            supervised.append(supervised_scores(logits, outputs).argmax(1) == labels)
    if not clip:
        raise ValueError(f"none of the {unreadable:,} images can be opened")
    right = torch.cat(supervised).numpy() if supervised else None
    return torch.cat(clip).numpy(), right, unreadable


# ------------------------------------------------------------------------- effective robustness


def logit(right, images: int) -> np.ndarray:
    """Shares of `images` that are right, in [0, 1] → log(p / (1 − p)).

    None or all right would be at infinity: half an image is added or taken.
    """
    share = np.clip(np.asarray(right, float), 0.5 / images, 1 - 0.5 / images)
    return np.log(share) - np.log1p(-share)


class Line(NamedTuple):
    """What accuracy under a shift is to be expected of one in domain; straight between logits."""

    slope: float
    intercept: float
    images: int  # of the set in domain

    def __call__(self, inside) -> np.ndarray:
        """Shares in [0, 1] → shares in (0, 1)."""
        return 1 / (1 + np.exp(-(self.slope * logit(inside, self.images) + self.intercept)))


def fitted_line(inside, shifted, images: tuple[int, int]) -> Line:
    """Accuracies (N,) of models, in domain and under a shift, shares in [0, 1] → their line.

    Least squares on logits, where the points of many models lie on a line (Taori et al. 2020, arXiv
    2007.00644, section 3). images: how many each set has. If all models are equally good in domain,
    the line is level.
    """
    x, y = (logit(v, n) for v, n in zip((inside, shifted), images, strict=True))
    if np.ptp(x) < 1e-9:
        return Line(0.0, float(np.mean(y)), images[0])
    slope, intercept = np.polyfit(x, y, 1)
    return Line(float(slope), float(intercept), images[0])


def effective_robustness(inside, shifted, line: Line) -> np.ndarray:
    """Accuracy under a shift, less what the line expects of the accuracy in domain: ρ = y − β(x).

    β is the line of ordinary supervised models (Taori et al. 2020, section 2). A model on the line
    has 0: it is better under the shift only because it is better everywhere.
    """
    return np.asarray(shifted, float) - line(inside)


def shift_row(loaded, classifier: Classifier | None, shift: Shift, found: LabelledSet,
              rows: Iterator, imagenet: list[str] | None) -> dict:
    """One set → a row of the table: both accuracies, their intervals, and what others measured."""
    outputs = None
    if classifier is not None:
        outputs = outputs_of(found.names, imagenet, shift.data)
    clip, right, unreadable = both_right(loaded, classifier, found, rows, outputs)
    supervised = None if right is None else accuracy_of(right)
    return {"set": shift.name, "data": shift.data, "images": len(clip), "unreadable": unreadable,
            "classes": len(found.names), "clip": accuracy_of(clip), "supervised": supervised,
            "lecture": {"supervised": shift.supervised, "clip": shift.clip},
            "published_clip": shift.published}
