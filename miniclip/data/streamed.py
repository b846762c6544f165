"""Pairs that stay in their tar shards, in WebDataset's form: indexed once, then read anywhere.

    00000.tar: KEY.jpg, KEY.txt (or KEY.json, KEY.cls), KEY2.jpg, …
        ──index, once──▶ where each image lies, and all captions          (kept in the cache)
        ──Images[rows]─▶ uint8 (B, S, S, 3), read and decoded by all cores when they are asked for

As any sample can be read at any time, an epoch is a true permutation of all of them. A batch is a
function of seed and step: a run resumes in the middle of an epoch, with any number of processes.
"""

import hashlib
import io
import json
import math
import os
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from miniclip import notices
from miniclip.data.captions import names_a_side
from miniclip.data.columns import texts_of
from miniclip.data.images import IMAGE_SUFFIXES, MEAN, decode
from miniclip.data.shards import CLASS_NAMES, LARGEST, Header, HubFiles, read_lines
from miniclip.data.splits import digest, split_in, unknown_split
from miniclip.files import cache_folder, write_atomically
from miniclip.notices import notice, one_line

INDEX_VERSION = 1  # raise it when the same shard would give another index
LONGEST = 2**20  # bytes of a caption's file: more is no caption
TEXTS = ("txt", "json", "cls")  # files that hold captions; the first of these that does is taken
HELD_OUT = 5000  # images, at most, that are held out where no shard is named after a split
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


class Shard(NamedTuple):
    """The index of one tar file with n samples and m captions."""

    starts: np.ndarray  # (n,) int64: the first byte of each image in the file
    sizes: np.ndarray  # (n,) int64: its bytes
    counts: np.ndarray  # (n,) int64: captions of each sample
    sided: np.ndarray  # (n,) bool: whether they say left or right
    digests: np.ndarray  # (n,) uint64: of the keys; equal keys, equal digests
    ends: np.ndarray  # (m,) int64: where each caption ends in `texts`
    skipped: np.ndarray  # JSON: {reason: samples}
    texts: np.ndarray  # bytes: all captions, one after another, in a mapped file


# ------------------------------------------------------------------------------- the index


def tar_names(files) -> dict[str, list[str]]:
    """{split: its shards}; "" where a name says none. The set's own, or those one folder below."""
    found: dict[str, list[str]] = {}
    for name in sorted(files.names):
        path = PurePosixPath(name)
        if path.suffix == ".tar" and not path.name.startswith("."):
            split = split_in(path.stem) or split_in(path.parent.name) or ""
            found.setdefault(split, []).append(name)
    return found


def compressed(files) -> list[str]:
    """Shards that can't be used: nothing can be read from the middle of a compressed file."""
    return sorted(name for name in files.names if name.endswith(COMPRESSED))


def indexed(files, name: str, classes: list[str]) -> Shard:
    """The index of a shard, from the cache, or made now and kept there.

    classes: names, for samples that have a class and no caption. ValueError for a file that is no
    tar file or breaks off.
    """
    key = "\n".join([str(INDEX_VERSION), files.where, name, files.stamp(name), *classes])
    stem = cache_folder() / "shards" / hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    arrays, texts = stem.with_suffix(".npz"), stem.with_suffix(".texts")
    shard = kept(arrays, texts)
    if shard is None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with files.open(name) as file:
            made, blob = index(file, f"{files.where}, {name}", classes)
        shard = kept(arrays, texts)  # another process may have been faster, and is reading it
    if shard is None:
        write_atomically(texts, lambda temporary: temporary.write_bytes(blob))
        write_atomically(arrays, lambda temporary: save(temporary, made))  # last: it is whole now
        shard = kept(arrays, texts)
    if shard is None:
        raise ValueError(f"{arrays} can't be read back: is the cache's disk in order?")
    return shard


def save(path: Path, arrays: dict):
    with open(path, "wb") as file:  # not its name, which NumPy would change
        np.savez(file, **arrays)


