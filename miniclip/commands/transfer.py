"""`miniclip probe | relations | robustness`: what labels add, what they lack, what shifts leave."""

import sys
from itertools import islice
from pathlib import Path

from miniclip import plots
from miniclip.commands.experiments import (
    add_training_options,
    check_counts,
    run_photographs,
    run_upbringing,
)
from miniclip.commands.shared import MODEL_HELP, as_json, check_limit, open_model, read_labels
from miniclip.data.drawing import THINGS
from miniclip.data.labelled import labelled_images
from miniclip.device import pick_device
from miniclip.tasks.probe import labelled_splits, probe_report
from miniclip.tasks.relations import relations_report
from miniclip.tasks.robustness import IMAGENET, SHIFTS, shift_row
from miniclip.tasks.zero_shot import TEMPLATES
from miniclip.weights.supervised import load_classifier

SUPERVISED = "timm/resnet101.tv_in1k"


def add_commands(commands, common, weights, prompts: list):
    """Add probe, relations and robustness; common, weights, prompts: options that others share."""
    command = commands.add_parser("probe", parents=prompts, help="a linear classifier on the image "
                                  "tower: how many labelled examples is a sentence worth?")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("--data", required=True, help="shapes, a folder of train/ and test/ with "
                         "one folder for each class, or a Hub set with class labels")
    command.add_argument("--style", default="plain", help="shapes: plain, sketch, textured, "
                         "inverted, cluttered or resampled")
    command.add_argument("--limit", type=int, default=0, metavar="N",
                         help="only the first so many images of each split")
    command.add_argument("--plot", metavar="FILE", help="draw the curve of few shots")
    command.set_defaults(function=run_probe)

    command = commands.add_parser("relations", parents=prompts, help="how far labels are from each "
                                  "other: as numbers, and as sentences")
    command.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    command.add_argument("--labels", default=",".join(THINGS), metavar="A,B,…",
                         help="three at least; @FILE: one a line (default: the things of shapes)")
    command.add_argument("--plot", metavar="FILE", help="draw both matrices of distances")
    command.set_defaults(function=run_relations)

    command = commands.add_parser("robustness", parents=[common, weights], help="the lecture's "
                                  "table: zero-shot and supervised on ImageNet and five shifts; "
                                  "or the same in miniature, trained here")
    command.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    command.add_argument("--data", help="in miniature: shapes (without MODEL), or where the pairs "
                         "are that the run MODEL was trained on")
    add_training_options(command)
    command.add_argument("--supervised", default=SUPERVISED, metavar="NAME", help="a classifier of "
                         "ImageNet: timm/NAME, or a Hub id or folder of transformers, such as "
                         f"microsoft/resnet-101; none: CLIP alone (default {SUPERVISED})")
    command.add_argument("--sets", metavar="DIR", help="a folder that holds wds_imagenet1k "
                         "and others; of these, what is missing is left out (default: the Hub)")
    command.add_argument("--limit", type=int, default=0, metavar="N",
                         help="only the first so many images of each set")
    command.add_argument("--plot", metavar="FILE", help="draw the table as bars")
    command.set_defaults(function=run_robustness)


def run_probe(arguments):
    """miniclip probe: logistic regression on few and on all labelled images, beside zero-shot."""
    check_limit(arguments)
    loaded = open_model(arguments, arguments.model)
    splits, names = labelled_splits(arguments.data, loaded[2].size, arguments.style,
                                    arguments.limit)
    figures = probe_report(loaded, names, splits, arguments.template or TEMPLATES)
    if not as_json(arguments, figures):
        print_probe(figures)
    if arguments.plot:
        plots.shots_curve(figures, arguments.plot)


def print_probe(figures: dict):
    def line(name: str, row: dict):
        low, high = row["interval"]
        print(f"  {name:38}{row['accuracy']:7.1f}   ({low:.1f} to {high:.1f})")

    print(f"\n  {'accuracy, %':38}{'':7}   (95 % interval)")
    line("zero-shot, no example", figures["zero_shot"])
    for row in figures["shots"]:
        line(f"probe, {row['shots']} of each class", row)
    line(f"probe, all {figures['probe']['examples']:,} examples", figures["probe"])
    print(f"  {'chance':38}{100 / figures['classes']:7.1f}   ({figures['classes']} classes, "
          f"{figures['images']:,} test images)")
    print(f"  a sentence is worth {worth_in_words(figures)}")


def worth_in_words(figures: dict) -> str:
    worth, shots = figures["worth"], figures["shots"]
    if worth is None:
        return f"more than {shots[-1]['shots']} labelled example(s) of each class"
    if worth == shots[0]["shots"]:
        return "no more than one labelled example of each class"
    return f"about {worth:.1f} labelled examples of each class"


