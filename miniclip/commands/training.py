"""`miniclip train | average | push`: a run, new, resumed or from weights; what becomes of it."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path
from shlex import quote

from miniclip import plots
from miniclip.commands.shared import (
    MODEL_HELP,
    as_json,
    check_limit,
    parse_bool,
    print_recalls,
)
from miniclip.config import MODELS, PRESETS, ModelConfig, TrainConfig, load_config
from miniclip.data.hub import HubUnreachable
from miniclip.data.pairs import load_pairs
from miniclip.data.sources import Source
from miniclip.device import pick_device
from miniclip.notices import notice
from miniclip.optim import schedule
from miniclip.parallel import Workers, joined, launch, surroundings
from miniclip.tasks.retrieval import retrieval
from miniclip.train import train
from miniclip.weights.average import average, check_alike, write_model
from miniclip.weights.checkpoint import load_state
from miniclip.weights.pretrained import at_size, is_run, load
from miniclip.weights.share import push

DEFAULT = next(iter(PRESETS))
NO_HUB = """
Flickr8k is out of reach: {error}.
Training goes on with `shapes`, the built-in generated scenes, and with the recipe made for them.
Figures for photographs need photographs. To get Flickr8k, run the same command again with a
network. Or put its parquet files, or its images with captions.txt, into a folder and set
MINICLIP_DATA=/path/to/folder.
"""


def add_commands(commands, common, weights):
    """Add train, average and push."""
    command = commands.add_parser("train", parents=[common],
                                  help="train a CLIP into a run folder")
    command.add_argument("--preset", choices=PRESETS,
                         help=f"a whole recipe (default {DEFAULT}, with --from finetune); the "
                              "options below change single settings of it")
    command.add_argument("--run", "--folder", metavar="DIR",
                         help="the run's folder (default runs/PRESET); under torchrun --folder, "
                              "which takes --run for one of its own options")
    command.add_argument("--resume", action="store_true",
                         help="go on from the last saved step; with --steps, for longer")
    command.add_argument("--processes", type=int, default=1, metavar="K",
                         help="train in so many processes of this machine, such as one for each "
                              "GPU; each has a part of every batch (default 1)")
    add_settings(command, TrainConfig, "training settings")
    add_settings(command, ModelConfig, "model settings")
    command.set_defaults(function=run_train)

    command = commands.add_parser("average", parents=[common, weights],
                                  help="two models of one shape: what lies between their weights")
    command.add_argument("first", metavar="A", help=f"{MODEL_HELP}: before fine-tuning")
    command.add_argument("second", metavar="B", help="the same: after it")
    command.add_argument("--alpha", type=float, default=0.5, metavar="SHARE",
                         help="0 is A, 1 is B (default 0.5)")
    command.add_argument("--out", metavar="DIR", help="write the average as a new model's folder")
    command.add_argument("--data", action="append", default=[], metavar="WHERE",
                         help="recall on this data for eleven averages from A to B; may be given "
                              "several times")
    command.add_argument("--limit", type=int, default=0, help="only the first so many images")
    command.add_argument("--plot", metavar="FILE", help="draw recall over the share of B")
    command.set_defaults(function=run_average)

    command = commands.add_parser("push", help="share a run on the Hugging Face Hub")
    command.add_argument("run", metavar="RUN", help="a run's folder")
    command.add_argument("repository", metavar="USER/NAME")
    command.add_argument("--license", metavar="ID", help="what others may do with it: mit, "
                         "apache-2.0, cc-by-4.0, … (asked for if left out)")
    command.add_argument("--private", action="store_true", help="only you will see it")
    command.set_defaults(function=run_push)


def add_settings(parser: argparse.ArgumentParser, kind, title: str):
    """Add one option for each field of a dataclass. The default None keeps the preset's value."""
    group = parser.add_argument_group(title)
    for field in fields(kind):
        parse = type(field.default)
        group.add_argument(*field.metadata["aliases"], f"--{field.name.replace('_', '-')}",
                           dest=field.name, metavar="VALUE",
                           type={bool: parse_bool, tuple: parse_tuple}.get(parse, parse),
                           help=field.metadata["help"])


