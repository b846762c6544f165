"""Detection: boxes and scores counted by hand, against brute force, and planted pictures."""

import doctest

import numpy as np
import pytest
import torch
from colour_model import BLUE, GREEN, RED, Colours, colour_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip.data.annotated import Annotated, Box
from miniclip.tasks import detect as room
from miniclip.tasks.detect import (
    Found,
    Tally,
    average_precision,
    best_threshold,
    box_features,
    box_iou,
    candidates,
    connected_parts,
    detect,
    detection_report,
    f1_at,
    matches,
    middle_box,
    non_maximum_suppression,
)
from miniclip.tasks.segment import Vocabulary


def test_the_examples():
    assert doctest.testmod(room).failed == 0


def test_connected_parts_by_hand():
    mask = np.array([[1, 1, 0, 1], [0, 1, 0, 1], [1, 0, 0, 0], [1, 0, 1, 1]], bool)
    parts = sorted(connected_parts(mask), key=lambda part: part.sum())
    assert [int(part.sum()) for part in parts] == [2, 2, 2, 3]  # corners don't connect
    assert (sum(part.astype(int) for part in parts) == mask).all()
    assert connected_parts(np.zeros((3, 3), bool)) == []
    assert [int(part.sum()) for part in connected_parts(mask, least=3)] == [3]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**30))
def test_connected_parts_against_a_walk(seed):
    mask = np.random.default_rng(seed).random((7, 9)) < 0.55
    left, walked = set(zip(*np.nonzero(mask))), []
    while left:
        part, edge = set(), [left.pop()]
        while edge:
            y, x = edge.pop()
            part.add((int(y), int(x)))
            for step in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if step in left:
                    left.remove(step)
                    edge.append(step)
        walked.append(frozenset(part))
    found = [frozenset((int(y), int(x)) for y, x in zip(*np.nonzero(part)))
             for part in connected_parts(mask)]
    assert set(found) == set(walked) and len(found) == len(walked)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=8, max_size=8))
def test_iou_of_boxes_against_pixels(n):
    a = Box(0, n[0], n[1], n[0] + 1 + n[2], n[1] + 1 + n[3])
    b = Box(1, n[4], n[5], n[4] + 1 + n[6], n[5] + 1 + n[7])
    drawn = []
    for box in (a, b):
        mask = np.zeros((30, 30), bool)
        mask[box.top:box.bottom, box.left:box.right] = True
        drawn.append(mask)
    expected = (drawn[0] & drawn[1]).sum() / (drawn[0] | drawn[1]).sum()
    assert box_iou(a, b) == box_iou(b, a) == pytest.approx(expected)


def test_suppression_keeps_the_best_of_each_label():
    a, near, far = Box(0, 0, 0, 10, 10), Box(0, 1, 0, 11, 10), Box(0, 20, 0, 30, 10)
    other = Box(1, 0, 0, 10, 10)
    found = [Found(near, 0.5), Found(a, 0.9), Found(far, 0.1), Found(other, 0.3)]
    assert non_maximum_suppression(found) == [Found(a, 0.9), Found(other, 0.3), Found(far, 0.1)]
    assert len(non_maximum_suppression(found, overlap=0.9)) == 4
    tied = [Found(near, 0.5), Found(a, 0.5)]
    assert non_maximum_suppression(tied) == tied[:1]


def test_matching_by_hand():
    truth = [Box(0, 0, 0, 10, 10), Box(0, 20, 0, 30, 10), Box(0, 50, 0, 90, 40, crowd=True)]
    found = [Found(Box(0, 0, 0, 10, 9), 0.5), Found(Box(0, 0, 0, 10, 10), 0.9),  # a duplicate
             Found(Box(0, 21, 0, 31, 10), 0.4), Found(Box(0, 40, 0, 44, 4), 0.3),
             Found(Box(0, 50, 0, 60, 9), 0.2)]  # in the crowd: neither right nor wrong
    assert matches(found, truth) == [(0.9, True), (0.5, False), (0.4, True), (0.3, False)]
    assert matches([], truth) == [] and matches(found[:1], []) == [(0.5, False)]


def test_a_box_takes_the_free_one_that_it_overlaps_most():
    truth = [Box(0, 0, 0, 10, 10), Box(0, 2, 0, 12, 10)]
    assert matches([Found(Box(0, 2, 0, 12, 10), 0.9), Found(Box(0, 1, 0, 11, 10), 0.8)],
                   truth) == [(0.9, True), (0.8, True)]


def test_average_precision_by_hand():
    hits = [(0.9, True), (0.8, False), (0.7, True), (0.6, False)]
    assert average_precision(hits, 2) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(hits, 4) == pytest.approx((1 + 2 / 3) / 4)  # two were never found
    assert average_precision(hits[::-1], 2) == average_precision(hits, 2)
    assert average_precision([], 3) == average_precision(hits, 0) == 0
    # Of equal scores none comes first: precision there is 1 of 2, whatever the order.
    tied = [(0.5, True), (0.5, False)]
    assert average_precision(tied, 1) == average_precision(tied[::-1], 1) == 0.5


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=15),
       st.integers(0, 5))
def test_average_precision_against_brute_force(matched, missed):
    """At each recall, the best precision of any threshold that reaches it."""
    truths = sum(hit for _, hit in matched) + missed
    points = []
    for threshold in {score for score, _ in matched}:
        kept = [hit for score, hit in matched if score >= threshold]
        points.append((sum(kept) / max(1, truths), sum(kept) / len(kept)))
    expected, before = 0.0, 0.0
    for recall, _ in sorted(points):
        expected += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    assert average_precision(matched, truths) == pytest.approx(expected if truths else 0)


