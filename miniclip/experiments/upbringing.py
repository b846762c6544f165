"""Is it the language or the data? One image tower, brought up in four ways.

                   one style of drawing          many styles
    labels         the supervised opponent       the opponent, with CLIP's pictures
    captions       CLIP in a narrow world        CLIP as it really is

All four see as many pictures of the same scenes, for as many steps. They are tested on fresh
pictures and on shifts that mirror the lecture's figure (minute 13:50). The lecture compares two
corners of this square, the first and the last, which differ in two things at once (Fang et al.
2022, arXiv 2205.01397). "R, new" are styles that no training shows: does variety help with what it
doesn't hold?
"""

from dataclasses import dataclass

import numpy as np

from miniclip.config import MODELS, PRESETS
from miniclip.data import scenes
from miniclip.data.pairs import Examples
from miniclip.data.styled import (
    CLASSES,
    MANY_STYLES,
    ONE_STYLE,
    SHIFTS,
    STYLES,
    fresh_examples,
    training_examples,
)
from miniclip.device import described
from miniclip.experiments.fit import (
    fit,
    looks_of,
    recipe,
    right,
    swept,
    tokenizer_of,
    with_interval,
)
from miniclip.experiments.objectives import Contrast, Labels
from miniclip.tasks.intervals import draws_of, percentiles, runs_and_images
from miniclip.tasks.robustness import Line, effective_robustness, fitted_line
from miniclip.tasks.zero_shot import TEMPLATES

SHAPE, RECIPE = MODELS["micro"], PRESETS["shapes"]
STEPS, EXAMPLES = 600, 12_000
LOOKS = (30, 60, 90, 120, 150, 200, 300, 400, 500, 600)  # of STEPS; others in proportion
WORLDS = {"one style": ONE_STYLE, "many styles": MANY_STYLES}
# Of RECIPE's learning rates, the multiple that each teacher does best with: `sweep` found it.
RATES = {"labels": 2.0, "captions": 2.0}
SWEPT = (0.5, 1.0, 2.0, 4.0)
# Beyond the seeds of any training run that is reported.
TEST_SEED, SWEEP_SEED, POOL_SEED, THIRD_SEED = 10_000, 10_002, 10_003, 10_004
NEVER_TAUGHT = scenes.class_names()  # the 100 combinations, 20 of them in no training
DRAWS = 1000


@dataclass(frozen=True)
class Upbringing:
    """teacher: labels or captions; world: a key of WORLDS."""

    teacher: str
    world: str

    @property
    def name(self) -> str:
        return f"{self.teacher}, {self.world}"


ORDINARY = Upbringing("labels", "one style")  # its checkpoints make the line
UPBRINGINGS = (ORDINARY, Upbringing("captions", "one style"), Upbringing("labels", "many styles"),
               Upbringing("captions", "many styles"))


def templates_of(styles) -> tuple[str, ...]:
    """The prompts of a class: as its world speaks."""
    words = dict.fromkeys(STYLES[style][0] for style in styles)
    return (*TEMPLATES, *(f"a {word} of a {{}}" for word in words if word))


def build(teacher: str, tokenizer, shape, styles, seed: int, device):
    if teacher == "labels":
        return Labels(shape, CLASSES, seed).to(device)
    return Contrast(shape, tokenizer, seed, templates_of(styles)).to(device)


# ------------------------------------------------------------------------------- what is asked


def question_sets(per_class: int, device, steps: int) -> dict[str, Examples]:
    """{column: examples}: fresh pictures, four shifts that are drawn, and A.

    All but V2 and A show the same objects in the same places. V2 is another draw of what training
    shows, so it tells how much of a difference is chance.
    """
    sets = {name: fresh_examples(per_class, TEST_SEED + (name == "V2"), styles)
            for name, styles in SHIFTS.items()}
    return sets | {"A": adversarial(per_class, device, steps)}