def kept(arrays: Path, texts: Path) -> Shard | None:
    """What the cache has of a shard; None if that is missing or damaged."""
    try:
        with np.load(arrays, allow_pickle=False) as found:
            found = {name: found[name] for name in Shard._fields if name != "texts"}
        size = texts.stat().st_size
        last = int(found["ends"][-1]) if len(found["ends"]) else 0
        whole = (len({len(found[name]) for name in Shard._fields[:5]}) == 1 and last == size
                 and len(found["ends"]) == found["counts"].sum())
        blob = np.memmap(texts, np.uint8, "r") if size else np.empty(0, np.uint8)
        return Shard(**found, texts=blob) if whole else None
    except Exception:  # zip and NumPy raise many kinds for a file that is damaged
        return None


class Sample:
    """What a shard has of one KEY."""

    def __init__(self):
        self.image = None  # (start, size)
        self.captions, self.kind = [], len(TEXTS)

    def tell(self, captions: list[str], ending: str):
        """Of captions in several files, those of KEY.txt come first, then .json, then .cls."""
        if captions and TEXTS.index(ending) < self.kind:
            self.captions, self.kind = captions, TEXTS.index(ending)


def index(file, where: str, classes: list[str]) -> tuple[dict, bytes]:
    """Read a tar file's headers and captions, and pass over its images → arrays, captions."""
    columns, ends, blob = {name: [] for name in Shard._fields[:5]}, [], bytearray()
    skipped: Counter = Counter()
    for key, sample in samples(file, where, classes).items():
        if sample.image is None or not sample.captions:
            skipped["without an image" if sample.image is None else "without a caption"] += 1
            continue
        for text in sample.captions:
            blob += text.encode("utf-8", "replace")
            ends.append(len(blob))
        row = (*sample.image, len(sample.captions), names_a_side(sample.captions),
               int.from_bytes(digest(key)[:8], "big"))
        for column, value in zip(columns.values(), row):
            column.append(value)
    kinds = (np.int64, np.int64, np.int64, np.bool_, np.uint64)
    arrays = {name: np.array(values, kind)
              for (name, values), kind in zip(columns.items(), kinds)}
    arrays |= {"ends": np.array(ends, np.int64), "skipped": np.array(json.dumps(skipped))}
    return arrays, bytes(blob)


def samples(file, where: str, classes: list[str]) -> dict[str, Sample]:
    """{KEY: its sample} of a tar file. KEY is the path up to the first dot of the file's name.

    Links, devices, folders and hidden files, as a Mac adds them, are passed over. Names lead
    nowhere, as nothing is written. ValueError for a file that is no tar file or breaks off.
    """
    found: dict[str, Sample] = {}
    local = isinstance(file, io.BufferedReader)  # there it can go from header to header
    size = os.fstat(file.fileno()).st_size if local else math.inf
    try:
        with tarfile.open(fileobj=file, mode="r:" if local else "r|", tarinfo=Header) as archive:
            for member in archive:
                if member.size < 0 or member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"{member.name} reaches beyond its end")
                folder, _, name = member.name.rpartition("/")
                if member.isreg() and not member.issparse() and not name.startswith("."):
                    stem, _, ending = name.partition(".")
                    sample = found.setdefault(f"{folder}/{stem}" if folder else stem, Sample())
                    add_member(sample, archive, member, ending.lower(), where, classes)
                archive.members = []  # tarfile would keep every header
            if local:
                file.seek(archive.offset)
                if file.read(2**20).strip(b"\0"):
                    raise tarfile.ReadError("something comes after its end: two files in one?")
    except (tarfile.TarError, EOFError, OverflowError) as error:
        raise ValueError(f"{where} is no tar file, or breaks off: {one_line(error)}") from error
    return found


def add_member(sample: Sample, archive, member, ending: str, where: str, classes: list[str]):
    """Note where a sample's image lies, or read its captions."""
    if f".{ending}" in IMAGE_SUFFIXES and sample.image is None and member.size <= LARGEST:
        sample.image = member.offset_data, member.size
    elif ending in TEXTS and member.size <= LONGEST:
        content = archive.extractfile(member).read()
        sample.tell(captions_in(content, ending, f"{where}, {member.name}", classes), ending)


