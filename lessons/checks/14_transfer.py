"""Checks of exercise 14."""

import numpy as np

A, B, FAR = (0, 0, 4, 2), (2, 0, 6, 2), (10, 10, 12, 12)
CHAIN = np.array([(0, 0, 10, 10), (4, 0, 14, 10), (8, 0, 18, 10)])  # each overlaps the next


def check_iou_of_equal_boxes(answer):
    """a box and itself: 1; boxes that don't touch: 0"""
    found = answer.box_iou(A, A)
    assert np.isclose(found, 1), (
        f"a box overlaps itself completely: 1, not {found}; the union counts what is shared only "
        "once: area a + area b − shared")
    for other, where in ((FAR, "below and to the right"), ((4, 0, 6, 2), "side by side"),
                         ((10, 0, 12, 2), "in the same rows")):
        found = answer.box_iou(A, other)
        assert np.isclose(found, 0), (
            f"{A} and {other}, {where}, share nothing: 0, not {found}; a negative width or height "
            "means that nothing is shared, so cut each side off at 0 before you multiply")


def check_iou(answer):
    """half of two equal boxes shared: 1/3"""
    found = answer.box_iou(A, B)
    assert not np.isclose(found, 9 / 21), (
        "right − left is the width here, not right − left + 1: boxes end at right and bottom")
    assert np.isclose(found, 1 / 3), (
        f"{A} and {B} share 4 pixels of 12 in all: 1/3, not {found:.3f}; divide by the union, "
        "area a + area b − shared")
    found = answer.box_iou((0, 0, 10, 10), (2, 3, 4, 5))
    assert np.isclose(found, 0.04), f"4 of 100 pixels, one box within the other: 0.04, not {found}"


def check_suppression_keeps_the_best(answer):
    """of two boxes around one thing the better is kept, wherever it stands in the list"""
    boxes = np.array([(0, 0, 10, 10), (1, 0, 11, 10), (30, 30, 40, 40)])
    for scores, expected in (([0.2, 0.9, 0.5], [1, 2]), ([0.9, 0.2, 0.95], [2, 0])):
        found = list(answer.suppress(boxes, np.array(scores), 0.3))
        assert len(found) < 3, (
            "boxes 0 and 1 overlap by more than 0.3, and both are kept: compare a box with every "
            "box kept so far, not only with the last")
        assert sorted(found) == sorted(expected), (
            f"scores {scores}: keep {expected}, not {found}; begin with the best score, not with "
            "the first box, and return places in `boxes`, not in the sorted list")
        assert found == expected, f"best first: {expected}, not {found}"
    boxes = np.array([(0, 0, 4, 1), (0, 0, 2, 1)])  # an IoU of exactly 1/2
    found = list(answer.suppress(boxes, np.array([0.9, 0.8]), 0.5))
    assert found == [0, 1], f"an IoU of exactly `overlap` is still allowed: [0, 1], not {found}"


def check_only_kept_boxes_suppress(answer):
    """a box that is gone suppresses none"""
    found = list(answer.suppress(CHAIN, np.array([0.9, 0.8, 0.7]), 0.3))
    assert found != [0], (
        "the last box overlaps only the one in the middle, which is itself gone: compare with the "
        "boxes kept so far, not with all better ones")
    assert found == [0, 2], f"of three in a chain the first and the last stay: [0, 2], not {found}"
    found = list(answer.suppress(CHAIN, np.array([0.9, 0.8, 0.7]), 0.5))
    assert found == [0, 1, 2], (
        f"none overlaps another by more than 0.5: keep all, not {found}; compare with `overlap`")


def check_average_precision(answer):
    """right, wrong, right, of two true boxes: (1 + 2/3) / 2"""
    scores, right = np.array([0.9, 0.8, 0.7]), np.array([True, False, True])
    found = answer.average_precision(scores, right, 2)
    assert np.isclose(found, 5 / 6), (
        f"precision is 1 at the first right box and 2/3 at the second: (1 + 2/3) / 2 = 0.833, not "
        f"{found:.3f}; the wrong box between them has no term of its own")
    order = [2, 0, 1]
    found = answer.average_precision(scores[order], right[order], 2)
    assert np.isclose(found, 5 / 6), "the same boxes in another order: sort by score, best first"
    found = answer.average_precision(scores, np.array([False, True, True]), 2)
    assert not np.isclose(found, 1), "the best box is the wrong one here: np.argsort sorts upwards"
    assert not np.isclose(found, 2 / 3), (
        "take the precision at each right box itself, not the best precision from there on")
    assert np.isclose(found, 7 / 12), (
        f"wrong, right, right, of two true boxes: (1/2 + 2/3) / 2 = 0.583, not {found:.3f}")


