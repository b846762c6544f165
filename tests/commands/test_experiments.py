"""miniclip robustness --data and efficiency, as a person types them; models barely train."""

import json
from dataclasses import replace

import pytest
from PIL import Image
from small_models import SMALL

from miniclip.cli import main
from miniclip.commands import experiments
from miniclip.commands.experiments import cell, times_in_words
from miniclip.config import MODELS
from miniclip.data.styled import training_examples
from miniclip.experiments import efficiency, upbringing


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shape = replace(SMALL, image_size=64, patch_size=32)
    monkeypatch.setattr(upbringing, "SHAPE", shape)
    monkeypatch.setitem(MODELS, "micro", shape)
    monkeypatch.setattr(upbringing, "EXAMPLES", 520)
    monkeypatch.setattr(experiments, "PER_CLASS", 1)
    monkeypatch.setattr(efficiency, "described_images",
                        lambda data, size: training_examples(200, 0, ("plain",)))


def test_robustness_in_miniature(tmp_path, capsys):
    plot = tmp_path / "robustness.png"
    command = ["robustness", "--data", "shapes", "--steps", "20", "--seeds", "2"]
    assert main([*command, "--plot", str(plot)]) == 0
    out = capsys.readouterr()
    for words in ("accuracy, %", "effective robustness", "never labelled, %", "labels, one style",
                  "captions, many styles", "ObjectNet", "robot dog", "2 seed(s), 20 steps"):
        assert words in out.out
    assert "what we publish has five seeds" in out.err
    assert Image.open(plot).width > 800
    assert main([*command, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert len(again["rows"]) == 4 and "{:.1f}".format(
        again["rows"][0]["accuracy"]["R"]["accuracy"]) in out.out, "seeded: the same figures"


def test_efficiency(tmp_path, capsys):
    plot = tmp_path / "efficiency.png"
    assert main(["efficiency", "--steps", "20", "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "word by word" in out and "2,560 pairs seen" in out and "the twenty never shown" in out
    assert "1 seed(s), 20 steps, 100 pictures asked; chance 1.0 %" in out
    assert "to what 'bag of words' reaches, contrast" in out
    assert Image.open(plot).width > 800
    assert main(["efficiency", "--seeds", "0"]) == 2
    assert "seeds is 0" in capsys.readouterr().err
    assert main(["efficiency", "--data", str(tmp_path / "none")]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_sweeps_print_a_line_for_each_rate(monkeypatch, capsys):
    monkeypatch.setattr(upbringing, "SWEPT", (1.0, 2.0))
    assert main(["robustness", "--data", "shapes", "--sweep", "--steps", "20"]) == 0
    out = capsys.readouterr().out
    assert out.count("× 1 ") == 2 and out.count("× 2 ") == 2 and "captions" in out


def test_a_cell_has_its_interval():
    assert cell({"accuracy": 97.12, "interval": [96.0, 98.1]}) == "97.1 (96.0–98.1)"
    assert cell({"points": 3.0, "interval": [-1.0, 7.0]}) == "+3.0 (-1.0 to +7.0)"


@pytest.mark.parametrize("found, words", [
    ({"times": None, "interval": None}, "doesn't get"),
    ({"times": 2.04, "interval": None}, "needs 2.0 times fewer pairs"),
    ({"times": 2.0, "interval": [1.5, 2.5]}, "needs 2.0 times fewer pairs (1.5 to 2.5)")])
def test_times_in_words(found, words):
    assert times_in_words(found) == words
