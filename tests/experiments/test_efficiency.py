"""Who learns sooner: curves, their intervals, and the ratio that the paper tells."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import SMALL

from miniclip.data.styled import training_examples
from miniclip.experiments import efficiency
from miniclip.experiments.efficiency import RATES, curve, fewer_pairs, sooner


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


def test_the_report(monkeypatch):
    monkeypatch.setattr(efficiency, "SHAPE", replace(SMALL, image_size=64, patch_size=32))
    monkeypatch.setattr(efficiency, "training_pairs",
                        lambda: training_examples(200, 0, ("plain",)))
    found = efficiency.efficiency_report(2, 4, 1, torch.device("cpu"))
    assert list(found["curves"]) == list(RATES) and found["images"] == 100
    for curves in found["curves"].values():
        assert curves["all"][-1]["pairs"] == 4 * efficiency.RECIPE.batch_size
        for points in curves.values():
            assert all(0 <= point["accuracy"] <= 100 for point in points)
    swept = efficiency.sweep(2, 1, torch.device("cpu"))
    assert [row["rate"] for row in swept["rows"]] == list(efficiency.SWEPT) * 3
