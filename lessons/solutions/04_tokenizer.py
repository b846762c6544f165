"""Solution 4: one step of BPE, and bytes."""

from collections import Counter
from itertools import pairwise


def merge_step(words: list[tuple[list[int], int]], new_id: int):
    """Count, choose, glue."""
    counts = Counter()
    for ids, seen in words:
        for pair in pairwise(ids):
            counts[pair] += seen
    best = min(counts, key=lambda pair: (-counts[pair], pair))  # the most frequent, then smallest
    merged = []
    for ids, seen in words:
        out, i = [], 0
        while i < len(ids):
            if tuple(ids[i:i + 2]) == best:
                out.append(new_id)
                i += 2
            else:
                out.append(ids[i])
                i += 1
        merged.append((out, seen))
    return best, merged


def to_bytes(text: str) -> list[int]:
    """A bytes object is a sequence of numbers already."""
    return list(text.encode("utf-8"))


def to_text(pieces: list[bytes]) -> str:
    """Join first, decode once: a piece alone need not be a whole letter."""
    return b"".join(pieces).decode("utf-8")
