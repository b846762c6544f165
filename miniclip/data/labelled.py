"""Where labelled images come from: a folder for each class, tar shards, the Hub, or scenes."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from miniclip.data import scenes
from miniclip.data.hub import check_hub, telling
from miniclip.data.images import IMAGE_SUFFIXES, in_threads
from miniclip.data.shards import FolderFiles, HubFiles, is_sharded, sharded_set
from miniclip.data.sources import Source
from miniclip.data.splits import standard, unknown_split

SPLIT_FOLDERS = {"train", "val", "valid", "validation", "test"}


class LabelledSet(NamedTuple):
    """Rows (image as `decode` takes it, class number), class names, and the set's own templates."""

    rows: Iterator
    names: list[str]
    templates: list[str] | None


def labelled_images(where: str, split: str | None = None, renamed: dict[str, str] | None = None):
    """Where labelled images are → LabelledSet.

    Args:
        where: a folder with one folder of images for each class, or such a folder for each split;
            a folder of tar shards (shards.py); the id of a Hub set with class labels, or of one of
            tar shards; or `shapes`: combinations held out of training.
        split: which split, if there are several.
        renamed: {folder or label: a better name}. The others keep their names, with spaces for
            underscores.

    Raises:
        ValueError: says what is missing.
    """
    source, renamed, templates = Source.find(where), renamed or {}, None
    if Path(source.where).is_file():
        raise ValueError(f"{where} is a file; name the folder that holds the data")
    if source.kind == "shapes":
        rows, labels = scene_images(split)
    elif source.kind == "hub":
        files = HubFiles(source.where, *check_hub(source.where))
        if is_sharded(files.names):
            rows, labels, templates = sharded_set(files, where, split)
        else:
            rows, labels = hub_images(source, split)
    elif is_sharded((files := FolderFiles(Path(source.where))).names):
        rows, labels, templates = sharded_set(files, where, split)
    else:
        rows, labels = folder_images(Path(source.where), where, split)
    if unknown := sorted(set(renamed) - set(labels)):
        raise ValueError(f"no class {unknown[0]!r} in {where}; found: {', '.join(labels[:20])}")
    names = [renamed.get(label, label.replace("_", " ")) for label in labels]
    return LabelledSet(rows, names, templates)


class DecodedBatch(NamedTuple):
    """pixels: for each decoder what it made of the images, (n, …); labels (n,) int64; unreadable:
    how many rows besides these could not be opened."""

    pixels: list[np.ndarray]
    labels: np.ndarray
    unreadable: int


def decoded_batches(rows: Iterator, *decoders, size: int = 250) -> Iterator[DecodedBatch]:
    """Rows of a LabelledSet → batches of `size` rows, decoded in threads.

    Each decoder takes an image of a row and gives its pixels, or None if it can't be opened: then
    the row is left out. A batch without any readable row is counted and given, with n = 0.
    ValueError for a split whose labels are kept secret.
    """
    def decoded(row):
        image, label = row
        return [decoder(image) for decoder in decoders], label

    for batch in in_threads(decoded, rows, size):
        kept = [(pixels, label) for pixels, label in batch if all(p is not None for p in pixels)]
        if any(label is None or label < 0 for _, label in kept):
            raise ValueError("the labels of this split are kept secret; choose another --split")
        pixels = [np.stack(column) for column in zip(*(pixels for pixels, _ in kept))]
        labels = np.array([label for _, label in kept], np.int64)
        yield DecodedBatch(pixels, labels, len(batch) - len(kept))


def scene_images(split: str | None) -> tuple[Iterator, list[str]]:
    """Twenty scenes of each colour × shape combination that is held out of training."""
    if split:
        raise ValueError("the held-out combinations of shapes have no splits")
    images, numbers = scenes.held_out_set(20, seed=9)
    return zip(images, numbers.tolist()), scenes.class_names()


def folder_images(root: Path, where: str, split: str | None) -> tuple[Iterator, list[str]]:
    """A folder for each class. The order is the same everywhere, and every class comes early."""
    if split and not (root / split).is_dir():  # val/ is another name of validation/
        folders = [path.name for path in root.iterdir() if path.is_dir()]
        asked, split = split, next((f for f in folders if standard(f) == split), None)
        if split is None:
            raise unknown_split(asked, where, folders)
    root = root / (split or "")

    def is_image(path: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and path.is_file()

    def label_of(path: Path) -> str:
        return path.relative_to(root).parts[0]

    paths = sorted(filter(is_image, root.glob("*/**/*")))
    labels = sorted(set(map(label_of, paths)))
    if not labels:
        raise ValueError(f"{root} needs one folder of images for each class; found none")
    if set(labels) <= SPLIT_FOLDERS:
        raise ValueError(f"{root} holds splits; choose one with --split: {', '.join(labels)}")
    paths = random.Random(0).sample(paths, len(paths))
    return ((path, labels.index(label_of(path))) for path in paths), labels


def hub_images(source: Source, split: str | None) -> tuple[Iterator, list[str]]:
    """`labelled_images` of a Hub set: its first columns of type Image and ClassLabel, streamed."""
    import datasets  # imported here because it takes a second

    with telling(source.where, split or "test", True):
        splits = datasets.load_dataset(source.where, streaming=True)
    split = next((name for name in splits if standard(name) == split), split)
    split = split or next((name for name in ("test", "validation") if name in splits), "test")
    if split not in splits:
        raise unknown_split(split, source.where, splits)
    table = splits[split]
    image = first_column(table, datasets.Image)
    label = first_column(table, datasets.ClassLabel)
    if not (image and label):
        raise ValueError(f"{source.where} needs a column of images and one of class labels; "
                         f"found: {', '.join(table.column_names or [])}")
    names = table.features[label].names
    table = table.cast_column(image, datasets.Image(decode=False))  # one broken image is not fatal

    def rows():
        with telling(source.where, split, True):
            for row in table:
                yield (row[image] or {}).get("bytes"), row[label]

    return rows(), names


def first_column(table, kind) -> str | None:
    """The name of a table's first column of that kind."""
    for name, feature in (table.features or {}).items():
        if isinstance(feature, kind):
            return name
    return None
