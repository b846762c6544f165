"""Relations between labels: counted by hand on planted vectors, and as typed."""

import doctest
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import Stub, stub_tokenizer, write_run

from miniclip.cli import main
from miniclip.tasks import relations as room
from miniclip.tasks.relations import relations_report


def test_the_examples():
    assert doctest.testmod(room).failed == 0


def test_planted_vectors():
    """Text "i" lies at angle i degrees; a chord of angle a has the length 2 sin(a / 2)."""
    angles = torch.arange(181) * math.pi / 180
    texts = torch.stack([angles.cos(), angles.sin()], dim=1)
    figures = relations_report(Stub(texts, texts), stub_tokenizer, ["0", "30", "90"], ("{}",))

    def chord(degrees):
        return pytest.approx(2 * math.sin(math.radians(degrees / 2)), abs=1e-4)

    assert figures["one_hot"] == {"least": 1.4142, "mean": 1.4142, "most": 1.4142}
    assert (figures["learnt"]["least"], figures["learnt"]["most"]) == (chord(30), chord(90))
    assert [(row["nearest"], row["farthest"]) for row in figures["nearest"]] == [
        ("30", "90"), ("0", "90"), ("30", "0")]
    matrix = np.array(figures["distances"])
    assert (matrix == matrix.T).all() and matrix[1, 2] == chord(60) and not matrix.diagonal().any()


def test_as_typed(tmp_path, capsys):
    run, plot = str(write_run(tmp_path / "run")), tmp_path / "r.png"
    assert main(["relations", run, "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    assert "robot dog" in out and "as numbers (one-hot) all are 1.41 apart" in out
    assert Image.open(plot).width > 500
    assert main(["relations", run, "--labels", "dog,cat,red car", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == ["dog", "cat", "red car"]
    assert main(["relations", run, "--labels", "dog,cat"]) == 2
    assert "2 labels have no neighbours" in capsys.readouterr().err
