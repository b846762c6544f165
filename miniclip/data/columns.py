"""Which columns hold images and captions, and what a cell holds: of every kind of table alike.

People's tables differ in names (`image`, `filepath`, `jpg`; `caption`, `text`, `title`, …) and in
form (a path, bytes, an array; one caption or a list). Everything is brought to one form here.
"""

import ast
import json
import re
from typing import NamedTuple

import numpy as np

IMAGES = ("image", "images", "img", "jpg", "jpeg", "png", "webp", "picture", "photo",
          "filepath", "file_path", "image_path", "img_path", "path", "file_name", "filename",
          "image_name", "image_file", "image_filename", "file", "image_id")
CAPTIONS = ("caption", "text", "sentence", "title", "description", "comment", "prompt", "alt_text",
            "alt", "raw")  # the first that is there; each also with an s, and with numbers
TEXTS = ("raw", "caption", "text", "sentence")  # of a caption that comes with more about it


class Columns(NamedTuple):
    """Names of a table's columns; split: None if no column names one."""

    image: str
    captions: list[str]
    split: str | None


def choose(names: list[str], where: str, image_key: str = "", caption_key: str = "") -> Columns:
    """The columns of images, captions and splits among these.

    image_key, caption_key: the columns' names where they are unusual; of captions perhaps several,
    with commas between them. ValueError names what was found.
    """
    plain = {name.strip().lower(): name for name in names}

    def missing(what: str) -> ValueError:
        found = ", ".join(name.strip() or "''" for name in names) or "none"
        return ValueError(f"{where} needs {what}; found: {found:.200}. If one of these is it, name "
                          "it: --image-key, --caption-key")

    if image_key and image_key not in names:
        raise missing(f"the column {image_key!r} of images")
    image = image_key or next((plain[name] for name in IMAGES if name in plain), None)
    if image is None:
        raise missing("a column of images, such as image")
    captions = [name for name in caption_key.split(",") if name]
    if unknown := [name for name in captions if name not in names]:
        raise missing(f"the column {unknown[0]!r} of captions")
    for stem in CAPTIONS:
        fits = re.compile(rf"{stem}s?[_ .-]?\d*")
        captions = captions or [plain[name] for name in sorted(plain)
                                if fits.fullmatch(name) and plain[name] != image]
    if not captions:
        raise missing("a column of captions, such as caption or text")
    return Columns(image, captions, plain.get("split"))


def texts_of(cell, where: str) -> list[str]:
    """A cell → captions: a text, a list of texts, or either within {"raw": …} and the like.

    A list may also be written out as text, as spreadsheets keep it. ValueError for anything else.
    """
    if cell is None or isinstance(cell, float) and np.isnan(cell):
        return []
    if isinstance(cell, dict) and (key := next((key for key in TEXTS if key in cell), None)):
        return texts_of(cell[key], where)
    if isinstance(cell, list | tuple | np.ndarray):
        return [text for item in cell for text in texts_of(item, where)]
    if not isinstance(cell, str):
        raise ValueError(f"{where}: captions must be text; found: {str(cell)[:80]}")
    if cell.startswith("[") and cell.endswith("]"):
        for read in (json.loads, ast.literal_eval):
            try:
                items = read(cell)
                if isinstance(items, list) and all(isinstance(item, str) for item in items):
                    return items
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return [cell]


def image_of(cell, where: str):
    """A cell → (name or "", bytes, text of a path, array, PIL image or None), as it was found.

    ValueError for what is none of these.
    """
    if isinstance(cell, list | tuple) and cell and not isinstance(cell[0], int | float | list):
        cell = cell[0]  # the first of several
    if cell is None or isinstance(cell, list) and not cell:
        return "", None
    if isinstance(cell, dict) and cell.keys() & {"bytes", "path"}:
        name = cell.get("path") or ""
        return name, cell.get("bytes") or name or None
    if isinstance(cell, str):
        return cell, cell or None
    if isinstance(cell, bytes) or hasattr(cell, "convert"):  # Pillow's images have that
        return "", cell
    try:
        array = np.asarray(cell, np.float32 if holds_floats(cell) else np.int64)
        if not array.ndim:
            raise TypeError
        return "", array
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{where}: an image must be bytes, a path or an array of (H, W, 3) or "
                         f"(3, H, W); found: {str(cell)[:80]}") from None


def holds_floats(cell) -> bool:
    """Of an array, or lists in lists of numbers."""
    if isinstance(cell, np.ndarray):
        return cell.dtype.kind == "f"
    while isinstance(cell, list) and cell:
        cell = cell[0]
    return isinstance(cell, float)
