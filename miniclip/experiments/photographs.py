"""The same question on photographs: labels or captions, when the picture is changed?

Classes are read from captions (data/caption_classes.py), shifts are made by picture operations
(data/shifts.py). Three models with the same image tower:

    labels              the opponent: the photographs that have a class, balanced; their labels
    captions            CLIP: the same photographs, their captions
    captions of all     CLIP as it is used, a run of `train`: every caption teaches something
"""

from dataclasses import replace
from pathlib import Path

from miniclip.config import PRESETS, ModelConfig, TrainConfig, load_config
from miniclip.data.caption_classes import NAMES, asked_photographs, balanced_examples, parted
from miniclip.data.pairs import Examples, load_pairs
from miniclip.data.shifts import PHOTOGRAPHS, shifted
from miniclip.data.sources import Source
from miniclip.device import described
from miniclip.experiments.fit import (
    fit,
    recipe,
    right,
    swept,
    tokenizer_of,
    with_interval,
)
from miniclip.experiments.objectives import Contrast, Labels

RECIPE, STEPS = PRESETS["flickr8k-20min"], 400
# Of RECIPE's learning rates, the multiple that each teacher does best with: `sweep` found it.
RATES = {"labels": 2.0, "captions": 2.0}
SWEPT = (0.5, 1.0, 2.0)
SEED = 7  # which images are taken of the classes that have too many


def build(teacher: str, tokenizer, shape: ModelConfig, seed: int, device):
    if teacher == "labels":
        return Labels(shape, NAMES, seed).to(device)
    return Contrast(shape, tokenizer, seed).to(device)


def trained_on(run: str, data: str) -> TrainConfig:
    """The settings of a run. ValueError if it is none, or was trained on other data."""
    file = Path(run) / "train.json"
    if not file.is_file():
        raise ValueError(f"{run} is no run of `miniclip train`; photographs are compared with a "
                         "run on the same ones")
    config = load_config(TrainConfig, file)
    if config.data != (asked := Source.find(data).where):
        raise ValueError(f"{run} was trained on {config.data}, not on {asked}")
    return config


def photographs(data: str, size: int) -> tuple[Examples, Examples, str]:
    """Where pairs are → labelled training and test examples, and the split that is the test.

    That is the source's test split, or validation where there is none.
    """
    source = Source.find(data)
    train = balanced_examples(load_pairs(source, "train", size), SEED)
    if len(train.labels) < RECIPE.batch_size:
        raise ValueError(f"{data}: {len(train.labels)} photographs are left once each class has as "
                         f"many; {RECIPE.batch_size} are needed")
    return train, *asked_photographs(source, size, SEED)


def photographs_report(loaded, run: str, data: str, seeds: int, steps: int) -> dict:
    """The table of three models and the shifts of PHOTOGRAPHS.

    Args:
        loaded: (model, tokenizer, transform) of the run; both others get its image tower's shape.
        run: the run's folder.
        data: where the pairs are that the run was trained on.
        seeds: how often the two others are trained; the run is one run.
        steps: of each of the two others.
    """
    model, tokenizer, transform = loaded
    config, device = trained_on(run, data), model.logit_scale.device
    train, test, split = photographs(data, transform.size)
    sets = {name: replace(test, images=shifted(test.images, operation, SEED))
            for name, operation in PHOTOGRAPHS.items()}
    own, shape = tokenizer_of(train, model.config)
    found = {"labels": [], "captions": []}
    for seed in range(seeds):
        for teacher, rows in found.items():
            objective = build(teacher, own, shape, seed, device)
            fit(objective, train, own, shape.image_size,
                recipe(RECIPE, RATES[teacher], steps, seed), title=f"{teacher}, seed {seed}")
            rows.append({name: right(objective, asked) for name, asked in sets.items()})
    given = Contrast.of(model, tokenizer)
    found["captions of all"] = [{name: right(given, asked) for name, asked in sets.items()}]
    pairs = load_pairs(Source.find(data), "train", transform.size, config.limit)
    size = {"labels": (len(train.labels), steps), "captions": (len(train.labels), steps),
            "captions of all": (len(pairs), config.steps)}
    return {"data": Path(data).name, "split": split, "seeds": seeds, "rates": RATES,
            "machine": described(device),
            "classes": list(NAMES), "images": len(test.labels), "rows": [
                {"name": name, "photographs": size[name][0], "steps": size[name][1], "accuracy": {
                    shift: with_interval([run[shift] for run in runs]) for shift in sets}}
                for name, runs in found.items()]}


def sweep(loaded, run: str, data: str, steps: int) -> dict:
    """Both teachers at each learning rate, tested on a fifth of the training photographs."""
    model, _, transform = loaded
    trained_on(run, data)
    train, _, _ = photographs(data, transform.size)
    train, fresh = parted(train, 0.2, SEED)
    tokenizer, shape = tokenizer_of(train, model.config)

    def objective(teacher: str):
        return build(teacher, tokenizer, shape, SEED, model.logit_scale.device)

    rows = swept(objective, RATES, SWEPT, train, fresh, tokenizer, shape.image_size,
                 recipe(RECIPE, 1.0, steps, SEED))
    return {"data": Path(data).name, "steps": steps, "images": len(fresh.labels),
            "machine": described(model.logit_scale.device), "rows": rows}