def parse_tuple(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 32,64") from None


def chosen(arguments, kind) -> dict:
    """The settings of one dataclass that the command line gave."""
    return {f.name: x for f in fields(kind) if (x := getattr(arguments, f.name)) is not None}


def run_train(arguments):
    """miniclip train: in one process, or in several that torchrun, Slurm or --processes start."""
    if arguments.processes < 1:
        raise ValueError(f"--processes is {arguments.processes}; it must be at least 1")
    if arguments.processes == 1:
        with joined(pick_device(arguments.device)) as workers:
            run_one(arguments, workers)
        return 0
    if surroundings():
        raise ValueError("--processes starts processes itself: leave it out under torchrun or srun")
    pick_device(arguments.device)
    # Of an option that comes twice, the last counts.
    return launch(arguments.processes, [*arguments.given, "--processes", "1"])


def run_one(arguments, workers: Workers):
    """Train: a new run, a resumed one, or one from weights that are there."""
    settings, shape = chosen(arguments, TrainConfig), chosen(arguments, ModelConfig)
    preset = arguments.preset or ("finetune" if "start_from" in settings else DEFAULT)
    folder = Path(arguments.run or f"runs/{preset}")
    options = {"folder": folder, "device": arguments.device, "resume": arguments.resume,
               "workers": workers}
    if arguments.resume:
        metrics = train(*resumed(folder, settings, shape), **options)
    elif "start_from" in settings:
        if named := shape.keys() - {"image_size", "quick_gelu"} | settings.keys() & {"model"}:
            raise ValueError("--from takes the model's shape from its weights; leave out "
                             + options_of(named))
        start = load(settings["start_from"], **shape)
        config, _ = recipe(preset, settings, {})
        metrics = train(config, start=start, **options)
    else:
        metrics = new_run(preset, settings, shape, options)
    if workers.first and not as_json(arguments, metrics):
        print_training(metrics, folder)


def options_of(names) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in sorted(names))


def resumed(folder: Path, settings: dict, shape: dict) -> tuple[TrainConfig, ModelConfig]:
    """A run's own settings; the data may have moved, and there may be more steps to go."""
    if named := (settings | shape).keys() - {"data", "steps"}:
        raise ValueError(
            f"--resume takes every setting from the run; leave out {options_of(named)}")
    if not (folder / "state.pt").is_file():
        raise ValueError(f"{folder} holds nothing to resume; leave out --resume to start there")
    before = load_config(TrainConfig, folder / "train.json")
    config = replace(before, epochs=0, **settings)
    if config.steps != before.steps:
        done = load_state(folder)["progress"]["step"]
        if config.steps <= done:
            raise ValueError(f"{folder} has taken {done:,} steps already; --steps must be more")
        notice(f"the schedule is that of {config.steps:,} steps now: the learning rate goes on at "
               f"{schedule(done, config):.0%} of its peak, from {schedule(done - 1, before):.0%}, "
               "and falls to 0")
    return config, load_config(ModelConfig, folder / "config.json")


def new_run(preset: str, settings: dict, shape: dict, options: dict) -> dict:
    """Train from noise → figures. Where the Hub can't give the default data set, `shapes` takes its
    place, with its own recipe; what was asked for by name is never replaced."""
    if preset == "finetune":
        raise ValueError("the preset finetune goes on from weights: name them with --from")
    config, model_config = recipe(preset, settings, shape)
    options = options | {"fit_context": "context_length" not in shape}
    try:
        return train(config, model_config, **options)
    except HubUnreachable as error:
        # Another process may have the data in its cache: all train on the same, or none.
        if Source.find(config.data or None).explicit or options["workers"].count > 1:
            raise
        print(NO_HUB.format(error=error), file=sys.stderr)
    return train(*recipe("shapes", settings, shape), **options)


def recipe(preset: str, settings: dict, shape: dict) -> tuple[TrainConfig, ModelConfig]:
    """A preset with what the command line changes in it."""
    if {"steps", "epochs"} <= settings.keys():
        raise ValueError("--steps and --epochs both say how long; give one of them")
    config = replace(PRESETS[preset], **settings)
    return config, replace(MODELS[config.model], **shape)


def run_average(arguments):
    """miniclip average: weights between two models (WiSE-FT), and recall on the way."""
    if not (arguments.out or arguments.data):
        raise ValueError("give --out DIR to write the average, --data WHERE to see the curve")
    if arguments.plot and not arguments.data:
        raise ValueError("--plot draws recall on data: give --data")
    check_limit(arguments)
    names = arguments.first, arguments.second
    a, b = (open_either(arguments, name) for name in names)
    at_size(a[0], b[0].config.image_size)
    check_alike(a, b, names)
    chosen = average(a[0], b[0], arguments.alpha)
    if arguments.out:
        write_model(chosen, a[1], Path(arguments.out))
    sets = [load_pairs(Source.find(where), "validation", b[2].size, arguments.limit)
            for where in arguments.data]
    labels = [pairs.name for pairs in sets]
    labels = [name if labels.count(name) == 1 else where
              for name, where in zip(labels, arguments.data)]
    rows = []
    for step in range(11) if sets else ():
        model = average(a[0], b[0], step / 10)
        rows.append({"alpha": step / 10, "recall": {
            label: mean_recall(retrieval(model, a[1], pairs))
            for label, pairs in zip(labels, sets)}})
    if not as_json(arguments, {"first": names[0], "second": names[1], "rows": rows}):
        print_average(rows, arguments.out)
    if arguments.plot:
        plots.average_curve(rows, arguments.plot)


