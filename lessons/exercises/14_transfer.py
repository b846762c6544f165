"""Exercise 14: boxes. `make check N=14` tells at once what is right."""

import numpy as np


def box_iou(a, b) -> float:
    """Intersection over union of two boxes (left, top, right, bottom), in pixels.

    A box ends *at* right and bottom, so (0, 0, 2, 1) is 2 wide and 1 high. Boxes that don't touch
    share nothing: 0.
    """
    raise NotImplementedError


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> list[int]:
    """Non-maximum suppression → the indices (in `boxes`) of those that are kept, best first.

    boxes (N, 4), scores (N,), all of one label. Go from the best score down; keep a box if its IoU
    with each box *kept so far* is at most `overlap`. Uses box_iou.
    """
    raise NotImplementedError


def average_precision(scores: np.ndarray, right: np.ndarray, truths: int) -> float:
    """Area under precision over recall.

    scores (N,), no two equal; right (N,) bool: did this box find a true one that was still free?
    truths: how many true boxes there are, found or not.

    From the best score down, precision is the share of boxes so far that are right. Each right box
    raises recall by 1 / truths, so the area is the sum, over the right boxes, of the precision
    there times 1 / truths. (PASCAL VOC takes the best precision from there on instead; leave that
    out.)
    """
    raise NotImplementedError