def adversarial(per_class: int, device, steps: int) -> Examples:
    """Plain pictures that a third model gets wrong: labels, a quarter of the pictures and steps.

    As ImageNet-A holds photographs that a ResNet-50 got wrong (Hendrycks et al. 2021, arXiv
    1907.07174). So that model has 0 % by construction, and its likes suffer most.
    """
    examples = training_examples(EXAMPLES // 4, THIRD_SEED, ONE_STYLE)
    tokenizer, shape = tokenizer_of(examples, SHAPE)
    third = build("labels", tokenizer, shape, ONE_STYLE, THIRD_SEED, device)
    fit(third, examples, tokenizer, shape.image_size,
        recipe(RECIPE, RATES["labels"], max(1, steps // 4), THIRD_SEED), title="a third model")
    pool = fresh_examples(8 * per_class, POOL_SEED)
    wrong = np.flatnonzero(~right(third, pool))
    chosen = np.random.default_rng(POOL_SEED).permutation(wrong)[:per_class * len(CLASSES)]
    if not len(chosen):
        raise ValueError(f"the third model made no mistake in {len(pool.labels)} pictures")
    return Examples(pool.images[chosen], [pool.captions[i] for i in chosen], pool.labels[chosen],
                    pool.names)


def never_labelled(objective, per_class: int) -> dict:
    """What no label of the list says: is it named, and what is said instead? In shares."""
    combinations = [f"{colour} {shape}" for colour, shape in scenes.HELD_OUT]
    asked = fresh_examples(per_class, TEST_SEED, names=tuple(combinations))
    truth = np.array([NEVER_TAUGHT.index(combinations[label]) for label in asked.labels])
    answer = objective.scores(asked.images, NEVER_TAUGHT).argmax(1).numpy()
    robots = fresh_examples(per_class * 10, TEST_SEED, names=("robot dog",))
    names = (*CLASSES, "robot dog")
    said = [names[k] for k in objective.scores(robots.images, names).argmax(1)]
    return {"combination": (answer == truth).tolist(),
            "its colour": (answer // 10 == truth // 10).tolist(),
            "its shape": (answer % 10 == truth % 10).tolist(),
            "robot dog": [word == "robot dog" for word in said],
            "called a dog": [word in ("dog", "robot dog") for word in said]}


# ------------------------------------------------------------------------------- the experiment


def brought_up(upbringing: Upbringing, examples: Examples, sets: dict, seed: int, steps: int,
               per_class: int, device) -> dict:
    """Train one model → its accuracies along the way, and at the end what is right."""
    tokenizer, shape = tokenizer_of(examples, SHAPE)
    styles = WORLDS[upbringing.world]
    objective = build(upbringing.teacher, tokenizer, shape, styles, seed, device)

    def look(step: int) -> dict:
        return {name: right(objective, asked) for name, asked in sets.items()}

    looks = looks_of(LOOKS, STEPS, steps)
    found = fit(objective, examples, tokenizer, shape.image_size,
                recipe(RECIPE, RATES[upbringing.teacher], steps, seed), looks, look,
                f"{upbringing.name}, seed {seed}")
    points = [{"step": step} | {name: float(hits.mean()) for name, hits in at.items()}
              for step, at in zip(looks, found, strict=True)]
    return {"points": points, "right": found[-1],
            "never labelled": never_labelled(objective, per_class)}


def upbringing_report(seeds: int, steps: int, per_class: int, device) -> dict:
    """Bring up each model with each of `seeds` → the table, the points, and what no label says."""
    sets = question_sets(per_class, device, steps)
    runs = {upbringing: [] for upbringing in UPBRINGINGS}
    for seed in range(seeds):
        for world, styles in WORLDS.items():
            examples = training_examples(EXAMPLES, seed, styles)
            for upbringing, found in runs.items():
                if upbringing.world == world:
                    found.append(
                        brought_up(upbringing, examples, sets, seed, steps, per_class, device))
    images = {name: len(asked.labels) for name, asked in sets.items()}
    ordinary = [run["points"] for run in runs[ORDINARY]]
    shifts = [name for name in sets if name != "in-domain"]
    rows = [{
        "name": upbringing.name,
        "accuracy": {name: with_interval([run["right"][name] for run in found]) for name in sets},
        "effective": {name: effective(name, found, ordinary, images) for name in shifts},
        "never labelled": {what: with_interval([run["never labelled"][what] for run in found])
                           for what in found[0]["never labelled"]},
        "points": [run["points"] for run in found]} for upbringing, found in runs.items()]
    lines = {name: line_through(name, ordinary, images) for name in shifts}
    return {"data": "shapes", "seeds": seeds, "steps": steps, "examples": EXAMPLES,
            "machine": described(device),
            "images": images, "classes": len(CLASSES), "rates": RATES,
            "lines": {name: [round(line.slope, 4), round(line.intercept, 4)]
                      for name, line in lines.items()}, "rows": rows}


def line_through(shift: str, runs: list, images: dict) -> Line:
    """The points of runs along their training → the line of accuracy under a shift."""
    inside, under = (np.array([point[name] for points in runs for point in points])
                     for name in ("in-domain", shift))
    return fitted_line(inside, under, (images["in-domain"], images[shift]))


def effective(shift: str, found: list, ordinary: list, images: dict) -> dict:
    """Effective robustness at the end of training, in percentage points, and its 95 % interval.

    Over seeds: each has a line of its own, of the ordinary model with that seed. Over images: those
    of both sets are drawn with replacement, and the line is that of all seeds.
    """
    inside, under = (np.array([run["right"][name] for run in found], float)
                     for name in ("in-domain", shift))  # (R, N), (R, M)
    line = line_through(shift, ordinary, images)
    seeds = [100 * effective_robustness(inside[r].mean(), under[r].mean(),
                                        line_through(shift, [ordinary[r]], images))
             for r in range(len(found))]
    value = 100 * effective_robustness(inside.mean(1), under.mean(1), line).mean()
    inside, under = (right @ (draws_of(right.shape[1], DRAWS, seed) / right.shape[1]).T
                     for seed, right in enumerate((inside, under)))  # (R, DRAWS) each
    drawn = 100 * effective_robustness(inside, under, line).mean(0)
    low, high = runs_and_images(np.array(seeds), percentiles(drawn), float(value))
    return {"points": round(float(value), 2), "interval": [round(low, 2), round(high, 2)]}


def sweep(steps: int, per_class: int, device) -> dict:
    """Both teachers at each of SWEPT's learning rates, in one style → accuracy on fresh pictures.

    Neither the seed nor the pictures are those of the experiment.
    """
    examples = training_examples(EXAMPLES, SWEEP_SEED, ONE_STYLE)
    tokenizer, shape = tokenizer_of(examples, SHAPE)
    fresh = fresh_examples(2 * per_class, SWEEP_SEED)

    def objective(teacher: str):
        return build(teacher, tokenizer, shape, ONE_STYLE, SWEEP_SEED, device)

    rows = swept(objective, RATES, SWEPT, examples, fresh, tokenizer, shape.image_size,
                 recipe(RECIPE, 1.0, steps, SWEEP_SEED))
    return {"data": "shapes", "steps": steps, "images": len(fresh.labels),
            "machine": described(device), "rows": rows}
