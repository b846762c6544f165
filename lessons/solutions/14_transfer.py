"""Solution 14: boxes."""

import numpy as np


def area(box) -> float:
    left, top, right, bottom = box
    return (right - left) * (bottom - top)


def box_iou(a, b) -> float:
    """A side of what they share is negative where they don't touch: then nothing is shared."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0, width) * max(0, height)
    return shared / (area(a) + area(b) - shared)


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Only boxes that were kept suppress others."""
    kept: list[int] = []
    for number in np.argsort(-scores):
        if all(box_iou(boxes[other], boxes[number]) <= overlap for other in kept):
            kept.append(int(number))
    return kept


def average_precision(scores: np.ndarray, right: np.ndarray, truths: int) -> float:
    """Divided by the true boxes, not by the found ones: what was missed counts as 0."""
    right = right[np.argsort(-scores)]
    precision = np.cumsum(right) / (np.arange(len(right)) + 1)  # (N,)
    return float(precision[right].sum() / truths)
