"""Damaged and odd bytes of every kind: each is counted, told or refused in one line.

A few hundred here; `make faults` takes as many as README says (MINICLIP_FUZZ, a factor).
"""

import io
import json
import os
import random
import tarfile
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_data import encoded, noise, picture

from miniclip.data import streamed
from miniclip.data.caption_files import read_caption_file
from miniclip.data.images import decode
from miniclip.tokenizer import Tokenizer

TIMES = int(os.environ.get("MINICLIP_FUZZ", 1))
OFTEN = settings(max_examples=100 * TIMES, deadline=None, database=None, derandomize=True,
                 suppress_health_check=list(HealthCheck))
TOKENIZER = Tokenizer.train(["a dog in the snow", "two dogs"], 600, 16)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The same with bytes changed, cut out, doubled or cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        if not content:
            break
        place, kind = rng.randrange(len(content)), rng.randrange(5)
        if kind < 2:
            content[place] = rng.randrange(256)
        elif kind == 2:
            content[place] ^= 1 << rng.randrange(8)
        elif kind == 3:
            del content[place:place + rng.randrange(1, 40)]
        else:
            content[place:place] = content[place:place + rng.randrange(1, 40)]
    return bytes(content[:rng.randrange(len(content) + 1)] if rng.random() < 0.1 else content)


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind, options", [
    ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}),
    ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("GIF", {}), ("BMP", {})], ids=str)
def test_damaged_images(kind, options):
    """Pixels of the right shape, or none and a reason; never an exception, never a crash."""
    whole, rng = encoded(noise(), kind, **options), random.Random(6)
    reasons = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(60 * TIMES):
            pixels, why = decode(damaged(whole, rng), 16)
            if pixels is None:
                assert why in ("truncated", "unreadable", "too large")
            else:
                assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
            reasons.add(why)
    assert len(reasons) > 1 or kind in ("BMP", "GIF")


@pytest.mark.slow
@pytest.mark.timeout(0)
@OFTEN
@given(st.text())
def test_any_text(text):
    """Tokens of the right shape that begin, end and are padded as they should."""
    tokens = TOKENIZER(text, tell=False)[0]
    end = int(tokens.argmax())
    assert tokens.shape == (16,) and tokens[0] == TOKENIZER.start_id
    assert tokens[end] == TOKENIZER.end_id and not tokens[end + 1:].any()
    TOKENIZER.decode(tokens[:end + 1].tolist())


@pytest.mark.slow
@pytest.mark.timeout(0)
@OFTEN
@given(st.binary(), st.sampled_from(("txt", "json", "cls")))
def test_any_bytes_as_captions_in_a_shard(content, ending):
    for text in streamed.captions_in(content, ending, "here", ["dog", "cat"]):
        assert text == text.strip() and text and "\n" not in text


JSONS = st.recursive(st.none() | st.booleans() | st.floats() | st.text(),
                     lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=9)


@pytest.mark.slow
@pytest.mark.timeout(0)
@OFTEN
@given(st.dictionaries(st.sampled_from(("caption", "text", "x")), JSONS) | JSONS)
def test_any_json_as_captions_in_a_shard(value):
    for text in streamed.captions_in(json.dumps(value).encode(), "json", "here", []):
        assert isinstance(text, str) and text


@pytest.mark.slow
@pytest.mark.timeout(0)
@OFTEN
@given(content=st.text().map(lambda text: text.encode("utf-8", "replace")) | st.binary(),
       ending=st.sampled_from((".csv", ".tsv", ".txt", ".jsonl", ".json")))
def test_any_caption_file(content, ending, tmp_path_factory):
    """Rows, or ValueError in one line."""
    path = tmp_path_factory.getbasetemp() / f"captions{ending}"
    path.write_bytes(content)
    try:
        read_caption_file(path)
    except ValueError as error:
        assert "\n" not in str(error) and str(error)


def tar_of(count=3) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i in range(count):
            for ending, content in (("jpg", encoded(picture(i), "JPEG")), ("txt", b"a caption")):
                info = tarfile.TarInfo(f"{i}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_damaged_tar_headers(tmp_path):
    """An index whose places lie within the file, or ValueError in one line."""
    whole, rng, path = tar_of(), random.Random(7), tmp_path / "a.tar"
    places = [i for i in range(0, len(whole), 512)
              if whole[i + 257:i + 262] == b"ustar"]  # where headers begin
    refused = 0
    for _ in range(200 * TIMES):
        content = bytearray(whole)
        header = rng.choice(places)
        for _ in range(rng.choice((1, 2, 20))):
            content[header + rng.randrange(512)] = rng.randrange(256)
        if rng.random() < 0.7:  # with a sum that fits, so that the damage is believed
            block = content[header:header + 512]
            block[148:156] = b" " * 8
            content[header + 148:header + 156] = b"%06o\0 " % (sum(block) % 8**6)
        path.write_bytes(content)
        try:
            with open(path, "rb") as file:
                arrays, _ = streamed.index(file, "a.tar", [])
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error) and str(error).startswith("a.tar")
        else:
            assert (arrays["starts"] >= 0).all() and (arrays["sizes"] >= 0).all()
            assert (arrays["starts"] + arrays["sizes"] <= len(content)).all()
    assert 0 < refused < 200 * TIMES
