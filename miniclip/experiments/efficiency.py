"""The paper's best argument for contrast: how soon does each objective teach names?

Predicting the caption word by word, predicting its bag of words, telling it from the others of the
batch: the same pictures, captions and image tower, and zero-shot accuracy over the pairs seen
(Radford et al. 2021, section 2.3 and Figure 2: contrast needs a twelfth of what the first needs).
"""

import numpy as np

from miniclip.config import MODELS, PRESETS
from miniclip.data import scenes
from miniclip.data.pairs import Examples, load_pairs
from miniclip.data.sources import Source
from miniclip.data.styled import fresh_examples
from miniclip.device import described
from miniclip.experiments.fit import fit, looks_of, recipe, right, swept, tokenizer_of
from miniclip.experiments.objectives import BagOfWords, Contrast, WordByWord
from miniclip.tasks.intervals import bootstrap, mean_interval, runs_and_images

SHAPE, RECIPE = MODELS["micro"], PRESETS["shapes"]
STEPS = 400
LOOKS = (20, 40, 60, 80, 100, 150, 200, 300, 400)  # of STEPS; others in proportion
# Of RECIPE's learning rates, the multiple that each does best with: `sweep` found it.
RATES = {"word by word": 2.0, "bag of words": 2.0, "contrast": 1.0}
SWEPT = (0.5, 1.0, 2.0)
TEST_SEED, SWEEP_SEED = 10_010, 10_011  # beyond the seeds of any reported training


def training_pairs() -> Examples:
    """The training split of `shapes`. No objective here reads labels: all are 0, of no name."""
    pairs = load_pairs(Source.find("shapes"), "train", SHAPE.image_size)
    return Examples(pairs.images, pairs.captions, np.zeros(len(pairs), np.int64), ())


def build(name: str, shape, tokenizer, seed: int, examples: Examples, device):
    """Contrast gets one sentence for each name, as word by word does: no ensemble."""
    if name == "contrast":
        return Contrast(shape, tokenizer, seed, templates=("a photo of a {}",)).to(device)
    kind = WordByWord if name == "word by word" else BagOfWords
    return kind(shape, tokenizer, seed, examples.images).to(device)


def efficiency_report(seeds: int, steps: int, per_class: int, device) -> dict:
    """Three objectives, `seeds` times each → accuracy among the 100 combinations, along the way.

    "all" counts pictures of all hundred, "held_out" those of the twenty that no training shows.
    """
    examples, names = training_pairs(), tuple(scenes.class_names())
    asked = fresh_examples(per_class, TEST_SEED, names=names)
    unseen = np.array([tuple(names[label].split()) in scenes.HELD_OUT for label in asked.labels])
    tokenizer, shape = tokenizer_of(examples, SHAPE)
    looks = looks_of(LOOKS, STEPS, steps)
    runs = {name: [] for name in RATES}
    for seed in range(seeds):
        for name, found in runs.items():
            learner = build(name, shape, tokenizer, seed, examples, device)

            def look(step: int, learner=learner) -> np.ndarray:
                return right(learner, asked)

            found.append(fit(learner, examples, tokenizer, shape.image_size,
                             recipe(RECIPE, RATES[name], steps, seed), looks, look,
                             f"{name}, seed {seed}"))
    pairs = [step * RECIPE.batch_size for step in looks]
    curves = {name: {"all": curve(pairs, found, unseen | True),
                     "held_out": curve(pairs, found, unseen)}
              for name, found in runs.items()}
    return {"data": "shapes", "seeds": seeds, "steps": steps, "images": len(asked.labels),
            "rates": RATES, "machine": described(device), "curves": curves, "sooner": {
                name: fewer_pairs(pairs, runs["contrast"], runs[name])
                for name in RATES if name != "contrast"}}


def curve(pairs: list[int], runs: list, chosen: np.ndarray) -> list[dict]:
    """Right or wrong at each look of each run → a point for each look, with its 95 % interval."""
    rows = []
    for number, looks in zip(pairs, zip(*runs)):
        values = 100 * np.array([right[chosen] for right in looks], float)  # (R, N)
        value = float(values.mean())
        low, high = runs_and_images(values.mean(1), bootstrap(values.mean(0)), value)
        rows.append({"pairs": number, "accuracy": round(value, 2),
                     "interval": [round(max(0.0, low), 2), round(min(100.0, high), 2)]})
    return rows


def fewer_pairs(pairs: list[int], fast: list, slow: list) -> dict:
    """`sooner` of each seed → their mean, and its interval; None if one never gets there."""
    found = [sooner(pairs, [100 * r.mean() for r in a], [100 * r.mean() for r in b])
             for a, b in zip(fast, slow, strict=True)]
    if None in found:
        return {"times": None, "interval": None}
    low, high = mean_interval(found)
    return {"times": round(float(np.mean(found)), 2),
            "interval": [low, high] if len(found) > 1 else None}


def sooner(pairs: list[int], fast: list[float], slow: list[float]) -> float | None:
    """The slow curve's best accuracy: its pairs, over those that the fast curve needs for it.

    Between two points pairs are interpolated on their logarithm. None if the fast curve never gets
    there. If its first point is there already, a lower bound.

    >>> sooner([1, 4, 8], [10, 30, 40], [5, 15, 20])
    4.0
    """
    best = int(np.argmax(slow))
    if fast[0] >= slow[best]:
        return pairs[best] / pairs[0]
    for k in range(1, len(pairs)):
        if fast[k - 1] < slow[best] <= fast[k]:
            share = (slow[best] - fast[k - 1]) / (fast[k] - fast[k - 1])
            return pairs[best] / (pairs[k - 1] * (pairs[k] / pairs[k - 1]) ** share)
    return None


def sweep(steps: int, per_class: int, device) -> dict:
    """Each objective at each learning rate, tested on other pictures with another seed."""
    examples = training_pairs()
    asked = fresh_examples(per_class, SWEEP_SEED, names=tuple(scenes.class_names()))
    tokenizer, shape = tokenizer_of(examples, SHAPE)

    def learner(name: str):
        return build(name, shape, tokenizer, SWEEP_SEED, examples, device)

    rows = swept(learner, RATES, SWEPT, examples, asked, tokenizer, shape.image_size,
                 recipe(RECIPE, 1.0, steps, SWEEP_SEED))
    return {"data": "shapes", "steps": steps, "images": len(asked.labels),
            "machine": described(device), "rows": rows}
