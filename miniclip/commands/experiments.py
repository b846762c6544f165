"""`miniclip robustness --data | efficiency | scaling`: models side by side, and how they grow."""

import sys

from miniclip import plots
from miniclip.commands.shared import as_json, open_model
from miniclip.device import pick_device
from miniclip.experiments import efficiency, photographs, scaling, upbringing
from miniclip.experiments.fit import FEWEST

PER_CLASS = 6  # pictures of each class in a test set


def add_training_options(command):
    """--seeds, --steps, --sweep: of every experiment."""
    command.add_argument("--seeds", type=int, metavar="N",
                         help="train each model so many times (default 1)")
    command.add_argument("--steps", type=int, metavar="N",
                         help=f"optimiser steps of each model, {FEWEST} at least")
    command.add_argument("--sweep", action="store_true",
                         help="instead: which learning rate does each model do best with?")


def add_commands(commands, common):
    """Add efficiency and scaling; robustness is in transfer.py."""
    command = commands.add_parser("efficiency", parents=[common], help="predict captions word by "
                                  "word, their bag of words, or contrast them: what learns sooner?")
    command.add_argument("--data", default="shapes", metavar="WHERE",
                         help="shapes (default), a folder or a Hub id: photographs whose captions "
                              "name a dog, a bicycle, a man, a woman, a boy, a girl")
    command.add_argument("--credits", action="store_true",
                         help="let captions also say what no picture shows: who took it, where, "
                              "when")
    add_training_options(command)
    command.add_argument("--plot", metavar="FILE", help="draw accuracy over pairs seen")
    command.set_defaults(function=run_efficiency)

    command = commands.add_parser("scaling", parents=[common], help="a model of one training step, "
                                  "from this machine to thousands of GPUs: what gives way first?")
    command.add_argument("--measure", action="store_true", help="time ViT-B/32 on this machine too")
    command.add_argument("--plot", metavar="FILE", help="draw the step's parts")
    command.set_defaults(function=run_scaling)


def run_scaling(arguments):
    """miniclip scaling: seconds and bytes of a step, as lessons/scaling.md explains them."""
    device = pick_device(arguments.device) if arguments.measure else None
    figures = scaling.scaling_report(device)
    if not as_json(arguments, figures):
        print_scaling(figures)
    if arguments.plot:
        plots.scaling_bars(figures, arguments.plot)


def print_scaling(figures: dict):
    names = scaling.PARTS
    print(f"\n  {'pairs':>10}{'processes':>11}{'ms':>9}" + "".join(f"{x:>11}" for x in names)
          + f"{'GB':>7}   pairs/s")
    for row in (*([figures["here"]] if "here" in figures else ()), *figures["strong"],
                *figures["weak"]):
        print(f"  {row['N']:10,}{row['K']:11,}{1000 * row['seconds']:9.1f}"
              + "".join(f"{1000 * row['parts'][x]:11.1f}" for x in names)
              + f"{row['gigabytes']:7.0f}   {row['pairs_per_second']:,.0f}"
              + ("" if row["fits"] else "   (more memory than there is)"))
    found = figures["published"]
    print(f"  open_clip on 128 A100: {found['pairs_per_second']:,.0f} pairs/s, modelled "
          f"{found['modelled']:,.0f}; it reached {found['share_of_peak']:.0%} of the peak")


def check_counts(arguments):
    """ValueError for counts that train nothing, and for what a sweep would ignore."""
    if arguments.seeds is not None and not 1 <= arguments.seeds <= 1000:
        raise ValueError(f"seeds is {arguments.seeds}; it must be from 1 to 1,000")
    if arguments.steps is not None and not FEWEST <= arguments.steps < 2**31:
        raise ValueError(f"steps is {arguments.steps}; it must be {FEWEST} or more")
    if arguments.sweep and (arguments.plot or arguments.seeds is not None):
        raise ValueError("--sweep trains each model once and draws nothing; leave out --seeds and "
                         "--plot")


def run_efficiency(arguments):
    """miniclip efficiency: three objectives, one image tower, accuracy over pairs seen."""
    check_counts(arguments)
    device, steps = pick_device(arguments.device), arguments.steps or efficiency.STEPS
    if arguments.sweep:
        return print_sweep(arguments, efficiency.sweep(arguments.data, steps, PER_CLASS,
                                                       arguments.credits, device))
    figures = efficiency.efficiency_report(arguments.data, arguments.seeds or 1, steps, PER_CLASS,
                                           arguments.credits, device)
    if not as_json(arguments, figures):
        print_efficiency(figures)
    if arguments.plot:
        plots.efficiency_curves(figures, arguments.plot)


