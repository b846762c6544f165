"""What several commands share: options, opening a model, printing figures as JSON."""

import argparse
import json
from pathlib import Path

from miniclip.device import pick_device
from miniclip.files import read_text
from miniclip.weights import pretrained

MODEL_HELP = "a run's folder, a file of weights or a Hub id"


def parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def common_options() -> argparse.ArgumentParser:
    """--device and --json."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    return parser


def weights_options() -> argparse.ArgumentParser:
    """--quick-gelu."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--quick-gelu", type=parse_bool, metavar="true|false", help="for files of "
                        "weights that don't say which GELU they need (OpenAI's: true)")
    return parser


def template_options() -> argparse.ArgumentParser:
    """--template."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--template", action="append", metavar="TEXT", help='such as "a photo '
                        'of a {}"; may be given several times (default: an ensemble)')
    return parser


def as_json(arguments, figures) -> bool:
    """Print the figures as JSON if --json was given. Returns whether it was."""
    if arguments.json:
        print(json.dumps(figures, indent=2))
    return arguments.json


def open_model(arguments, source: str):
    return pretrained.load(source, pick_device(arguments.device), arguments.quick_gelu)


def read_labels(text: str) -> list[str]:
    """ "dog,cat", or "@FILE" with one a line → labels, each once. ValueError if there is none."""
    labels = text.split(",")
    if text.startswith("@"):
        labels = read_text(Path(text[1:])).splitlines()
    labels = list(dict.fromkeys(label.strip() for label in labels if label.strip()))
    if not labels:
        raise ValueError("give at least one label, such as --labels dog,cat")
    return labels


def check_limit(arguments):
    if not 0 <= arguments.limit < 2**31:
        raise ValueError(f"limit is {arguments.limit}; it must be 0 (all) or a number of images")


def print_recalls(metrics: dict):
    images = metrics["images"]
    print(f"\n  {'':14}{'R@1':>8}{'R@5':>8}{'R@10':>8}{'median rank':>14}")
    for way in ("image_to_text", "text_to_image"):
        row = metrics[way]
        print(f"  {way.replace('_to_', ' → '):14}{row['R@1']:8.1f}{row['R@5']:8.1f}"
              f"{row['R@10']:8.1f}{row['median_rank']:14.0f}")
    different = metrics["different_captions"]
    captions = f"{metrics['captions']:,} captions"
    if different < metrics["captions"]:
        captions += f", {different:,} of them different"
    chance = "".join(f"{min(100, 100 * k / images):8.1f}" for k in (1, 5, 10))
    print(f"  {'chance, about':14}{chance}{images / 2:14.0f}   (percent; {images:,} images, "
          f"{captions})")
