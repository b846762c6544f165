"""miniclip probe, as a person types it; robustness is in tests/tasks/test_robustness.py."""

import json

import pytest
from PIL import Image
from small_models import write_photograph, write_run

from miniclip.cli import main
from miniclip.commands.transfer import worth_in_words


@pytest.fixture
def run(tmp_path):
    return str(write_run(tmp_path / "run"))


@pytest.fixture
def photographs(folder):
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(("cat", "dog")):
            for i in range(8):
                write_photograph(folder / split / name / f"{i}.png", 100 * s + 20 * c + i)
    return folder


def test_probe_prints_a_table_and_draws_a_curve(run, photographs, capsys):
    curve = photographs / "curve.png"
    assert main(["probe", run, "--data", str(photographs), "--plot", str(curve)]) == 0
    out = capsys.readouterr().out
    assert "zero-shot, no example" in out and "probe, 4 of each class" in out
    assert "50.0   (2 classes, 16 test images)" in out and "a sentence is worth" in out
    assert Image.open(curve).width > 400
    assert main(["probe", run, "--data", str(photographs), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["shots"] for row in told["shots"]] == [1, 2, 4]  # six of each are left to train on
    assert told["probe"]["examples"] == 16


@pytest.mark.parametrize("arguments, message", [
    (["--data", "nowhere/at all"], "no such folder"),
    (["--data", "shapes", "--style", "oil"], "unknown style 'oil'"),
    (["--data", "shapes", "--limit", "-1"], "it must be 0 (all)"),
    (["--data", "shapes", "--template", "x"], "has no {}"),
])
def test_probe_refuses(run, capsys, arguments, message):
    assert main(["probe", run, *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize("worth, words", [
    (None, "more than 16 labelled example(s)"), (1.0, "no more than one labelled example"),
    (3.4, "about 3.4 labelled examples")])
def test_worth_in_words(worth, words):
    figures = {"worth": worth, "shots": [{"shots": 1}, {"shots": 16}]}
    assert words in worth_in_words(figures)
