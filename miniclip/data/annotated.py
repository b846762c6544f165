"""Where pictures with true masks and boxes come from: generated scenes, or a folder.

    shapes | a folder of images, masks and boxes ──annotated──▶ Annotated, one at a time

A folder holds `images/`, `classnames.txt` (a name a line) and `masks/` (for each image a PNG of its
name: 0 is background, 1 the first class, 255 ignored, as in PASCAL VOC) or `instances.json` (boxes
in COCO's form), or both.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from miniclip.data import scenes
from miniclip.data.drawing import SHAPES, THINGS, pick
from miniclip.data.images import IMAGE_SUFFIXES, read_image, resize_whole
from miniclip.files import read_text

EXIF_ORIENTATION = 0x0112
IGNORED = 255  # a mask's pixel that counts for nothing: the rim of an object, or unknown
TEST_SCENES = 12  # the seed of the scenes that are scored; settings were chosen on 13 and 14


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the picture; right and bottom are where it ends.

    label: the number of what is in it, in `asked`. crowd: many objects in one box, as COCO has
    them; to find it or not counts for nothing.
    """

    label: int
    left: float
    top: float
    right: float
    bottom: float
    crowd: bool = False


@dataclass(frozen=True)
class Annotated:
    """A picture and what is true of it.

    picture: uint8 (H, W, 3). asked: the labels that are to be looked for. mask: uint8 (H, W), 0 for
    background, k + 1 for asked[k], IGNORED; None if there is none. boxes: None likewise.
    """

    picture: np.ndarray
    asked: tuple[str, ...]
    mask: np.ndarray | None = None
    boxes: tuple[Box, ...] | None = None


def annotated(where: str, size: int, count: int = 0, absent: int = 0,
              seed: int = TEST_SCENES) -> Iterator[Annotated]:
    """`shapes`, or a folder of the form above → its pictures, their shorter sides `size` pixels.

    Args:
        where: `shapes`, or the folder.
        size: in pixels, of a picture's shorter side.
        count: only the first so many (0: all of a folder, 300 scenes).
        absent: scenes are asked for so many labels, beside their own, that they don't show. In a
            folder every picture is asked for every class.
        seed: of the scenes.

    Raises:
        ValueError: says in one line what is missing or wrong.
    """
    if where == "shapes":
        return scene_rows(count or 300, seed, size, absent)
    return folder_rows(Path(where).expanduser(), size, count)


def name_of(item) -> str:
    """What an object of a scene is called: "red circle", "French bulldog".

    A thing's colour is left out, since each has few: "grey robot dog" would say nothing more.
    """
    return item.kind if item.kind in THINGS else f"{item.colour} {item.kind}"


ALL_NAMES = (*(f"{colour} {shape}" for shape in SHAPES for colour in scenes.COATS[shape]), *THINGS)


def scene_rows(count: int, seed: int, size: int, absent: int = 0) -> Iterator[Annotated]:
    """Scenes drawn as those of training are, but others; two objects of one name are one label."""
    for i in range(count):
        rng = np.random.default_rng((seed, i, 0, 4))
        scene = scenes.sample_scene(rng, split="validation")
        picture, objects = scenes.render_masked(scene, rng, size=size)
        asked = list(dict.fromkeys(map(name_of, scene.objects)))
        mask, boxes = np.zeros((size, size), np.uint8), []
        for item, where in zip(scene.objects, objects, strict=True):
            label = asked.index(name_of(item))
            mask[where] = label + 1
            boxes.append(box_around(where, label))
        wanted = len(asked) + absent
        while len(asked) < wanted:
            other = pick(rng, ALL_NAMES)
            if other not in asked:
                asked.append(other)
        yield Annotated(picture, tuple(asked), mask, tuple(boxes))


