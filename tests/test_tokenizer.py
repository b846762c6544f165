"""Tests of miniclip/tokenizer.py: ids against CLIP's, training against naive counts, hard texts."""

import gzip
import html
import json
import os
import random
import unicodedata
from collections import Counter
from pathlib import Path

import ftfy
import pytest
import torch
from hard_texts import CAPTIONS, HARD_TEXTS, PIECES
from hypothesis import given, settings
from hypothesis import strategies as st

from miniclip import tokenizer as module
from miniclip.tokenizer import Tokenizer, clean, clean_slowly

SENNRICH = ["low"] * 5 + ["lower"] * 2 + ["newest"] * 6 + ["widest"] * 3  # section 3's words

messy_text = st.lists(st.sampled_from(PIECES) | st.text(max_size=6), max_size=8).map("".join)
same_each_time = settings(deadline=None, derandomize=True, max_examples=300)


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.train(CAPTIONS, 620, context_length=16)


@pytest.fixture(scope="module")
def merges_path() -> Path:
    path = os.environ.get("MINICLIP_CLIP_MERGES")
    if not path or not Path(path).is_file():
        pytest.skip("CLIP's merges are not here: set MINICLIP_CLIP_MERGES to openai/CLIP's .gz")
    return Path(path)


@pytest.fixture(scope="module")
def clip(merges_path: Path) -> Tokenizer:
    return Tokenizer.from_clip(merges_path)


# --- an independent tokenizer, as naive as can be: no regex, no ids, no ranks, no cache ----------


TAILS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'ſ")


def naive_words(text: str) -> list[str]:
    """Split a clean text by looking at one character after the other."""

    def kind(char: str) -> str:
        general = "Z" if char.isspace() else unicodedata.category(char)[0]
        return {"Z": "space", "L": "letter", "N": "number"}.get(general, "other")

    words, i = [], 0
    while i < len(text):
        tails = [tail for tail in TAILS if text.startswith(tail, i)]
        j = i + 1
        if tails:
            j = i + len(tails[0])
        elif kind(text[i]) in ("letter", "other"):
            while j < len(text) and kind(text[j]) == kind(text[i]):
                j += 1
        if not text[i].isspace():
            words.append(text[i:j])
        i = j
    return words


