"""Labelled images in tar shards, in WebDataset's form, from a folder or streamed from the Hub.

    ROOT/classnames.txt                         a class name a line
    ROOT/zeroshot_classification_templates.txt  a template a line; {c} stands for the class
    ROOT/test/nshards.txt, 0.tar, 1.tar, …      members KEY.webp|png|jpg and KEY.cls, the class

The form of the classification sets `clip-benchmark/wds_…` on the Hub: ImageNet, V2, R, Sketch, A,
ObjectNet and others. Nothing is stored: a shard is read from its beginning to its end, once.
"""

import http.client
import re
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from miniclip.data.hub import HubUnreachable
from miniclip.data.images import IMAGE_SUFFIXES
from miniclip.data.splits import unknown_split
from miniclip.notices import one_line

CLASS_NAMES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"
COUNT = "nshards.txt"  # in the folder of each split
ATTEMPTS, WAIT = 5, 2.0  # for a connection that breaks off; seconds before the second attempt
LARGEST = 2**30  # bytes of one member: more is no image


@dataclass(frozen=True)
class FolderFiles:
    """The files of a set in a folder: `names` of all, `open` one, `read` a part of one."""

    root: Path

    @property
    def where(self) -> str:
        return str(self.root)

    @property
    def names(self) -> set[str]:
        patterns = "*", f"*/{COUNT}", "*/*.tar*"
        return {path.relative_to(self.root).as_posix() for pattern in patterns
                for path in self.root.glob(pattern)}

    def open(self, name: str):
        return open(self.root / name, "rb")

    def read(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes from `start` on; fewer at the end of the file."""
        with open(self.root / name, "rb") as file:
            file.seek(start)
            return file.read(size)

    def stamp(self, name: str) -> str:
        """What changes with the file's content."""
        stat = (self.root / name).stat()
        return f"{stat.st_size} {stat.st_mtime_ns}"


@dataclass(frozen=True)
class OneFile(FolderFiles):
    """The same for a single file of a folder."""

    name: str

    @property
    def names(self) -> set[str]:
        return {self.name}


@dataclass(frozen=True)
class HubFiles:
    """The files of a data set on the Hub, read as they arrive; otherwise like FolderFiles."""

    repository: str
    names: set[str]
    revision: str = "main"
    direct: dict[str, str] = field(default_factory=dict)  # where the Hub has sent us for each

    @property
    def where(self) -> str:
        return self.repository

    def address(self, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repository, name, repo_type="dataset", revision=self.revision)

    def open(self, name: str):
        return Download(self.address(name))

    def read(self, name: str, start: int, size: int) -> bytes:
        """As FolderFiles. The Hub limits questions, but not what is behind its answers: after the
        first, a file's storage is asked directly, for as long as its address is valid.
        """
        parts, known = [], self.direct.get(name)
        with Download(known or self.address(name), start, start + size) as file:
            try:
                while part := file.read():
                    parts.append(part)
            except HubUnreachable:
                if not known:
                    raise
                self.direct.pop(name, None)  # another thread may have found out, too
                return self.read(name, start, size)
            self.direct[name] = file.found
        return b"".join(parts)

    def stamp(self, name: str) -> str:
        return self.revision


class Download:
    """A file behind an address, or a part of it, read once; goes on where a connection broke.

    HubUnreachable after five attempts without a byte. (`urllib` and no library of the Hub's: theirs
    store what they read, and ImageNet's sets have gigabytes.)
    """

    def __init__(self, address: str, start: int = 0, end: int | None = None):
        self.address, self.place, self.end, self.answer = address, start, end, None
        self.found = address  # where the address has led

    def read(self, size: int = -1) -> bytes:
        """The next bytes, at least one unless the file has ended; fewer than `size` perhaps."""
        if self.end is not None:
            left = self.end - self.place
            size = left if size < 0 else min(size, left)
            if not size:
                return b""
        pause, attempts = WAIT, 0
        while attempts < ATTEMPTS:
            if attempts:
                time.sleep(pause)
                pause *= 2
            attempts += 1
            try:
                if self.answer is None:
                    self.answer = self.request()
                part = self.answer.read(size)
                wanted = size != 0 and self.answer.length  # what the server still owes
                if part or not wanted:
                    self.place += len(part)
                    return part
                error = ConnectionError("the connection ended early")
            except urllib.error.HTTPError as refused:
                error = refused
                if refused.code == 416 and self.place:  # nothing after this place: the end
                    return b""
                if refused.code in (401, 403, 404):
                    break
                if refused.code == 429:  # too many questions: it says for how long
                    asked = refused.headers.get("Retry-After", "")
                    pause = min(float(asked), 300.0) if asked.isdecimal() else pause
            except (OSError, http.client.HTTPException) as broken:
                error = broken
            self.close()
        raise HubUnreachable(f"{self.address}: {one_line(error)}")

    def request(self):
        last = "" if self.end is None else self.end - 1
        headers = {"Range": f"bytes={self.place}-{last}"} if self.place or self.end else {}
        request = urllib.request.Request(self.address, headers=headers)
        if token := token_for(self.address):  # of private sets; not for whom the Hub sends us to
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        answer = urllib.request.urlopen(request, timeout=60)
        self.found = answer.geturl()
        if self.place and answer.status != 206:  # the whole file again: skip what is known
            left = self.place
            while left and (part := answer.read(min(left, 2**20))):
                left -= len(part)
        return answer

    def close(self):
        if self.answer is not None:
            self.answer.close()
        self.answer = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def token_for(address: str) -> str | None:
    """The user's token, if this is an address of the Hub and they are logged in."""
    from huggingface_hub import constants, get_token

    return get_token() if address.startswith(constants.ENDPOINT) else None


def is_sharded(names: set[str]) -> bool:
    """Whether files of these names are a set of the form above."""
    return CLASS_NAMES in names and any(name.endswith(f"/{COUNT}") for name in names)


def read_lines(files, name: str) -> list[str]:
    with files.open(name) as file:
        parts = []
        while part := file.read(2**20):
            parts.append(part)
    return [line.strip() for line in b"".join(parts).decode("utf-8-sig").splitlines()
            if line.strip()]


def sharded_set(files, where: str, split: str | None = None):
    """→ (iterator of (image bytes or None, class number), class names, templates or None).

    files: a FolderFiles or HubFiles. split: default "test". ValueError, in one line, for what is
    missing or wrong; a member that is no image, or has no class, comes as (None, 0).
    """
    splits = {name.split("/")[0] for name in files.names if name.endswith(f"/{COUNT}")}
    split = split or ("test" if "test" in splits else min(splits))
    if split not in splits:
        raise unknown_split(split, where, splits)
    names = read_lines(files, CLASS_NAMES)
    templates = None
    if TEMPLATES in files.names:
        templates = [line.replace("{c}", "{}") for line in read_lines(files, TEMPLATES)]
        if wrong := [line for line in templates if "{}" not in line]:
            raise ValueError(f"{where}: the template {wrong[0]!r} has no {{c}}, where the class "
                             "goes")
    count = "".join(read_lines(files, f"{split}/{COUNT}"))
    if not re.fullmatch(r"[1-9]\d{0,6}", count):
        raise ValueError(f"{where}: {split}/{COUNT} holds {count[:40]!r}; it must be a number of "
                         "shards")
    return shard_rows(files, where, split, int(count), len(names)), names, templates


def shard_rows(files, where: str, split: str, count: int, classes: int) -> Iterator[tuple]:
    """(image bytes or None, class number) of every sample of every shard."""
    for number in range(count):
        name = f"{split}/{number}.tar"
        try:
            with files.open(name) as file:
                for key, parts in samples(file):
                    yield image_and_class(parts, f"{where}, {name}, {key}", classes)
        except tarfile.TarError as error:
            raise ValueError(f"{where}: {name} is no tar file, or breaks off: {one_line(error)}"
                             ) from error
        except FileNotFoundError:
            raise ValueError(f"{where}: {split}/{COUNT} says {count} shards; {name} is missing"
                             ) from None


class Header(tarfile.TarInfo):
    """A header that is cut off or damaged is an error; `tarfile` would take it for the end."""

    @classmethod
    def fromtarfile(cls, archive):
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # the zeros with which a tar file ends
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(str(error)) from error


def samples(file) -> Iterator[tuple[str, dict[str, bytes]]]:
    """A tar file, read once → (KEY, {ending: bytes}): neighbours of one KEY belong together.

    KEY is the path up to the first dot of the file's name, as WebDataset has it.
    """
    key, parts = None, {}
    with tarfile.open(fileobj=file, mode="r|", tarinfo=Header) as archive:
        for member in archive:
            if not member.isfile() or member.size > LARGEST:
                continue
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            new = f"{folder}/{stem}" if folder else stem
            if new != key:
                if parts:
                    yield key, parts
                key, parts = new, {}
            parts[ending.lower()] = archive.extractfile(member).read()
    if parts:
        yield key, parts


def image_and_class(parts: dict[str, bytes], place: str, classes: int) -> tuple:
    """A sample's files → (image bytes or None, class number); (None, 0) for half a sample.

    ValueError for a class that has no name: then names and shards are not of one set.
    """
    image = next((parts[e] for e in parts if f".{e}" in IMAGE_SUFFIXES), None)
    label = parts.get("cls", b"").strip()
    if image is None or not re.fullmatch(rb"\d{1,9}", label):
        return None, 0
    if int(label) >= classes:
        raise ValueError(f"{place}: class {int(label)}; {CLASS_NAMES} names {classes}")
    return image, int(label)