def open_either(arguments, name: str):
    """Weights, or the run that went on from them: only weights need --quick-gelu."""
    folder = Path(name).expanduser()
    quick_gelu = None if folder.is_dir() and is_run(folder) else arguments.quick_gelu
    return load(name, pick_device(arguments.device), quick_gelu)


def mean_recall(metrics: dict) -> float:
    """The mean of R@10 both ways, in percent."""
    return round((metrics["image_to_text"]["R@10"] + metrics["text_to_image"]["R@10"]) / 2, 2)


def print_average(rows: list[dict], out: str | None):
    if rows:
        print("  share of B   mean R@10, %: " + ", ".join(rows[0]["recall"]))
    for row in rows:
        print(f"  {row['alpha']:10.1f}   " + "  ".join(f"{x:8.1f}" for x in row["recall"].values()))
    if out:
        print(f"written to {out}")


def run_push(arguments):
    """miniclip push: a run with a card, for `miniclip.load("USER/NAME")`."""
    license = arguments.license
    if not license and sys.stdin.isatty():
        license = input("What may others do with the weights? (mit, apache-2.0, cc-by-4.0, …) ")
    if not license:
        raise ValueError("say what others may do with the weights: --license mit, for example")
    print(push(arguments.run, arguments.repository, license.strip(), arguments.private))


def print_training(metrics: dict, folder: Path):
    """A short table, and what to try next."""
    run = metrics["training"]
    weights = (f"best at step {run['best_step']:,}" if run["best_by"] == "recall"
               else "the last weights are kept")
    print(f"\n{run['parameters']:,} parameters, {run['data']}, {run['steps']:,} steps in "
          f"{run['seconds']:.0f} s, {run['peak_memory_mb']:,} MB at most; {weights}")
    print_recalls(metrics)
    if found := metrics.get("shapes"):
        held_out = found["held_out"]
        print(f"\n  zero-shot on combinations held out of training (chance 1 %): "
              f"{held_out['plain']:.1f} %")
        print("  the same, shifted: " + ", ".join(
            f"{style} {score:.1f}" for style, score in held_out.items() if style != "plain"))
        print(f"  right caption against objects swapped (chance 50 %): {found['relations']:.1f} %")
    config = load_config(TrainConfig, folder / "train.json")
    print(f"\nLook at {folder}/retrieval.png, curves.png, similarity.png and zero_shot.png. Next:")
    for command, why in what_next(metrics, config, quote(str(folder))):
        print(f"  miniclip {command}    {why}")


def what_next(metrics: dict, config: TrainConfig, run: str) -> list[tuple[str, str]]:
    """Commands worth a try after a run, with a reason each; never the recipe that has just run."""
    data = quote(config.data)
    found = [(f"eval {run} --data {data} --json", "the figures again, for scripts")]
    if metrics["different_captions"] < metrics["images"] / 2:
        found.append((f"eval {run} --zero-shot --data FOLDER", "accuracy on a folder of each class:"
                      " few captions differ, so recall says little"))
    ran = [name for name, preset in PRESETS.items()
           if replace(config, data=preset.data, seed=preset.seed) == preset]
    if config.data == "shapes":
        best, what = "shapes", "scenes"
        further = f"relations {run}", "how near to each other are the sentences?"
    else:
        best, what = "flickr8k-20min", "photographs"
        further = f"index ~/Pictures --model {run}", "then: miniclip search 'a dog in the snow'"
    if config.start_from:  # whoever goes on from weights has few pairs
        between = f"average {quote(config.start_from)} {run} --data {data} --plot curve.png"
        return [*found, (between, "often better than either, and forgets less"), further]
    if best in ran:
        return [*found, further]
    place = "" if data == "shapes" else f" --data {data}"
    return [*found, (f"train --preset {best}{place}", f"the best recipe for {what}")]
