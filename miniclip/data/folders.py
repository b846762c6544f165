"""Folders of images with captions, in the forms that people have them.

    captions.csv, metadata.jsonl, dataset_flickr8k.json, …    one file, for all splits
    train.csv and validation.csv; annotations/captions_train2017.json and its like
    train/ and validation/                                    each again one of these forms
    0001.jpg with 0001.txt or 0001.json beside it             img2dataset's, and many trainers'

Where nothing names splits, a fixed tenth of the images is `validation`, and the rest `train`.
"""

import json
import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from miniclip.data.caption_files import SUFFIXES, read_any_text, read_caption_file
from miniclip.data.columns import texts_of
from miniclip.data.images import IMAGE_SUFFIXES
from miniclip.data.splits import held_out, split_in
from miniclip.files import read_text
from miniclip.notices import notice

# Of several files the first of these; then any single other one.
PREFERRED = ("captions.csv", "captions.txt", "captions.tsv", "captions.jsonl", "captions.json",
             "Flickr8k.token.txt", "metadata.csv", "metadata.jsonl", "results.csv")
NO_CAPTIONS = ("dataset_info", "dataset_dict", "state", "config", "package", "requirements",
               "classnames", "readme", "license", "instances", "_stats", "person_keypoints",
               "image_info", "stuff_", "panoptic_", "tokenizer")
IMAGE_FOLDERS = ("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset",
                 "flickr30k_images", "flickr30k-images")
FLICKR8K = {"train": "train", "validation": "dev", "test": "test"}  # Flickr_8k.devImages.txt, …

FolderRow = tuple[str, str | None, list[str]]  # an image's name, its path if it is there, captions