def box_around(mask: np.ndarray, label: int) -> Box:
    """The smallest box around the pixels of a mask (H, W) bool.

    >>> box_around(np.eye(3, dtype=bool), 7)
    Box(label=7, left=0, top=0, right=3, bottom=3, crowd=False)
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return Box(label, int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def folder_rows(root: Path, size: int, count: int) -> Iterator[Annotated]:
    """The pictures of a folder of the form above, in the order of their names."""
    if not root.is_dir():
        raise ValueError(f"--data {root}: no such folder; give 'shapes' or a folder")
    masks, file = root / "masks", root / "instances.json"
    found = sorted(path for path in root.glob("images/*")
                   if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."))
    if not (root / "classnames.txt").is_file():
        raise ValueError(f"{root} needs classnames.txt, a class name a line")
    names = tuple(filter(None, map(str.strip, read_text(root / "classnames.txt").splitlines())))
    if not names or (masks.is_dir() and len(names) > 254):
        raise ValueError(f"{root / 'classnames.txt'} names {len(names):,} classes; 1 to 254 fit "
                         "into a mask")
    boxes = read_boxes(file, names)
    if not found or (boxes is None and not masks.is_dir()):
        raise ValueError(f"{root} needs images/ and masks/ or instances.json; found: "
                         + ", ".join(sorted(path.name for path in root.iterdir())[:8]))
    for path in found[: count or None]:
        if boxes is not None and path.name not in boxes:
            raise ValueError(f"{file} does not list {path.name} among its images")
        picture = read_image(path, size, resize_whole)
        mask = None
        if masks.is_dir():
            mask = read_mask(masks / f"{path.stem}.png", picture.shape[:2], len(names))
        yield Annotated(picture, names, mask, None if boxes is None else scaled(
            boxes[path.name], path, picture.shape[:2]))


def read_mask(path: Path, shape: tuple[int, int], classes: int) -> np.ndarray:
    """A PNG of class numbers, palette or gray → uint8 (H, W) of that shape, nearest neighbours."""
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise ValueError(f"{path} holds {image.mode} pixels; a mask holds class numbers, "
                                 "in mode L or P")
            if abs(image.width * shape[0] - image.height * shape[1]) > max(*shape, *image.size):
                raise ValueError(f"{path} is {image.width} × {image.height}; its image has another "
                                 "shape")
            values = np.asarray(image.resize(shape[::-1], Image.Resampling.NEAREST))
    except FileNotFoundError:
        raise ValueError(f"no mask {path} for the image of that name") from None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error}") from error
    wrong = values[(values > classes) & (values != IGNORED)]
    if len(wrong):
        raise ValueError(f"{path} holds class {wrong[0]}; classnames.txt names {classes}")
    return values


def read_boxes(path: Path, names: tuple[str, ...]) -> dict[str, tuple[Box, ...]] | None:
    """COCO's instances → {file name: boxes in pixels of the image}; None if there is no file."""
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
        categories = {row["id"]: row["name"] for row in content["categories"]}
        files = {row["id"]: Path(row["file_name"]).name for row in content["images"]}
        boxes: dict[str, list[Box]] = {name: [] for name in files.values()}
        for row in content["annotations"]:
            left, top, width, height = map(float, row["bbox"])
            if not (width > 0 and height > 0 and math.isfinite(left + top + width + height)):
                raise ValueError(f"bbox {row['bbox']} has no area")
            box = Box(names.index(categories[row["category_id"]]), left, top, left + width,
                      top + height, bool(row.get("iscrowd", 0)))
            boxes[files[row["image_id"]]].append(box)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not in COCO's form, or names what classnames.txt does not: "
                         f"{type(error).__name__}: {error}") from error
    return {name: tuple(found) for name, found in boxes.items()}


def scaled(boxes, path: Path, shape: tuple[int, int]) -> tuple[Box, ...]:
    """Boxes in pixels of the upright image → in pixels of the picture as it was read."""
    if not boxes:
        return ()
    with Image.open(path) as image:
        width, height = image.size
        if image.getexif().get(EXIF_ORIENTATION, 1) >= 5:  # the file lies on its side
            width, height = height, width
    x, y = shape[1] / width, shape[0] / height
    return tuple(Box(b.label, b.left * x, b.top * y, b.right * x, b.bottom * y, b.crowd)
                 for b in boxes)
