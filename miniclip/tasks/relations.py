"""Do labels know each other? Distances between one-hot labels, and between their sentences.

    labels ──one-hot──▶ unit vectors, every two √2 apart: a dog is as far from a cat as from a plane
    labels ──templates, text tower──▶ unit vectors, near where what they name is alike

The lecture's minute 2:31: a classifier's outputs have no relation to each other.
"""

import numpy as np

from miniclip.tasks.features import check_finite
from miniclip.tasks.zero_shot import TEMPLATES, class_vectors


def distances(vectors: np.ndarray) -> np.ndarray:
    """(C, D) → Euclidean distances (C, C).

    >>> distances(np.eye(2)).round(3).tolist()
    [[0.0, 1.414], [1.414, 0.0]]
    """
    squares = (vectors**2).sum(1)
    found = np.sqrt(np.maximum(0, squares[:, None] + squares - 2 * vectors @ vectors.T))
    np.fill_diagonal(found, 0)
    return found


def relations_report(model, tokenizer, labels: list[str], templates=TEMPLATES) -> dict:
    """How far are labels from each other, as numbers and as sentences?

    Returns:
        {"labels", "one_hot": spread, "learnt": spread, "nearest": [{"label", "nearest",
        "distance", "farthest", "farthest_distance"}, …], "distances": (C, C)}. A spread is
        {"least", "mean", "most"} over every two different labels. ValueError for fewer than three
        labels, of which no nearest could be told.
    """
    if len(labels) < 3:
        raise ValueError(f"{len(labels)} labels have no neighbours to compare; give at least three")
    vectors = class_vectors(model, tokenizer, labels, templates)
    check_finite(vectors)
    vectors = vectors.double().numpy()
    learnt, one_hot = distances(vectors), distances(np.eye(len(labels)))
    rows = []
    for k, label in enumerate(labels):
        others = sorted((learnt[k, j], j) for j in range(len(labels)) if j != k)
        (near, nearest), (far, farthest) = others[0], others[-1]
        rows.append({"label": label, "nearest": labels[nearest], "distance": round(float(near), 4),
                     "farthest": labels[farthest], "farthest_distance": round(float(far), 4)})
    return {"labels": labels, "one_hot": spread(one_hot), "learnt": spread(learnt),
            "nearest": rows, "distances": learnt.round(4).tolist()}


def spread(matrix: np.ndarray) -> dict[str, float]:
    """The least, mean and greatest of the distances between two different labels."""
    values = matrix[np.triu_indices(len(matrix), 1)]
    return {"least": round(float(values.min()), 4), "mean": round(float(values.mean()), 4),
            "most": round(float(values.max()), 4)}
