"""The paper's best argument for contrast: how soon does each objective teach names?

Predicting the caption word by word, predicting its bag of words, telling it from the others of the
batch: the same pictures, captions and image tower, and zero-shot accuracy over the pairs seen
(Radford et al. 2021, section 2.3 and Figure 2: contrast needs a twelfth of what the first needs,
and a quarter of what the second needs). On scenes, whose captions name little but what is to be
seen; on scenes with credits, which no picture shows; on photographs.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from miniclip.config import MODELS, PRESETS, ModelConfig, TrainConfig
from miniclip.data import scenes
from miniclip.data.caption_classes import asked_photographs
from miniclip.data.pairs import Examples, load_pairs
from miniclip.data.sources import Source
from miniclip.data.styled import fresh_examples
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
from miniclip.experiments.objectives import BagOfWords, Contrast, WordByWord
from miniclip.tasks.intervals import mean_interval

OBJECTIVES = ("word by word", "bag of words", "contrast")
RECIPES = {"shapes": PRESETS["shapes"], "photographs": PRESETS["flickr8k-20min"]}
STEPS = 400
LOOKS = (20, 40, 60, 80, 100, 150, 200, 300, 400)  # of STEPS; others in proportion
# Of a recipe's learning rates, the multiple that each does best with: `sweep` found it.
RATES = {"shapes": {"word by word": 2.0, "bag of words": 2.0, "contrast": 1.0},
         "photographs": {"word by word": 1.0, "bag of words": 1.0, "contrast": 1.0}}
SWEPT = (0.5, 1.0, 2.0)
TEST_SEED, SWEEP_SEED = 10_010, 10_011  # beyond the seeds of any reported training

# What credits say, and no picture shows.
PEOPLE = ("Anna", "Ben", "Carla", "David", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jack", "Kofi",
          "Linh", "Maria", "Nam", "Olga", "Pablo", "Quyen", "Rosa", "Sven", "Yuki")
PLACES = ("Athens", "Berlin", "Cairo", "Delhi", "Geneva", "Hanoi", "Istanbul", "Jakarta", "Kyoto",
          "Lagos", "Lima", "Madrid", "Nairobi", "Oslo", "Paris", "Quito", "Rome", "Seoul", "Tunis",
          "Vienna")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September",
          "October", "November", "December")


@dataclass(frozen=True)
class Setting:
    """What is learnt from, with which recipe, and what is asked."""

    kind: str  # of the images: a key of RATES
    examples: Examples  # images and captions to train on; no objective here reads their labels
    asked: Examples
    groups: dict[str, np.ndarray]  # which of the asked images count: title → (N,) bool
    shape: ModelConfig
    recipe: TrainConfig


def scenes_setting(per_class: int, seed: int) -> Setting:
    """The training split of `shapes`; fresh pictures of all hundred combinations."""
    config, names = RECIPES["shapes"], tuple(scenes.class_names())
    shape = MODELS[config.model]
    asked = fresh_examples(per_class, seed, names=names)
    unseen = np.array([tuple(names[label].split()) in scenes.HELD_OUT for label in asked.labels])
    return Setting("shapes", described_images("shapes", shape.image_size), asked,
                   {"all hundred names": unseen | True, "the twenty never shown": unseen},
                   shape, config)


def photographs_setting(data: str, split: str) -> Setting:
    """All captioned photographs of a source, and those of a split whose captions name a class."""
    config = RECIPES["photographs"]
    shape = MODELS[config.model]
    examples = described_images(data, shape.image_size)
    if len(examples.labels) < config.batch_size:
        raise ValueError(f"{data} has {len(examples.labels)} training photographs; "
                         f"{config.batch_size} are needed")
    asked, _ = asked_photographs(Source.find(data), shape.image_size, TEST_SEED, split)
    return Setting("photographs", examples, asked,
                   {f"{len(asked.names)} names": np.ones(len(asked.labels), bool)}, shape, config)


def setting_of(data: str, per_class: int, credits: bool, sweep: bool = False) -> Setting:
    """A report and a sweep ask about different images. credits: add them to every caption."""
    if Source.find(data).kind == "shapes":
        found = scenes_setting(per_class, SWEEP_SEED if sweep else TEST_SEED)
    else:
        found = photographs_setting(data, "validation" if sweep else "test")
    return replace(found, examples=credited(found.examples, TEST_SEED)) if credits else found


def described_images(data: str, size: int) -> Examples:
    """The training split of a source. All labels are 0, of no name."""
    pairs = load_pairs(Source.find(data), "train", size)
    return Examples(pairs.images, pairs.captions, np.zeros(len(pairs), np.int64), ())


def credited(examples: Examples, seed: int) -> Examples:
    """Captions that go on with what no picture shows: who took it, where and when.

    "a red star" → "a red star, taken by Linh in Hanoi on a Tuesday in May"; every caption of an
    image has its own.
    """
    rng = np.random.default_rng(seed)

    def credit() -> str:
        name, place, day, month = (rng.choice(words) for words in (PEOPLE, PLACES, DAYS, MONTHS))
        return f"taken by {name} in {place} on a {day} in {month}"

    return replace(examples, captions=[[f"{text}, {credit()}" for text in texts]
                                       for texts in examples.captions])


def build(name: str, shape, tokenizer, seed: int, examples: Examples, device):
    """Contrast gets one sentence for each name, as word by word does: no ensemble."""
    if name == "contrast":
        return Contrast(shape, tokenizer, seed, templates=("a photo of a {}",)).to(device)
    kind = WordByWord if name == "word by word" else BagOfWords
    return kind(shape, tokenizer, seed, examples.images).to(device)


def efficiency_report(data: str, seeds: int, steps: int, per_class: int, credits: bool,
                      device) -> dict:
    """Three objectives, `seeds` times each → zero-shot accuracy along the way.

    Args:
        data: 'shapes', or where photographs and captions are.
        seeds: how often each objective is trained.
        steps: of each training.
        per_class: pictures of each combination of `shapes` that are asked about.
        credits: whether captions also say what no picture shows.
        device: to train on.
    """
    setting = setting_of(data, per_class, credits)
    examples, asked, rates = setting.examples, setting.asked, RATES[setting.kind]
    tokenizer, shape = tokenizer_of(examples, setting.shape)
    looks = looks_of(LOOKS, STEPS, steps)
    runs = {name: [] for name in OBJECTIVES}
    for seed in range(seeds):
        for name, found in runs.items():
            learner = build(name, shape, tokenizer, seed, examples, device)

            def look(step: int, learner=learner) -> np.ndarray:
                return right(learner, asked)

            found.append(fit(learner, examples, tokenizer, shape.image_size,
                             recipe(setting.recipe, rates[name], steps, seed), looks, look,
                             f"{name}, seed {seed}"))
    pairs = [step * setting.recipe.batch_size for step in looks]
    curves = {name: {title: curve(pairs, found, chosen)
                     for title, chosen in setting.groups.items()}
              for name, found in runs.items()}
    return {"data": Path(data).name, "credits": credits, "seeds": seeds, "steps": steps,
            "images": len(asked.labels), "classes": len(asked.names), "rates": rates,
            "machine": described(device), "curves": curves, "sooner": {
                name: fewer_pairs(pairs, runs["contrast"], runs[name])
                for name in OBJECTIVES if name != "contrast"}}


def curve(pairs: list[int], runs: list, chosen: np.ndarray) -> list[dict]:
    """Right or wrong at each look of each run → a point for each look, with its 95 % interval."""
    return [{"pairs": number, **with_interval([right[chosen] for right in looks])}
            for number, looks in zip(pairs, zip(*runs))]


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


def sweep(data: str, steps: int, per_class: int, credits: bool, device) -> dict:
    """Each objective at each learning rate, tested on other pictures with another seed."""
    setting = setting_of(data, per_class, credits, sweep=True)
    examples = setting.examples
    tokenizer, shape = tokenizer_of(examples, setting.shape)

    def learner(name: str):
        return build(name, shape, tokenizer, SWEEP_SEED, examples, device)

    rows = swept(learner, OBJECTIVES, SWEPT, examples, setting.asked, tokenizer, shape.image_size,
                 recipe(setting.recipe, 1.0, steps, SWEEP_SEED))
    return {"data": Path(data).name, "credits": credits, "steps": steps,
            "images": len(setting.asked.labels), "machine": described(device), "rows": rows}