def naive_split(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Apply all merges in the order in which they were learned: the definition of BPE."""
    chars = dict(zip(module.BYTE_ORDER, module.BYTE_CHARS, strict=True))
    parts = [chars[byte] for byte in word.encode("utf-8")]
    parts[-1] += "</w>"
    for left, right in merges:
        i = 0
        while left in parts and i < len(parts) - 1:
            if parts[i] == left and parts[i + 1] == right:
                parts[i : i + 2] = [left + right]
            i += 1
    return parts


def naive_encode(text: str, tokenizer: Tokenizer, merges: list[tuple[str, str]]) -> list[int]:
    text = html.unescape(html.unescape(ftfy.fix_text(text))).strip().lower()
    parts = [part for word in naive_words(text) for part in naive_split(word, merges)]
    return [tokenizer.symbols.index(part) for part in parts]


def naive_train(texts: list[str], count: int) -> list[tuple[str, str]]:
    """Count all pairs anew before each merge."""
    merges: list[tuple[str, str]] = []
    order = {s: i for i, s in enumerate(Tokenizer([]).symbols)}
    while len(merges) < count:
        pairs: Counter[tuple[str, str]] = Counter()
        for text in texts:
            for word in naive_words(text):
                parts = naive_split(word, merges)
                pairs.update(zip(parts, parts[1:], strict=False))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], order[pair[0]], order[pair[1]]))
        merges.append(best)
        order["".join(best)] = 512 + len(merges)
    return merges


def merges_of(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    symbols = tokenizer.symbols
    return [(symbols[left], symbols[right]) for left, right in tokenizer._merges]


# --- CLIP's own merges ---------------------------------------------------------------------------


def test_golden_ids(clip: Tokenizer, merges_path: Path) -> None:
    golden_path = merges_path.with_name("golden.json")
    if not golden_path.is_file():
        pytest.skip("golden.json is not beside CLIP's merges")
    golden = json.loads(golden_path.read_text(encoding="utf-8"))
    assert len(golden) > 10
    for case in golden:
        assert clip(case["text"]).tolist() == [case["ids"]], case["text"]


def test_known_ids(clip: Tokenizer) -> None:
    """The ids of openai/CLIP's README example, and its special tokens."""
    assert (clip.vocab_size, clip.start_id, clip.end_id) == (49408, 49406, 49407)
    assert clip.context_length == 77
    row = clip("a diagram")
    assert row.shape == (1, 77) and row.dtype == torch.int64
    assert row[0, :5].tolist() == [49406, 320, 22697, 49407, 0]
    assert clip.symbols[0] == "!" and clip.symbols[64] == "a" and clip.symbols[320] == "a</w>"


@pytest.mark.slow
def test_ids_equal_naive_clip(clip: Tokenizer) -> None:
    assert len(set(merges_of(clip))) == 48_894
    for text in HARD_TEXTS:
        assert clip.encode(text) == naive_encode(text, clip, merges_of(clip)), repr(text)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_plain_merges(clip: Tokenizer, merges_path: Path, tmp_path: Path, newline: str) -> None:
    """The merges.txt of the Hub: another header, only the merges in use, not gzipped."""
    lines = gzip.decompress(merges_path.read_bytes()).decode("utf-8").split("\n")
    text = newline.join(["#version: 0.2", *lines[1:48_895], ""])
    (tmp_path / "merges.txt").write_bytes(text.encode("utf-8"))
    assert Tokenizer.from_clip(tmp_path / "merges.txt").symbols == clip.symbols


# --- cleaning ------------------------------------------------------------------------------------


def test_shortcut_equals_slow_path_for_all_short_ascii() -> None:
    ascii_chars = [chr(i) for i in range(128)]
    for first in ascii_chars:
        for second in ascii_chars:
            text = f"x{first}{second}Y"
            assert clean(text) == clean_slowly(text), repr(text)


@same_each_time
@given(messy_text | st.text(st.characters(max_codepoint=127)))
def test_shortcut_equals_slow_path(text: str) -> None:
    assert clean(text) == clean_slowly(text)


def test_shortcut_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "clean_slowly", lambda text: pytest.fail(f"slow: {text!r}"))
    assert clean("  A dog's  Ball;<b> `~ ") == "a dog's ball;<b> `~"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  A\tB\r\n\u3000C\xa0 ", "a b c"),
        ("a\x0bb\x00c\x1b[31md", "abcd"),  # ftfy removes control characters
        ("&amp;lt;B&amp;gt; &amp; &#39;", "<b> & '"),
        ("<b>&amp;lt;", "<b><"),  # ftfy leaves a text with "<" alone: this needs both rounds
        ("â€œschÃ¶nâ€\x9d", '"schön"'),
        ("ﬁsh ＤＯＧ “x”", 'fish dog "x"'),
        ("e\u0301", "\xe9"),
        ("\ud83d\ude00", "😀"),  # a whole surrogate pair means a character, and ftfy joins it
    ],
)
def test_clean(text: str, expected: str) -> None:
    assert clean(text) == expected


@pytest.mark.parametrize(
    ("text", "at"), [("\ud800", 0), ("ab \udc00", 3), ("😀\ud83d.", 1), ("\ud83d\ude00\ude00", 2)]
)
def test_lone_surrogate(small: Tokenizer, text: str, at: int) -> None:
    for use in (clean, small.encode, small, lambda text: Tokenizer.train(["a", text], 600)):
        with pytest.raises(ValueError, match=rf"lone surrogate U\+D.* at character {at}: "):
            use(text)


@pytest.mark.parametrize("text", [None, 3, b"dog"])
def test_not_a_text(small: Tokenizer, text: object) -> None:
    with pytest.raises(TypeError, match="must be a str, not"):
        small([text])


# --- encode, decode, tensors ---------------------------------------------------------------------


@same_each_time
@given(text=messy_text)
def test_round_trip(small: Tokenizer, text: str) -> None:
    """Decoding gives the clean text back, but for white space (each word is followed by one).

    The comparison is with clean(text), not with the text: case, odd quotes and the like are lost on
    purpose. Nor is the decoded text cleaned again: ftfy and two rounds of HTML unescaping are not
    idempotent ("&amp;amp;amp;amp;" shrinks every time). Names of special tokens in a text need no
    exception: they are encoded as the characters that they are.
    """
    ids = small.encode(text)
    assert all(0 <= i < small.start_id for i in ids)
    assert "".join(small.decode(ids).split()) == "".join(clean(text).split())


@same_each_time
@given(text=messy_text)
def test_rows(small: Tokenizer, text: str) -> None:
    """Start, ids, end, zeros; a long text loses its tail but never the end token."""
    ids = small.encode(text)[:14]
    expected = [small.start_id, *ids, small.end_id] + [0] * (14 - len(ids))
    assert small(text).tolist() == [expected]
    assert small(text)[0].argmax() == len(ids) + 1