def captions_in(content: bytes, ending: str, where: str, classes: list[str]) -> list[str]:
    """The captions of a .txt (one a line), a .json (its `caption`) or a .cls (its class's name)."""
    text = content.decode("utf-8-sig", "replace").strip()
    if ending == "txt":
        found = text.splitlines()
    elif ending == "json":
        try:
            found = texts_of(json.loads(text), where)
        except (ValueError, RecursionError):
            found = []
    else:
        number = int(text) if text.isdecimal() and len(text) < 9 else len(classes)
        found = [f"a photo of a {classes[number]}."] if number < len(classes) else []
    return [line.strip() for line in found if line.strip()]


# ------------------------------------------------------------------------------- the samples


class Texts(Sequence):
    """Captions of several shards, (M,), read when they are asked for.

    rows: of all their captions, one shard after another, the numbers of these, (M,) int64.
    """

    def __init__(self, shards: list[Shard], rows: np.ndarray):
        self.shards, self.rows = [(shard.ends, shard.texts) for shard in shards], rows
        self.first = np.cumsum([0, *(len(shard.ends) for shard in shards)])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        row = self.rows[i]
        number = int(np.searchsorted(self.first, row, "right")) - 1
        (ends, texts), k = self.shards[number], row - self.first[number]
        begin = ends[k - 1] if k else 0
        return texts[begin:ends[k]].tobytes().decode("utf-8", "replace")


@dataclass
class Captions(Sequence):
    """The captions of each of these samples: captions[i] is a list of texts."""

    texts: Texts  # (M,): of the first sample, of the second, …
    counts: np.ndarray  # (N,) int64: how many each has
    sided: np.ndarray  # (N,) bool: whether they say left or right

    @cached_property
    def firsts(self) -> np.ndarray:
        return np.cumsum(self.counts) - self.counts

    def __len__(self):
        return len(self.counts)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        return self.texts[int(self.firsts[i]):int(self.firsts[i] + self.counts[i])]


@dataclass
class Images:
    """images[rows] → uint8 (B, S, S, 3), read and decoded by all cores.

    Like an array (N, S, S, 3) that is asked for rows: an int, a slice or an array of numbers. What
    can't be opened is grey, and told once for each shard: no other image changes its place.
    """

    files: Any  # of shards.py
    names: list[str]  # of the shards
    numbers: np.ndarray  # (N,) int64: which shard each sample is in
    starts: np.ndarray  # (N,) int64
    sizes: np.ndarray  # (N,) int64
    size: int  # S

    def __len__(self):
        return len(self.starts)

    @property
    def shape(self):
        return len(self), self.size, self.size, 3

    @cached_property
    def pool(self):
        cores = os.cpu_count() or 1  # from the Hub one waits longer than one decodes
        return ThreadPoolExecutor(max(cores, 16) if isinstance(self.files, HubFiles) else cores)

    def __getitem__(self, rows):
        if isinstance(rows, int | np.integer):
            return self.image(int(rows))
        if isinstance(rows, slice):
            rows = np.arange(*rows.indices(len(self)))
        return np.stack(list(self.pool.map(self.image, rows.tolist())))

    def content(self, i: int) -> bytes:
        """The file of image i."""
        return self.files.read(self.names[self.numbers[i]], int(self.starts[i]),
                               int(self.sizes[i]))

    def image(self, i: int) -> np.ndarray:
        pixels, why = decode(self.content(i), self.size)
        if pixels is None:
            notice(f"{self.names[self.numbers[i]]} holds images that are {why}: grey stands in "
                   "their place")
            return np.broadcast_to(np.uint8(np.array(MEAN) * 255), (self.size, self.size, 3))
        return pixels


