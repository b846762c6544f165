"""`miniclip COMMAND …`: what a person types. Settings come from the dataclasses in config.py.

Bad input ends in one line that says what is wrong, on standard error, and exit code 2.
"""

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

from miniclip import checkpoint
from miniclip.config import MODELS, PRESETS, ModelConfig, TrainConfig, load_config
from miniclip.data import load_pairs
from miniclip.evaluate import retrieval
from miniclip.sources import Source
from miniclip.train import Diverged, pick_device, train


def add_settings(parser: argparse.ArgumentParser, kind, title: str):
    """One option for each field of a dataclass; the default None means: as the preset says."""
    group = parser.add_argument_group(title)
    for field in fields(kind):
        parse = type(field.default)
        if parse is bool:
            parse = parse_bool
        elif parse is tuple:
            parse = parse_tuple
        group.add_argument(f"--{field.name.replace('_', '-')}", type=parse, metavar="VALUE",
                           help=field.metadata["help"])


def parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def parse_tuple(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 32,64") from None


def chosen(arguments, kind) -> dict:
    """The settings of one dataclass that the command line gave."""
    values = {field.name: getattr(arguments, field.name) for field in fields(kind)}
    return {name: value for name, value in values.items() if value is not None}


def run_folder(arguments) -> Path:
    """Where `miniclip train` writes."""
    return Path(arguments.run or f"runs/{arguments.preset}")


def run_train(arguments):
    """miniclip train: new, or resumed."""
    folder = run_folder(arguments)
    settings, shape = chosen(arguments, TrainConfig), chosen(arguments, ModelConfig)
    if arguments.resume:
        if settings or shape:
            raise ValueError("--resume takes every setting from the run; leave out "
                             + ", ".join(f"--{n.replace('_', '-')}" for n in settings | shape))
        if not (folder / "state.pt").is_file():
            raise ValueError(f"{folder} holds nothing to resume; leave out --resume to start there")
        config = load_config(TrainConfig, folder / "train.json")
        model_config = load_config(ModelConfig, folder / "config.json")
    else:
        config = replace(PRESETS[arguments.preset], **settings)
        model_config = replace(MODELS[config.model], **shape)
        set_aside(folder)
    metrics = train(config, model_config, folder, arguments.device, arguments.resume)
    if arguments.json:
        print(json.dumps(metrics, indent=2))
    else:
        print_training(metrics, folder)


def set_aside(folder: Path):
    """An older run of the same name is moved, never overwritten."""
    if not folder.exists():
        return
    number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.{n}").exists())
    moved = folder.rename(folder.with_name(f"{folder.name}.{number}"))
    print(f"{folder} was there already; it is now {moved}", file=sys.stderr)


def run_eval(arguments):
    """miniclip eval: the standard retrieval protocol."""
    model, tokenizer, transform = checkpoint.load(arguments.run, pick_device(arguments.device))
    source = Source.find(arguments.data)
    pairs = load_pairs(source, arguments.split, transform.size, arguments.limit)
    metrics = retrieval(model, tokenizer, pairs)
    if arguments.json:
        print(json.dumps(metrics, indent=2))
    else:
        print(f"{pairs.name}: {pairs.summary}")
        print_recalls(metrics)


def print_recalls(metrics: dict):
    images = metrics["images"]
    print(f"\n  {'':14}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'median rank':>14}")
    for way in ("image_to_text", "text_to_image"):
        row = metrics[way]
        print(f"  {way.replace('_to_', ' → '):14}{row['R@1']:8.1f}{row['R@5']:8.1f}"
              f"{row['R@10']:8.1f}{row['median_rank']:14.0f}")
    chance = "".join(f"{100 * k / images:8.1f}" for k in (1, 5, 10))
    print(f"  {'chance, about':14}{chance}{images / 2:14.0f}   (percent; {images:,} images, "
          f"{metrics['captions']:,} captions)")


def print_training(metrics: dict, folder: Path):
    """A short table and what to try next."""
    run = metrics["training"]
    print(f"\n{run['parameters']:,} parameters, {run['data']}, {run['steps']:,} steps in "
          f"{run['seconds']:.0f} s, {run['peak_memory_mb']:,} MB at most; "
          f"best at step {run['best_step']:,}")
    print_recalls(metrics)
    if "shapes" in metrics:
        held_out = metrics["shapes"]["held_out"]
        print(f"\n  zero-shot on combinations held out of training (chance 1 %): "
              f"{held_out['plain']:.1f} %")
        print("  the same, shifted: " + ", ".join(
            f"{style} {score:.1f}" for style, score in held_out.items() if style != "plain"))
        print(f"  right caption against its objects swapped (chance 50 %): "
              f"{metrics['shapes']['relations']:.1f} %")
    print(f"""
Look at {folder}/retrieval.png, curves.png, similarity.png and zero_shot.png. Next:
  miniclip eval {folder} --split validation --json    the figures again, for a script
  make train                                          5 minutes for a much better model
  make train PRESET=flickr8k-20min                    20 minutes for the best recipe here
  make train PRESET=shapes                            2 minutes on generated scenes""")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="miniclip", description="CLIP from scratch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    common.add_argument("--json", action="store_true", help="print the figures as JSON")

    command = commands.add_parser("train", parents=[common], help="train a CLIP into a run folder")
    command.add_argument("--preset", default=next(iter(PRESETS)), choices=PRESETS,
                         help="a whole recipe; the options below change single settings of it")
    command.add_argument("--run", metavar="DIR", help="the run's folder (default runs/PRESET)")
    command.add_argument("--resume", action="store_true", help="go on from the last saved step")
    add_settings(command, TrainConfig, "training settings")
    add_settings(command, ModelConfig, "model settings")
    command.set_defaults(function=run_train)

    command = commands.add_parser("eval", parents=[common], help="recall on a split of pairs")
    command.add_argument("run", metavar="RUN", help="a run's folder")
    command.add_argument("--data", help="shapes, a folder or a Hub id (default: $MINICLIP_DATA, "
                                        "else Flickr8k on the Hub)")
    command.add_argument("--split", default="validation")
    command.add_argument("--limit", type=int, default=0, help="only the first so many images")
    command.set_defaults(function=run_eval)
    return parser


def main(argv: list[str] | None = None) -> int:
    """→ exit code: 0, 1 for a run that diverged, 2 for bad input, 130 for a stop by Ctrl-C."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.function(arguments)
        return 0
    except (ValueError, OSError) as error:
        print(f"miniclip {arguments.command}: {error}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"miniclip {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        if arguments.command == "train":
            print(f"\nstopped; go on with: miniclip train --run {run_folder(arguments)} --resume",
                  file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
