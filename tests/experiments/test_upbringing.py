"""The two by two: its tables computed again by hand, from models that barely train."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import SMALL

from miniclip.data import scenes
from miniclip.data.styled import CLASSES
from miniclip.experiments import upbringing
from miniclip.experiments.fit import right
from miniclip.experiments.objectives import Labels
from miniclip.experiments.upbringing import (
    UPBRINGINGS,
    effective,
    line_through,
    never_labelled,
    upbringing_report,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(upbringing, "SHAPE", replace(SMALL, image_size=64, patch_size=32))
    monkeypatch.setattr(upbringing, "EXAMPLES", 600)


def test_what_no_label_says(monkeypatch):
    """Answers made up: of twenty unseen combinations half are right, the rest right in colour."""
    held_out = [f"{colour} {shape}" for colour, shape in scenes.HELD_OUT]
    answers = [name if k % 2 else f"{name.split()[0]} {'ring' if 'ring' not in name else 'star'}"
               for k, name in enumerate(held_out)]
    robots = ["dog"] * 7 + ["robot dog"] * 2 + ["cat"]

    class Model:
        def scores(self, images, names):
            said = robots if len(images) == 10 else answers
            return torch.eye(len(names))[[list(names).index(name) for name in said]]

    found = {what: np.mean(values) for what, values in never_labelled(Model(), 1).items()}
    assert found["combination"] == 0.5 and found["its colour"] == 1.0
    assert found["its shape"] == pytest.approx(
        np.mean([a.split()[1] == b.split()[1] for a, b in zip(answers, held_out)]))
    assert found["robot dog"] == 0.2 and found["called a dog"] == 0.9


def test_the_opponent_can_not_name_what_was_no_label():
    found = never_labelled(Labels(upbringing.SHAPE, CLASSES, 0), 1)
    assert not any(found["combination"]) and not any(found["robot dog"])
    assert len(found["combination"]) == 20 and len(found["robot dog"]) == 10


def test_effective_robustness_is_what_lies_above_the_line():
    """Supervised points on y = x − 1 (logits); a model 0.1 above what that expects."""
    def share(logit):
        return 1 / (1 + np.exp(-logit))

    images = {"in-domain": 1000, "Sketch": 1000}
    runs = [[{"in-domain": share(x), "Sketch": share(x - 1)} for x in (-1, 0, 1, 2)]] * 2
    line = line_through("Sketch", runs, images)
    assert (line.slope, line.intercept) == pytest.approx((1.0, -1.0))
    under = np.zeros(1000, bool)
    under[:round(1000 * (share(-1) + 0.1))] = True
    half = np.arange(1000) < 500
    found = effective("Sketch", [{"right": {"in-domain": half, "Sketch": under}}] * 2, runs, images)
    assert found["points"] == pytest.approx(10, abs=0.1)
    low, high = found["interval"]  # the two runs agree; the images alone make some ± 4 points
    assert 5 < low < 7.5 and 12.5 < high < 15
    worse = np.roll(under, 100) & under
    other = effective("Sketch", [{"right": {"in-domain": half, "Sketch": under}},
                                 {"right": {"in-domain": half, "Sketch": worse}}], runs, images)
    assert other["interval"][0] < low - 10, "two runs that differ are not sure at all"


@pytest.fixture(scope="module")
def report():
    patch = pytest.MonkeyPatch()
    patch.setattr(upbringing, "SHAPE", replace(SMALL, image_size=64, patch_size=32))
    patch.setattr(upbringing, "EXAMPLES", 520)
    yield upbringing_report(2, 8, 1, CPU)
    patch.undo()


def test_the_report_has_a_row_for_each_model_and_six_shifts(report):
    assert [row["name"] for row in report["rows"]] == [u.name for u in UPBRINGINGS] == [
        "labels, one style", "captions, one style", "labels, many styles", "captions, many styles"]
    shifts = ["V2", "R", "R, new", "ObjectNet", "Sketch", "A"]
    for row in report["rows"]:
        assert list(row["accuracy"]) == ["in-domain", *shifts] and list(row["effective"]) == shifts
        assert len(row["points"]) == 2 and row["points"][0][-1]["step"] == 8
        for found in row["accuracy"].values():
            low, high = found["interval"]
            assert 0 <= low <= found["accuracy"] <= high <= 100
    assert report["images"]["R"] == len(CLASSES)


def test_the_third_model_gets_none_of_a_right():
    """Asked again, it is wrong on each of them: so they were chosen."""
    kept, fit = {}, upbringing.fit

    def keeping(objective, *arguments, **options):
        kept["third"] = objective
        return fit(objective, *arguments, **options)

    patch = pytest.MonkeyPatch()
    patch.setattr(upbringing, "fit", keeping)
    asked = upbringing.adversarial(1, CPU, 8)
    patch.undo()
    assert len(asked.labels) == len(CLASSES) and not right(kept["third"], asked).any()
