"""Linear probe and few shots: how many labelled examples is a sentence worth?

    images ──image tower──▶ features ──logistic regression on k labelled images of each class──▶
    accuracy, beside zero-shot, which has seen no label at all (Radford et al. 2021, Figure 6)

The classifier is scikit-learn's, with L-BFGS, as in the paper (section A.3): an optional extra.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from miniclip.data import scenes
from miniclip.data.images import decode, fit, normalize
from miniclip.data.labelled import decoded_batches, labelled_images
from miniclip.data.splits import UnknownSplit
from miniclip.tasks.features import check_finite, embed_images, progress
from miniclip.tasks.intervals import accuracy_of, mean_interval
from miniclip.tasks.zero_shot import TEMPLATES, class_vectors

SHOTS = (1, 2, 4, 8, 16)
DRAWS = 10  # of k examples: which they are matters most where they are few
STEPS_PER_DECADE = 8  # of the penalty, at the end of its search


@dataclass(frozen=True)
class Split:
    """Images uint8 (N, S, S, 3) and their class numbers (N,)."""

    images: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def probe_features(model, images: np.ndarray, batch_size: int = 250) -> np.ndarray:
    """uint8 (N, S, S, 3) → (N, C) float64: the image tower before its projection (section A.3)."""
    device = model.logit_scale
    parts = [model.vision.features(normalize(images[i:i + batch_size]).to(device)).float().cpu()
             for i in range(0, len(images), batch_size)]
    features = torch.cat(parts)
    check_finite(features)
    return features.double().numpy()


def classifier(penalty: float):
    """scikit-learn's logistic regression: the sum of the losses + penalty / 2 · |weights|²."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise ValueError("a probe needs scikit-learn: pip install 'miniclip[probe]'") from error
    return LogisticRegression(C=1 / penalty, max_iter=1000)


def fit_and_score(train: tuple, test: tuple, penalty: float) -> np.ndarray:
    """(features (N, C), labels (N,)) twice → is each test image right? (M,) bool."""
    with warnings.catch_warnings(action="ignore"):  # 1,000 iterations are enough, as in the paper
        found = classifier(penalty).fit(*train)
    return found.predict(test[0]) == test[1]


def choose_penalty(train: tuple, validation: tuple) -> float:
    """The penalty that is best on validation, of 10⁻⁶ to 10⁶; of equals the largest.

    A search that begins with seven values and halves the steps around the best until there are 8
    a decade: the paper's "parametric binary search" (section A.3).
    """
    tried: dict[float, float] = {}

    def accuracy(exponent: float) -> float:
        if exponent not in tried:
            tried[exponent] = fit_and_score(train, validation, 10.0**exponent).mean()
        return tried[exponent]

    exponents, step = [-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0], 2.0
    while True:
        best = max(exponents, key=lambda e: (accuracy(e), e))
        if step <= 1 / STEPS_PER_DECADE:
            return 10.0**best
        step /= 2
        exponents = [e for e in (best - step, best, best + step) if -6 <= e <= 6]


