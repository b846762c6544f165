"""Trackers: their own interfaces are called as they document it; a missing one is told."""

import sys
import types

import pytest

from miniclip.config import TrainConfig
from miniclip.files import read_rows
from miniclip.tracking import Journal, find_tracker, flat

ROW = {"step": 3, "loss": 1.5, "text_to_image": {"R@1": 7.0}}


def test_rows_are_always_kept_here(tmp_path):
    journal = Journal(tmp_path, TrainConfig())
    journal.row(ROW)
    journal.close()
    assert read_rows(tmp_path / "metrics.jsonl") == [ROW]
    assert flat(ROW) == {"loss": 1.5, "text_to_image/R@1": 7.0}


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_what_wandb_and_trackio_are_told(tmp_path, monkeypatch, kind):
    told = []

    class Run:
        def log(self, figures, step):
            told.append((step, figures))

        def finish(self):
            told.append("finished")

    def init(project, name, config):
        told.append((project, name, config["seed"]))
        return Run()

    monkeypatch.setitem(sys.modules, kind, types.SimpleNamespace(init=init))
    journal = Journal(tmp_path, TrainConfig(tracker=kind, seed=5))
    journal.row(ROW)
    journal.close()
    assert told == [("miniclip", tmp_path.name, 5), (3, {"loss": 1.5, "text_to_image/R@1": 7.0}),
                    "finished"]
    assert read_rows(tmp_path / "metrics.jsonl") == [ROW]


def test_tensorboard_gets_its_folder(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    journal = Journal(tmp_path, TrainConfig(tracker="tensorboard"))
    journal.row(ROW)
    journal.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("text_to_image/R@1")] == [(3, 7.0)]


def test_a_tracker_that_can_not_start(tmp_path, monkeypatch):
    def init(**_):
        raise RuntimeError("not logged in:\nwandb login")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(ValueError, match="tracker wandb can't start: not logged in: wandb login"):
        Journal(tmp_path, TrainConfig(tracker="wandb"))


@pytest.mark.parametrize("kind, module", [
    ("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb"), ("trackio", "trackio")])
def test_a_tracker_that_is_not_installed(monkeypatch, kind, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"tracker {kind} is not installed: pip install {kind}"):
        find_tracker(kind)
    assert find_tracker("") is None
