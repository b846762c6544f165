"""Detection: a box around each thing that a label names. Nothing is trained for it.

    picture ──segment.label_maps──▶ how far each label leads over the background (K, H, W)
            ──thresholds, connected parts──▶ candidate boxes
            ──image tower on what each box holds──▶ its score: how far the label leads there
            ──non-maximum suppression──▶ the boxes that are kept

A score is a lead: the cosine with the label less the best cosine with a background, of what the box
holds as a whole plus the mean over its pixels. Above zero it shows the label rather than nothing.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from miniclip.data.annotated import Annotated, Box, box_around
from miniclip.data.images import normalize
from miniclip.tasks.features import progress
from miniclip.tasks.intervals import draws_of, percentiles
from miniclip.tasks.segment import BATCH, Vocabulary, label_maps

LEVELS = (0.0, 0.25, 0.5, 0.75)  # thresholds of a map, in parts of its largest lead
CONTEXT = 0.2  # of a box's size, shown on each side of it when it is scored
SMALLEST = 0.004  # of the picture: smaller parts are no candidates
OVERLAP = 0.3  # boxes of one label that overlap more are one
CORRECT = 0.5  # IoU from which a box counts as found (AP50)


@dataclass(frozen=True)
class Found:
    """A box and its score, the sum of two leads: that of the whole and that of its pixels."""

    box: Box
    score: float


def connected_parts(mask: np.ndarray, least: int = 1) -> list[np.ndarray]:
    """A mask (H, W) bool → its parts of at least so many pixels, each (H, W) bool.

    Pixels touch along their sides. Every pixel takes the largest number among its neighbours, then
    that of the pixel whose number it has, until none changes.
    """
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        spread = np.pad(numbers, 1)
        spread = np.maximum.reduce([spread[1:-1, 1:-1], spread[:-2, 1:-1], spread[2:, 1:-1],
                                    spread[1:-1, :-2], spread[1:-1, 2:]])
        spread = np.where(mask, spread, 0)
        spread = np.append(0, spread)[spread]  # the number of pixel n − 1
        if (spread == numbers).all():
            sizes = np.bincount(numbers[mask])
            return [numbers == number for number in np.flatnonzero(sizes >= max(1, least))]
        numbers = spread


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes, whatever their labels.

    >>> box_iou(Box(0, 0, 0, 2, 2), Box(0, 1, 0, 3, 2))
    0.3333333333333333
    """
    shared = shared_area(a, b)
    return shared / (area(a) + area(b) - shared)


def share_within(box: Box, crowd: Box) -> float:
    """The part of a box that lies in a crowd: COCO's overlap with crowds."""
    return shared_area(box, crowd) / area(box)


def shared_area(a: Box, b: Box) -> float:
    width = min(a.right, b.right) - max(a.left, b.left)
    height = min(a.bottom, b.bottom) - max(a.top, b.top)
    return max(0, width) * max(0, height)


def area(box: Box) -> float:
    return (box.right - box.left) * (box.bottom - box.top)


def non_maximum_suppression(found: list[Found], overlap: float = OVERLAP) -> list[Found]:
    """Best first: a box goes if one of its label that is kept overlaps it by more than `overlap`.

    Of equal scores the first in the list is kept.
    """
    kept: list[Found] = []
    for candidate in sorted(found, key=lambda f: -f.score):
        same = (f.box for f in kept if f.box.label == candidate.box.label)
        if all(box_iou(box, candidate.box) <= overlap for box in same):
            kept.append(candidate)
    return kept


def candidates(lead: torch.Tensor, label: int) -> list[Box]:
    """A label's lead over the background (H, W) → boxes around its parts, at several levels."""
    boxes = {}
    for level in LEVELS:
        threshold = level * max(0.0, lead.max().item())
        smallest = math.ceil(SMALLEST * lead.numel())
        for part in connected_parts((lead > threshold).numpy(), smallest):
            boxes[box_around(part, label)] = None  # each once, in order
    return list(boxes)


@torch.no_grad()
def box_features(model, picture: np.ndarray, boxes: list[Box]) -> torch.Tensor:
    """What boxes hold, with some context, resized to a square → unit vectors (n, D)."""
    pixels, size = normalize(picture[None]), model.config.image_size
    H, W = picture.shape[:2]

    def crop_around(box: Box) -> torch.Tensor:
        half = (0.5 + CONTEXT) * max(box.right - box.left, box.bottom - box.top)
        x, y = (box.left + box.right) / 2, (box.top + box.bottom) / 2
        top, bottom = round(max(0, y - half)), round(min(H, y + half))
        left, right = round(max(0, x - half)), round(min(W, x + half))
        crop = pixels[:, :, top:max(bottom, top + 1), left:max(right, left + 1)]
        return F.interpolate(crop, size=(size, size), mode="bicubic", antialias=True)

    features = []
    for i in range(0, len(boxes), BATCH):
        crops = torch.cat([crop_around(box) for box in boxes[i:i + BATCH]])
        features.append(model.encode_image(crops.to(model.logit_scale)).float().cpu())
    return F.normalize(torch.cat(features), dim=-1)


