"""Where pairs come from: generated shapes, the Hub, tables, tar shards, images with captions.

    shapes | a Hub id | parquet files, or what `datasets` saves | tar shards | images with captions
        ──Source.rows──▶ (name, image as bytes, path, array or PIL image, captions), one at a time

tables.py reads the second and the third, streamed.py the fourth, folders.py the last. pairs.py
decodes them once into a cache; batches.py makes batches of them.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from miniclip.data import drawing, scenes
from miniclip.data.caption_files import SUFFIXES
from miniclip.data.folders import IMAGE_FOLDERS, ImageFiles, ImageFolder, caption_files
from miniclip.data.hub import HUB_ID, check_hub
from miniclip.data.images import IMAGE_SUFFIXES
from miniclip.data.shards import TEMPLATES, FolderFiles, HubFiles, OneFile
from miniclip.data.splits import unknown_split
from miniclip.data.streamed import ShardedSet, compressed, tar_names
from miniclip.data.tables import parquet_files, table_rows

HUB_DEFAULT = "jxie/flickr8k"
# split → (images, seed)
SHAPES_SPLITS = {"train": (24000, 1), "validation": (1000, 2), "test": (1000, 3)}


@dataclass(frozen=True)
class Source:
    """Where pairs come from: kind is 'shapes', 'hub', 'parquet', 'saved', 'tars' or 'folder'.

    where: the Hub's id, or the path of a folder or of a single table. image_key, caption_key: names
    of the columns where they are unusual (columns.py).
    """

    kind: str
    where: str
    explicit: bool = True
    image_key: str = ""
    caption_key: str = ""

    @classmethod
    def find(cls, data: str | None = None, image_key: str = "", caption_key: str = "") -> "Source":
        """`data`, else $MINICLIP_DATA, else Flickr8k on the Hub.

        'shapes', then an existing path, else a Hub id; ValueError for anything else.
        """
        keys = {"image_key": image_key, "caption_key": caption_key}
        text = str(data or os.environ.get("MINICLIP_DATA") or "")
        if not text:
            return cls("hub", HUB_DEFAULT, explicit=False, **keys)
        path = Path(text).expanduser()
        if text == "shapes":
            return cls("shapes", "shapes", **keys)
        if path.exists():
            return cls(kind_of(path), str(path.resolve()), **keys)
        if re.fullmatch(rf"{HUB_ID}(:[\w.-]+)?", text):  # perhaps :CONFIGURATION
            return cls("hub", text, **keys)
        raise ValueError(f"--data {text}: no such folder; give 'shapes', a folder or a Hub id "
                         f"such as {HUB_DEFAULT}")

    def identity(self, split: str) -> str:
        """The source's part of the cache key, which changes when its local files change."""
        keys = [self.image_key, self.caption_key]
        if self.kind == "shapes":
            texts = (Path(room.__file__).read_text() for room in (drawing, scenes))
            return "\n".join([*texts, str(SHAPES_SPLITS)])
        if self.kind == "hub":
            return "\n".join([self.where, *keys])
        if self.kind == "tars":
            shards = (name for names in self.sharded.shards.values() for name in names)
            files = [f"{name} {self.sharded.files.stamp(name)}" for name in sorted(shards)]
            return "\n".join([self.where, *keys, *files])
        root = Path(self.where)
        if self.kind == "folder":
            images = (path for _, path, _ in self.folder.splits["all"] if path)
            paths = {*images, *map(str, self.folder.tables)}
        else:
            paths = set(map(str, parquet_files(root) if self.kind == "parquet" else
                            filter(Path.is_file, root.rglob("*"))))
            if root.is_dir():  # a table may name images beside it
                paths |= set(ImageFiles(root).paths)
        stats = {path: os.stat(path) for path in paths}
        files = [f"{p} {stats[p].st_size} {stats[p].st_mtime_ns}" for p in sorted(paths)]
        return "\n".join(keys + files)

    @cached_property
    def folder(self) -> ImageFolder:
        """Read once for all splits, and for the cache's key."""
        return ImageFolder(Path(self.where), self.image_key, self.caption_key)

    @cached_property
    def sharded(self) -> ShardedSet | None:
        """A set of tar shards, in a folder or on the Hub, which is asked; None for all others."""
        path, files = Path(self.where), None
        if self.kind == "tars":
            files = OneFile(path.parent, path.name) if path.is_file() else FolderFiles(path)
        elif self.kind == "hub":
            repository = self.where.partition(":")[0]
            files = HubFiles(repository, *check_hub(repository, self.explicit))
            tables = {name[:-8] for name in files.names if name.endswith(".parquet")}
            shards = {name[:-4] for name in files.names if name.endswith(".tar")}
            if not tar_names(files) or tables - shards:  # img2dataset's are of one name
                files = None  # `datasets` reads it
        return files and ShardedSet(files)

    def rows(self, split: str) -> Iterator[tuple[str, object, list[str]]]:
        """(name, image as bytes, path, array or PIL image, captions), in the source's own order.

        ValueError, in one line that names what was found, for an unknown split, a missing column
        or an empty caption file.
        """
        if self.kind == "shapes":
            return shapes_rows(split)
        if self.kind in ("tars", "hub") and self.sharded:
            return self.sharded.rows(split)
        return folder_rows(self, split) if self.kind == "folder" else table_rows(self, split)


def kind_of(path: Path) -> str:
    """What a path holds: "parquet", "saved" (by `datasets`), "tars" (WebDataset's shards) or
    "folder" of images with captions."""
    if path.is_file():
        if path.suffix == ".parquet":
            return "parquet"
        if path.suffix == ".tar":
            return "tars"
        if path.suffix.lower() in SUFFIXES:
            return "folder"
        raise ValueError(f"{path} is a file; name the folder that holds the data, or a table "
                         f"({', '.join(SUFFIXES)}, .parquet, .tar)")
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "saved"
    files = FolderFiles(path)
    if (tar_names(files) or compressed(files)) and not loose_pairs(path):
        return "tars"  # before tables: img2dataset writes one beside each shard
    tables = parquet_files(path)
    # img2dataset's list of addresses lies beside the folder of its images, as 00000.parquet.
    if tables and not any(table.with_suffix("").is_dir() for table in tables):
        return "parquet"
    return "folder"


def loose_pairs(path: Path) -> bool:
    """Whether a folder holds images or their captions, so that an archive in it is a leftover."""
    known = {"sizes", "nshards", Path(TEMPLATES).stem}  # of sets of shards
    return (any(p.suffix.lower() in IMAGE_SUFFIXES for p in path.iterdir())
            or any((path / name).is_dir() for name in IMAGE_FOLDERS if name)
            or any(p.stem not in known for p in caption_files(path))
            or bool(parquet_files(path) and not any(
                table.with_suffix(".tar").is_file() for table in parquet_files(path))))


def shapes_rows(split: str):
    """Generated scenes, one at a time. Each split has a seed of its own."""
    if split not in SHAPES_SPLITS:
        raise unknown_split(split, "shapes", SHAPES_SPLITS)
    count, seed = SHAPES_SPLITS[split]
    images, captions, _ = scenes.generate(count, seed)
    yield from zip(map("scene {}".format, range(count)), images, captions)


def folder_rows(source: Source, split: str):
    splits = source.folder.splits
    if split not in splits:
        raise unknown_split(split, source.where, splits)
    yield from splits[split]
