"""The command line, `miniclip COMMAND …`; groups of commands are in commands/.

Bad input gives exit code 2 and one line on standard error that says what is wrong.
"""

import argparse
import json
import os
import sys
import warnings
from itertools import islice
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError

from miniclip import plots
from miniclip.commands import dense, experiments, training, transfer
from miniclip.commands.shared import (
    MODEL_HELP,
    as_json,
    check_limit,
    common_options,
    open_model,
    print_recalls,
    read_labels,
    template_options,
    weights_options,
)
from miniclip.data.labelled import labelled_images
from miniclip.data.pairs import load_pairs
from miniclip.data.sources import Source
from miniclip.files import read_text
from miniclip.notices import one_line
from miniclip.parallel import LOST, LostProcess, SaidByAnother, leave
from miniclip.tasks.retrieval import retrieval
from miniclip.tasks.search import DEFAULT_MODEL, find, index, search
from miniclip.tasks.zero_shot import DRAWN_CLASSES, TEMPLATES, classify, zero_shot_report
from miniclip.train import Diverged
from miniclip.weights.export import FORMATS, export

DRAWN = 100  # images in a sheet, at most


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


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="miniclip", description="CLIP from scratch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common, weights = common_options(), weights_options()
    prompts = [common, weights, template_options()]

    training.add_commands(commands, common, weights)
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
    """→ exit code: 0 for success, 1 for a run that diverged, 2 for bad input, 3 for a process that
    lost another one of its training, 130 for Ctrl-C, 141 for a pipe that its reader closed."""
    arguments = build_parser().parse_args(argv)
    arguments.given = sys.argv[1:] if argv is None else argv
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # images.py has its own limit
    sys.stdout.reconfigure(errors="replace")  # print "?" for what a terminal can't encode
    try:
        code = arguments.function(arguments) or 0
        sys.stdout.flush()
        return code
    except SaidByAnother as told:
        return ended_by(told.__cause__)
    except BrokenPipeError:  # such as `| head`; the flush at exit must not fail again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, RuntimeError, SafetensorError, Diverged) as error:
        print(f"miniclip {arguments.command}: {one_line(error)}", file=sys.stderr)
        return ended_by(error)
    except KeyboardInterrupt as stop:  # a run's message says how to resume it
        kept = {"index": "; what was embedded is kept: the same command goes on from there"}
        print(f"\nstopped{str(stop) or kept.get(arguments.command, '')}", file=sys.stderr)
        return ended_by(stop)


def ended_by(error: BaseException) -> int:
    """→ the exit code of this error. One of several processes that train together ends here."""
    codes = {Diverged: 1, LostProcess: LOST, KeyboardInterrupt: 130}
    code = next((code for kind, code in codes.items() if isinstance(error, kind)), 2)
    leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
