"""The command line, `miniclip COMMAND …`. Its settings come from the dataclasses in config.py.

Bad input gives exit code 2 and one line on standard error that says what is wrong.
"""

import argparse
import json
import os
import sys
import warnings
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from shlex import quote

from PIL import Image
from safetensors import SafetensorError

from miniclip import plots
from miniclip.commands import dense, experiments, transfer
from miniclip.commands.shared import (
    MODEL_HELP,
    as_json,
    check_limit,
    common_options,
    open_model,
    parse_bool,
    read_labels,
    template_options,
    weights_options,
)
from miniclip.config import MODELS, PRESETS, ModelConfig, TrainConfig, load_config
from miniclip.data.hub import HubUnreachable
from miniclip.data.labelled import labelled_images
from miniclip.data.pairs import load_pairs
from miniclip.data.sources import Source
from miniclip.files import read_text
from miniclip.notices import notice, one_line
from miniclip.tasks.retrieval import retrieval
from miniclip.tasks.search import DEFAULT_MODEL, find, index, search
from miniclip.tasks.zero_shot import DRAWN_CLASSES, TEMPLATES, classify, zero_shot_report
from miniclip.train import Diverged, train
from miniclip.weights.export import FORMATS, export

DRAWN = 100  # images in a sheet, at most