def test_the_threshold_is_the_best_for_f1():
    matched = [(0.9, True), (0.8, True), (0.7, False), (0.6, True), (0.5, False)]
    threshold, f1 = best_threshold(matched, 4)
    tried = {score: f1_at(matched, 4, score) for score, _ in matched}
    assert f1 == pytest.approx(max(tried.values())) and tried[threshold] == pytest.approx(f1)
    assert best_threshold([], 3) == (0.0, 0.0) and f1_at([], 0, 0.5) == 0


def painted(*squares, size=32) -> np.ndarray:
    """A green picture with squares (colour, left, top, side)."""
    picture = np.full((size, size, 3), GREEN, np.uint8)
    for colour, left, top, side in squares:
        picture[top:top + side, left:left + side] = colour
    return picture


@pytest.fixture
def words():
    return Vocabulary(Colours(16, 4), colour_tokenizer, ["green"])


def test_planted_squares_are_found(words):
    picture = painted((RED, 3, 5, 9), (BLUE, 18, 14, 10), (RED, 20, 1, 8))
    found = detect(words.model, words, picture, ["red", "blue"], 0.0)
    best = [one for one in found if one.score > 0.5]
    truth = [Box(0, 3, 5, 12, 14), Box(1, 18, 14, 28, 24), Box(0, 20, 1, 28, 9)]
    assert len(best) == 3
    for box in truth:
        assert max(box_iou(box, one.box) for one in best if one.box.label == box.label) > 0.6
    assert found == sorted(found, key=lambda one: -one.score)
    assert all(one.score >= 0.8 for one in detect(words.model, words, picture, ["red"], 0.8))
    assert detect(words.model, words, painted(), ["red"]) == []


def test_candidates_come_once_and_not_tiny():
    lead = torch.full((30, 30), -1.0)
    lead[2:8, 3:9] = 1.0
    lead[20, 20] = 1.0  # one pixel of 900
    assert candidates(lead, 4) == [Box(4, 3, 2, 9, 8)]
    assert candidates(torch.full((30, 30), -1.0), 0) == []


def test_what_a_box_holds(words):
    picture = painted((RED, 8, 8, 16))
    inside, all_of_it = box_features(words.model, picture, [Box(0, 12, 12, 20, 20),
                                                             Box(0, 0, 0, 32, 32)])
    red = words.vectors(["red"])[0]
    assert (inside @ red).item() > 0.99 > (all_of_it @ red).item()
    corner = box_features(words.model, picture, [Box(0, 31, 31, 32, 32)])  # a pixel at the edge
    assert corner.shape == (1, 3) and torch.isfinite(corner).all()


def rows():
    for red, blue in (((3, 5), (18, 14)), ((20, 2), (4, 18)), ((10, 10), (25, 25))):
        yield Annotated(painted((RED, *red, 9), (BLUE, *blue, 7)), ("red", "blue"), None, (
            Box(0, *red, red[0] + 9, red[1] + 9), Box(1, *blue, blue[0] + 7, blue[1] + 7)))


def test_the_report_on_planted_pictures(words):
    figures = detection_report(words.model, words, rows)
    assert figures["ap50"] > 90 and set(figures["labels"]) == {"red", "blue"}
    assert figures["pictures"] == 3 and figures["f1"] > 60
    assert max(figures["guessing"], figures["centre"]) < 60
    middle = middle_box(next(rows()), 1, 0.5)
    assert (middle.label, middle.left, middle.bottom) == (1, 8, 24)


def test_a_label_without_a_true_box_costs_nothing_but_its_boxes():
    tally = Tally()
    row = Annotated(painted(), ("red", "blue"), None, (Box(0, 0, 0, 9, 9),))
    tally.add(row, [Found(Box(0, 0, 0, 9, 9), 0.9), Found(Box(1, 0, 0, 9, 9), 0.8)])
    assert tally.average_precisions() == {"red": 100.0} and tally.mean() == 100
    assert tally.pooled() == ([(0.9, True), (0.8, False)], 1)
    with pytest.raises(ValueError, match="no picture has a true box"):
        Tally().mean()


def test_a_picture_that_counts_twice_is_one_that_was_added_twice():
    pictures = list(rows())
    found = [[Found(Box(0, 3, 5, 12, 14), 0.9)], [Found(Box(0, 0, 0, 5, 5), 0.95)],
             [Found(Box(0, 10, 10, 19, 19), 0.3), Found(Box(1, 25, 25, 32, 32), 0.7)]]
    once, more = Tally(), Tally()
    for picture, boxes, times in zip(pictures, found, (2, 0, 3)):
        once.add(picture, boxes)
        for _ in range(times):
            more.add(picture, boxes)
    assert once.mean([2, 0, 3]) == pytest.approx(more.mean()) != once.mean()
    low, high = once.interval()
    assert low <= once.mean() <= high


def test_reports_refuse(words):
    for pictures, message in (
            ([], "no picture has a true box"),
            ([Annotated(painted(), ("red",), np.zeros((32, 32)))], "masks and no boxes")):
        with pytest.raises(ValueError, match=message):
            detection_report(words.model, words, lambda pictures=pictures: pictures)