def detect(model, vocabulary: Vocabulary, picture: np.ndarray, labels, threshold=-torch.inf):
    """A picture uint8 (H, W, 3), K labels → list of Found, best first, scores from `threshold`."""
    lead = label_maps(model, vocabulary, picture, labels)
    boxes = [box for k in range(len(labels)) for box in candidates(lead[k], k)]
    if not boxes:
        return []
    numbers = torch.tensor([box.label for box in boxes])
    scores = leads(box_features(model, picture, boxes), vocabulary, labels)  # (n, K)
    inside = [lead[box.label, box.top:box.bottom, box.left:box.right].mean() for box in boxes]
    scores = (scores[torch.arange(len(boxes)), numbers] + torch.stack(inside)).tolist()
    found = [Found(*pair) for pair in zip(boxes, scores, strict=True) if pair[1] >= threshold]
    return non_maximum_suppression(found)


def leads(features: torch.Tensor, vocabulary: Vocabulary, labels) -> torch.Tensor:
    """(n, D) → how far each of K labels leads over the best background, in cosines (n, K)."""
    cosines, K = features @ vocabulary.vectors(labels).T, len(labels)
    return cosines[:, :K] - cosines[:, K:].amax(1, keepdim=True) if cosines.shape[1] > K else (
        cosines)


# ------------------------------------------------------------------------------- scores


def matches(found: list[Found], truth: Iterable[Box]) -> list[tuple[float, bool]]:
    """One picture's boxes of one label → (score, is it right?), best first.

    Each takes the free true box that it overlaps most, by 0.5 at least; so a second box around the
    same thing is wrong. A box that lies on a crowd counts for nothing (COCO's rules, Lin et al.
    2014, arXiv 1405.0312).
    """
    free, result = [box for box in truth if not box.crowd], []
    crowds = [box for box in truth if box.crowd]
    for one in sorted(found, key=lambda f: -f.score):
        nearest = max(free, key=lambda box: box_iou(box, one.box), default=None)
        if nearest is not None and box_iou(nearest, one.box) >= CORRECT:
            free.remove(nearest)
            result.append((one.score, True))
        elif not any(share_within(one.box, crowd) >= CORRECT for crowd in crowds):
            result.append((one.score, False))
    return result


def precision_recall(matched: list[tuple[float, bool]], truths: int):
    """(score, is it right?) of all pictures → thresholds, precision and recall, (n,) each.

    Boxes of equal score come together: no order among them could be defended.
    """
    scores = np.array([score for score, _ in matched])
    right = np.array([hit for _, hit in matched], bool)
    order = np.argsort(-scores, kind="stable")
    scores, right = scores[order], right[order]
    last = np.append(scores[1:] != scores[:-1], True)[:len(scores)]  # of each score
    hits, found = np.cumsum(right)[last], (np.arange(len(scores)) + 1)[last]
    return scores[last], hits / found, hits / max(1, truths)


def average_precision(matched: list[tuple[float, bool]], truths: int) -> float:
    """Area under precision over recall, precision made monotone from the right (PASCAL VOC 2010+).

    >>> average_precision([(0.9, True), (0.8, False), (0.7, True)], truths=2)
    0.8333333333333333
    """
    if not matched or not truths:
        return 0.0
    _, precision, recall = precision_recall(matched, truths)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0) * best).sum())


def best_threshold(matched: list[tuple[float, bool]], truths: int) -> tuple[float, float]:
    """→ (the score from which boxes should be kept, F1 there); of equals the highest."""
    if not matched:
        return 0.0, 0.0
    thresholds, precision, recall = precision_recall(matched, truths)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    best = int(f1.argmax())
    return float(thresholds[best]), float(f1[best])