def test_truncation_keeps_the_end(small: Tokenizer) -> None:
    row = small("dog " * 40)[0]
    assert len(row) == 16 and row[-1] == small.end_id and row[0] == small.start_id
    assert row[1:-1].tolist() == small.encode("dog " * 14)
    short = Tokenizer([], context_length=3)
    assert short(["", "a", "ab"]).tolist() == [[512, 513, 0], [512, 320, 513], [512, 64, 513]]


def test_call_takes_one_text_or_many(small: Tokenizer) -> None:
    rows = small(CAPTIONS)
    assert rows.shape == (len(CAPTIONS), 16) and rows.dtype == torch.int64
    for row, text in zip(rows, CAPTIONS, strict=True):
        assert torch.equal(row[None], small(text)) and torch.equal(row[None], small([text]))
    assert small([]).shape == (0, 16)


def test_texts_cannot_name_special_tokens(small: Tokenizer) -> None:
    ids = small.encode("<|endoftext|> <|startoftext|>")
    assert not {small.start_id, small.end_id} & set(ids)
    assert small.decode(ids) == "<| endoftext |> <| startoftext |> "


def test_decode(small: Tokenizer) -> None:
    row = Tokenizer([], context_length=8)("a b")[0]  # a tensor will do; nothing is left out
    assert Tokenizer([]).decode(row) == "<|startoftext|>a b <|endoftext|>!!!!"
    assert small.decode([]) == ""
    part = Tokenizer([]).encode("é")  # two bytes: 0xc3, 0xa9
    assert len(part) == 2 and small.decode(part) == "é " and small.decode(part[:1]) == "\ufffd"
    for wrong in (-1, small.vocab_size):
        with pytest.raises(ValueError, match=rf"id {wrong} is out of range: expected 0 to"):
            small.decode([0, wrong])
    with pytest.raises(TypeError):
        small.decode([1.5])


def test_ids_equal_naive(small: Tokenizer) -> None:
    """As with CLIP's merges above, but always run."""
    for text in HARD_TEXTS:
        assert small.encode(text) == naive_encode(text, small, merges_of(small)), repr(text)


