"""Solution 3: near means a small angle."""

import numpy as np


def cosines(query: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Dot products, divided by both lengths."""
    return items @ query / (np.linalg.norm(items, axis=1) * np.linalg.norm(query))


def ranking(query: np.ndarray, items: np.ndarray) -> np.ndarray:
    """argsort puts the smallest first: so sort by the negative."""
    return np.argsort(-cosines(query, items))
