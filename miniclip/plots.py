"""Every picture, in one style. The background is white, so it can be read in dark mode too.
On one machine, the same figures always give the same bytes.
"""

import json
import math
import os
import re
import sys
import textwrap
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import hsv_to_rgb
from matplotlib.figure import Figure  # not pyplot: a notebook keeps its own backend
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from miniclip.data import scenes
from miniclip.data.images import fit, rgb
from miniclip.data.pairs import Pairs
from miniclip.files import read_rows, write_atomically
from miniclip.tasks.features import embed_images, embed_texts
from miniclip.tasks.robustness import Line, logit
from miniclip.tasks.zero_shot import class_vectors
from miniclip.weights import checkpoint

BLUE, ORANGE, GREEN, RED, GRAY = "#3566a8", "#d9822b", "#3a8f4d", "#c23b3b", "#8a8a8a"
STYLE = {
    "figure.facecolor": "white", "figure.dpi": 120, "font.size": 9, "axes.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.axisbelow": True, "legend.frameon": False, "figure.constrained_layout.use": True,
    "svg.hashsalt": "miniclip"}
METADATA = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None},
            "pdf": {"CreationDate": None, "Creator": None, "Producer": None}}
QUERIES, FOUND = 6, 6  # rows and columns of a retrieval sheet
EVERYDAY = ("dog", "man", "woman", "child", "crowd of people", "bicycle", "car", "ball", "beach",
            "snowy mountain", "swimming pool", "grassy field", "city street", "horse")


