"""Figures of a run, step by step: into metrics.jsonl, and into a tracker if one is asked for.

    tensorboard   a folder in the run's own: tensorboard --logdir runs
    wandb         the project "miniclip" of whoever is logged in there
    trackio       wandb's interface, kept on this machine: trackio show
"""

from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from miniclip.config import TrainConfig
from miniclip.files import append_row
from miniclip.notices import one_line

MODULES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def find_tracker(kind: str):
    """The module of a tracker, None for "". ValueError, in one line, if it is not installed."""
    if not kind:
        return None
    try:
        return import_module(MODULES[kind])
    except ImportError as error:
        raise ValueError(f"tracker {kind} is not installed: pip install {kind}") from error


class Journal:
    """Where a run's figures go.

    After a kill, the steps that are run again are logged again: trackers can't take rows back. To
    wandb and trackio a resumed run is a second run.
    """

    def __init__(self, folder: Path, config: TrainConfig):
        self.path, self.kind, self.writer = folder / "metrics.jsonl", config.tracker, None
        module = find_tracker(self.kind)
        if module is None:
            return
        try:
            if self.kind == "tensorboard":
                self.writer = module.SummaryWriter(folder / "tensorboard")
            else:
                self.writer = module.init(project="miniclip", name=folder.name,
                                          config=asdict(config))
        except Exception as error:  # of any tracker: not logged in, no network, …
            raise ValueError(f"tracker {self.kind} can't start: {one_line(error)}") from error

    def row(self, row: dict):
        """One line of figures; `step` is among them."""
        append_row(self.path, row)
        if self.writer is None:
            return
        figures, step = flat(row), row["step"]
        if self.kind == "tensorboard":
            for name, value in figures.items():
                self.writer.add_scalar(name, value, step)
        else:
            self.writer.log(figures, step=step)

    def close(self):
        if self.writer is not None:
            (self.writer.close if self.kind == "tensorboard" else self.writer.finish)()


def flat(row: dict) -> dict[str, float]:
    """{"step": 3, "text_to_image": {"R@1": 7.0}} → {"text_to_image/R@1": 7.0}."""
    figures = {}
    for name, value in row.items():
        if isinstance(value, dict):
            figures |= {f"{name}/{inner}": x for inner, x in flat(value).items()}
        elif name != "step":
            figures[name] = value
    return figures