def print_efficiency(figures: dict):
    curves = figures["curves"]
    for title in next(iter(curves.values())):
        heading = f"{title}, %"
        print(f"\n  {heading:27}" + "".join(f"{name:>20}" for name in curves))
        for row in zip(*(curve[title] for curve in curves.values())):
            pairs = f"{row[0]['pairs']:,} pairs seen"
            print(f"  {pairs:27}" + "".join(cell(point).rjust(20) for point in row))
    for name, found in figures["sooner"].items():
        print(f"  to what {name!r} reaches, contrast {times_in_words(found)}")
    print(f"  {figures['seeds']} seed(s), {figures['steps']} steps, {figures['images']} pictures "
          f"asked; chance {100 / figures['classes']:.1f} %; in brackets 95 % intervals")


def times_in_words(found: dict) -> str:
    if found["times"] is None:
        return "doesn't get"
    between = found["interval"] and " ({:.1f} to {:.1f})".format(*found["interval"])
    return f"needs {found['times']:.1f} times fewer pairs{between or ''}"


def run_upbringing(arguments):
    """miniclip robustness --data shapes: labels or captions, one style or many."""
    device, steps = pick_device(arguments.device), arguments.steps or upbringing.STEPS
    if arguments.sweep:
        return print_sweep(arguments, upbringing.sweep(steps, PER_CLASS, device))
    figures = upbringing.upbringing_report(arguments.seeds or 1, steps, PER_CLASS, device)
    if not as_json(arguments, figures):
        print_upbringing(figures)
    if arguments.plot:
        plots.upbringing_picture(figures, arguments.plot)


def run_photographs(arguments):
    """miniclip robustness RUN --data FOLDER: the opponent and CLIP on photographs."""
    photographs.trained_on(arguments.model, arguments.data)  # before a model is opened
    loaded = open_model(arguments, arguments.model)
    steps = arguments.steps or photographs.STEPS
    if arguments.sweep:
        return print_sweep(arguments, photographs.sweep(loaded, arguments.model, arguments.data,
                                                        steps))
    figures = photographs.photographs_report(loaded, arguments.model, arguments.data,
                                             arguments.seeds or 1, steps)
    if not as_json(arguments, figures):
        print_table("accuracy, %", figures["rows"], "accuracy")
        for row in figures["rows"]:
            print(f"  {row['name']}: {row['photographs']:,} photographs, {row['steps']:,} steps")
        print(f"  {figures['images']} {figures['split']} photographs of {len(figures['classes'])} "
              f"classes; chance {100 / len(figures['classes']):.1f} %; in brackets 95 % intervals")
    if arguments.plot:
        plots.photographs_bars(figures, arguments.plot)


def print_table(title: str, rows: list[dict], key: str):
    """A column for each model and a line for each of row[key]: the figure and its interval."""
    print(f"\n  {title:20}" + "".join(f"{row['name']:>23}" for row in rows))
    for name in rows[0][key]:
        print(f"  {name:20}" + "".join(cell(row[key][name]).rjust(23) for row in rows))


def cell(found: dict) -> str:
    """ "97.1 (96.0–98.1)"; effective robustness with its sign."""
    if "accuracy" in found:
        return "{:.1f} ({:.1f}–{:.1f})".format(found["accuracy"], *found["interval"])
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(found["points"], *found["interval"])


def print_upbringing(figures: dict):
    for title, key in (("accuracy, %", "accuracy"), ("effective robustness", "effective"),
                       ("never labelled, %", "never labelled")):
        print_table(title, figures["rows"], key)
    print(f"  {figures['seeds']} seed(s), {figures['steps']} steps, {figures['examples']:,} "
          f"training pictures, {figures['classes']} classes; in brackets 95 % intervals")
    if figures["seeds"] < 5:
        print("  what we publish has five seeds: --seeds 5", file=sys.stderr)


def print_sweep(arguments, figures: dict):
    if as_json(arguments, figures):
        return
    print(f"\n  {'learning rates':32}accuracy, %")
    for row in figures["rows"]:
        told = "diverged" if row["accuracy"] is None else f"{row['accuracy']:.1f}"
        print(f"  {row['name']:22}× {row['rate']:<8g}{told:>8}")
