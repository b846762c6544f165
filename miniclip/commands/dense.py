"""`miniclip segment | detect`: where in a picture is what a label names?"""

import argparse
import math
import sys
from collections import Counter
from functools import partial
from pathlib import Path

from miniclip import plots
from miniclip.commands.shared import MODEL_HELP, as_json, check_limit, open_model, read_labels
from miniclip.data.annotated import annotated, box_around
from miniclip.data.images import read_image, resize_whole
from miniclip.tasks.detect import detect, detection_report
from miniclip.tasks.features import untrained
from miniclip.tasks.search import DEFAULT_MODEL
from miniclip.tasks.segment import Vocabulary, segment, segmentation_report
from miniclip.tasks.zero_shot import TEMPLATES

DRAWN, DRAWN_OF_A_SET = 20, 8  # pictures in a sheet, at most


def add_commands(commands, prompts: list):
    """Add segment and detect; prompts: the options that they share with others."""
    command = add_dense(commands, prompts, "segment", "which label fits each pixel")
    command.add_argument("--masks", metavar="DIR", help="write a mask for each label, "
                         "IMAGE-LABEL.png, as large as the image")
    command.set_defaults(function=run_segment)
    command = add_dense(commands, prompts, "detect", "a box around each thing that a label names")
    command.add_argument("--threshold", type=float, default=0.0, metavar="X",
                         help="keep boxes from this score on (default 0: rather the label than any "
                              "background)")
    command.set_defaults(function=run_detect)


def add_dense(commands, prompts: list, name: str, text: str) -> argparse.ArgumentParser:
    """The options that segment and detect share."""
    command = commands.add_parser(name, parents=prompts, help=text)
    command.add_argument("image", nargs="*", metavar="IMAGE")
    command.add_argument("--labels", metavar="A,B,…",
                         help='such as "dog,cat,red car"; @FILE: one label a line')
    command.add_argument("--background", metavar="A,B,…", help="what else the picture may show "
                         '(default: "grass", "sky", "wall" and the like; "": nothing else)')
    command.add_argument("--model", default=DEFAULT_MODEL,
                         help=f"{MODEL_HELP} (default {DEFAULT_MODEL})")
    command.add_argument("--data", metavar="shapes|DIR", help="score the model instead of looking "
                         "at images: on generated scenes, or on a folder of images/, "
                         "classnames.txt and masks/ or instances.json")
    command.add_argument("--limit", type=int, default=0, metavar="N", help="--data: only the first "
                         "so many pictures (default: 300 scenes, all of a folder)")
    command.add_argument("--plot", metavar="FILE", help="draw the pictures with what was "
                         "found; with --data the first eight")
    return command


def what_to_do(arguments):
    """ValueError unless either images with labels or data are given."""
    if arguments.data and (arguments.image or arguments.labels):
        raise ValueError("--data scores the model on a set: leave out images and --labels")
    if arguments.data and getattr(arguments, "masks", None):
        raise ValueError("--masks belongs to images, not to --data")
    if arguments.limit and not arguments.data:
        raise ValueError("--limit belongs to --data")
    if not arguments.data and not (arguments.image and arguments.labels):
        raise ValueError("give images and --labels, such as: photo.jpg --labels dog,cat; or a set "
                         "to be scored on: --data shapes")
    check_limit(arguments)


def vocabulary(arguments, model, tokenizer) -> Vocabulary:
    background = None
    if arguments.background is not None:
        background = [text.strip() for text in arguments.background.split(",") if text.strip()]
    return Vocabulary(model, tokenizer, background, arguments.template or TEMPLATES)


def scored(arguments, loaded, report, absent: int) -> dict:
    """A report of the model on --data, with its mean for the same model before training."""
    model, tokenizer, transform = loaded
    rows = partial(annotated, arguments.data, transform.size, arguments.limit, absent)
    figures = report(model, vocabulary(arguments, model, tokenizer), rows)
    blank = untrained(model)
    before = report(blank, vocabulary(arguments, blank, tokenizer), rows)
    first = next(iter(figures))
    return {first: figures[first], "untrained": before[first]} | figures


def draw_scored(arguments, loaded, look, draw):
    """--plot with --data: the first pictures of the set, and what look(…) finds in them."""
    model, tokenizer, transform = loaded
    words = vocabulary(arguments, model, tokenizer)
    rows = list(annotated(arguments.data, transform.size, DRAWN_OF_A_SET))
    found = [look(model, words, row.picture, row.asked) for row in rows]
    plots.scored_sheet(rows, found, draw, arguments.plot)


def print_scores(figures: dict, title: str):
    """The mean beside its baselines, and the labels that went worst."""
    first, *_ = figures.values()
    low, high = figures["interval"]
    print(f"\n  {title:34}{first:8.1f}   (95 % interval {low:.1f} to {high:.1f})")
    for name, meaning in (("untrained", "the same model before training"),
                          ("centre", "the centre is the object"), ("guessing", "by chance")):
        print(f"  {meaning:34}{figures[name]:8.1f}")
    worst = sorted(figures["labels"].items(), key=lambda item: item[1])[:5]
    print(f"  ({figures['pictures']:,} pictures, mean of {len(figures['labels'])} labels, percent; "
          "worst: " + ", ".join(f"{name} {value:.0f}" for name, value in worst) + ")")


