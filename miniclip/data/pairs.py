"""Pairs of every source in one form: decoded once, and kept in a cache.

    rows of sources.py: (name, image as bytes, path, array or PIL image, captions)
        ──decode once, resize──▶ uint8 images in a memory-mapped file, captions in JSON

The cache lies in $MINICLIP_CACHE (default ~/.cache/miniclip), one folder for each source, split,
size and version. It may be deleted at any time.
"""

import hashlib
import json
import os
import shutil
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from miniclip.data.captions import names_a_side
from miniclip.data.images import decode
from miniclip.data.sources import Source
from miniclip.data.splits import standard
from miniclip.data.streamed import Captions
from miniclip.files import cache_folder, naming
from miniclip.notices import notice

CACHE_VERSION = 6  # raise it when the same source would give other pixels or captions
DAY = 24 * 60 * 60  # seconds


@dataclass(frozen=True)
class Pairs:
    """One split, ready: images (N, S, S, 3) uint8, memory-mapped; captions[i], those of image i.

    Of tar shards both are read when they are asked for (streamed.py).
    """

    images: np.ndarray
    captions: list[list[str]]
    name: str
    summary: str

    def __len__(self) -> int:
        return len(self.captions)

    @property
    def streamed(self) -> bool:
        return isinstance(self.captions, Captions)

    def name_a_side(self) -> np.ndarray:
        """Whether an image's captions say left or right, (N,) bool."""
        if self.streamed:
            return self.captions.sided
        return np.array([names_a_side(captions) for captions in self.captions], bool)

    def flat_captions(self) -> tuple[list[str], np.ndarray]:
        """All captions in one list, and the image index (M,) int64 that each belongs to."""
        if self.streamed:
            return self.captions.texts, np.repeat(np.arange(len(self)), self.captions.counts)
        owner = np.repeat(np.arange(len(self)), [len(c) for c in self.captions])
        return [caption for captions in self.captions for caption in captions], owner


@dataclass(frozen=True)
class Examples:
    """Images with captions and labels: images (N, S, S, 3) uint8, captions[i], those of image i,
    labels (N,) int64, indexes of names."""

    images: np.ndarray
    captions: list[list[str]]
    labels: np.ndarray
    names: tuple[str, ...]


def load_pairs(source: Source, split: str, size: int, limit: int = 0) -> Pairs:
    """The first `limit` images (0: all) of a split, from the cache, built first if need be.

    The training split of tar shards stays where it is. Raises ValueError for a negative limit and
    for a source that can't be read, HubUnreachable for a Hub that does not answer.
    """
    if not 0 <= limit < 2**63:
        raise ValueError(f"limit is {limit}; it must be 0 (all) or a number of images")
    split = standard(split)
    name = source.where if source.kind == "hub" else Path(source.where).name  # a folder's own name
    key = "\n".join([str(CACHE_VERSION), source.kind, source.identity(split), split, str(size),
                     str(limit)])
    folder = cache_folder() / hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    meta = read_meta(folder, size)
    if meta is None and split == "train" and source.sharded:
        images, captions, summary = source.sharded.samples(split, size, limit)
        notice(f"{source.where}, {split}: {summary}")
        return Pairs(images, captions, f"{name}:{split}", summary)
    if meta is None:
        meta = build_cache(folder, source, split, size, limit)
        notice(f"{source.where}, {split}: {meta['summary']}")
    shape = (len(meta["captions"]), size, size, 3)
    images = np.memmap(folder / "images.u8", np.uint8, "r", shape=shape)
    return Pairs(images, meta["captions"], f"{name}:{split}", meta["summary"])


def read_meta(folder: Path, size: int) -> dict | None:
    """The content of a cache folder's meta.json; None if the cache is missing or incomplete."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        whole = (folder / "images.u8").stat().st_size == len(meta["captions"]) * size * size * 3
        return meta if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_dead_builds(folder: Path):
    """Remove the folders of builds that were killed (SIGKILL, a power cut): unchanged for a day.

    The files' times count as well as the folder's: a slow build that still runs writes to files.
    """
    for building in folder.parent.glob(f"{folder.name}.*"):
        with suppress(OSError):  # another run has just removed or finished it
            if max(p.stat().st_mtime for p in (building, *building.iterdir())) < time.time() - DAY:
                shutil.rmtree(building, ignore_errors=True)


def build_cache(folder: Path, source: Source, split: str, size: int, limit: int) -> dict:
    """Decode a split into a temporary folder, then rename it: readers see all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_builds(folder)
    building = folder.with_name(f"{folder.name}.{os.getpid()}.{time.time_ns()}")
    building.mkdir()  # not mkdtemp: other users could not read it
    try:
        captions, skipped, odd, first = [], Counter(), Counter(), {}
        rows = islice(source.rows(split), limit or None)
        with (naming(building), open(building / "images.u8", "wb") as file,
              ThreadPoolExecutor() as pool, warnings.catch_warnings()):  # for all threads at once
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            while chunk := list(islice(rows, 256)):
                decoded = pool.map(lambda row: decode(row[1], size), chunk)
                for (name, _, texts), (pixels, note) in zip(chunk, decoded):
                    texts = [text.strip() for text in texts if text.strip()]
                    if pixels is None or not texts:
                        note = note if pixels is None else "without a caption"
                        skipped[f"{note}, such as {first.setdefault(note, name)!r:.60}"] += 1
                        continue
                    odd[note] += bool(note)
                    captions.append(texts)
                    file.write(pixels.tobytes())
        summary = f"{len(captions):,} images, {sum(map(len, captions)):,} captions" + "".join(
            f"; {verb} {n}: {reason}" for verb, notes in (("skipped", skipped), ("kept", odd))
            for reason, n in sorted(notes.items()) if n)
        if not captions:
            raise ValueError(f"{source.where}, {split}: nothing to learn from ({summary})")
        meta = {"captions": captions, "summary": summary}
        with naming(building):
            (building / "meta.json").write_text(json.dumps(meta))
        try:
            building.rename(folder)
        except OSError:  # another run was faster: what it wrote is the same, unless it is damaged
            if read_meta(folder, size) is None:
                for name in ("images.u8", "meta.json"):  # and two that mend it write the same
                    os.replace(building / name, folder / name)
        return meta
    finally:
        shutil.rmtree(building, ignore_errors=True)
