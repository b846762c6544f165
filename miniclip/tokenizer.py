"""Text → token ids: byte-level byte-pair encoding (BPE) with CLIP's conventions.

    "A dog's ball"  ──clean──▶  "a dog's ball"  ──words──▶  a | dog | 's | ball
        ──bytes──▶  b a l l·  ──merges──▶  b al l·  ──▶  b all·  ──▶  ball·  ──▶  one id

(`·` stands for the mark `</w>` that closes a word.) BPE starts from single bytes, so no text is
out of vocabulary. Then it repeatedly merges the two neighbours that are most often seen together.
Frequent words end up as one token; rare words stay in pieces.

Sources: Sennrich et al. 2016 (arXiv 1508.07909, section 3) for BPE on words with an end mark;
Radford et al. 2019 (GPT-2, section 2.2) for bytes as the alphabet; Radford et al. 2021 (CLIP,
section 2.4) for lower case and start and end tokens; openai/CLIP, `clip/simple_tokenizer.py`, for
every convention that decides an id. The same merges give the same ids, with one exception:
"<|endoftext|>" in a text is read as punctuation and letters, as in open_clip, not as the end token.
So no text can end itself early.
"""

from __future__ import annotations

import gzip
import heapq
import html
import json
import operator
import os
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import ftfy
import regex
import torch

from miniclip.files import write_text
from miniclip.notices import notice

CLIP_MERGES = 48_894  # CLIP's file holds more merges than CLIP uses: 49,408 ids - 512 bytes - 2
END_OF_WORD = "</w>"
SPECIALS = ("<|startoftext|>", "<|endoftext|>")
BAD_GZIP = (gzip.BadGzipFile, zlib.error, EOFError)
CACHE_LIMIT = 1 << 17  # chunks of text whose ids are kept; words take some tens of MB

# A word is the tail of an English contraction, a run of letters, one digit (so that numbers do not
# fill the vocabulary), or a run of anything else but white space. Texts are lower case by now, but
# CLIP's flag also takes "'ſ" (a long s) for "'s".
WORD = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE)
LONE = regex.compile("[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")

# Merges are kept in text files that separate symbols by spaces, so each byte needs a character that
# can be seen: the 188 printable bytes of Latin-1 stand for themselves, and the other 68 (controls,
# spaces, the soft hyphen) borrow U+0100, U+0101, … in order. CLIP numbers the bytes in this order
# too, so "!" is id 0 and "a" is id 64.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
BYTE_ORDER = PRINTABLE + sorted(set(range(256)) - set(PRINTABLE))  # id → byte
BYTE_CHARS = [chr(b) for b in PRINTABLE] + [chr(256 + n) for n in range(256 - len(PRINTABLE))]
BYTE_ID = {byte: i for i, byte in enumerate(BYTE_ORDER)}  # byte → id
BYTE_SYMBOLS = BYTE_CHARS + [char + END_OF_WORD for char in BYTE_CHARS]  # ids 0 to 511

Pair = tuple[int, int]


def clean(text: str) -> str:
    """Tidy a text as CLIP does: mend encoding, unescape HTML, fold white space, lower case.

    Raises ValueError for a lone surrogate (half of a character; UTF-8 cannot hold it) and TypeError
    for anything but a str. Source: openai/CLIP, `basic_clean`, `whitespace_clean`, `encode`.
    """
    if not isinstance(text, str):
        raise TypeError(f"a text must be a str, not {type(text).__name__}")
    # ftfy takes 20 times as long as all the rest, and has nothing to fix in printable ASCII.
    # Without "&" there is no HTML to unescape. The only white space is " ". Most captions end here.
    if text.isascii() and text.isprintable() and "&" not in text:
        return " ".join(text.lower().split())
    return clean_slowly(text)


def clean_slowly(text: str) -> str:
    """`clean` without its shortcut. A test checks that both give the same text."""
    if lone := LONE.search(text):
        raise ValueError(
            f"lone surrogate U+{ord(lone[0]):04X} at character {lone.start()}: expected valid "
            "Unicode; read the text with the right encoding, or with errors='replace'")
    text = html.unescape(html.unescape(ftfy.fix_text(text)))  # twice: the web has "&amp;lt;" too
    return " ".join(text.split()).lower()