def run_segment(arguments):
    """miniclip segment: a label for each pixel, of images, or the score on a set with masks."""
    what_to_do(arguments)
    if arguments.data:
        loaded = open_model(arguments, arguments.model)
        figures = scored(arguments, loaded, segmentation_report, absent=0)
        if not as_json(arguments, figures):
            print_scores(figures, "mean IoU")
        if arguments.plot:  # last: if it can't be written, the figures are out already
            draw_scored(arguments, loaded, segment, plots.draw_segments)
        return
    labels = read_labels(arguments.labels)
    model, tokenizer, transform = open_model(arguments, arguments.model)
    words = vocabulary(arguments, model, tokenizer)
    if len(labels) == 1 and not len(words.background):
        raise ValueError("one label and no background: every pixel would be the label's. Give a "
                         "second label, or what else there is: --background grass,sky")
    if arguments.masks:
        check_names(plots.mask_name(path, label) for path in arguments.image for label in labels)
    pictures, masks, told = [], [], []
    for path in arguments.image:
        pictures.append(read_image(path, transform.size, resize_whole))
        masks.append(segment(model, words, pictures[-1], labels))
        told.append({"image": path, "labels": shares(masks[-1], labels)})
    if not as_json(arguments, told):
        for row in told:
            print(plots.shown_name(row["image"], 10**6))
            for label in row["labels"]:
                print(f"  {100 * label['share']:5.1f} %  {'█' * round(20 * label['share']):20}  "
                      f"{label['label']}")
    if arguments.masks:
        for path, mask in zip(arguments.image, masks):
            plots.write_masks(Path(arguments.masks), path, mask, labels)
    if arguments.plot:
        shown(arguments, len(pictures))
        plots.dense_sheet(pictures[:DRAWN], masks[:DRAWN], labels, plots.draw_segments,
                          arguments.plot)


def check_names(names):
    """ValueError if two masks would have one name."""
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"--masks would write {name} {times} times; rename an image or a "
                             "label")


def shares(mask, labels: list[str]) -> list[dict]:
    """Of each label: the share of the picture that it covers, and the box around it all."""
    H, W = mask.shape
    rows = []
    for number, label in enumerate(labels, start=1):
        there = (mask == number).any()
        box = box_around(mask == number, 0) if there else None
        relative = box and [round(n, 4) for n in (box.left / W, box.top / H, box.right / W,
                                                  box.bottom / H)]
        rows.append({"label": label, "share": round(float((mask == number).mean()), 4),
                     "box": relative})
    return rows


def run_detect(arguments):
    """miniclip detect: boxes with labels, of images, or the score on a set with true boxes."""
    what_to_do(arguments)
    if not math.isfinite(arguments.threshold):
        raise ValueError(f"threshold is {arguments.threshold}; it must be a number")
    if arguments.data:
        loaded = open_model(arguments, arguments.model)
        figures = scored(arguments, loaded, detection_report, absent=2)
        if not as_json(arguments, figures):
            print_scores(figures, "AP50")
            print(f"  best threshold {figures['threshold']:.3f}, chosen on every second picture; "
                  f"F1 on the others {figures['f1']:.1f} %")
        if arguments.plot:
            look = partial(detect, threshold=arguments.threshold)
            draw_scored(arguments, loaded, look, plots.draw_boxes)
        return
    labels = read_labels(arguments.labels)
    model, tokenizer, transform = open_model(arguments, arguments.model)
    words = vocabulary(arguments, model, tokenizer)
    if not len(words.background) and arguments.threshold <= 0:
        raise ValueError("without backgrounds a score is no lead but a sum of two cosines; say "
                         "with --threshold from which on a box counts")
    pictures, found, told = [], [], []
    for path in arguments.image:
        pictures.append(picture := read_image(path, transform.size, resize_whole))
        found.append(detect(model, words, picture, labels, arguments.threshold))
        H, W = picture.shape[:2]
        told.append({"image": path, "boxes": [
            {"label": labels[one.box.label], "score": round(one.score, 4),
             "box": [round(n, 4) for n in (one.box.left / W, one.box.top / H, one.box.right / W,
                                           one.box.bottom / H)]} for one in found[-1]]})
    if not as_json(arguments, told):
        for row in told:
            print(plots.shown_name(row["image"], 10**6))
            for box in row["boxes"] or [None]:
                print("  nothing" if box is None else
                      f"  {box['score']:+.3f}  {box['label']:20}  left {box['box'][0]:.0%}, top "
                      f"{box['box'][1]:.0%}, right {box['box'][2]:.0%}, bottom {box['box'][3]:.0%}")
    if arguments.plot:
        shown(arguments, len(pictures))
        plots.dense_sheet(pictures[:DRAWN], found[:DRAWN], labels, plots.draw_boxes,
                          arguments.plot)


def shown(arguments, count: int):
    if count > DRAWN:
        print(f"{arguments.plot} shows the first {DRAWN} images", file=sys.stderr)