@dataclass
class ShardedSet:
    """Tar shards in a folder or on the Hub: which samples are in which split.

    files: a FolderFiles, OneFile or HubFiles.
    """

    files: Any

    @cached_property
    def shards(self) -> dict[str, list[str]]:
        """{split: names}. ValueError if all are compressed."""
        found, wrong = tar_names(self.files), compressed(self.files)
        if wrong and not found:
            raise ValueError(f"{self.files.where}: {wrong[0]} is compressed, and can't be read "
                             "from its middle; unpack it to a .tar (its images are compressed "
                             "already)")
        return found

    @cached_property
    def classes(self) -> list[str]:
        return read_lines(self.files, CLASS_NAMES) if CLASS_NAMES in self.files.names else []

    @cached_property
    def splits(self) -> set[str]:
        found = set(self.shards) - {""}
        if "" in self.shards or "train" in found:
            found |= {"train", "validation"}
        return found

    def shards_of(self, split: str) -> list[str]:
        """Those that hold this split's samples; where it is held out of `train`, all of that."""
        if split not in self.splits:
            raise unknown_split(split, self.files.where, self.splits)
        unnamed = [] if split in self.shards and split != "train" else self.shards.get("", [])
        named = split if split in self.shards else "train"
        return sorted(self.shards.get(named, []) + unnamed)

    def samples(self, split: str, size: int, limit: int = 0) -> tuple[Images, Captions, str]:
        """→ images, captions and a summary of a split's samples, in the order of the shards.

        ValueError for an unknown split, a shard that is damaged, or no sample at all.
        """
        names = self.shards_of(split)
        bar = tqdm(names, "indexing", unit="shard", leave=False,
                   disable=len(names) < 10 or notices.silent)
        shards = [indexed(self.files, name, self.classes) for name in bar]
        numbers = np.repeat(np.arange(len(shards)), [len(shard.starts) for shard in shards])
        column = {name: np.concatenate([getattr(shard, name) for shard in shards])
                  for name in Shard._fields[:5]}
        chosen = self.chosen(split, column["digests"])[:limit or None]
        skipped: Counter = Counter()
        for shard in shards:
            skipped.update(json.loads(str(shard.skipped)))
        summary = (f"{len(chosen):,} images, {column['counts'][chosen].sum():,} captions in "
                   f"{len(shards):,} shards") + "".join(
            f"; skipped {n:,}: {reason}" for reason, n in sorted(skipped.items()))
        if not len(chosen):
            raise ValueError(f"{self.files.where}, {split}: nothing to learn from ({summary}); a "
                             "sample is KEY.jpg and KEY.txt")
        images = Images(self.files, names, numbers[chosen], column["starts"][chosen],
                        column["sizes"][chosen], size)
        counts = column["counts"]
        mine = np.zeros(len(counts), bool)
        mine[chosen] = True
        rows = np.flatnonzero(np.repeat(mine, counts))
        captions = Captions(Texts(shards, rows), counts[chosen], column["sided"][chosen])
        return images, captions, summary

    def chosen(self, split: str, digests: np.ndarray) -> np.ndarray:
        """Which samples of the shards are the split's: (n,) int64, in their order.

        Where no shard is named after a validation split, a tenth is held out, at most HELD_OUT:
        the least digests, so that it does not matter which shard a sample is in.
        """
        every = np.arange(len(digests))
        if "validation" in self.shards or split not in ("train", "validation"):
            return every
        held = min(HELD_OUT, -(-len(digests) // 10))
        last = np.sort(digests)[held - 1] if len(digests) > 1 else 0
        return every[(digests <= last) == (split == "validation")]

    def rows(self, split: str) -> Iterator[tuple[str, bytes, list[str]]]:
        """(name, image as bytes, captions) of a split, as other sources give them."""
        images, captions, _ = self.samples(split, 1)
        for first in range(0, len(images), 64):  # together: from the Hub each takes its time
            some = range(first, min(first + 64, len(images)))
            for i, content in zip(some, images.pool.map(images.content, some)):
                yield f"{images.names[images.numbers[i]]}, image {i}", content, captions[i]