def pick_shots(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Class numbers (N,) → the places of `shots` images of each class, at random."""
    return np.concatenate([rng.choice(np.flatnonzero(labels == c), shots, replace=False)
                           for c in np.unique(labels)])


def labelled_splits(where: str, size: int, style: str = "plain", limit: int = 0):
    """A labelled set → ({"train", "validation", "test": Split}, class names), all decoded.

    Of `shapes` the classes are the combinations that no training scene shows, in one style. A set
    without a validation split gives a fifth of its training images to it (section A.3); one without
    a test split is tested on validation; one without any split gives a fifth to each. ValueError
    says what is missing.
    """
    if where == "shapes":
        return scene_splits(size, style)
    if style != "plain":
        raise ValueError("--style belongs to --data shapes")
    found, names = {}, None
    for split in ("train", "validation", "test"):
        try:
            rows, names_here, _ = labelled_images(where, split)
        except UnknownSplit:
            continue
        if names is not None and names_here != names:
            raise ValueError(f"{where}: the splits don't have the same classes")
        names = names_here
        found[split] = read_split(islice(rows, limit or None), size)
    if not found:
        rows, names, _ = labelled_images(where)
        found["train"] = read_split(islice(rows, limit or None), size)
    if "train" not in found:
        raise ValueError(f"{where} has no split 'train' for a probe to be trained on")
    if "test" not in found and "validation" in found:  # as ImageNet is used: val is the test
        found["test"] = found.pop("validation")
    for split in ("test", "validation"):
        if split not in found:
            found["train"], found[split] = divided(found["train"])
    return found, names


def scene_splits(size: int, style: str) -> tuple[dict[str, Split], list[str]]:
    """Forty, ten and forty scenes of each held-out combination; the seeds are no other set's."""
    if style not in scenes.STYLES:
        raise ValueError(f"unknown style {style!r}; one of {', '.join(scenes.STYLES)}")
    found = {}
    for split, count, seed in (("train", 40, 21), ("validation", 10, 22), ("test", 40, 23)):
        images, labels = scenes.held_out_set(count, seed, style)
        shown, numbers = np.unique(labels, return_inverse=True)
        found[split] = Split(fit(images, size), numbers)
    return found, [scenes.class_names()[label] for label in shown]


def read_split(rows: Iterator, size: int) -> Split:
    """Rows of `labelled_images` → decoded; images that can't be opened are left out."""
    def decoder(image):
        return decode(image, size)[0]

    batches = list(progress(decoded_batches(rows, decoder), "batch"))
    batches = [batch for batch in batches if len(batch.labels)]
    if not batches:
        raise ValueError("a split holds no image that can be opened")
    return Split(np.concatenate([batch.pixels[0] for batch in batches]),
                 np.concatenate([batch.labels for batch in batches]))


def divided(split: Split, share: float = 0.2) -> tuple[Split, Split]:
    """A split → the same without a `share` of each class, and that share; seeded."""
    rng = np.random.default_rng(0)
    chosen = np.zeros(len(split.labels), bool)
    for c in np.unique(split.labels):
        rows = np.flatnonzero(split.labels == c)
        chosen[rng.permutation(rows)[:max(1, round(share * len(rows)))]] = True
    return (Split(split.images[~chosen], split.labels[~chosen]),
            Split(split.images[chosen], split.labels[chosen]))


def check_classes(splits: dict[str, Split], names: list[str]):
    """ValueError for a class without a training image, or fewer than two classes."""
    if len(names) < 2:
        raise ValueError("a probe needs at least two classes")
    seen = set(splits["train"].labels.tolist())
    if missing := [name for number, name in enumerate(names) if number not in seen]:
        raise ValueError(f"no training image of the class {missing[0]!r}; give more images, or a "
                         "larger --limit")


def probe_report(loaded, names: list[str], splits: dict[str, Split], templates=TEMPLATES,
                 draws: int = DRAWS) -> dict:
    """A probe on all labels, probes on a few, and zero-shot → accuracies on `test`, in percent.

    Args:
        loaded: (model, tokenizer, transform), as `miniclip.load` gives them.
        names: of the classes. Zero-shot chooses among these.
        splits: "train", "validation" and "test". The penalty is chosen on validation, for each
            number of shots once, on its first draw; the probe on all labels is then trained on
            train and validation, as in A.3.
        templates: of zero-shot's prompts.
        draws: how often k examples are drawn.

    Returns:
        {"zero_shot", "probe": {"accuracy", "interval", …}, "shots": [{"shots", …}, …], "worth"}.
        Intervals hold 95 %: over images for one classifier, over draws for few shots. worth: the
        number of examples of each class at which the curve crosses zero-shot, None if it doesn't
        within the shots.
    """
    check_classes(splits, names)
    model, tokenizer, _ = loaded
    test = splits["test"]
    classifier(1.0)  # says at once if scikit-learn is missing
    vectors = class_vectors(model, tokenizer, names, templates)
    check_finite(vectors)
    right = (embed_images(model, test.images) @ vectors.T).argmax(1).numpy() == test.labels
    data = {name: (probe_features(model, split.images), split.labels)
            for name, split in splits.items()}
    penalty = choose_penalty(data["train"], data["validation"])
    both = tuple(np.concatenate(parts) for parts in zip(data["train"], data["validation"]))
    figures = {"zero_shot": accuracy_of(right), "classes": len(names), "images": len(test.labels),
               "probe": accuracy_of(fit_and_score(both, data["test"], penalty)) | {
                   "examples": len(both[1]), "penalty": penalty}}
    fewest = np.unique(splits["train"].labels, return_counts=True)[1].min()
    figures["shots"] = [few_shots(data, shots, draws) for shots in SHOTS if shots <= fewest]
    figures["worth"] = worth(figures["shots"], figures["zero_shot"]["accuracy"])
    return figures


def few_shots(data: dict, shots: int, draws: int) -> dict:
    """Probes on `shots` examples of each class, drawn again and again → mean and interval."""
    features, labels = data["train"]
    rng = np.random.default_rng((0, shots))
    penalty, accuracies = None, []
    for _ in range(draws):
        rows = pick_shots(labels, shots, rng)
        few = (features[rows], labels[rows])
        penalty = penalty or choose_penalty(few, data["validation"])
        accuracies.append(100 * fit_and_score(few, data["test"], penalty).mean())
    low, high = mean_interval(accuracies)
    return {"shots": shots, "accuracy": round(float(np.mean(accuracies)), 2),
            "interval": [max(0.0, low), min(100.0, high)], "penalty": penalty}


def worth(rows: list[dict], zero_shot: float) -> float | None:
    """Where the curve of few shots reaches zero-shot's accuracy, between two of its points.

    The number of examples is interpolated on its logarithm. None if even the most examples stay
    below; the fewest, if they are above already.

    >>> worth([{"shots": 1, "accuracy": 10}, {"shots": 4, "accuracy": 30}], 20)
    2.0
    """
    if rows and rows[0]["accuracy"] >= zero_shot:
        return float(rows[0]["shots"])
    for low, high in zip(rows, rows[1:]):
        if low["accuracy"] < zero_shot <= high["accuracy"]:
            share = (zero_shot - low["accuracy"]) / (high["accuracy"] - low["accuracy"])
            return round(float(low["shots"] * (high["shots"] / low["shots"]) ** share), 2)
    return None
