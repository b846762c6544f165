"""miniclip segment and detect, as a person types them."""

import json

import numpy as np
import pytest
from PIL import Image
from small_models import write_photograph, write_run

from miniclip.cli import main


@pytest.fixture
def run(tmp_path):
    return str(write_run(tmp_path / "run"))


@pytest.fixture
def photograph(folder, monkeypatch):
    """In the working folder: photo.png, 40 × 30, and one that stands upright by its EXIF."""
    monkeypatch.chdir(folder)
    write_photograph(folder / "photo.png", 3)
    write_photograph(folder / "odd ⌘.png", 4)
    return "photo.png"


def printed(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_segment_tells_shares_and_writes_masks(run, photograph, folder, capsys):
    ask = ("segment", photograph, "odd ⌘.png", "--labels", "a red dog,blue/cat", "--model", run,
           "--background", "")
    told = json.loads(printed(capsys, *ask, "--json", "--masks", "m", "--plot", "s.png"))
    assert [row["image"] for row in told] == ["photo.png", "odd ⌘.png"]
    shares = {row["label"]: row["share"] for row in told[0]["labels"]}
    assert set(shares) == {"a red dog", "blue/cat"} and sum(shares.values()) == pytest.approx(1)
    masks = [np.asarray(Image.open(folder / "m" / f"photo-{name}.png"))
             for name in ("a_red_dog", "blue_cat")]
    assert masks[0].shape == (30, 40)  # as the file, not as the model
    assert (masks[0].astype(int) + masks[1] == 255).all()
    assert abs((masks[0] == 255).mean() - shares["a red dog"]) < 0.05
    assert len(list((folder / "m").iterdir())) == 4 and Image.open(folder / "s.png").width > 300
    out = printed(capsys, *ask)
    assert "photo.png" in out and "blue/cat" in out and "%" in out


def test_detect_tells_boxes(run, photograph, folder, capsys):
    ask = ("detect", photograph, "--labels", "dog,cat", "--model", run)
    told = json.loads(printed(capsys, *ask, "--threshold", "-9", "--json", "--plot", "d.png"))
    (row,) = told
    for box in row["boxes"]:
        left, top, right, bottom = box["box"]
        assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
        assert box["label"] in ("dog", "cat")
    scores = [box["score"] for box in row["boxes"]]
    assert scores == sorted(scores, reverse=True)
    assert Image.open(folder / "d.png").width > 300
    assert "nothing" in printed(capsys, *ask, "--threshold", "9")


@pytest.mark.slow
@pytest.mark.parametrize("command, first", [("segment", "mean_iou"), ("detect", "ap50")])
def test_scores_on_scenes(run, capsys, command, first):
    """A model that has learnt nothing is no better than the same with other fresh weights."""
    told = json.loads(printed(capsys, command, "--data", "shapes", "--model", run, "--limit", 8,
                              "--json", "--plot", run + ".png"))
    assert Image.open(run + ".png").width > 1000
    assert list(told)[:2] == [first, "untrained"] and told["pictures"] == 8
    assert told[first] < 60 and told["untrained"] < 60
    out = printed(capsys, command, "--data", "shapes", "--model", run, "--limit", 4)
    assert "the centre is the object" in out and "4 pictures" in out and "95 %" in out


@pytest.mark.parametrize("command", ["segment", "detect"])
@pytest.mark.parametrize("arguments, message", [
    ([], "give images and --labels"),
    (["photo.png"], "give images and --labels"),
    (["photo.png", "--labels", " , "], "give at least one label"),
    (["photo.png", "--labels", "dog", "--data", "shapes"], "--data scores the model on a set"),
    (["none.png", "--labels", "dog,cat"], "none.png is no image that can be opened: no such file"),
    (["photo.png", "--labels", "dog,cat", "--template", "a"], "has no {}"),
    (["--data", "shapes", "--limit", "-1"], "it must be 0 (all)"),
    (["--data", "nowhere"], "nowhere"),
])
def test_what_is_refused(run, photograph, capsys, command, arguments, message):
    assert main([command, *arguments, "--model", run]) == 2
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-1]
    assert out == "" and message in last and last.startswith(f"miniclip {command}: ")


@pytest.mark.parametrize("arguments, message", [
    (["segment", "--data", "shapes", "--masks", "m"], "--masks belongs to images"),
    (["segment", "photo.png", "--labels", "a,b", "--limit", "3"], "--limit belongs to --data"),
    (["segment", "photo.png", "--labels", "c,c++", "--masks", "m"], "photo-c.png 2 times"),
    (["detect", "photo.png", "--labels", "a", "--threshold", "nan"], "must be a number"),
    (["detect", "photo.png", "--labels", "a", "--background", ""], "say with --threshold"),
])
def test_options_that_would_do_nothing_are_refused(run, photograph, capsys, arguments, message):
    assert main([*arguments, "--model", run]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_one_label_needs_a_rival(run, photograph, capsys):
    ask = ["segment", photograph, "--labels", "dog", "--model", run]
    assert main([*ask, "--background", ""]) == 2
    assert "every pixel would be the label's" in capsys.readouterr().err
    assert main(ask) == 0  # the backgrounds are there