def run_relations(arguments):
    """miniclip relations: distances between labels as one-hot vectors, and as sentences."""
    labels = read_labels(arguments.labels)
    model, tokenizer, _ = open_model(arguments, arguments.model)
    figures = relations_report(model, tokenizer, labels, arguments.template or TEMPLATES)
    if not as_json(arguments, figures):
        width = max(12, *map(len, labels)) + 2
        print(f"\n  {'':{width}}{'nearest':{width}}{'distance':>9}   "
              f"{'farthest':{width}}{'distance':>9}")
        for row in figures["nearest"]:
            print(f"  {row['label']:{width}}{row['nearest']:{width}}{row['distance']:9.2f}   "
                  f"{row['farthest']:{width}}{row['farthest_distance']:9.2f}")
        learnt = figures["learnt"]
        print(f"  as sentences every two are {learnt['least']:.2f} to {learnt['most']:.2f} apart; "
              f"as numbers (one-hot) all are {figures['one_hot']['mean']:.2f} apart")
    if arguments.plot:
        plots.relations_matrices(figures, arguments.plot)


def run_robustness(arguments):
    """miniclip robustness: the lecture's table, or with --data what is trained here."""
    check_limit(arguments)
    check_counts(arguments)
    check_robustness(arguments)
    if arguments.data == "shapes":
        return run_upbringing(arguments)
    if arguments.data:
        return run_photographs(arguments)
    run_lecture_table(arguments)


def check_robustness(arguments):
    """ValueError for options that don't go together."""
    if arguments.data == "shapes" and arguments.model:
        raise ValueError("--data shapes trains its own models; leave out "
                         f"{arguments.model}")
    if arguments.data != "shapes" and not arguments.model:
        raise ValueError("name a model, or --data shapes, which trains its own")
    if arguments.data and (arguments.sets or arguments.limit
                           or arguments.supervised != SUPERVISED):
        raise ValueError("--sets, --limit and --supervised belong to the lecture's table, which "
                         "is without --data")
    if arguments.data == "shapes" and arguments.quick_gelu is not None:
        raise ValueError("--quick-gelu belongs to a model; --data shapes trains its own")
    if not arguments.data and (arguments.sweep or arguments.steps or arguments.seeds):
        raise ValueError("--seeds, --steps and --sweep belong to --data: the lecture's table "
                         "trains nothing")


def run_lecture_table(arguments):
    """Zero-shot and supervised on ImageNet and five shifts, from the Hub or from a folder."""
    places = places_of_sets(arguments.sets)
    loaded = open_model(arguments, arguments.model)
    classifier = names = None
    if arguments.supervised != "none":
        classifier = load_classifier(arguments.supervised, pick_device(arguments.device))
        names = labelled_images(places[SHIFTS[0]]).names
    figures = {"model": arguments.model, "supervised": classifier and classifier.name,
               "limit": arguments.limit, "sets": []}
    try:
        for shift, where in places.items():
            found = labelled_images(where)
            rows = islice(found.rows, arguments.limit or None)
            figures["sets"].append(shift_row(loaded, classifier, shift, found, rows, names))
            clip = figures["sets"][-1]["clip"]["accuracy"]
            print(f"{shift.name}: zero-shot {clip:.1f} %", file=sys.stderr)
    finally:  # a set that breaks off takes hours of others with it, unless they are told
        if figures["sets"]:
            if not as_json(arguments, figures):
                print_robustness(figures)
            if arguments.plot:
                plots.robustness_bars(figures, arguments.plot)


def places_of_sets(folder: str | None) -> dict:
    """{shift: where its images are}: on the Hub, or those of the sets that a folder holds.

    ValueError if it has no ImageNet, whose class names all others are looked up in.
    """
    if not folder:
        return {shift: shift.data for shift in SHIFTS}
    places = {shift: Path(folder).expanduser() / shift.data.split("/")[1] for shift in SHIFTS}
    there = {shift: str(path) for shift, path in places.items() if path.is_dir()}
    if SHIFTS[0] not in there:
        raise ValueError(f"{folder} has no {IMAGENET.split('/')[1]}/, the set whose names all "
                         "others are compared with")
    return there


def print_robustness(figures: dict):
    def cell(row: dict | None) -> str:
        if row is None:
            return f"{'':20}"
        low, high = row["interval"]
        return f"{row['accuracy']:6.1f} ({low:.1f}–{high:.1f})".ljust(20)

    print(f"\n  {'accuracy, %':18}{'zero-shot':20}{'supervised':20}{'published':>10}   "
          "the lecture: CLIP / supervised")
    for row in figures["sets"]:
        clip, supervised = row["lecture"]["clip"], row["lecture"]["supervised"]
        print(f"  {row['set']:18}{cell(row['clip'])}{cell(row['supervised'])}"
              f"{row['published_clip']:10.2f}   {clip:.1f} / {supervised:.1f}")
    unreadable = sum(row["unreadable"] for row in figures["sets"])
    limit = f"the first {figures['limit']:,} images of each set; " if figures["limit"] else ""
    print(f"  {limit}{unreadable:,} images can't be opened")
    print(f"  zero-shot: {figures['model']}; supervised: {figures['supervised'] or 'none'}; in "
          "brackets 95 % intervals; published: OpenAI's ViT-L/14@336px by CLIP_benchmark")
