"""A run's folder: weights, settings, tokenizer and training state, each written atomically.

    model.safetensors   the best weights so far          config.json     the model's shape
    state.pt            the last step, to resume from    train.json      the run's settings
    tokenizer.json      merges and context length        metrics.jsonl   figures, step by step
    similarity.jsonl    cosines of a few held-out pairs  metrics.json    figures, at the end
    lock                held by the process that writes  *.png           four pictures, at the end

A process that is killed during a write leaves the old file unchanged.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from miniclip.config import ModelConfig, load_config
from miniclip.data.images import Transform
from miniclip.files import one_writer, read_rows, write_atomically, write_text
from miniclip.model import CLIP
from miniclip.tokenizer import Tokenizer


def save_weights(model: CLIP, folder: Path):
    """The model's tensors → model.safetensors."""
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(folder / "model.safetensors", lambda path: path.write_bytes(save(tensors)))


def save_state(folder: Path, model: CLIP, optimizers: list, progress: dict):
    """Save all that the next step needs → state.pt. One file: all of it is from the same step."""
    state = {"model": model.state_dict(), "progress": progress,
             "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
    write_atomically(folder / "state.pt", lambda path: torch.save(state, path))


def load_state(folder: Path) -> dict:
    """state.pt as `save_state` was given it; ValueError if it is damaged."""
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        return {name: state[name] for name in ("model", "optimizers", "progress")}
    except Exception as error:  # zip, pickle and torch raise many kinds
        raise ValueError(f"{folder / 'state.pt'} is damaged: {type(error).__name__}") from error


def make_folder(folder: Path):
    """Make a new run's folder. An older run of that name is moved; nothing is ever overwritten.

    ValueError if the folder holds anything but a run, or a run that is training.
    """
    if (folder / "train.json").is_file():
        names = (folder.with_name(f"{folder.name}.{n}") for n in range(1, 10**6))
        with one_writer(folder, "train"):
            moved = folder.rename(next(name for name in names if not name.exists()))
        print(f"{folder} was there already; it is now {moved}", file=sys.stderr)
    elif folder.is_file() or folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} is there already, and is no run; name another --run")
    folder.mkdir(parents=True, exist_ok=True)


def rewind_rows(path: Path, step: int):
    """Remove the rows after `step`: those steps are about to be run again."""
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def load(source, device: str | torch.device | None = None):
    """A run's folder → (model, tokenizer, transform): ready to use, on `device` (default CPU).

    `transform` turns a PIL image into pixels (3, S, S); `tokenizer` texts into ids (B, L).
    ValueError, in one line, for a folder that holds no whole run.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise ValueError(f"{source}: no such run folder; `miniclip train` makes one")
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        if not (folder / name).is_file():
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise ValueError(f"{source} is no run folder: it lacks {name}; found: {found}")
    config = load_config(ModelConfig, folder / "config.json")
    with torch.device("meta"):
        model = CLIP(config)
    weights = folder / "model.safetensors"
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in load_file(weights).items()},
                              assign=True)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{weights} is damaged or not a safetensors file: {error}") from error
    except RuntimeError as error:  # torch lists every name over many lines
        raise ValueError(f"{weights} does not fit {folder / 'config.json'}: "
                         + " ".join(str(error).split())[:300]) from error
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    if tokenizer.vocab_size != config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {tokenizer.vocab_size} tokens, the model "
                         f"{config.vocab_size}; they are not of one run")
    return model.to(device or "cpu").eval(), tokenizer, Transform(config.image_size)