def save(figure, path):
    """Write a figure completely or not at all. No date or version: same figure, same bytes."""
    kind = Path(path).suffix[1:].lower() or "png"
    options = {"format": kind, "metadata": METADATA.get(kind)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks
        write_atomically(Path(path), lambda new: figure.savefig(new, **options))


@contextmanager
def drawing(path, rows: int = 1, columns: int = 1, grid: bool = True, figsize=None, **options):
    """`with drawing("figures/x.png", 1, 2, figsize=(8, 3)) as axes:`, saved when the block ends.

    options: those of Figure.subplots. Gives one Axes, or an array of them.
    """
    with rc_context(STYLE | {"axes.grid": grid}):
        figure = Figure(figsize)
        yield figure.subplots(rows, columns, **options)
        save(figure, path)


def mark(axis, height: float, label: str):
    """A dashed reference line at `height`, with its label at the right end."""
    axis.axhline(height, color=GRAY, ls="--", lw=1)
    axis.text(0.99, height, label, color=GRAY, ha="right", va="bottom",
              transform=axis.get_yaxis_transform())


def scaling_bars(figures: dict, path):
    """`miniclip scaling`: the parts of a step, at one batch and at one batch for each GPU."""
    colours = dict(zip(("towers", "loss", "gradients", "features", "images"),
                       (BLUE, RED, ORANGE, GREEN, GRAY)))
    with drawing(path, 1, 2, figsize=(9, 3.6)) as axes:
        for axis, name, title in zip(axes, ("strong", "weak"), (
                "32,768 pairs, shared out", "256 pairs for each GPU")):
            rows, bottom = figures[name], np.zeros(len(figures[name]))
            for part, colour in colours.items():
                height = np.array([100 * row["parts"][part] / row["seconds"] for row in rows])
                axis.bar(range(len(rows)), height, bottom=bottom, color=colour, label=part)
                bottom += height
            for place, row in enumerate(rows):
                axis.text(place, 101, f"{1000 * row['seconds']:,.0f} ms", ha="center", fontsize=8)
            axis.set(title=title, xticks=range(len(rows)), xlabel="GPUs (H100)", ylim=(0, 108),
                     ylabel="share of a step, %")
            axis.set_xticklabels([f"{row['K']:,}" for row in rows])
        axes[1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def training_curves(rows: list[dict], batch_size: int, images: int, path: Path):
    """metrics.jsonl → loss with ln B, the loss of guessing; R@10 both ways with its chance.

    batch_size: B; 0 for the sigmoid loss, where guessing has no such number.
    """
    steps = [row for row in rows if "loss" in row]
    tests = [row for row in rows if "image_to_text" in row]
    with drawing(path, 1, 2, figsize=(9, 3.4)) as (left, right):
        left.plot([r["step"] for r in steps], [r["loss"] for r in steps], color=BLUE, lw=1)
        if batch_size:
            mark(left, math.log(batch_size), f"ln {batch_size}, the loss of guessing")
        left.set(title="Contrastive loss of the training batches", xlabel="step", ylim=(0, None))
        for way, color, label in (("image_to_text", BLUE, "image → text"),
                                  ("text_to_image", ORANGE, "text → image")):
            right.plot([r["step"] for r in tests], [r[way]["R@10"] for r in tests], "o-",
                       color=color, ms=3, lw=1.2, label=label)
        mark(right, min(100, 1000 / images), "chance")
        right.set(title=f"R@10 on {images:,} images never trained on, %", xlabel="step",
                  ylim=(0, None))
        right.legend(loc="lower right", bbox_to_anchor=(1, 0.1))


def similarity_matrices(rows: list[dict], path: Path):
    """similarity.jsonl → cosines of the same held-out pairs before, during and after training."""
    picked = [rows[0], rows[len(rows) // 2], rows[-1]]
    with drawing(path, 1, 3, grid=False, figsize=(9, 3.3)) as axes:
        for axis, row in zip(axes, picked):
            cosines = np.array(row["cosines"])
            own = np.trace(cosines) / len(cosines)
            other = (cosines.sum() - np.trace(cosines)) / max(1, cosines.size - len(cosines))
            picture = axis.imshow(cosines, cmap="magma", vmin=-0.2, vmax=1)
            axis.set(title=f"step {row['step']:,}\nown {own:.2f}, others {other:.2f}",
                     xlabel="text", ylabel="image", xticks=[], yticks=[])
        axes[0].figure.colorbar(picture, ax=axes, label="cosine", shrink=0.8)


def show(axis, image: np.ndarray, frame: str | None = None):
    """One thumbnail, framed in a colour or not at all."""
    axis.imshow(image)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set(visible=frame is not None, color=frame, linewidth=3)


def retrieval_sheet(model, tokenizer, pairs: Pairs, path: Path):
    """Evenly spaced captions, not hand-picked, with the images each finds; the right one framed."""
    images = embed_images(model, pairs.images)
    owners = [i * len(pairs) // QUERIES for i in range(QUERIES)]
    queries = [pairs.captions[i][0] for i in owners]
    scores = embed_texts(model, tokenizer, queries) @ images.T  # (QUERIES, N)
    found = scores.argsort(dim=1, descending=True)
    with drawing(path, QUERIES, FOUND + 1, grid=False, figsize=(9.6, 1.28 * QUERIES),
                 width_ratios=[2, *[1] * FOUND]) as axes:
        for row, (owner, query) in enumerate(zip(owners, queries)):
            rank = (found[row] == owner).nonzero().item() + 1
            axes[row, 0].axis("off")
            lines = [*textwrap.wrap(query, 30, max_lines=5, placeholder=" …"), f"(rank {rank:,})"]
            axes[row, 0].text(0, 0.5, "\n".join(lines), va="center", fontsize=8, parse_math=False,
                              color=GREEN if rank <= FOUND else "black")  # "$5, $6" is no formula
            for axis, i in zip(axes[row, 1:], found[row, :FOUND].tolist()):
                show(axis, pairs.images[i], GREEN if i == owner else None)
        axes[0, 0].figure.suptitle(
            f"What sentences find among {len(pairs):,} images never trained on")


def zero_shot_sheet(model, tokenizer, pairs: Pairs, path: Path):
    """Images, each with its nearest classes, which are only sentences.

    Generated scenes show combinations held out of training, and the right class is green.
    """
    if pairs.name.startswith("shapes:"):
        names = scenes.class_names()
        images, labels = scenes.held_out_set(1, seed=9)
        images, labels = fit(images, model.config.image_size)[:18:3], labels[:18:3].tolist()
    else:
        names = list(EVERYDAY)
        images = pairs.images[[i * len(pairs) // 6 for i in range(6)]]
        labels = [None] * 6
    scores = embed_images(model, images) @ class_vectors(model, tokenizer, names).T
    chances = (scores * model.logit_scale.exp().item()).softmax(dim=1)  # (6, C)
    with drawing(path, 2, 6, grid=False, figsize=(9.6, 3.6), width_ratios=[1, 1.2] * 3) as axes:
        for (picture, bars), image, row, label in zip(
                axes.reshape(6, 2), images, chances, labels, strict=True):
            show(picture, image)
            show_chances(bars, row, names, label)
        axes[0, 0].figure.suptitle(f"Zero-shot: the nearest of {len(names)} classes, "
                        "“a photo of a …”, none of them taught as a label")


def show_chances(axis, row, names: list[str], label: int | None = None):
    """Bars of the four likeliest classes; if the right one is known, it is green."""
    top = row.argsort(descending=True)[:4].tolist()
    others = BLUE if label is None else GRAY
    colors = [GREEN if i == label else others for i in top]
    axis.barh(range(len(top)), row[top].numpy(), color=colors, alpha=0.45)
    axis.set(xlim=(0, 1), ylim=(3.6, -0.8), xticks=[], yticks=[])
    for k, i in enumerate(top):
        axis.text(0.02, k, f"{names[i]} {row[i]:.0%}", va="center", fontsize=8, parse_math=False)
    axis.spines[:].set_visible(False)


def thumbnail(path, side: int = 320) -> np.ndarray:
    """A file → uint8 of at most side × side, uncropped, the right way up; gray if it is gone."""
    try:
        with Image.open(path) as image:
            image.thumbnail((side, side))
            return np.asarray(rgb(ImageOps.exif_transpose(image)))
    except Exception:  # decoders raise many kinds for changed or broken files
        return np.full((side * 3 // 4, side, 3), 225, np.uint8)


def shown_name(path, width: int = 30) -> str:
    """The end of a path, as a caption. What can't be decoded or printed becomes question marks."""
    name = os.fsencode(path).decode(errors="replace")
    name = "".join(c if c.isprintable() else "?" for c in name)
    return name if len(name) <= width else f"…{name[1 - width:]}"


def contact_sheet(title: str, found: list[tuple[float, str]], path):
    """The photographs that a search found, best first, each with its cosine and name."""
    columns = math.ceil(math.sqrt(len(found)))
    rows = math.ceil(len(found) / columns)
    with drawing(path, rows, columns, grid=False, squeeze=False,
                 figsize=(2.6 * columns, 2.4 * rows + 0.4)) as axes:
        axes[0, 0].figure.suptitle(title, parse_math=False)
        for axis in axes.flat[len(found):]:
            axis.axis("off")
        for axis, (score, photograph) in zip(axes.flat, found):
            show(axis, thumbnail(photograph))
            axis.set_xlabel(f"{score:.3f}  {shown_name(Path(photograph).name)}", parse_math=False)


def classified_sheet(images: list, names: list[str], chances, path):
    """Images, given by their paths, each beside the likeliest labels; chances (N, C)."""
    with drawing(path, len(images), 2, grid=False, squeeze=False,
                 figsize=(5.5, 1.8 * len(images))) as axes:
        for (picture, bars), image, row in zip(axes, images, chances):
            show(picture, thumbnail(image))
            show_chances(bars, row, names)


def label_colours(count: int) -> np.ndarray:
    """A colour for each label, (count, 3) from 0 to 1, evenly spaced in hue."""
    return hsv_to_rgb([[(0.6 + k * 0.381966) % 1, 0.75, 0.9] for k in range(count)])


def legend(axis, labels: list[str], colours):
    """The labels beside a picture, each behind its colour."""
    for k, (label, colour) in enumerate(zip(labels, colours)):
        axis.text(0, 1 - (k + 0.5) / max(6, len(labels)), f"■ {label}", color=colour, fontsize=10,
                  va="center", parse_math=False)


@contextmanager
def labelled_sheet(count: int, labels: list[str], path):
    """A sheet for `count` pictures with a legend on its right; gives their axes."""
    columns = min(4, count)
    rows = -(-count // columns)
    with drawing(path, rows, columns + 1, grid=False, squeeze=False,
                 figsize=(2.6 * columns + 1.8, 2.6 * rows + 0.2),
                 width_ratios=[*[2.6] * columns, 1.8]) as axes:
        for axis in axes.flat:
            axis.axis("off")
        legend(axes[0, -1], labels, label_colours(len(labels)))
        yield axes[:, :-1].flat


def draw_segments(axis, picture: np.ndarray, mask: np.ndarray, colours):
    """A picture (H, W, 3) under its mask (H, W): 0 pales, k + 1 gets colours[k]."""
    painted = 0.35 * picture / 255 + 0.65
    gray = picture.mean(axis=2, keepdims=True) / 255
    for k, colour in enumerate(colours, start=1):
        painted[mask == k] = 0.3 * gray[mask == k] + 0.7 * colour
    axis.imshow(painted)


def draw_boxes(axis, picture: np.ndarray, found: list, colours):
    """A picture (H, W, 3) with the boxes that were found in it and their scores."""
    axis.imshow(picture)
    for one in found:
        box, colour = one.box, colours[one.box.label]
        axis.add_patch(Rectangle(
            (box.left - 0.5, box.top - 0.5), box.right - box.left, box.bottom - box.top,
            fill=False, edgecolor=colour, linewidth=2))
        axis.text(box.left, box.top - 1, f"{one.score:.2f}", fontsize=8, color="white",
                  va="bottom", bbox={"facecolor": colour, "edgecolor": "none", "pad": 1})


def dense_sheet(pictures: list, found: list, labels: list[str], draw, path):
    """Pictures of one list of labels, each with its mask or boxes; draw: one of the two above."""
    colours = label_colours(len(labels))
    with labelled_sheet(len(pictures), labels, path) as axes:
        for axis, picture, one in zip(axes, pictures, found):
            draw(axis, picture, one, colours)


def scored_sheet(rows: list, found: list, draw, path):
    """Annotated pictures with the labels that they show; below, what was found (masks or boxes)."""
    with drawing(path, 2, len(rows), grid=False, squeeze=False,
                 figsize=(1.9 * len(rows), 4.4)) as axes:
        for (top, low), row, one in zip(axes.T, rows, found):
            colours = label_colours(len(row.asked))
            show(top, row.picture)
            draw(low, row.picture, one, colours)
            low.set(xticks=[], yticks=[])
            low.spines[:].set_visible(False)
            there = labels_there(row)
            for place, k in enumerate(reversed(there)):
                top.text(0.5, 1.03 + 0.11 * place, row.asked[k], color=colours[k], fontsize=9,
                         ha="center", transform=top.transAxes, parse_math=False)


def labels_there(row) -> list[int]:
    """The numbers of the labels that an Annotated picture shows, by its mask or its boxes."""
    shown = {box.label for box in row.boxes or ()}
    if row.mask is not None:
        shown |= {k for k in range(len(row.asked)) if (row.mask == k + 1).any()}
    return sorted(shown)


def write_masks(folder: Path, image, mask: np.ndarray, labels: list[str]):
    """A black and white PNG for each label, IMAGE-LABEL.png, as large as the image's file."""
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(image) as picture:
        size = ImageOps.exif_transpose(picture).size
    for k, label in enumerate(labels, start=1):
        white = Image.fromarray(np.where(mask == k, np.uint8(255), np.uint8(0)))
        white = white.resize(size, Image.Resampling.NEAREST)
        write_atomically(folder / mask_name(image, label),
                         lambda new, white=white: white.save(new, "PNG"))


def mask_name(image, label: str) -> str:
    """ "photo.jpg", "a red dog" → "photo-a_red_dog.png"."""
    name = re.sub(r"[^\w-]+", "_", label).strip("_")
    return f"{Path(image).stem}-{name}.png"


def shots_curve(figures: dict, path):
    """probe's figures → accuracy over labelled examples of each class, with zero-shot's line."""
    rows, zero_shot = figures["shots"], figures["zero_shot"]
    shots = [row["shots"] for row in rows]
    with drawing(path, figsize=(6, 3.8)) as axis:
        axis.plot(shots, [row["accuracy"] for row in rows], "o-", color=BLUE, label="linear probe")
        axis.fill_between(shots, *zip(*(row["interval"] for row in rows)), color=BLUE, alpha=0.2,
                          lw=0)
        axis.axhline(zero_shot["accuracy"], color=ORANGE, label="zero-shot: a sentence, no example")
        axis.axhspan(*zero_shot["interval"], color=ORANGE, alpha=0.2, lw=0)
        axis.axhline(figures["probe"]["accuracy"], color=BLUE, ls=":", lw=1.2,
                     label=f"probe, all {figures['probe']['examples']:,} examples")
        mark(axis, 100 / figures["classes"], "chance")
        axis.set_xscale("log", base=2)
        axis.set(xticks=shots, xticklabels=shots, ylim=(0, 102), ylabel="accuracy, %",
                 xlabel="labelled examples of each class",
                 title=f"{figures['classes']} classes, {figures['images']:,} test images")
        axis.legend(loc="center right")


def relations_matrices(figures: dict, path):
    """relations' figures → distances between labels as one-hot vectors, and as sentences."""
    labels, learnt = figures["labels"], np.array(figures["distances"])
    one_hot = math.sqrt(2) * (1 - np.eye(len(labels)))
    side = min(7, 2.2 + 0.3 * len(labels))
    with drawing(path, 1, 2, grid=False, figsize=(2 * side + 1, side)) as axes:
        for axis, matrix, title in zip(axes, (one_hot, learnt), ("as numbers", "as sentences")):
            picture = axis.imshow(matrix, cmap="Blues_r", vmin=0, vmax=max(1.42, learnt.max()))
            ticks = range(len(labels)) if len(labels) <= 50 else []
            axis.set_xticks(ticks, [labels[i] for i in ticks], rotation=90, parse_math=False)
            axis.set_yticks(ticks, [labels[i] for i in ticks], parse_math=False)
            axis.set(title=title)
            if len(labels) <= 12:
                for (row, column), value in np.ndenumerate(matrix):
                    axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=7,
                              color="white" if value < 0.7 else "black")
        axes[1].set_yticks([])
        axes[0].figure.colorbar(picture, ax=axes, label="distance", shrink=0.7)


def robustness_bars(figures: dict, path):
    """robustness's figures → bars of both, set by set, with 95 % intervals and the lecture's."""
    rows = figures["sets"]
    places = np.arange(len(rows))
    with drawing(path, figsize=(max(6.5, 1.5 * len(rows) + 1.5), 4)) as axis:
        for offset, key, other, color, label in (
                (-0.2, "supervised", "supervised", GRAY, figures["supervised"]),
                (0.2, "clip", "clip", BLUE, f"zero-shot: {figures['model']}")):
            shown = [(x, row) for x, row in zip(places, rows) if row[key]]
            if not shown:
                continue
            x = np.array([x for x, _ in shown]) + offset
            values = np.array([row[key]["accuracy"] for _, row in shown])
            ends = np.array([row[key]["interval"] for _, row in shown])
            errors = np.abs(ends.T - values)
            axis.bar(x, values, 0.38, color=color, label=label, yerr=errors, capsize=2)
            axis.scatter(x, [row["lecture"][other] for _, row in shown], color="black", marker="_",
                         s=160, zorder=3, label="the lecture's figure" if key == "clip" else None)
        axis.set_xticks(places, [row["set"] for row in rows])
        axis.set(ylim=(0, 100), ylabel="accuracy, %")
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)


WHO = {"labels, one style": GRAY, "captions, one style": ORANGE, "labels, many styles": GREEN,
       "captions, many styles": BLUE}  # upbringing -> colour


def grouped_bars(axis, rows: list[dict], colours: list[str], labels: list[str]):
    """rows[k]["accuracy"] of every shift, side by side, with their intervals."""
    shifts = list(rows[0]["accuracy"])
    width = 0.84 / len(rows)
    for number, (row, color, label) in enumerate(zip(rows, colours, labels, strict=True)):
        x = np.arange(len(shifts)) + (number - (len(rows) - 1) / 2) * width
        cells = [row["accuracy"][shift] for shift in shifts]
        values = np.array([cell["accuracy"] for cell in cells])
        errors = np.abs(np.array([cell["interval"] for cell in cells]).T - values)
        axis.bar(x, values, 0.92 * width, color=color, label=label, yerr=errors,
                 error_kw={"lw": 1}, capsize=1.5)
    axis.set_xticks(range(len(shifts)), shifts)
    axis.set(ylim=(0, 100), ylabel="accuracy, %")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def upbringing_picture(figures: dict, path):
    """robustness --data shapes: bars for every shift, and below the points along training."""
    rows, shifts = figures["rows"], list(figures["lines"])
    with rc_context(STYLE):
        figure = Figure((10, 6.8))
        top, low = figure.subfigures(2, 1)
        names = [row["name"] for row in rows]
        grouped_bars(top.subplots(), rows, [WHO[name] for name in names], names)
        axes = low.subplots(1, len(shifts), sharey=True)
        for axis, shift in zip(axes, shifts, strict=True):
            effective_axis(axis, figures, shift)
            axis.set(title=shift, xlabel="in-domain, %")
        axes[0].set_ylabel("under the shift, %")
        save(figure, path)


def effective_axis(axis, figures: dict, shift: str):
    """Points of many checkpoints on logit axes, and the line through the ordinary models'."""
    images = figures["images"]
    line = Line(*figures["lines"][shift], images["in-domain"])
    for row in figures["rows"]:
        inside, under = ([point[name] for run in row["points"] for point in run]
                         for name in ("in-domain", shift))
        axis.scatter(logit(inside, images["in-domain"]), logit(under, images[shift]), s=5,
                     color=WHO[row["name"]], lw=0)
    inside = np.linspace(0.002, 0.999, 50)
    axis.plot(logit(inside, 10**6), logit(line(inside), 10**6), color="black", lw=1)
    axis.plot([-9, 9], [-9, 9], color=GRAY, lw=0.8, ls=":")
    ticks = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    axis.set_xticks(logit(ticks[1::2], 10**6), ["10", "90"])
    axis.set_yticks(logit(ticks, 10**6), ["1", "10", "50", "90", "99"])
    axis.set(xlim=(-5.5, 7.2), ylim=(-7.2, 7.2))


def photographs_bars(figures: dict, path):
    """robustness RUN --data FOLDER: bars for every shift."""
    rows = figures["rows"]
    labels = [f"{row['name']}: {row['photographs']:,} photographs" for row in rows]
    with drawing(path, figsize=(9.5, 3.8)) as axis:
        grouped_bars(axis, rows, [GRAY, ORANGE, BLUE], labels)
        mark(axis, 100 / len(figures["classes"]), "chance")


def efficiency_curves(figures: dict, path):
    """efficiency's figures → accuracy over pairs seen, of each objective, with intervals."""
    titles = list(next(iter(figures["curves"].values())))
    with drawing(path, 1, len(titles), figsize=(0.6 + 4.2 * len(titles), 3.8), sharey=True,
                 squeeze=False) as (axes,):
        for axis, title in zip(axes, titles):
            for (name, curves), color in zip(figures["curves"].items(), (GRAY, ORANGE, BLUE)):
                pairs = [point["pairs"] for point in curves[title]]
                axis.plot(pairs, [point["accuracy"] for point in curves[title]], "o-", ms=3,
                          color=color, label=name)
                axis.fill_between(pairs, *zip(*(point["interval"] for point in curves[title])),
                                  color=color, alpha=0.2, lw=0)
            mark(axis, 100 / figures["classes"], "chance")
            axis.set_xscale("log")
            ticks = [pairs[0], pairs[len(pairs) // 2], pairs[-1]]
            axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
            axis.minorticks_off()
            axis.set(title=title, xlabel="pairs seen", ylim=(0, None))
        axes[0].set_ylabel("zero-shot accuracy, %")
        axes[0].legend()


def average_curve(rows: list[dict], path):
    """average's rows → mean R@10 over the share of the second model, a line for each data set."""
    colours = (BLUE, ORANGE, GREEN, RED)
    with drawing(path, figsize=(6, 3.8)) as axis:
        for i, name in enumerate(rows[0]["recall"]):
            axis.plot([row["alpha"] for row in rows], [row["recall"][name] for row in rows], "o-",
                      color=colours[i % len(colours)], label=name)
        axis.set(xlabel="share of the second model", ylabel="mean R@10, %", ylim=(0, None),
                 title="Between two models")
        axis.legend()


def confusion_picture(confusion, names: list[str], path):
    """(C, C) counts → for each true class (a row), the share of its images predicted as each."""
    shares = (confusion / confusion.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = min(12, 3.5 + 0.22 * len(names))
    with drawing(path, grid=False, figsize=(side + 0.8, side)) as axis:
        picture = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.figure.colorbar(picture, ax=axis, label="share of a class's images", shrink=0.7)
        ticks = range(len(names)) if len(names) <= 50 else []  # more names would be a gray band
        axis.set_xticks(ticks, [names[i] for i in ticks], rotation=90, parse_math=False)
        axis.set_yticks(ticks, [names[i] for i in ticks], parse_math=False)
        axis.set(xlabel="said", ylabel="truth", title="Zero-shot: what is taken for what")


def draw_run(folder: Path, model, tokenizer, pairs: Pairs, batch_size: int):
    """The four pictures of a run, into its folder."""
    questions = batch_size if model.config.loss == "softmax" else 0
    training_curves(read_rows(folder / "metrics.jsonl"), questions, len(pairs),
                    folder / "curves.png")
    similarity_matrices(read_rows(folder / "similarity.jsonl"), folder / "similarity.png")
    retrieval_sheet(model, tokenizer, pairs, folder / "retrieval.png")
    zero_shot_sheet(model, tokenizer, pairs, folder / "zero_shot.png")


def scenes_sheet(path: Path, seed: int = 4):
    """Generated scenes with one caption each, and one scene in every style."""
    images, captions, drawn = scenes.generate(14, seed)
    with drawing(path, 3, 7, grid=False, figsize=(9.6, 5.4)) as axes:
        for axis, image, texts in zip(axes.flat, images, captions):
            show(axis, image)
            axis.set_xlabel("\n".join(textwrap.wrap(min(texts, key=len), 20)), fontsize=7)
        axes[2, 0].axis("off")
        axes[2, 0].text(0, 0.5, "one scene,\nshifted", va="center")
        for axis, style in zip(axes[2, 1:], scenes.STYLES):
            show(axis, scenes.render(drawn[0], np.random.default_rng(seed), style))
            axis.set_xlabel(style, fontsize=7)


SENTENCES = ("a red car", "a white French bulldog", "a bird in the sky",
             "a small yellow diamond", "a pink triangle above a yellow arrow")


def found_sheet(model, tokenizer, path: Path, seed: int = 5):
    """Sentences, each with the scenes that it finds among 5,000 drawn from the seed."""
    images, _, _ = scenes.generate(5000, seed)
    features = embed_images(model, fit(images, model.config.image_size))
    scores = embed_texts(model, tokenizer, list(SENTENCES)) @ features.T  # (sentences, N)
    with drawing(path, len(SENTENCES), FOUND + 1, grid=False, figsize=(9.6, 6.4),
                 width_ratios=[2.2, *[1] * FOUND]) as axes:
        for row, sentence, found in zip(axes, SENTENCES, scores.topk(FOUND).indices.tolist()):
            row[0].axis("off")
            lines = textwrap.fill(f"“{sentence}”", 20)
            row[0].text(0.95, 0.5, lines, va="center", ha="right", fontsize=11)
            for axis, i in zip(row[1:], found):
                show(axis, images[i])


def draw_results(folder: Path = Path(__file__).parent / "results"):
    """The README's pictures, from the figures that `make record` keeps."""
    scenes_sheet(folder / "scenes.png")
    for path in sorted(folder.glob("*.json")):
        metrics = json.loads(path.read_text())
        training_curves(read_rows(path.with_suffix(".jsonl")), metrics["training"]["batch_size"],
                        metrics["images"], path.with_suffix(".png"))


if __name__ == "__main__":
    if sys.argv[1:]:  # a run on `shapes`: the README's first picture
        run_model, run_tokenizer, _ = checkpoint.load(sys.argv[1])
        found_sheet(run_model, run_tokenizer, Path(__file__).parent / "results/found.png")
    else:
        draw_results()