@dataclass
class ImageFolder:
    """Pairs in a folder, or in a file of captions and the folder around it."""

    where: Path
    image_key: str = ""
    caption_key: str = ""
    tables: list[Path] = field(default_factory=list)  # the files of captions that were read

    @property
    def root(self) -> Path:
        return self.where.parent if self.where.is_file() else self.where

    @cached_property
    def splits(self) -> dict[str, list[FolderRow]]:
        """The rows of every split; "all" is everything. ValueError says what is missing."""
        found = self.read(self.where)
        lists = {name: self.root / f"Flickr_8k.{stem}Images.txt" for name, stem in FLICKR8K.items()}
        if set(found) == {""}:
            captions = {name: row for row in found.pop("") for name in (row[0],)}
            named = {name: read_text(path).split() for name, path in lists.items()
                     if path.is_file()}
            self.tables += [path for path in lists.values() if path.is_file()]
            if named:
                found = {split: [captions.get(name, (name, self.files.find(name), []))
                                 for name in names] for split, names in named.items()}
                return found | {"all": list(captions.values())}
            found = self.by_folder(list(captions.values()))
        everything = [row for rows in found.values() for row in rows]
        if {"train", "validation"} <= set(found):
            held = {path for _, path, _ in found["validation"] if path}
            kept = [row for row in found["train"] if row[1] not in held]
            if len(kept) < len(found["train"]):
                notice(f"{self.where}: {len(found['train']) - len(kept):,} images are in train and "
                       "in validation; they are left out of train")
                found["train"] = kept
        if "train" in found and "validation" not in found:
            rows = found["train"]
            kept = held_out(name for name, _, _ in rows)
            found = found | {"train": [row for row in rows if row[0] not in kept],
                             "validation": [row for row in rows if row[0] in kept]}
        return found | {"all": everything}

    def by_folder(self, rows: list[FolderRow]) -> dict[str, list[FolderRow]]:
        """The splits that the images' own folders name (images/val/0.jpg), else all for train."""
        found: dict[str, list[FolderRow]] = {}
        for row in rows:
            where = os.path.relpath(row[1], self.root) if row[1] else row[0].replace("\\", "/")
            said = filter(None, map(split_in, Path(where).parts[:-1]))
            found.setdefault(next(said, ""), []).append(row)
        if "train" not in found:
            return {"train": rows}
        found["train"] += found.pop("", [])
        return found

    @cached_property
    def files(self) -> "ImageFiles":
        return ImageFiles(self.root)

    def read(self, where: Path) -> dict[str, list[FolderRow]]:
        """{split: rows}; the split is "" where nothing names one."""
        if where.is_file():
            return self.from_table(where)
        tables = caption_files(where)
        if parts := {path: split for path in tables if (split := split_in(path.stem))}:
            found: dict[str, list[FolderRow]] = {}
            for path, split in parts.items():
                try:
                    table = self.from_table(path, split)
                except ValueError as error:
                    if split != "test":
                        raise
                    notice(f"{error}; left out")  # a contest's test.csv has no captions
                    continue
                for inner, rows in table.items():  # a column speaks before a name
                    found.setdefault(inner or split, []).extend(rows)
            return found
        if tables:
            return self.from_table(one_of(tables, where))
        folders = {path: split for path in sorted(where.iterdir())
                   if path.is_dir() and (split := split_in(path.name))}
        if set(folders.values()) & {"train", "validation", "test"}:
            found = {}
            for path, split in folders.items():
                for rows in ImageFolder(path, self.image_key, self.caption_key,
                                        self.tables).read(path).values():
                    found.setdefault(split, []).extend(
                        (f"{path.name}/{name}", image, texts) for name, image, texts in rows)
            return found
        if rows := list(self.beside()):
            return {"": rows}
        listed = ", ".join(sorted(p.name for p in where.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{where} needs *.parquet, or images with a file of captions (captions.csv that begins "
            f"with image,caption; metadata.jsonl; COCO's JSON), or with a .txt beside each; found: "
            f"{listed}")

    def from_table(self, file: Path, otherwise: str = "train") -> dict[str, list[FolderRow]]:
        """One file of captions: rows of the same image are put together.

        otherwise: the split of rows that name none, where others do.
        """
        self.tables.append(file)
        found: dict[str, dict[str, FolderRow]] = {}
        rows = read_caption_file(file, self.image_key, self.caption_key)
        if addresses := [name for name, _, _ in rows if name.startswith(("http:", "https:"))]:
            raise ValueError(f"{file} names addresses such as {addresses[0]:.60}; images must lie "
                             "on this disk: `img2dataset` fetches them")
        said = {name: split for name, _, split in rows if split}
        for name, captions, split in rows:  # a row without a split has its image's
            split = split or said.get(name, otherwise if said else "")
            row = found.setdefault(split, {}).get(name)
            if row is None:
                path = self.files.find(name)
                if path and (other := self.files.given.setdefault(path, name)) != name:
                    raise ValueError(f"{file}: {other!r} and {name!r} both lead to {path}; is one "
                                     "of them missing, or one image named in two ways?")
                row = found[split][name] = (name, path, [])
            row[2].extend(captions)
        return {split: list(rows.values()) for split, rows in found.items()}

    def beside(self) -> Iterator[FolderRow]:
        """Images with a text beside them: each line of NAME.txt, or `caption` of NAME.json."""
        for path in sorted(self.files.paths):
            text, info = Path(path).with_suffix(".txt"), Path(path).with_suffix(".json")
            captions: list[str] = []
            if text.is_file():
                captions = read_any_text(text).splitlines()
            elif info.is_file():
                try:
                    captions = texts_of(json.loads(read_text(info)), str(info))
                except json.JSONDecodeError as error:
                    raise ValueError(f"{info} is no JSON: {error}") from None
            if text.is_file() or info.is_file():
                self.tables.append(text if text.is_file() else info)  # a change of it is noticed
                yield os.path.relpath(path, self.root), path, captions


def caption_files(root: Path) -> list[Path]:
    """Files that may hold captions: in the folder, or in `annotations/`; no text of one image."""
    found = []
    paths = [*root.iterdir(), *root.glob("annotations/*")]
    images = {path.with_suffix("") for path in paths if path.suffix.lower() in IMAGE_SUFFIXES}
    for path in sorted(path for path in paths if path.suffix.lower() in SUFFIXES):
        lower = path.name.lower()
        known = path.suffix.lower() != ".txt" or split_in(path.stem) or any(
            word in lower for word in ("caption", "token", "result", "annotation"))
        if (known and path.with_suffix("") not in images and path.is_file()
                and not lower.startswith((".", "flickr_8k."))
                and not any(word in lower for word in NO_CAPTIONS)):
            found.append(path)
    return found


def one_of(tables: list[Path], where: Path) -> Path:
    """The file of captions among several."""
    named = {path.name: path for path in tables}
    karpathy = (name for name in named if name.startswith("dataset_"))
    for name in (*PREFERRED, *karpathy):
        if name in named:
            return named[name]
    if len(tables) > 1:
        raise ValueError(f"{where} has several files that may hold the captions: "
                         f"{', '.join(sorted(named))[:200]}; name one: --data {tables[0]}")
    return tables[0]


class ImageFiles:
    """The images under a folder, found by the names that tables give them."""

    def __init__(self, root: Path):
        self.root = root
        self.folders = [os.path.join(root, f) for f in IMAGE_FOLDERS if (root / f).is_dir()]
        self.given: dict[str, str] = {}  # path → the name that a table gave it

    @cached_property
    def paths(self) -> list[str]:
        """All image files, not in hidden folders."""
        found = []
        walked = set()
        for folder, inner, names in os.walk(self.root, followlinks=True):
            inner[:] = sorted(name for name in inner if not name.startswith("."))
            if (real := os.path.realpath(folder)) in walked:  # a link to a folder above
                inner.clear()
                continue
            walked.add(real)
            found += [os.path.join(folder, name) for name in names
                      if Path(name).suffix.lower() in IMAGE_SUFFIXES and name[0] != "."]
        return found

    @cached_property
    def by_name(self) -> dict[str, str | None]:
        """Plain forms of relative path, name and stem → path; None where several have it."""
        found: dict[str, str | None] = {}
        for path in self.paths:
            relative = Path(os.path.relpath(path, self.root))
            for name in {plain(relative.as_posix()), plain(relative.name), plain(relative.stem)}:
                found[name] = None if name in found else path
        return found

    def find(self, name: str) -> str | None:
        """The path of an image; None if it is not there.

        Besides the name as it is: backslashes for slashes, another case, another form of the same
        letters (macOS writes é as two characters), a folder too many or too few, no suffix.
        """
        for folder in self.folders if name else ():
            path = os.path.join(folder, name)  # an absolute name is taken as it is
            if os.path.isfile(path):
                return os.path.normpath(path)
        wanted = plain(name)
        while wanted:
            if self.by_name.get(wanted):
                return self.by_name[wanted]
            _, _, wanted = wanted.partition("/")
        return None


def plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold().strip("/")
