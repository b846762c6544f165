"""Where pairs come from: generated shapes, the Hub, parquet shards, a folder of images.

    shapes | a Hub id | a folder of parquet shards | a folder of images and a caption file
        ──Source.rows──▶ (name, image as bytes, path or array, captions), one at a time

pairs.py decodes them once into a cache; batches.py makes batches of them.
"""

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from miniclip.data import drawing, scenes
from miniclip.files import read_text

HUB_DEFAULT = "jxie/flickr8k"
# split → (images, seed)
SHAPES_SPLITS = {"train": (24000, 1), "validation": (1000, 2), "test": (1000, 3)}
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
CAPTION_FILES = ("captions.csv", "captions.txt", "Flickr8k.token.txt")
TABLES = ("*.parquet", *CAPTION_FILES, "Flickr_8k.*Images.txt")
IMAGE_FOLDERS = ("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset")


class HubUnreachable(ConnectionError):
    """The Hugging Face Hub did not answer; the message says what was asked for, and why."""


@dataclass(frozen=True)
class Source:
    """Where pairs come from: kind is 'shapes', 'hub', 'parquet' or 'folder'."""

    kind: str
    where: str
    explicit: bool = True

    @classmethod
    def find(cls, data: str | None = None) -> "Source":
        """`data`, else $MINICLIP_DATA, else Flickr8k on the Hub.

        'shapes', then an existing path, else a Hub id; ValueError for anything else.
        """
        text = str(data or os.environ.get("MINICLIP_DATA") or "")
        if not text:
            return cls("hub", HUB_DEFAULT, explicit=False)
        path = Path(text).expanduser()
        if text == "shapes":
            return cls("shapes", "shapes")
        if path.is_dir():
            return cls("parquet" if any(path.glob("*.parquet")) else "folder", str(path.resolve()))
        if path.exists():
            raise ValueError(f"--data {text} is a file; name the folder that holds the data")
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
            return cls("hub", text)
        raise ValueError(f"--data {text}: no such folder; give 'shapes', a folder or a Hub id "
                         f"such as {HUB_DEFAULT}")

    def identity(self, split: str) -> str:
        """The source's part of the cache key, which changes when its local files change."""
        if self.kind == "shapes":
            texts = (Path(room.__file__).read_text() for room in (drawing, scenes))
            return "\n".join([*texts, str(SHAPES_SPLITS)])
        if self.kind == "hub":
            return self.where
        named = folder_rows(Path(self.where), "all") if self.kind == "folder" else ()
        tables = (p for name in TABLES for p in Path(self.where).glob(name) if p.is_file())
        paths = sorted({*tables, *(path for _, path, _ in named if path)})
        return "\n".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in paths)

    def rows(self, split: str) -> Iterator[tuple[str, object, list[str]]]:
        """(name, image as bytes, path or array, captions), in the source's own order.

        ValueError, in one line that names what was found, for an unknown split, a missing column
        or an empty caption file.
        """
        if self.kind == "shapes":
            return shapes_rows(split)
        return folder_rows(Path(self.where), split) if self.kind == "folder" else (
            table_rows(self, split))


class UnknownSplit(ValueError):
    """The data have no split of that name; the message names those that there are."""


def unknown_split(split: str, where: str, found) -> UnknownSplit:
    names = ", ".join(sorted(found)) or "none"
    return UnknownSplit(f"no split {split!r} in {where}; found: {names}")


def shapes_rows(split: str):
    """Generated scenes, one at a time. Each split has a seed of its own."""
    if split not in SHAPES_SPLITS:
        raise unknown_split(split, "shapes", SHAPES_SPLITS)
    count, seed = SHAPES_SPLITS[split]
    images, captions, _ = scenes.generate(count, seed)
    yield from zip(map("scene {}".format, range(count)), images, captions)


def unreachable(where: str, error: Exception) -> HubUnreachable:
    return HubUnreachable(f"{where} on the Hub is out of reach ({type(error).__name__}: "
                          f"{one_line(error)}); --data shapes, or a folder, needs no Hub")


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextmanager
def telling(source: Source, split: str):
    """Turn the many errors of the libraries that read tables into ValueError or HubUnreachable."""
    import pyarrow

    try:
        yield
    except pyarrow.ArrowException as error:  # Arrow says what is wrong, but not where
        raise ValueError(f"{source.where}, {split}, can't be read: {one_line(error)}") from error
    except (ValueError, HubUnreachable):
        raise
    except Exception as error:  # the Hub answered, but its files are refused or broke off
        if source.kind != "hub":
            raise
        raise unreachable(source.where, error) from error


def table_rows(source: Source, split: str):
    """`read_table`, its errors told in one line."""
    with telling(source, split):
        yield from read_table(source, split)