def add_settings(parser: argparse.ArgumentParser, kind, title: str):
    """Add one option for each field of a dataclass. The default None keeps the preset's value."""
    group = parser.add_argument_group(title)
    for field in fields(kind):
        parse = type(field.default)
        group.add_argument(f"--{field.name.replace('_', '-')}", metavar="VALUE",
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


NO_HUB = """
Flickr8k is out of reach: {error}.
Training goes on with `shapes`, the built-in generated scenes, and with the recipe made for them.
Figures for photographs need photographs. To get Flickr8k, run the same command again with a
network. Or put its parquet files, or its images with captions.txt, into a folder and set
MINICLIP_DATA=/path/to/folder.
"""


def run_train(arguments):
    """miniclip train: new, or resumed; the data may have moved meanwhile."""
    folder = Path(arguments.run or f"runs/{arguments.preset}")
    settings, shape = chosen(arguments, TrainConfig), chosen(arguments, ModelConfig)
    if arguments.resume:
        if named := (settings | shape).keys() - {"data"}:
            raise ValueError("--resume takes every setting from the run; leave out "
                             + ", ".join(f"--{n.replace('_', '-')}" for n in sorted(named)))
        if not (folder / "state.pt").is_file():
            raise ValueError(f"{folder} holds nothing to resume; leave out --resume to start there")
        config = replace(load_config(TrainConfig, folder / "train.json"), **settings)
        model_config = load_config(ModelConfig, folder / "config.json")
    else:
        config, model_config = recipe(arguments.preset, settings, shape)
    rest = folder, arguments.device, arguments.resume, "context_length" not in shape
    try:
        metrics = train(config, model_config, *rest)
    except HubUnreachable as error:  # what was asked for by name is never replaced
        if arguments.resume or Source.find(config.data or None).explicit:
            raise
        print(NO_HUB.format(error=error), file=sys.stderr)
        metrics = train(*recipe("shapes", settings, shape), *rest)
    if not as_json(arguments, metrics):
        print_training(metrics, folder)


def recipe(preset: str, settings: dict, shape: dict) -> tuple[TrainConfig, ModelConfig]:
    """A preset with what the command line changes in it. Few steps get a shorter warm-up."""
    config = replace(PRESETS[preset], **settings)
    if config.warmup >= config.steps and "warmup" not in settings:
        config = replace(config, warmup=config.steps // 10)
        notice(f"{config.steps} steps are fewer than the recipe's warm-up: it is {config.warmup} "
               "steps now (--warmup)")
    return config, replace(MODELS[config.model], **shape)


def run_eval(arguments):
    """miniclip eval: the standard retrieval protocol; or, with --zero-shot, classification."""
    loaded = open_model(arguments, arguments.run)
    if arguments.zero_shot:
        return run_zero_shot(arguments, loaded)
    if arguments.names or arguments.plot or arguments.template:
        raise ValueError("--names, --plot and --template belong to --zero-shot")
    model, tokenizer, transform = loaded
    source = Source.find(arguments.data, arguments.image_key, arguments.caption_key)
    pairs = load_pairs(source, arguments.split or "validation", transform.size, arguments.limit)
    metrics = retrieval(model, tokenizer, pairs)
    if not as_json(arguments, metrics):
        print(f"{pairs.name}: {pairs.summary}")
        print_recalls(metrics)


def run_zero_shot(arguments, loaded):
    """miniclip eval --zero-shot: the classes are sentences, and nothing is trained."""
    check_limit(arguments)
    try:
        renamed = json.loads(read_text(Path(arguments.names))) if arguments.names else {}
        if not all(isinstance(name, str) for name in renamed.values()):
            raise TypeError
    except (json.JSONDecodeError, AttributeError, TypeError):
        raise ValueError(f'{arguments.names} must be JSON of the form {{"folder": "class name", …}}'
                         ) from None
    rows, names, templates = labelled_images(arguments.data, arguments.split, renamed)
    if arguments.plot and len(names) > (most := DRAWN_CLASSES):
        raise ValueError(f"--plot can show {most:,} classes; there are {len(names):,}")
    metrics, confusion = zero_shot_report(
        loaded, islice(rows, arguments.limit or None), names,
        arguments.template or templates or TEMPLATES)
    if not as_json(arguments, metrics):
        print_zero_shot(metrics, names)
    if arguments.plot:  # last: if it can't be written, the figures are out already
        plots.confusion_picture(confusion, names, arguments.plot)


def print_zero_shot(metrics: dict, names: list[str]):
    worst = sorted(metrics["classes"], key=lambda row: row["top1"])[:40]
    rows = [*worst, metrics | {"name": f"all {len(metrics['classes'])} classes"}]
    print(f"\n  {'worst classes':28}{'images':>8}{'top-1':>8}{'top-5':>8}   most often taken for")
    for row in rows:
        print(f"  {row['name'][:27]:28}{row['images']:8,}{row['top1']:8.1f}{row['top5']:8.1f}"
              f"   {row.get('mistaken_for') or ''}")
    print(f"  {'chance':36}{100 / len(names):8.1f}{100 * min(1, 5 / len(names)):8.1f}"
          f"   (percent; {metrics['unreadable']:,} images can't be opened)")


def run_classify(arguments):
    """miniclip classify: how likely each label is, image by image."""
    labels = read_labels(arguments.labels)
    chances = classify(arguments.image, labels, open_model(arguments, arguments.model),
                       arguments.template or TEMPLATES)
    rows = [sorted(zip(row.tolist(), labels), reverse=True) for row in chances]
    as_json(arguments, [{"image": image, "probabilities": {name: p for p, name in row}}
                        for image, row in zip(arguments.image, rows)])
    for image, row in zip(arguments.image, rows if not arguments.json else ()):
        print(plots.shown_name(image, 10**6))
        for p, name in row[:10]:  # --json has them all
            print(f"  {100 * p:5.1f} %  {'█' * round(20 * p):20}  {name}")
    if arguments.plot:
        plots.classified_sheet(arguments.image[:DRAWN], labels, chances, arguments.plot)
        if len(arguments.image) > DRAWN:
            print(f"{arguments.plot} shows the first {DRAWN} images", file=sys.stderr)


def run_index(arguments):
    """miniclip index: embed a folder of photographs, once."""
    told = index(arguments.folder, arguments.model, arguments.out, arguments.device,
                 arguments.quick_gelu)
    if as_json(arguments, told):
        return
    where = plots.shown_name(told["index"], 10**6)
    print(f"{told['photographs']:,} photographs in {where}: {told['embedded']:,} embedded "
          f"now, {told['moved']:,} moved, {told['removed']:,} removed")
    for path, why in told["unreadable"]:
        if Path(path).suffix.lower() not in Image.registered_extensions():
            why += " (it may need: pip install pillow-heif)"
        print(f"  left out, {why}: {plots.shown_name(path, 10**6)}")


def run_search(arguments):
    """miniclip search: the nearest photographs, as a list and as a contact sheet."""
    found = search(arguments.text, arguments.image, arguments.k, arguments.index,
                   arguments.model, arguments.device)
    if not as_json(arguments, [{"score": score, "path": path} for score, path in found]):
        for score, path in found:
            print(f"  {score:.3f}  {plots.shown_name(path, 10**6)}")
    sheet = arguments.sheet or (find(arguments.index) / "search.png" if not arguments.json else "")
    if not sheet:
        return
    title = arguments.text or f"like {plots.shown_name(arguments.image, 60)}"
    try:
        plots.contact_sheet(title, found[:DRAWN], sheet)
        print(f"contact sheet: {plots.shown_name(sheet, 10**6)}", file=sys.stderr)
    except OSError as error:
        if arguments.sheet:
            raise
        print(f"no contact sheet, name one with --sheet: {one_line(error)}", file=sys.stderr)


def run_export(arguments):
    """miniclip export: write a run's weights in another project's format."""
    ending = ".pt" if arguments.format == "openai" else ""
    path = f"{arguments.run.rstrip('/')}-{arguments.format}{ending}"
    path = export(arguments.run, arguments.out or path, arguments.format)
    print(plots.shown_name(path, 10**6))


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
    if best in ran:
        return [*found, further]
    place = "" if data == "shapes" else f" --data {data}"
    return [*found, (f"train --preset {best}{place}", f"the best recipe for {what}")]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="miniclip", description="CLIP from scratch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common, weights = common_options(), weights_options()
    prompts = [common, weights, template_options()]

    command = commands.add_parser("train", parents=[common], help="train a CLIP into a run folder")
    command.add_argument("--preset", default=next(iter(PRESETS)), choices=PRESETS,
                         help="a whole recipe; the options below change single settings of it")
    command.add_argument("--run", metavar="DIR", help="the run's folder (default runs/PRESET)")
    command.add_argument("--resume", action="store_true", help="go on from the last saved step")
    add_settings(command, TrainConfig, "training settings")
    add_settings(command, ModelConfig, "model settings")
    command.set_defaults(function=run_train)

    command = commands.add_parser("eval", parents=prompts,
                                  help="recall on a split of pairs; --zero-shot: classification")
    command.add_argument("run", metavar="RUN", help=MODEL_HELP)
    command.add_argument("--data", help="shapes, folder or Hub id (else $MINICLIP_DATA, Flickr8k)")
    command.add_argument("--image-key", default="", metavar="COLUMN",
                         help="the data's column of images, if its name is unusual")
    command.add_argument("--caption-key", default="", metavar="COLUMN",
                         help="its column of captions, or several with commas between them")
    command.add_argument("--split", help="default validation; with --zero-shot: test of a Hub set, "
                                         "all of a folder")
    command.add_argument("--limit", type=int, default=0, help="only the first so many images")
    command.add_argument("--zero-shot", action="store_true",
                         help="classify: --data is shapes, a folder of one folder for each class "
                              "or of tar shards, or a Hub set of either kind, such as "
                              "clip-benchmark/wds_imagenetv2")
    command.add_argument("--names", metavar="FILE", help='zero-shot: JSON {"folder": "class name"}')
    command.add_argument("--plot", metavar="FILE", help="zero-shot: draw the confusion matrix")
    command.set_defaults(function=run_eval)
    add_everyday(commands, common, weights, prompts)
    dense.add_commands(commands, prompts)
    transfer.add_commands(commands, common, weights, prompts)
    experiments.add_commands(commands, common)

    command = commands.add_parser("export", help="write a run's weights for another project")
    command.add_argument("run", metavar="RUN", help="a run's folder")
    command.add_argument("--format", required=True, choices=FORMATS)
    command.add_argument("--out", metavar="PATH", help="a new name (default RUN-FORMAT)")
    command.set_defaults(function=run_export)
    return parser


def add_everyday(commands, common, weights, prompts):
    """Add the commands that work on a user's own photographs."""
    command = commands.add_parser("classify", parents=prompts,
                                  help="which label fits an image")
    command.add_argument("image", nargs="+", metavar="IMAGE")
    command.add_argument("--labels", required=True, metavar="A,B,…",
                         help='such as "dog,cat,French bulldog"; @FILE: one label a line')
    command.add_argument("--model", default=DEFAULT_MODEL,
                         help=f"{MODEL_HELP} (default {DEFAULT_MODEL})")
    command.add_argument("--plot", metavar="FILE", help="draw the images with their labels")
    command.set_defaults(function=run_classify)

    command = commands.add_parser("index", parents=[common, weights],
                                  help="make a folder searchable")
    command.add_argument("folder", metavar="DIR")
    command.add_argument("--model", help=f"{MODEL_HELP} (default the one that the index was made "
                         f"with; for a new index {DEFAULT_MODEL})")
    command.add_argument("--out", metavar="DIR", help="the index's folder (default DIR/.miniclip)")
    command.set_defaults(function=run_index)

    command = commands.add_parser("search", parents=[common], help="find photographs by sentence")
    command.add_argument("text", nargs="?", metavar="SENTENCE")
    command.add_argument("--image", metavar="FILE", help="find what looks like this instead")
    command.add_argument("-k", type=int, default=9, help="how many (default 9)")
    command.add_argument("--index", metavar="DIR", help="the photographs' folder, or the index's "
                         "(default: the one in this folder, else the one built last)")
    command.add_argument("--model", help="where the index's model is now")
    command.add_argument("--sheet", metavar="FILE", help="the contact sheet "
                         "(default search.png in the index; none with --json)")
    command.set_defaults(function=run_search)


def main(argv: list[str] | None = None) -> int:
    """→ exit code: 0 for success, 1 for a run that diverged, 2 for bad input, 130 for Ctrl-C, 141
    for a pipe that its reader closed."""
    arguments = build_parser().parse_args(argv)
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # images.py has its own limit
    sys.stdout.reconfigure(errors="replace")  # print "?" for what a terminal can't encode
    try:
        arguments.function(arguments)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # such as `| head`; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        print(f"miniclip {arguments.command}: {one_line(error)}", file=sys.stderr)
        return 2
    except Diverged as error:
        print(f"miniclip {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:  # a run's message says how to resume it
        kept = {"index": "; what was embedded is kept: the same command goes on from there"}
        print(f"\nstopped{str(stop) or kept.get(arguments.command, '')}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
