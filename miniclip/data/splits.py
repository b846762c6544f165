"""Names of splits, and the tenth that is held out where there is only a training split."""

import hashlib
import re
from collections.abc import Iterable

SPLIT_NAMES = {"training": "train", "trn": "train", "restval": "train",
               "val": "validation", "valid": "validation", "dev": "validation",
               "testing": "test"}
WORDS = ("train", "validation", "test", *SPLIT_NAMES)
IN_A_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(WORDS, key=len, reverse=True))})(?![a-z])")


class UnknownSplit(ValueError):
    """The data have no split of that name; the message names those that there are."""


def unknown_split(split: str, where: str, found) -> UnknownSplit:
    names = ", ".join(sorted(found)) or "none"
    return UnknownSplit(f"no split {split!r} in {where}; found: {names}")


def standard(name: str) -> str:
    """"val" → "validation", "restval" → "train"; another name stays what it is."""
    return SPLIT_NAMES.get(name.lower(), name.lower())


def split_in(name: str) -> str | None:
    """The split that a file's or folder's name speaks of: "captions_val2017" → "validation"."""
    found = IN_A_NAME.search(name.lower())
    return standard(found[1]) if found else None


def held_out(names: Iterable[str]) -> set[str]:
    """A tenth of the names, at least one: which, is a matter of the names and not of their order.

    Of a single name nothing is held out.
    """
    ranked = sorted(names, key=digest)
    return set(ranked[:-(-len(ranked) // 10)]) if len(ranked) > 1 else set()


def in_held_out_tenth(content: bytes) -> bool:
    """About one in ten: for rows that stream by, and can't be ranked. Equal content, equal answer:
    an image that comes in many rows, one for each caption, is never in both parts."""
    return hashlib.sha256(content).digest()[0] < 26


def digest(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