def test_cache_changes_nothing(small: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = Tokenizer.train(CAPTIONS, 620, context_length=16)
    fresh.encode("dog").clear()  # the caller's list is the caller's: the cache must not see this
    assert fresh.encode("dog") == small.encode("dog") != []
    cold = [fresh.encode(text) for text in CAPTIONS]
    monkeypatch.setattr(module, "CACHE_LIMIT", 4)
    bounded = Tokenizer.train(CAPTIONS, 620, context_length=16)
    assert cold == [small.encode(t) for t in CAPTIONS] == [bounded.encode(t) for t in CAPTIONS]
    assert len(bounded._cache) <= 4 < len(fresh._cache)


# --- training ------------------------------------------------------------------------------------


def test_first_merges_by_hand() -> None:
    """Sennrich's words, worked out on paper: low 5, lower 2, newest 6, widest 3.

    e+s and s+t· are both seen 9 times, and e has the smaller id, so it goes first; then es+t· (9),
    l+o (7), and e+w (6) before n+e and w+est· (6 too), because e < n < w. And so on.
    """
    trained = Tokenizer.train(SENNRICH, 1000)
    assert [f"{left} {right}" for left, right in merges_of(trained)] == [
        "e s", "es t</w>", "l o", "e w", "n ew", "new est</w>", "lo w</w>",
        "d est</w>", "i dest</w>", "w idest</w>", "e r</w>", "w er</w>", "lo wer</w>",
    ]  # fmt: skip
    assert trained.vocab_size == 514 + 13  # every word is one token: nothing is left to merge
    assert (trained.start_id, trained.end_id) == (525, 526)
    assert trained.encode("newest slow") == [517, 82, 518]
    assert Tokenizer.train(SENNRICH, 516).symbols[512:514] == ["es", "est</w>"]


@same_each_time
@given(st.lists(st.text("ab' ", max_size=12), min_size=1, max_size=6))
def test_training_equals_naive(texts: list[str]) -> None:
    """Two letters make overlapping pairs (aaaa), the hard case of counting as one goes."""
    texts = [*texts, "ab"]
    assert merges_of(Tokenizer.train(texts, 514 + 12)) == naive_train(texts, 12)


def test_training_is_deterministic_in_any_order() -> None:
    texts = CAPTIONS * 3
    first = Tokenizer.train(texts, 620)
    random.Random(0).shuffle(texts)
    assert first.vocab_size == 620
    assert first.symbols == Tokenizer.train(iter(texts), 620).symbols
    shorter = Tokenizer.train(texts, 560)  # fewer merges are the first of more merges
    assert merges_of(shorter) == merges_of(first)[: 560 - 514]


def test_training_errors() -> None:
    with pytest.raises(ValueError, match=r"vocab_size must be at least 514 .*, not 513"):
        Tokenizer.train(CAPTIONS, 513)
    for texts in ([], [""], [" ", "\n"]):
        with pytest.raises(ValueError, match="no texts to train on"):
            Tokenizer.train(texts, 600)
    with pytest.raises(ValueError, match="context_length must be an integer from 3, not 2"):
        Tokenizer.train(CAPTIONS, 600, context_length=2)
    with pytest.raises(TypeError, match="not one str"):
        Tokenizer.train("a dog", 600)
    assert Tokenizer.train(CAPTIONS, 514).vocab_size == 514  # bytes alone are a vocabulary


# --- files ---------------------------------------------------------------------------------------


def test_save_and_load(small: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    small.save(path)
    loaded = Tokenizer.load(str(path))
    assert loaded.symbols == small.symbols and loaded.context_length == 16
    assert torch.equal(loaded(CAPTIONS), small(CAPTIONS))
    saved = json.loads(path.read_text(encoding="utf-8"))
    assert list(saved) == ["version", "context_length", "merges"]
    assert len(saved["merges"]) == small.vocab_size - 514
    assert [p.name for p in tmp_path.iterdir()] == ["tokenizer.json"]


def test_failed_save_leaves_the_old_file(
    small: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        small.save(path)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_missing_files(tmp_path: Path) -> None:
    for read in (Tokenizer.load, Tokenizer.from_clip):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nothing")


GOOD = {"version": 1, "context_length": 16, "merges": ["t h", "th e</w>"]}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "JSONDecodeError"),
        (b"{", "JSONDecodeError"),
        (b"\xff\xfe", "UnicodeDecodeError"),
        (b"\x1f\x8b no gzip", "BadGzipFile"),
        (b"[]", "TypeError"),
        (b"3", "TypeError"),
        ({"model": 1}, "KeyError.*version"),
        ({"version": 1, "merges": []}, "KeyError.*context_length"),
        ({**GOOD, "version": 2}, "version 2"),
        ({**GOOD, "context_length": "16"}, "an integer from 3, not '16'"),
        ({**GOOD, "context_length": True}, "an integer from 3, not True"),
        ({**GOOD, "context_length": 16.0}, "an integer from 3, not 16.0"),
        ({**GOOD, "context_length": 2}, "an integer from 3, not 2"),
        ({**GOOD, "merges": "t h"}, "merge 1 is 't', but must be two known symbols"),
        ({**GOOD, "merges": None}, "TypeError"),
        ({**GOOD, "merges": [["t", "h"]]}, "AttributeError"),
        ({**GOOD, "merges": ["t h", "th"]}, "merge 2 is 'th', but must be two known symbols"),
        ({**GOOD, "merges": ["th e</w>"]}, "merge 1 is 'th e</w>'"),
        ({**GOOD, "merges": ["t h", "t h"]}, "merge 2 is 't h'"),
        ({**GOOD, "merges": ["t h e"]}, "merge 1 is 't h e'"),
    ],
)
def test_malformed_json(tmp_path: Path, content: bytes | dict, found: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(
        ValueError, match=rf"expected a tokenizer in JSON .*; found: .*{found}"
    ) as e:
        Tokenizer.load(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)
    path.write_text(json.dumps(GOOD))
    assert Tokenizer.load(path).vocab_size == 516  # the same file, mended


MANY = "\n".join(["t h"] * 48_894)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "0 merges after a first line ''"),
        (b"#version: 0.2\nt h\n", "1 merges after a first line '#version: 0.2'"),
        (MANY.encode(), "48,893 merges after a first line 't h'"),
        (f"t h\n{MANY}".encode(), "48,894 merges after a first line 't h'"),
        (f"#version: 0.2\n{MANY}".encode(), "merge 2 is 't h', but must be two known symbols"),
        (gzip.compress(b"#version: 0.2\n" * 99, mtime=0)[:-12], "Compressed file ended"),
        (b"\x1f\x8b not gzip at all", "Unknown compression method"),
        (b"\xff\xfe", "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_malformed_merges(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "merges.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"expected .* 48,894 merges.*; found: {found}") as e:
        Tokenizer.from_clip(path)
    assert str(e.value).startswith(f"{path}: ") and "\n" not in str(e.value)
