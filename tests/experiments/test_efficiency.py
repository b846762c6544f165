"""Who learns sooner: curves, their intervals, and the ratio that the paper tells."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_data import write_classes

from miniclip.data import scenes
from miniclip.data.caption_classes import NAMES
from miniclip.data.styled import training_examples
from miniclip.experiments import efficiency
from miniclip.experiments.efficiency import (
    OBJECTIVES,
    RATES,
    credited,
    curve,
    fewer_pairs,
    setting_of,
    sooner,
)


def test_the_examples():
    assert doctest.testmod(efficiency).failed == 0


@pytest.mark.parametrize("pairs, fast, expected", [
    ([100, 200, 400], [10, 50, 90], 2.0),  # 50 % at 200 pairs
    ([100, 200, 400], [60, 80, 90], 4.0),  # at its first point already
    ([100, 200, 400], [10, 30, 40], None),  # never
    ([100, 200, 400], [10, 20, 50], 1.0)])
def test_sooner(pairs, fast, expected):
    assert sooner(pairs, fast, [0, 30, 50]) == expected


def test_how_much_sooner_is_a_mean_of_seeds():
    pairs, slow = [100, 200, 400], [np.array([False]), np.array([False]), np.array([True])]
    fast = [np.array([False]), np.array([True]), np.array([True])]
    assert fewer_pairs(pairs, [fast], [slow]) == {"times": 2.0, "interval": None}
    found = fewer_pairs(pairs, [fast, slow], [slow, slow])
    assert found["times"] == 1.5 and found["interval"][0] < 1 < 2 < found["interval"][1]
    never = [np.array([False])] * 3
    assert fewer_pairs(pairs, [fast, never], [slow, slow]) == {"times": None, "interval": None}


def test_a_curve_is_the_mean_of_its_runs():
    runs = [[np.array([True, False, True, True])], [np.array([False, False, True, True])]]
    chosen = np.array([True, True, False, False])
    assert curve([10], runs, chosen)[0]["accuracy"] == 25.0
    assert curve([10], runs, ~chosen) == [{"pairs": 10, "accuracy": 100.0,
                                           "interval": [100.0, 100.0]}]


@pytest.fixture
def few_scenes(monkeypatch):
    """The training split is a few scenes."""
    monkeypatch.setattr(efficiency, "described_images",
                        lambda data, size: training_examples(200, 0, ("plain",)))


@pytest.fixture
def photographs(folder, cache, monkeypatch):
    """A folder of noise with captions that name classes, and a recipe for so few."""
    for split, count in (("train", 6), ("validation", 3), ("test", 2)):
        write_classes(folder, split, count)
    monkeypatch.setitem(efficiency.RECIPES, "photographs", replace(
        efficiency.RECIPES["photographs"], batch_size=16, model="micro"))
    return str(folder)


def test_credits_say_what_no_picture_shows():
    """Every caption has its own; the same seed gives the same ones."""
    examples = training_examples(30, 0, ("plain",))
    found = credited(examples, 0)
    said = [(old, new) for texts, credited_ in zip(examples.captions, found.captions, strict=True)
            for old, new in zip(texts, credited_, strict=True)]
    credits = [new.removeprefix(f"{old}, taken by ").split() for old, new in said]
    assert all((c[1], c[3], c[4], c[6]) == ("in", "on", "a", "in") for c in credits)
    for place, words in ((0, efficiency.PEOPLE), (2, efficiency.PLACES), (5, efficiency.DAYS),
                         (7, efficiency.MONTHS)):
        assert {c[place] for c in credits} <= set(words) and len({c[place] for c in credits}) > 3
    assert len({" ".join(c) for c in credits}) > 0.9 * len(credits)
    assert credited(examples, 0).captions == found.captions
    assert (found.images == examples.images).all() and found.labels is examples.labels


def test_scenes_are_asked_for_all_combinations(few_scenes):
    setting = setting_of("shapes", per_class=2, credits=False)
    names = tuple(scenes.class_names())
    assert setting.asked.names == names and np.bincount(setting.asked.labels).tolist() == [2] * 100
    whole, unseen = setting.groups.values()
    assert whole.all() and unseen.sum() == 40
    held_out = {" ".join(pair) for pair in scenes.HELD_OUT}
    assert {names[label] for label in setting.asked.labels[unseen]} == held_out
    other = setting_of("shapes", per_class=2, credits=True, sweep=True)
    assert (other.asked.images != setting.asked.images).any()
    assert all("taken by" in text for texts in other.examples.captions for text in texts)


def test_photographs_are_asked_for_their_classes(photographs):
    """The report asks the test split, the sweep the validation split; all captions are trained on.
    """
    setting = setting_of(photographs, per_class=9, credits=False)
    assert len(setting.examples.labels) == 36 and setting.asked.names == NAMES
    assert np.bincount(setting.asked.labels).tolist() == [2] * 6
    assert list(setting.groups) == ["6 names"] and setting.groups["6 names"].all()
    sweep = setting_of(photographs, per_class=9, credits=False, sweep=True)
    assert np.bincount(sweep.asked.labels).tolist() == [3] * 6


def test_too_few_photographs_are_told(photographs, monkeypatch):
    monkeypatch.setitem(efficiency.RECIPES, "photographs", replace(
        efficiency.RECIPES["photographs"], batch_size=37))
    with pytest.raises(ValueError, match="has 36 training photographs; 37 are needed"):
        setting_of(photographs, per_class=9, credits=False)


def test_the_report(few_scenes):
    found = efficiency.efficiency_report("shapes", 2, 4, 1, True, torch.device("cpu"))
    assert tuple(found["curves"]) == OBJECTIVES and found["rates"] == RATES["shapes"]
    assert (found["images"], found["classes"], found["credits"]) == (100, 100, True)
    for curves in found["curves"].values():
        assert curves["all hundred names"][-1]["pairs"] == 4 * 128
        for points in curves.values():
            assert all(0 <= point["accuracy"] <= 100 for point in points)
    swept = efficiency.sweep("shapes", 2, 1, False, torch.device("cpu"))
    assert [row["rate"] for row in swept["rows"]] == list(efficiency.SWEPT) * 3


def test_the_report_on_photographs(photographs):
    found = efficiency.efficiency_report(photographs, 1, 3, 9, False, torch.device("cpu"))
    assert (found["images"], found["classes"]) == (12, 6) and found["data"] == "data"
    assert found["rates"] == RATES["photographs"]
    assert [point["pairs"] for point in found["curves"]["contrast"]["6 names"]] == [16, 32, 48]
