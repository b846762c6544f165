"""Labels and captions on photographs: the report on small noise images, and its sibling, the sweep.
"""

from dataclasses import replace

import pytest
from PIL import Image
from small_data import write_classes
from small_models import write_run

import miniclip
from miniclip.cli import main
from miniclip.config import TrainConfig, save_config
from miniclip.data.caption_classes import NAMES
from miniclip.data.shifts import PHOTOGRAPHS
from miniclip.experiments import photographs
from miniclip.experiments.photographs import photographs_report, sweep


@pytest.fixture
def data(folder, cache):
    write_classes(folder, "train", 12)
    write_classes(folder, "validation", 4)
    return str(folder)


@pytest.fixture
def run(tmp_path, data):
    """A run that says it was trained on the first 50 of these photographs, for 7 steps."""
    folder = write_run(tmp_path / "run")
    save_config(TrainConfig(data=data, steps=7, limit=50), folder / "train.json")
    return str(folder)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(photographs, "RECIPE", replace(photographs.RECIPE, batch_size=16))


def test_the_report(run, data):
    found = photographs_report(miniclip.load(run), run, data, seeds=2, steps=3)
    assert [(row["name"], row["photographs"], row["steps"]) for row in found["rows"]] == [
        ("labels", 72, 3), ("captions", 72, 3), ("captions of all", 50, 7)]
    assert found["images"] == 24 and found["split"] == "validation"
    for row in found["rows"]:
        assert list(row["accuracy"]) == list(PHOTOGRAPHS)
        for shift in row["accuracy"].values():
            assert shift["interval"][0] <= shift["accuracy"] <= shift["interval"][1]


def test_the_runs_row_is_zero_shot_on_the_test_split(run, data, folder):
    """Counted again with the task's own function."""
    from miniclip.tasks.zero_shot import zero_shot

    write_classes(folder, "test", 5)
    loaded = miniclip.load(run)
    _, test, split = photographs.photographs(data, 32)
    assert split == "test" and len(test.labels) == 30
    expected = zero_shot(loaded[0], loaded[1], test.images, test.labels, list(NAMES))
    found = photographs_report(loaded, run, data, seeds=1, steps=1)["rows"][2]["accuracy"]
    assert found["as they are"]["accuracy"] == pytest.approx(expected, abs=0.01)


def test_the_sweep_asks_a_fifth_of_the_training_set(run, data, monkeypatch):
    tested = []
    monkeypatch.setattr(photographs, "SWEPT", (1.0,))
    monkeypatch.setattr("miniclip.experiments.fit.accuracy_at",
                        lambda _, seen, asked, *__: tested.append((seen, asked)) or 50.0)
    found = sweep(miniclip.load(run), run, data, steps=2)
    assert found["images"] == 14 and [row["name"] for row in found["rows"]] == [
        "labels", "captions"]
    train, _, _ = photographs.photographs(data, 32)
    for seen, asked in tested:
        assert len(asked.labels) == 14 and len(seen.labels) == 58
        assert all(captions in train.captions for captions in asked.captions)
        assert not {c[0] for c in seen.captions} & {c[0] for c in asked.captions}


def test_the_command(run, data, tmp_path, capsys):
    plot = tmp_path / "plot.png"
    command = ["robustness", run, "--data", data, "--steps", "20"]
    assert main([*command, "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "captions of all: 50 photographs, 7 steps" in out and "blurred background" in out
    assert "24 validation photographs of 6 classes; chance 16.7 %" in out
    assert Image.open(plot).width > 800


def test_what_can_not_be_compared(run, data, tmp_path, capsys, monkeypatch):
    other = write_run(tmp_path / "other")
    assert main(["robustness", str(other), "--data", data]) == 2
    assert "is no run of `miniclip train`" in capsys.readouterr().err
    save_config(TrainConfig(data="shapes"), other / "train.json")
    assert main(["robustness", str(other), "--data", data]) == 2
    assert f"was trained on shapes, not on {data}" in capsys.readouterr().err
    monkeypatch.setattr(photographs, "RECIPE", replace(photographs.RECIPE, batch_size=128))
    assert main(["robustness", run, "--data", data]) == 2
    assert "72 photographs are left once each class has as many; 128 are needed" in (
        capsys.readouterr().err)