def check_missed_boxes_count(answer):
    """true boxes that nobody found lower it"""
    found = answer.average_precision(np.array([0.9]), np.array([True]), 4)
    assert np.isclose(found, 0.25), (
        f"one of four true boxes found, with no mistake: 0.25, not {found}; divide by `truths`, "
        "not by the boxes that are right")
    found = answer.average_precision(np.array([0.9, 0.1]), np.array([False, False]), 3)
    assert found == 0, f"no box is right: 0, not {found}"


def overlap_of(a, b):
    return (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def with_negative_sides(a, b):
    return overlap_of(a, b) / (area(a) + area(b) - overlap_of(a, b))


def over_the_sum(a, b):
    return max(0, overlap_of(a, b)) / (area(a) + area(b))


def with_pixels_at_the_end(a, b):
    def longer(box):
        return (box[0], box[1], box[2] + 1, box[3] + 1)

    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return with_negative_sides(longer(a), longer(b))


def iou(a, b):
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return width * height / (area(a) + area(b) - width * height)


def in_the_order_of_the_list(boxes, scores, overlap):
    kept = []
    for i in range(len(boxes)):
        if all(iou(boxes[i], boxes[j]) <= overlap for j in kept):
            kept.append(i)
    return kept


def by_all_better_ones(boxes, scores, overlap):
    order = np.argsort(-scores)
    return [int(i) for n, i in enumerate(order)
            if all(iou(boxes[i], boxes[j]) <= overlap for j in order[:n])]


def over_the_found(scores, right, truths):
    right = right[np.argsort(-scores)]
    precision = np.cumsum(right) / (np.arange(len(right)) + 1)
    return float(precision[right].mean()) if right.any() else 0.0


def unsorted(scores, right, truths):
    precision = np.cumsum(right) / (np.arange(len(right)) + 1)
    return float(precision[right].sum() / truths)


def over_all_boxes(scores, right, truths):
    right = right[np.argsort(-scores)]
    return float((np.cumsum(right) / (np.arange(len(right)) + 1)).mean())


def worst_first(scores, right, truths):
    return unsorted(scores, right[np.argsort(scores)], truths)


def best_from_there_on(scores, right, truths):
    right = right[np.argsort(-scores)]
    precision = np.cumsum(right) / (np.arange(len(right)) + 1)
    return float(np.maximum.accumulate(precision[::-1])[::-1][right].sum() / truths)


def by_the_last_kept(boxes, scores, overlap):
    kept = []
    for i in np.argsort(-scores):
        if not kept or iou(boxes[i], boxes[kept[-1]]) <= overlap:
            kept.append(int(i))
    return kept


WRONG = {
    "negative sides multiplied": ({"box_iou": with_negative_sides}, "cut each side off at 0"),
    "the sum of areas for the union": ({"box_iou": over_the_sum}, "only once"),
    "widths with one pixel more": ({"box_iou": with_pixels_at_the_end}, "right − left + 1"),
    "suppression without sorting": ({"suppress": in_the_order_of_the_list}, "best score"),
    "suppressed boxes suppress": ({"suppress": by_all_better_ones}, "kept so far"),
    "missed boxes forgotten": ({"average_precision": over_the_found}, "divide by `truths`"),
    "no sorting by score": ({"average_precision": unsorted}, "sort by score"),
    "the worst score first": ({"average_precision": worst_first}, "sorts upwards"),
    "the best precision from there on": (
        {"average_precision": best_from_there_on}, "at each right box itself"),
    "compared with the last one alone": ({"suppress": by_the_last_kept}, "not only with the last"),
    "the mean over all boxes": ({"average_precision": over_all_boxes}, "no term of its own"),
}
