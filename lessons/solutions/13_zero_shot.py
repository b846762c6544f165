"""Solution 13: a classifier out of sentences."""

import numpy as np


def class_vector(prompts: np.ndarray) -> np.ndarray:
    """Each prompt to length 1, their mean, and the mean to length 1."""
    mean = (prompts / np.linalg.norm(prompts, axis=1, keepdims=True)).mean(axis=0)
    return mean / np.linalg.norm(mean)


def classify(images: np.ndarray, classes: list[np.ndarray]) -> np.ndarray:
    """The images' lengths do not matter here: they scale a whole row, and the largest stays it."""
    T = np.stack([class_vector(prompts) for prompts in classes])  # (C, D)
    return (images @ T.T).argmax(axis=1)
