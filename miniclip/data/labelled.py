"""Where labelled images come from: a folder for each class, a Hub data set, or generated scenes."""

import random
from collections.abc import Iterator
from pathlib import Path

from miniclip.data import scenes
from miniclip.data.images import IMAGE_SUFFIXES
from miniclip.data.sources import SPLIT_NAMES, Source, check_hub, telling, unknown_split


def labelled_images(where: str, split: str | None = None, renamed: dict[str, str] | None = None):
    """A labelled set → (iterator of (image, class number), class names).

    where: a folder with one folder of images for each class, perhaps below one for each split; the
    id of a Hub classification set; or `shapes`, of which it takes combinations held out of
    training. renamed: {folder or label: a better name}; the others are named as they are, with
    spaces for underscores. ValueError says what is missing.
    """
    source = Source.find(where)
    if source.kind == "shapes":
        if split:
            raise ValueError("the held-out combinations of shapes have no splits")
        images, numbers = scenes.held_out_set(20, seed=9)
        rows, labels = zip(images, numbers.tolist()), scenes.class_names()
    elif source.kind == "hub":
        rows, labels = hub_images(source, split)
    else:
        root = Path(source.where)
        if split and not (root / split).is_dir():
            raise unknown_split(split, where, (path.name for path in root.iterdir()
                                               if path.is_dir()))
        root = root / (split or "")
        paths = [p for p in root.glob("*/**/*") if p.suffix.lower() in IMAGE_SUFFIXES
                 and "/." not in f"/{p.relative_to(root)}" and p.is_file()]  # nothing hidden
        labels = sorted({p.relative_to(root).parts[0] for p in paths})
        if not labels:
            raise ValueError(f"{root} needs one folder of images for each class; found none")
        if set(labels) <= {"train", "val", "valid", "validation", "test"}:
            raise ValueError(f"{root} holds splits; choose one with --split: {', '.join(labels)}")
        # In an order that is the same everywhere, and whose first so many are of every class.
        paths = random.Random(0).sample(sorted(paths), len(paths))
        rows = ((p, labels.index(p.relative_to(root).parts[0])) for p in paths)
    if unknown := sorted(set(renamed or {}) - set(labels)):
        raise ValueError(f"no class {unknown[0]!r} in {where}; found: {', '.join(labels[:20])}")
    return iter(rows), [(renamed or {}).get(label, label.replace("_", " ")) for label in labels]


def hub_images(source: Source, split: str | None) -> tuple[Iterator, list[str]]:
    """`labelled_images` of a Hub set: its first columns of type Image and ClassLabel, streamed."""
    import datasets  # takes a second; only those who need it wait

    check_hub(source)
    with telling(source, split or "test"):
        splits = datasets.load_dataset(source.where, streaming=True)
    split = next((name for name in splits if SPLIT_NAMES.get(name, name) == split), split)
    split = split or next((name for name in ("test", "validation") if name in splits), "test")
    if split not in splits:
        raise unknown_split(split, source.where, splits)
    table = splits[split]
    image, label = (next((name for name, feature in (table.features or {}).items()
                          if isinstance(feature, kind)), None)
                    for kind in (datasets.Image, datasets.ClassLabel))
    if not (image and label):
        raise ValueError(f"{source.where} needs a column of images and one of class labels; "
                         f"found: {', '.join(table.column_names or [])}")
    names = table.features[label].names
    table = table.cast_column(image, datasets.Image(decode=False))  # one broken image is not fatal

    def rows():
        with telling(source, split):
            for row in table:
                yield (row[image] or {}).get("bytes"), row[label]

    return rows(), names
