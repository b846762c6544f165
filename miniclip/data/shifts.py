"""Picture operations that turn a photograph or a scene into something else: distribution shifts.

Each takes uint8 (S, S, 3) and a numpy Generator, and gives uint8 (S, S, 3). They leave what is
shown where it is, and change how it looks.
"""

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from miniclip.data.drawing import NEW_TEXTURES, pattern, pick, window

TILE = 5  # pixels of a mosaic's tile, its joint included
CELLS = 150  # pieces of glass in a window
LEAD = 0.7  # pixels between two pieces, about half of what is dark
STITCH = 4  # pixels of a cross-stitch
FOCUS = 0.33  # half the width of what stays sharp, in parts of the side


def sketch(image: np.ndarray, rng) -> np.ndarray:
    """Dark lines on white paper: each pixel divided by its surroundings, as if traced."""
    grey = ImageOps.grayscale(Image.fromarray(image))
    around = np.asarray(grey.filter(ImageFilter.GaussianBlur(2)), np.float32)
    lines = (np.asarray(grey, np.float32) + 8) / (around + 8)  # 1 where nothing changes
    lines = np.clip(1 - 3 * np.clip(1 - lines, 0, 1), 0, 1)
    return np.repeat((255 * lines)[..., None], 3, axis=2).astype(np.uint8)


def posterized(image: np.ndarray, rng) -> np.ndarray:
    """Few flat colours, as on a poster: the commonest of each neighbourhood, four levels each."""
    flat = Image.fromarray(image).filter(ImageFilter.ModeFilter(5))
    levels = np.asarray(flat, np.float32) / 255
    return (np.round(levels * 3) * 85).astype(np.uint8)


def textured(image: np.ndarray, rng) -> np.ndarray:
    """A pattern printed over it, one of those that `drawing` keeps for the style "textured"."""
    side = len(image)
    whole = pattern(pick(rng, NEW_TEXTURES), max(side, 64))  # none is drawn smaller
    marks = np.asarray(window(rng, whole, side)) > 127
    dark = np.where(marks[..., None], 0.45, 1)
    return (image * dark).astype(np.uint8)


def blurred_background(image: np.ndarray, rng) -> np.ndarray:
    """Sharp only within an ellipse in the middle, where photographers put what they mean."""
    side = len(image)
    y, x = (np.mgrid[:side, :side] + 0.5) / side - 0.5
    outside = np.clip((np.hypot(x / FOCUS, y / (FOCUS + 0.1)) - 1) / 0.15, 0, 1)[..., None]
    blur = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(side / 10)))
    return (outside * blur + (1 - outside) * image).astype(np.uint8)


def inverted(image: np.ndarray, rng) -> np.ndarray:
    """A photographic negative."""
    return 255 - image


def mosaic(image: np.ndarray, rng) -> np.ndarray:
    """Square tiles, each of the mean colour beneath it, with grey joints."""
    cell = np.arange(len(image)) // TILE
    joint = np.arange(len(image)) % TILE == TILE - 1
    found = means(image, cell[:, None] * (cell[-1] + 1) + cell[None])
    found[joint[:, None] | joint[None]] = (120, 116, 110)
    return found


def stained_glass(image: np.ndarray, rng) -> np.ndarray:
    """Pieces of glass, each of the mean colour beneath it, with leads between them."""
    place = np.arange(len(image), dtype=np.float32)
    y, x = (rng.random((CELLS, 2)) * len(image)).astype(np.float32).T
    squares = (place[:, None, None] - y) ** 2 + (place[None, :, None] - x) ** 2  # (S, S, CELLS)
    nearest = squares.argmin(2)[..., None]
    first = np.sqrt(np.take_along_axis(squares, nearest, 2)[..., 0])
    np.put_along_axis(squares, nearest, np.inf, 2)
    found = means(image, nearest[..., 0])
    found[np.sqrt(squares.min(2)) - first < LEAD] = (20, 20, 24)  # about as far from two centres
    return found


def needlework(image: np.ndarray, rng) -> np.ndarray:
    """Cross-stitch: crosses of thread, each of one colour, on linen."""
    place = np.arange(len(image))
    cell, inside = place // STITCH, place % STITCH
    found = means(image, cell[:, None] * (cell[-1] + 1) + cell[None])
    down, across = inside[:, None], inside[None]
    thread = (down == across) | (down + across == STITCH - 1)
    found[~thread] = (232, 224, 206)
    return found


def means(image: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Every pixel gets the mean colour of its cell; cells (S, S) int64, numbered from 0."""
    flat = cells.ravel()
    counts = np.maximum(np.bincount(flat), 1)
    channels = [np.bincount(flat, image[..., c].ravel()) / counts for c in range(3)]
    return np.stack(channels, 1)[flat].reshape(image.shape).astype(np.uint8)


# Shifts of photographs, and what each of them stands for in the lecture's figure.
PHOTOGRAPHS = {"as they are": None, "Sketch": sketch, "posterized": posterized,
               "textured": textured, "blurred background": blurred_background,
               "inverted": inverted}


def shifted(images: np.ndarray, operation, seed: int) -> np.ndarray:
    """Apply an operation to each of images (N, S, S, 3); None leaves them as they are."""
    if operation is None:
        return np.asarray(images)
    return np.stack([operation(np.asarray(image), np.random.default_rng((seed, i)))
                     for i, image in enumerate(images)])