def read_table(source: Source, split: str):
    """Rows of a Hub data set or of local parquet shards, streamed: only what is read is fetched.

    Columns: `image` and one or several of `caption`, `caption_0`, `caption_1`, …
    """
    import datasets  # imported here because it takes a second

    if source.kind == "hub":
        check_hub(source)
        args, options = (source.where,), {}
    else:
        shards = {}
        for path in sorted(Path(source.where).glob("*.parquet")):
            name = path.stem.split("-")[0]
            shards.setdefault(SPLIT_NAMES.get(name, name), []).append(str(path))
        if split not in shards:
            raise unknown_split(split, source.where, shards)
        args, options = ("parquet",), {"data_files": {split: shards[split]}}
    splits = datasets.load_dataset(*args, streaming=True, **options)
    name = next((n for n in splits if SPLIT_NAMES.get(n, n) == split), None)
    if name is None:
        raise unknown_split(split, source.where, splits)
    table = splits[name]
    columns = table.column_names
    captions = sorted(c for c in columns if re.fullmatch(r"caption(_\d+)?", c))
    if "image" not in columns or not captions:
        raise ValueError(f"{source.where} needs the columns image, caption_0, caption_1, …; "
                         f"found: {', '.join(columns)}")
    # Undecoded, so that one broken image is counted and not fatal.
    table = table.cast_column("image", datasets.Image(decode=False))
    for i, row in enumerate(table):
        image, texts = row["image"] or {}, [row[c] or "" for c in captions]
        if wrong := next((t for t in texts if not isinstance(t, str)), None):
            raise ValueError(f"{source.where}: captions must be text; found in row {i}: "
                             f"{str(wrong)[:80]}")
        yield image.get("path") or f"row {i}", image.get("bytes"), texts


def check_hub(source: Source) -> set[str]:
    """Ask the Hub once, before `datasets` retries for half a minute → the set's file names.

    Raises HubUnreachable.

    ValueError if a data set that the user named does not exist. For the default data set, a proxy's
    403 only means that the Hub is out of reach.
    """
    from huggingface_hub import HfApi, errors

    try:
        files = HfApi().dataset_info(source.where, timeout=10).siblings or ()
        return {file.rfilename for file in files}
    except Exception as error:  # of any network library; the message gives the reason
        status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else 0
        if source.explicit and status in (401, 403, 404):
            raise ValueError(f"the Hub has no public data set {source.where!r}") from error
        raise unreachable(source.where, error) from error


def folder_rows(root: Path, split: str):
    """Images and a caption file: `image,caption` rows, or Flickr8k's original token list.

    The original's split lists (Flickr_8k.trainImages.txt, …) are followed where they are there.
    Without lists a fixed tenth of the images, chosen by a hash of their names, is 'validation',
    the rest 'train'; 'all' is everything.
    """
    file = next((root / name for name in CAPTION_FILES if (root / name).is_file()), None)
    if file is None:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise ValueError(f"{root} needs *.parquet or one of {', '.join(CAPTION_FILES)}; "
                         f"found: {found}")
    captions = read_captions(file)
    lists = {"train": "train", "validation": "dev", "test": "test"}
    lists = {name: root / f"Flickr_8k.{stem}Images.txt" for name, stem in lists.items()}
    splits = {name: read_text(path).split() for name, path in lists.items() if path.is_file()}
    if not splits:
        ranked = sorted(captions, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_out = set(ranked[:-(-len(ranked) // 10)])
        splits = {"train": [n for n in captions if n not in held_out],
                  "validation": [n for n in captions if n in held_out]}
    splits["all"] = list(captions)
    if split not in splits:
        raise unknown_split(split, str(root), splits)
    for name in splits[split]:
        paths = (root / folder / name for folder in IMAGE_FOLDERS)
        yield name, next(filter(os.path.isfile, paths), None), captions.get(name, [])


def read_captions(file: Path) -> dict[str, list[str]]:
    """{image name: captions}, in the file's order. ValueError names what is wrong with the file."""
    text = read_text(file)
    captions: dict[str, list[str]] = {}
    if file.name == "Flickr8k.token.txt":  # name.jpg#0<TAB>A child in a pink dress …
        rows = [re.split(r"#\d+\t", line, maxsplit=1) for line in text.splitlines() if line.strip()]
        header, form = ["image", "caption"], "name.jpg#0<tab>caption"
    else:
        try:
            table = csv.reader(io.StringIO(text), skipinitialspace=True, strict=True)
            header, *rows = list(table) or [[]]
        except csv.Error as error:  # a quote never closed swallows all that follows
            raise ValueError(f"{file}, line {table.line_num}: {error}; an open quote?") from error
        form = "image,caption (quote a caption that has a comma)"
    if [h.strip().lower() for h in header] != ["image", "caption"]:
        raise ValueError(f"{file} must begin with the header image,caption; "
                         f"found: {','.join(header)[:80] or 'an empty file'}")
    for number, row in enumerate(filter(None, rows), start=1):
        if len(row) != 2:
            raise ValueError(f"{file}, row {number}: expected {form}; found: {','.join(row)[:80]}")
        captions.setdefault(row[0].strip(), []).append(row[1])
    if not captions:
        raise ValueError(f"{file} holds no captions; expected rows of the form {form}")
    return captions
