"""Linear probe and few shots: how many labelled examples is a sentence worth?

    images ──image tower──▶ features ──logistic regression on k labelled images of each class──▶
    accuracy, beside zero-shot, which has seen no label at all (Radford et al. 2021, Figure 6)

The classifier is scikit-learn's, with L-BFGS, as in the paper (section A.3): an optional extra.
"""

from dataclasses import dataclass

import numpy as np
import torch

from miniclip.data.images import normalize
from miniclip.tasks.features import check_finite, embed_images
from miniclip.tasks.intervals import bootstrap, mean_interval
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


def probe_report(loaded, names: list[str], train: Split, validation: Split, test: Split,
                 templates=TEMPLATES, draws: int = DRAWS) -> dict:
    """A probe on all labels, probes on a few, and zero-shot → accuracies on `test`, in percent.

    Args:
        loaded: (model, tokenizer, transform), as `miniclip.load` gives them.
        names: of the classes. Zero-shot chooses among these.
        train, validation, test: the penalty is chosen on validation, for each number of shots
            once, on its first draw; the probe on all labels is then trained on both, as in A.3.
        templates: of zero-shot's prompts.
        draws: how often k examples are drawn.

    Returns:
        {"zero_shot", "probe": {"accuracy", "interval", …}, "shots": [{"shots", …}, …], "worth"}.
        Intervals hold 95 %: over images for one classifier, over draws for few shots. worth: the
        number of examples of each class at which the curve crosses zero-shot, None if it doesn't
        within the shots.
    """
    model, tokenizer, _ = loaded
    vectors = class_vectors(model, tokenizer, names, templates)
    right = (embed_images(model, test.images) @ vectors.T).argmax(1).numpy() == test.labels
    data = {name: (probe_features(model, split.images), split.labels)
            for name, split in (("train", train), ("validation", validation), ("test", test))}
    penalty = choose_penalty(data["train"], data["validation"])
    both = tuple(np.concatenate(parts) for parts in zip(data["train"], data["validation"]))
    figures = {"zero_shot": told(right), "classes": len(names), "images": len(test.labels),
               "probe": told(fit_and_score(both, data["test"], penalty)) | {
                   "examples": len(both[1]), "penalty": penalty}}
    fewest = np.unique(train.labels, return_counts=True)[1].min()
    figures["shots"] = [few_shots(data, shots, draws) for shots in SHOTS if shots <= fewest]
    figures["worth"] = worth(figures["shots"], figures["zero_shot"]["accuracy"])
    return figures


def told(right: np.ndarray) -> dict:
    """Is each image right? (N,) → accuracy and its interval, in percent."""
    low, high = bootstrap(100 * right)
    return {"accuracy": round(100 * float(right.mean()), 2),
            "interval": [round(low, 2), round(high, 2)]}


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