def merge(ids: list[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each `pair` of neighbours in `ids` by `new_id`, from left to right."""
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and ids[i] == pair[0] and ids[i + 1] == pair[1]:
            out.append(new_id)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def word_to_bytes(word: str) -> list[int]:
    """The ids of a word's UTF-8 bytes, the last of them in its end-of-word form."""
    ids = [BYTE_ID[byte] for byte in word.encode("utf-8")]
    ids[-1] += 256
    return ids


def learn_merges(words: dict[str, int], count: int) -> list[str]:
    """Learn up to `count` merges, such as "th e</w>", from words and how often each is seen.

    Each step merges the pair of neighbours with the highest count. Ties go to the pair with the
    smallest ids (the older symbols), so the order of the texts does not matter. Learning stops
    early when every word is one symbol. Source: Sennrich et al. 2016, algorithm 1, with its hint
    to index the pairs instead of counting them again: a merge only visits words that hold it.
    """
    spelled = [word_to_bytes(word) for word in words]
    weights = list(words.values())
    counts: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)  # pair → words that (may) hold it
    for index, ids in enumerate(spelled):
        for pair in pairwise(ids):
            counts[pair] += weights[index]
            where[pair].add(index)
    heap = [(-seen, pair) for pair, seen in counts.items()]  # the smallest entry comes out first
    heapq.heapify(heap)

    symbols, merges = [*BYTE_SYMBOLS], []
    while heap and len(merges) < count:
        negative, best = heapq.heappop(heap)
        if counts[best] != -negative:  # an old entry: the count has changed since, and was pushed
            continue
        left, right = symbols[best[0]], symbols[best[1]]
        merges.append(f"{left} {right}")
        symbols.append(left + right)
        changed: Counter[Pair] = Counter()
        for index in where.pop(best):
            old, spelled[index] = spelled[index], merge(spelled[index], best, len(symbols) - 1)
            change = Counter(pairwise(spelled[index]))
            change.subtract(pairwise(old))
            for pair, times in change.items():
                if times:  # most pairs of a long word stay
                    changed[pair] += weights[index] * times
                    where[pair].add(index)
        for pair, times in changed.items():
            counts[pair] += times
            if times and counts[pair] > 0:
                heapq.heappush(heap, (-counts[pair], pair))
    return merges


def read_text(path: str | os.PathLike) -> str:
    """Read a UTF-8 file, gzipped or not."""
    data = Path(path).read_bytes()
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")


class Tokenizer:
    """Byte-level BPE. Ids: 256 bytes, 256 bytes that end a word, merges in order, start, end.

    Id 0 is also the padding, as in CLIP; and as the end token has the largest id, `ids.argmax(-1)`
    finds it. Attributes: `context_length`; `vocab_size` = 514 + the number of merges; `start_id`;
    `end_id` = vocab_size - 1; `symbols`, a list: id → its characters in files.
    """

    def __init__(self, merges: Iterable[str], context_length: int = 77) -> None:
        """Build from merges such as "t h" or "th e</w>", in the order in which they were learned.

        ValueError for a context too short for start, one token and end, and for a merge that is not
        two known symbols, or makes one that is known already.
        """
        if not isinstance(context_length, int) or context_length < 3:
            raise ValueError(f"context_length must be an integer from 3, not {context_length!r}")
        self.context_length = context_length
        self.symbols = [*BYTE_SYMBOLS]
        self._bytes = [bytes([b]) for b in BYTE_ORDER] + [bytes([b]) + b" " for b in BYTE_ORDER]
        self._merges: dict[Pair, int] = {}  # pair of ids → id; a lower id was learned earlier
        self._cache: dict[str, list[int]] = {}  # clean text between two spaces → ids
        ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        for number, line in enumerate(merges, 1):
            left, _, right = line.partition(" ")
            if left not in ids or right not in ids or left + right in ids:
                expected = "two known symbols that make a new one, with a space between them"
                raise ValueError(f"merge {number} is {line[:80]!r}, but must be {expected}")
            pair = ids[left], ids[right]
            ids[left + right] = self._merges[pair] = len(self.symbols)
            self.symbols.append(left + right)
            self._bytes.append(self._bytes[pair[0]] + self._bytes[pair[1]])
        self.symbols += SPECIALS
        self._bytes += [special.encode() for special in SPECIALS]
        self.vocab_size = len(self.symbols)
        self.start_id, self.end_id = self.vocab_size - 2, self.vocab_size - 1

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int, context_length: int = 77) -> Tokenizer:
        """Learn merges from texts until there are `vocab_size` ids, or nothing is left to merge.

        Ask the result for its `vocab_size`: a small corpus gives fewer ids than asked for. The
        order of the texts does not matter. ValueError for a vocab_size below 514 (bytes and
        specials alone), for no texts or none with a word, and for what `clean` refuses.
        """
        if vocab_size < 514:
            expected = "at least 514 (2 × 256 bytes, start, end)"
            raise ValueError(f"vocab_size must be {expected}, not {vocab_size}")
        if isinstance(texts, str):
            raise TypeError("texts must be a list of str, not one str")
        chunks = Counter(chunk for text in texts for chunk in clean(text).split(" "))
        words: Counter[str] = Counter()
        for chunk, seen in chunks.items():  # each distinct chunk is split once, however often seen
            for word in WORD.findall(chunk):
                words[word] += seen
        if not words:
            raise ValueError("no texts to train on: expected at least one text with a word in it")
        return cls(learn_merges(words, vocab_size - 514), context_length)

    @classmethod
    def from_clip(cls, merges_path: str | os.PathLike) -> Tokenizer:
        """CLIP's own tokenizer: 49,408 ids, context length 77.

        `merges_path` is `bpe_simple_vocab_16e6.txt.gz` of openai/CLIP, or the `merges.txt` that the
        Hugging Face Hub keeps beside CLIP models. Both start with a header line, and CLIP uses the
        first 48,894 merges. ValueError for any other file, OSError for a missing one.
        """
        try:
            header, *lines = read_text(merges_path).splitlines() or [""]
            merges = [line for line in lines[:CLIP_MERGES] if line]
            if "#version" not in header or len(merges) != CLIP_MERGES:
                raise ValueError(f"{len(merges):,} merges after a first line {header[:60]!r}")
            return cls(merges, 77)
        except (ValueError, *BAD_GZIP) as error:
            expected = f"a header line with '#version' and {CLIP_MERGES:,} merges, perhaps gzipped"
            raise ValueError(f"{merges_path}: expected {expected}; found: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike) -> Tokenizer:
        """Read what `save` wrote. ValueError for any other file, OSError for a missing one."""
        try:
            saved = json.loads(read_text(path))
            if saved["version"] != 1:
                raise ValueError(f"version {saved['version']!r}")
            return cls(saved["merges"], saved["context_length"])
        except (ValueError, KeyError, TypeError, AttributeError, *BAD_GZIP) as error:
            expected = "a tokenizer in JSON (version 1, context_length, merges)"
            raise ValueError(f"{path}: expected {expected}; found: {error!r}") from error

    def save(self, path: str | os.PathLike) -> None:
        """Write version, context_length and merges as JSON, completely or not at all."""
        merges = [" ".join(self.symbols[i] for i in pair) for pair in self._merges]
        saved = {"version": 1, "context_length": self.context_length, "merges": merges}
        text = json.dumps(saved, ensure_ascii=False, indent=1)  # one merge a line
        write_text(Path(path), text + "\n")

    def _encode_word(self, word: str) -> list[int]:
        """A word's ids: merge the earliest-learned pair of neighbours until no pair is known."""
        ids = word_to_bytes(word)
        while len(ids) > 1:
            pair = min(pairwise(ids), key=lambda pair: self._merges.get(pair, self.vocab_size))
            if pair not in self._merges:
                break
            ids = merge(ids, pair, self._merges[pair])
        return ids

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without start and end, and not truncated. Errors: see `clean`."""
        ids: list[int] = []
        for chunk in clean(text).split(" "):  # no word holds a space, so chunks may be cached whole
            known = self._cache.get(chunk)
            if known is None:
                known = [i for word in WORD.findall(chunk) for i in self._encode_word(word)]
                if len(self._cache) >= CACHE_LIMIT:
                    self._cache.clear()
                self._cache[chunk] = known
            ids += known
        return ids

    def __call__(self, texts: str | list[str], tell: bool = True) -> torch.Tensor:
        """Tokens for the text tower: int64 (B, context_length), one row for each text.

        A row is start, the ids, end, and then zeros. A text that is too long is truncated, but
        keeps its end token; a notice says how many are, if `tell`. One str counts as a list of one.
        """
        texts = [texts] if isinstance(texts, str) else texts
        truncated = 0
        tokens = torch.zeros(len(texts), self.context_length, dtype=torch.int64)  # (B, L)
        rows = tokens.numpy()  # the same memory: NumPy fills short rows several times as fast
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)
            truncated += len(ids) > self.context_length - 2
            ids = ids[: self.context_length - 2]
            row[: len(ids) + 2] = [self.start_id, *ids, self.end_id]
        if truncated and tell:
            notice(f"{truncated:,} of {len(texts):,} texts are longer than the model's "
                   f"{self.context_length} tokens: the rest of each is cut off")
        return tokens

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids (a list, or an integer tensor of one row), each word followed by a space.

        Nothing is dropped, as in CLIP: start and end appear as `<|startoftext|>`, `<|endoftext|>`,
        and padding as "!", id 0. Cut a row at its `end_id` to drop end and padding. Bytes that are
        not UTF-8 (part of a character) appear as U+FFFD. ValueError for an id out of range.
        """
        ids = [operator.index(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(f"id {i} is out of range: expected 0 to {self.vocab_size - 1}")
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", errors="replace")