class Tally:
    """What was found in many pictures, label by label, and how many true boxes there are."""

    def __init__(self):
        self.pictures: list[dict[str, tuple[list, int]]] = []  # label: its matches, true boxes

    def add(self, row: Annotated, found: list[Found]):
        picture = {}
        for number, label in enumerate(row.asked):
            truth = [box for box in row.boxes if box.label == number]
            own = [one for one in found if one.box.label == number]
            picture[label] = matches(own, truth), sum(not box.crowd for box in truth)
        self.pictures.append(picture)

    def average_precisions(self, times=None) -> dict[str, float]:
        """AP50 of each label that has a true box, in percent; times: how often a picture counts."""
        matched: dict[str, list] = {}
        truths = Counter()
        for picture, n in zip(self.pictures, [1] * len(self.pictures) if times is None else times):
            for label, (own, true) in picture.items():
                matched.setdefault(label, []).extend(own * n)
                truths[label] += true * n
        return {label: 100 * average_precision(matched[label], count)
                for label, count in truths.items() if count}

    def mean(self, times=None) -> float:
        """Mean AP50 over those labels, in percent. ValueError if there are none."""
        if not (values := self.average_precisions(times)):
            raise ValueError("no picture has a true box of what it was asked for")
        return sum(values.values()) / len(values)

    def interval(self) -> list[float]:
        """95 % interval of the mean: pictures are drawn with replacement, 200 times."""
        draws = [self.average_precisions(times).values()
                 for times in draws_of(len(self.pictures), 200).tolist()]
        return percentiles(np.array([sum(values) / len(values) for values in draws if values]))

    def pooled(self) -> tuple[list[tuple[float, bool]], int]:
        """Of all labels together: (score, is it right?), and the number of true boxes."""
        parts = [part for picture in self.pictures for part in picture.values()]
        return [match for own, _ in parts for match in own], sum(true for _, true in parts)


def middle_box(row: Annotated, label: int, share: float) -> Box:
    """A box in the middle of a picture with `share` of its sides."""
    H, W = row.picture.shape[:2]
    low, high = (1 - share) / 2, (1 + share) / 2
    return Box(label, low * W, low * H, high * W, high * H)


def random_box(row: Annotated, label: int, rng: np.random.Generator) -> Box:
    """A box anywhere in a picture, with sides of 0.1 to 1 of its own."""
    H, W = row.picture.shape[:2]
    width, height = rng.uniform(0.1, 1, 2)
    left, top = rng.random(2) * (1 - width, 1 - height)
    return Box(label, left * W, top * H, (left + width) * W, (top + height) * H)


def detection_report(model, vocabulary: Vocabulary, rows) -> dict:
    """Every picture against its true boxes → AP50, in percent.

    Args:
        rows: a function that gives the pictures (Annotated), again and again.

    Returns:
        {"ap50", "interval", "guessing", "centre", "pictures", "threshold", "f1", "labels":
        {label: AP50}}, with the 95 % interval of the mean. The threshold is the best for F1 on
        every second picture; f1, in percent, is that of the others. Baselines: "guessing", a box
        anywhere for each label; "centre", one in the middle, as large as objects are on average,
        with the score of the whole picture.
    """
    ours, guessing, centre, halves = Tally(), Tally(), Tally(), (Tally(), Tally())
    rng = np.random.default_rng(0)
    share = mean_side(rows())
    for i, row in enumerate(progress(rows(), "picture")):
        found = detect(model, vocabulary, row.picture, row.asked)
        ours.add(row, found)
        halves[i % 2].add(row, found)
        guessing.add(row, [Found(random_box(row, k, rng), rng.random())
                           for k in range(len(row.asked))])
        whole = middle_box(row, 0, 1.0)
        scores = leads(box_features(model, row.picture, [whole]), vocabulary, row.asked)[0].tolist()
        centre.add(row, [Found(middle_box(row, k, share), score)
                         for k, score in enumerate(scores)])
    threshold, _ = best_threshold(*halves[0].pooled())
    f1 = f1_at(*halves[1].pooled(), threshold)
    return {"ap50": round(ours.mean(), 2), "interval": ours.interval(),
            "guessing": round(guessing.mean(), 2),
            "centre": round(centre.mean(), 2), "pictures": i + 1,
            "threshold": round(threshold, 4), "f1": round(100 * f1, 2),
            "labels": {label: round(ap, 2) for label, ap in
                       sorted(ours.average_precisions().items())}}


def mean_side(rows: Iterable[Annotated]) -> float:
    """Mean side of true boxes, in parts of the picture's. ValueError for a picture without any."""
    sides = []
    for row in rows:
        if row.boxes is None:
            raise ValueError("the data have masks and no boxes: use `miniclip segment`")
        H, W = row.picture.shape[:2]
        sides += [(area(box) / (H * W)) ** 0.5 for box in row.boxes if not box.crowd]
    if not sides:
        raise ValueError("no picture has a true box")
    return sum(sides) / len(sides)


def f1_at(matched: list[tuple[float, bool]], truths: int, threshold: float) -> float:
    """F1 of the boxes whose score is at least the threshold: 2 · right / (found + true)."""
    kept = [hit for score, hit in matched if score >= threshold]
    return 2 * sum(kept) / max(1, len(kept) + truths)
