"""Tests of miniclip/data.py: every source, every broken image, the cache, and the batches."""

import http.server
import io
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from miniclip import data
from miniclip.config import TrainConfig
from miniclip.data import (
    HUB_DEFAULT,
    MEAN,
    STD,
    Batches,
    HubUnreachable,
    Pairs,
    Source,
    Transform,
    augment,
    decode,
    drop_words,
    fit,
    load_pairs,
    normalize,
)

SIZE = 16


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setenv("MINICLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def colour(i: int) -> tuple[int, int, int]:
    """Image i is of one colour, so that an image that changed places is seen."""
    return (37 * i % 256, (91 * i + 40) % 256, (151 * i + 80) % 256)


def picture(i: int, width=40, height=30) -> Image.Image:
    return Image.new("RGB", (width, height), colour(i))


def noise(width=60, height=40, channels=3) -> Image.Image:
    """An image that does not compress, so that cutting its file cuts pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    return Image.fromarray(pixels.squeeze())


def encoded(image: Image.Image, format="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def texts(i: int, count=5) -> list[str]:
    return [f"caption {k} of image {i}" for k in range(count)]


def write_shard(path: Path, ids, images=None, captions=None):
    """Parquet as the Hub has it: image struct<bytes, path>, caption_0 … caption_4."""
    images = images or [encoded(picture(i)) for i in ids]
    captions = captions or [texts(i) for i in ids]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [image and {"bytes": image, "path": f"{i}.png"} for i, image in zip(ids, images)]
    columns = {f"caption_{k}": list(column) for k, column in enumerate(zip(*captions))}
    pq.write_table(pa.table({"image": pa.array(rows, kind), **columns}), path)


def write_images(folder: Path, ids):
    folder.mkdir(exist_ok=True)
    for i in ids:
        (folder / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))


def write_csv(path: Path, ids, count=5):
    """Several rows an image, image by image in every round, as shuffled files have them."""
    rows = [f'{i}.jpg,"{text}, in colour"' for k in range(count) for i in ids
            for text in [texts(i)[k]]]
    path.write_text("\n".join(["image,caption", *rows]) + "\n", encoding="utf-8")


def check_pairs(pairs: Pairs, ids, captions=texts):
    """The right pixels with the right captions, in this order."""
    assert len(pairs) == len(ids) and pairs.images.shape == (len(ids), SIZE, SIZE, 3)
    assert pairs.images.dtype == np.uint8
    for image, found, i in zip(pairs.images, pairs.captions, ids, strict=True):
        assert np.abs(image.astype(int) - colour(i)).max() < 8, f"image {i}"
        assert found == captions(i)


def load(where, split="train", limit=0) -> Pairs:
    return load_pairs(Source.find(str(where)), split, SIZE, limit)


# ------------------------------------------------------------------------------- four sources


def test_parquet_shards_as_the_hub_has_them(folder):
    write_shard(folder / "train-00000-of-00002.parquet", range(5))
    write_shard(folder / "train-00001-of-00002.parquet", range(5, 8))
    write_shard(folder / "val-00000-of-00001.parquet", [8, 9])
    assert Source.find(str(folder)).kind == "parquet"
    pairs = load(folder)
    check_pairs(pairs, range(8))
    assert pairs.summary == "8 images, 40 captions"
    assert pairs.name == f"{folder}:train"
    check_pairs(load(folder, "validation"), [8, 9])  # "val" is one of its names
    check_pairs(load(folder, "dev"), [8, 9])


@pytest.mark.parametrize("names", [["caption"], ["caption_0", "caption_1"]])
def test_parquet_with_other_numbers_of_captions_and_gaps(folder, names):
    write_shard(folder / "train.parquet", range(4), captions=[
        ["a dog"] * len(names), [" a cat\n"] * len(names), [None] * len(names), [""] * len(names)])
    table = pq.read_table(folder / "train.parquet")
    pq.write_table(table.rename_columns(["image", *names]), folder / "train.parquet")
    pairs = load(folder)
    assert pairs.captions == [["a dog"] * len(names), ["a cat"] * len(names)]
    assert pairs.summary.endswith("; skipped 2: without a caption")


@pytest.mark.parametrize("where", ["", "images", "Images", "Flicker8k_Dataset"])
@pytest.mark.parametrize("file", ["captions.csv", "captions.txt"])
def test_images_with_a_table_of_captions(folder, where, file):
    """captions.txt with Images/ is how Kaggle hands Flickr8k out."""
    write_images(folder / where, range(10))
    write_csv(folder / file, range(10))
    assert Source.find(str(folder)).kind == "folder"
    check_pairs(load(folder, "all"), range(10), lambda i: [f"{t}, in colour" for t in texts(i)])


def test_without_lists_a_fixed_tenth_is_validation(folder):
    write_images(folder / "Images", range(25))
    write_csv(folder / "captions.txt", range(25), count=2)

    def ids(split):
        return [int(captions[0].split()[4].strip(",")) for captions in load(folder, split).captions]

    train, validation = ids("train"), ids("validation")
    assert len(validation) == 3 and sorted(train + validation) == list(range(25))
    write_csv(folder / "captions.txt", reversed(range(25)), count=2)  # the order is no matter
    assert sorted(ids("validation")) == sorted(validation)


def test_the_original_flickr8k(folder):
    write_images(folder / "Flicker8k_Dataset", range(9))
    rows = [f"{i}.jpg#{k}\t{text}" for i in range(9) for k, text in enumerate(texts(i))]
    rows += ["9.jpg.1#0\ta row of the original whose image never existed ."]
    (folder / "Flickr8k.token.txt").write_text("\n".join(rows) + "\n")
    for stem, ids in (("train", [4, 2, 0, 1, 3]), ("dev", [6, 5]), ("test", [7, 8])):
        names = "".join(f"{i}.jpg\n" for i in ids)
        (folder / f"Flickr_8k.{stem}Images.txt").write_text(names)
    check_pairs(load(folder), [4, 2, 0, 1, 3])
    check_pairs(load(folder, "validation"), [6, 5])
    check_pairs(load(folder, "test"), [7, 8])
    assert load(folder, "all").summary == "9 images, 45 captions; skipped 1: missing"


def test_the_built_in_scenes(monkeypatch):
    monkeypatch.setattr(data, "SHAPES_SPLITS", {"train": (12, 1), "validation": (5, 2)})
    source = Source.find("shapes")
    pairs = load_pairs(source, "train", 64)
    images, captions, _ = data.shapes.generate(12, 1)
    assert (pairs.images == images).all() and pairs.captions == captions
    small = load_pairs(source, "train", 32, 3)
    assert (small.images == fit(images[:3], 32)).all() and small.images.shape == (3, 32, 32, 3)
    assert load_pairs(source, "validation", 64).captions == data.shapes.generate(5, 2)[1]


def test_the_splits_of_the_scenes_have_seeds_of_their_own():
    seeds = [seed for _, seed in data.SHAPES_SPLITS.values()]
    assert len(set(seeds)) == len(seeds) == 3


# ------------------------------------------------------------------------------- which source


def test_shapes_before_a_path_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("shapes").mkdir()
    assert Source.find("shapes") == Source("shapes", "shapes")
    assert Source.find("./shapes") == Source("folder", str(tmp_path / "shapes"))
    assert Source.find("me/photos") == Source("hub", "me/photos")
    Path("me/photos").mkdir(parents=True)
    assert Source.find("me/photos") == Source("folder", str(tmp_path / "me/photos"))
    Path("me/photos/train.parquet").touch()
    assert Source.find("me/photos").kind == "parquet"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Source.find("~/me/photos") == Source.find("me/photos")


def test_the_environment_speaks_when_data_does_not(tmp_path, monkeypatch):
    assert Source.find() == Source.find("") == Source("hub", HUB_DEFAULT, explicit=False)
    monkeypatch.setenv("MINICLIP_DATA", str(tmp_path))
    assert Source.find() == Source("folder", str(tmp_path), explicit=True)
    assert Source.find("shapes").kind == "shapes"
    monkeypatch.setenv("MINICLIP_DATA", "shapes")
    assert Source.find(None).kind == "shapes"
    monkeypatch.setenv("MINICLIP_DATA", "")
    assert not Source.find().explicit


@pytest.mark.parametrize("text", [
    "nowhere", "/no/such/folder", "./a/b", "a/b/c", "a b/c", "-", "a/", "https://a.b/c"])
def test_what_is_no_source_is_named(text):
    with pytest.raises(ValueError, match="no such folder; give 'shapes', a folder or") as error:
        Source.find(text)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "captions.csv").touch()
    with pytest.raises(ValueError, match="is a file; name the folder"):
        Source.find(str(tmp_path / "captions.csv"))


# ------------------------------------------------------------------------------- sources gone wrong


def shard(columns):
    return lambda folder: pq.write_table(pa.table(columns), folder / "train-0-of-1.parquet")


def files(**contents):
    def write(folder):
        write_images(folder, range(3))
        for name, content in contents.items():
            content = content.encode() if isinstance(content, str) else content
            (folder / name.replace("__", ".")).write_bytes(content)
    return write


TABLE = "image,caption\n0.jpg,a dog\n1.jpg,a cat\n2.jpg,a bird\n"
PNG = encoded(picture(0))


@pytest.mark.parametrize("write, split, words", [
    # parquet
    (shard({"caption_0": ["a"]}), "train", "needs the columns image.*; found: caption_0"),
    (shard({"image": [PNG], "text": ["a"]}), "train", "caption_0.*; found: image, text"),
    (shard({"image": [PNG], "caption_x": ["a"]}), "train", "found: image, caption_x"),
    (shard({"image": [PNG], "caption": ["a"]}), "test", "no split 'test' in .*; found: train"),
    (shard({"image": [PNG], "caption": [["a", "b"]]}), "train", r"must be text; .*\['a', 'b'\]"),
    (shard({"image": [PNG], "caption": [7]}), "train", "must be text; found in row 0: 7"),
    (shard({"image": [1], "caption": ["a"]}), "train", "train, can't be read: .*int64"),
    (shard({"image": [PNG][:0], "caption": ["a"][:0]}), "train", "train"),
    (shard({"image": ["0.jpg"], "caption": ["a"]}), "train", r"skipped 1: missing\)"),
    (files(train__parquet="no parquet"), "train", "data, train, can't be read: .*Parquet"),
    (files(train__parquet=b""), "train", "data, train, can't be read: .*0 bytes"),
    # a folder
    (files(), "train", r"needs \*.parquet or one of captions.csv.*; found: 0.jpg, 1.jpg, 2.jpg"),
    (files(captions__csv=""), "train", "must begin with the header .*; found: an empty file"),
    (files(captions__csv="\n\n"), "train", "header image,caption; found: an empty file"),
    (files(captions__csv="image,caption\n"), "train", "captions.csv holds no captions"),
    (files(captions__txt="0.jpg,a dog\n1.jpg,a cat"), "train", "found: 0.jpg,a dog"),
    (files(captions__txt="picture,text\n0.jpg,a"), "train", "found: picture,text"),
    (files(captions__csv="image;caption\n0.jpg;a"), "train", "found: image;caption"),
    (files(captions__csv=TABLE + "2.jpg\n"), "train", "row 4: expected image,caption.*: 2.jpg"),
    (files(captions__csv=TABLE + "2.jpg,a dog, a cat\n"), "train",
     "row 4: expected .*quote a caption.*; found: 2.jpg,a dog,a cat"),
    (files(captions__csv=TABLE + '2.jpg,"never closed' + "x" * 200_000), "train",
     "captions.csv is not a table of image,caption: field larger"),
    (files(captions__csv=TABLE.encode("utf-16")), "train", "captions.csv is not UTF-8 text"),
    (files(captions__csv=TABLE.encode() + b"2.jpg,caf\xe9\n"), "train", "is not UTF-8 text.*0xe9"),
    (files(captions__csv=TABLE), "test", "no split 'test' in .*; found: all, train, validation"),
    (files(captions__csv=TABLE.replace("jpg", "gif")), "all",
     r"data, all: nothing to learn from \(0 images, 0 captions; skipped 3: missing\)"),
    (files(captions__csv="image,caption\n0.jpg,\n1.jpg, \n"), "all", "skipped 2: without a cap"),
    # the original lists
    (files(Flickr8k__token__txt=""), "train", r"holds no captions.*name.jpg#0<tab>caption"),
    (files(Flickr8k__token__txt="0.jpg a dog\n"), "train", "row 1: expected name.jpg#0<tab>capt"),
    (files(Flickr8k__token__txt="0.jpg#0\ta", Flickr_8k__trainImages__txt="0.jpg"), "validation",
     "no split 'validation' in .*; found: all, train"),
    (files(Flickr8k__token__txt="0.jpg#0\ta", Flickr_8k__trainImages__txt=b"\xe9.jpg"), "train",
     "Flickr_8k.trainImages.txt is not UTF-8"),
    (files(Flickr8k__token__txt="0.jpg#0\ta", Flickr_8k__trainImages__txt="1.jpg\n2.jpg"), "train",
     "skipped 2: without a caption"),
])
def test_a_source_gone_wrong_is_one_clear_line(folder, cache, write, split, words):
    write(folder)
    with pytest.raises(ValueError, match=words) as error:
        load(folder, split)
    assert "\n" not in str(error.value) and "data" in str(error.value)
    assert not list(cache.iterdir())  # and nothing half done is left behind


def test_unknown_split_of_the_scenes():
    with pytest.raises(ValueError, match="no split 'extra' in shapes; found: test, train, val"):
        load_pairs(Source.find("shapes"), "extra", 64)


def test_a_table_as_spreadsheets_write_it(folder):
    """A byte-order mark, Windows line ends, spaces, capitals, empty lines, quotes, accents."""
    write_images(folder, range(2))
    (folder / "captions.csv").write_bytes(
        "\ufeffImage, Caption\r\n0.jpg, a dog\r\n\r\n1.jpg,\"a “café”, \"\"red\"\"\"\r\n".encode())
    assert load(folder, "all").captions == [["a dog"], ['a “café”, "red"']]


# ------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine that gives every question the same status; → the list of questions."""
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(server.status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.asked = asked
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT",
                        f"http://127.0.0.1:{server.server_port}")
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def hub_of(folder, monkeypatch):
    """`datasets` as it is when the Hub serves what lies in `folder`, split by split."""
    import datasets
    stream = datasets.load_dataset

    def load_dataset(name, streaming):
        assert name == "me/photos" and streaming
        found = {path.stem: str(path) for path in sorted(folder.glob("*.parquet"))}
        return stream("parquet", data_files=found, streaming=True)

    monkeypatch.setattr(data, "check_hub", lambda source: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return folder


@pytest.mark.parametrize("source", [
    Source("hub", "me/photos"), Source("hub", HUB_DEFAULT, explicit=False)])
def test_a_refused_connection_is_told_at_once(source, cache):
    """The endpoint of every test is a closed port of this machine; see conftest.py."""
    start = time.monotonic()
    with pytest.raises(HubUnreachable, match="refused") as error:
        load_pairs(source, "train", SIZE)
    assert time.monotonic() - start < 10 and "\n" not in str(error.value)
    assert isinstance(error.value, ConnectionError) and not list(cache.iterdir())


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_in_trouble_is_out_of_reach(hub, status):
    hub.status = status
    with pytest.raises(HubUnreachable, match=str(status)) as error:
        load_pairs(Source("hub", "me/photos"), "train", SIZE)
    assert "\n" not in str(error.value) and len(hub.asked) == 1  # asked once, not for minutes


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_data_set_that_is_not_there(hub, status):
    """Asked for by name it is an error; the default gives way to the built-in scenes."""
    hub.status = status
    with pytest.raises(ValueError, match="the Hub has no public data set 'me/photos'"):
        load_pairs(Source("hub", "me/photos"), "train", SIZE)
    with pytest.raises(HubUnreachable, match=str(status)):
        load_pairs(Source.find(), "train", SIZE)
    assert [path.split("/datasets/")[1] for path in hub.asked] == ["me/photos", HUB_DEFAULT]


def test_rows_of_the_hub(hub_of):
    write_shard(hub_of / "train.parquet", range(6))
    write_shard(hub_of / "valid.parquet", [7])
    source = Source.find("me/photos")
    check_pairs(load_pairs(source, "train", SIZE), range(6))
    check_pairs(load_pairs(source, "train", SIZE, 4), range(4))
    check_pairs(load_pairs(source, "validation", SIZE), [7])
    with pytest.raises(ValueError, match="no split 'test' in me/photos; found: train, valid"):
        load_pairs(source, "test", SIZE)


@pytest.mark.parametrize("error", [OSError("403\n\nForbidden"), RuntimeError("client\nclosed")])
def test_a_hub_that_answers_but_keeps_its_files(hub_of, cache, monkeypatch, error):
    """Networks that allow the site and not its storage: no traceback from deep inside."""
    import datasets

    def refuse(*arguments, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    line = " ".join(str(error).split())
    with pytest.raises(HubUnreachable, match=f"{type(error).__name__}: {line}"):
        load_pairs(Source.find("me/photos"), "train", SIZE)
    assert not list(cache.iterdir())


def test_a_cached_data_set_needs_no_hub(hub_of, monkeypatch):
    write_shard(hub_of / "train.parquet", range(3))
    source = Source.find("me/photos")
    load_pairs(source, "train", SIZE)
    monkeypatch.undo()
    monkeypatch.setenv("MINICLIP_CACHE", str(hub_of.parent / "cache"))
    check_pairs(load_pairs(source, "train", SIZE), range(3))


# ------------------------------------------------------------------------------- odd images


def huge(width, height) -> bytes:
    """A PNG of a few bytes that says it has as many pixels as it likes."""
    png = bytearray(PNG)
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def flat(mode, value, width=40, height=30):
    return Image.new(mode, (width, height), value)


def animation() -> bytes:
    frames = [flat("RGB", (250, 0, 0)), flat("RGB", (0, 250, 0)), flat("RGB", (0, 0, 250))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


SKIPPED = {
    "no-image": (b"this is no image", "unreadable"),
    "empty": (b"", "unreadable"),
    "missing": (None, "missing"),
    "jpeg-cut": (encoded(noise(), "JPEG")[:1500], "truncated"),
    "png-cut": (encoded(noise())[:2000], "truncated|unreadable"),
    "gif-cut": (encoded(noise(channels=1), "GIF")[:900], "truncated|unreadable"),
    "png-bits": (encoded(noise()).replace(b"IDAT", b"IDAX"), "truncated|unreadable"),
    "header-alone": (PNG[:30], "truncated|unreadable"),
    "20000x20000": (huge(20_000, 20_000), "too large"),
    "13000x12000": (huge(13_000, 12_000), "too large"),  # Pillow itself only warns of it
}
KEPT = {  # name -> file, its colour as decoded, what is said of it
    "rgb": (PNG, colour(0), ""),
    "jpeg": (encoded(picture(1), "JPEG"), colour(1), ""),
    "large-jpeg": (encoded(picture(2, 900, 700), "JPEG"), colour(2), ""),
    "gray": (encoded(flat("L", 90)), (90, 90, 90), "converted from L"),
    "gray-jpeg": (encoded(flat("L", 90), "JPEG"), (90, 90, 90), "converted from L"),
    "one-bit": (encoded(flat("1", 1)), (255, 255, 255), "converted from 1"),
    "palette": (encoded(picture(3).quantize(4)), colour(3), "converted from P"),
    "rgba": (encoded(flat("RGBA", (9, 90, 200, 99))), (9, 90, 200), "converted from RGBA"),
    "gray-alpha": (encoded(flat("LA", (60, 10))), (60, 60, 60), "converted from LA"),
    "cmyk": (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0), "converted from CMYK"),
    "gif": (encoded(picture(4), "GIF"), colour(4), "converted from P"),
    "animated": (animation(), (250, 0, 0), "animated, first frame taken"),
    "webp": (encoded(picture(5), "WEBP", lossless=True), colour(5), ""),
    "one-pixel": (encoded(picture(6, 1, 1)), colour(6), ""),
    "1x5000": (encoded(picture(7, 1, 5000)), colour(7), ""),
    "5000x1": (encoded(picture(8, 5000, 1)), colour(8), ""),
    "2x1": (encoded(picture(9, 2, 1)), colour(9), ""),
}


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_are_skipped(name):
    pixels, reason = decode(SKIPPED[name][0], SIZE)
    assert pixels is None and reason in SKIPPED[name][1].split("|")


@pytest.mark.parametrize("name", KEPT)
def test_images_that_are_converted(name):
    file, expected, note = KEPT[name]
    pixels, said = decode(file, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8 and said == note
    assert np.abs(pixels.astype(int) - expected).max() <= 8


def test_a_truncated_image_is_never_half_grey():
    """Every cut of a JPEG is skipped or whole, whatever Pillow is told elsewhere."""
    whole = encoded(noise(), "JPEG")
    for cut in range(0, len(whole) - 2, len(whole) // 20):
        assert decode(whole[:cut], SIZE)[0] is None, cut


def test_a_thin_image_is_cropped_in_its_middle():
    line = np.zeros((1, 5000, 3), np.uint8)
    line[:, 2000:3000] = 200
    assert (decode(line, SIZE)[0] == 200).all()
    assert (decode(line.transpose(1, 0, 2), SIZE)[0] == 200).all()


def test_a_thin_image_does_not_grow_large(monkeypatch):
    """A line of 5,000 pixels, resized to a width of 64, would be 64 × 320,000."""
    resize, sizes = Image.Image.resize, []

    def watched(self, size, *arguments):
        sizes.append(size)
        return resize(self, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for width, height in ((1, 5000), (5000, 1)):
        assert decode(encoded(picture(0, width, height)), 64)[0].shape == (64, 64, 3)
    assert sizes == [(64, 3200), (3200, 64)]


def test_which_side_is_up_is_read_from_the_file(tmp_path):
    """A phone held upright: the sensor's left is the picture's top."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 250  # left red, right blue
    pixels[:, 30:, 2] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    upright, note = decode(path, SIZE)
    assert note == "" and upright[1, :, 0].min() > 200 and upright[-2, :, 2].min() > 200
    assert upright[1, :, 2].max() < 50


@pytest.mark.filterwarnings("error")  # of size or anything else: the summary says it, not Pillow
def test_everything_odd_is_counted_and_nothing_is_fatal(folder, capsys):
    odd = {**{name: file for name, (file, _) in SKIPPED.items() if file is not None},
           **{name: file for name, (file, *_) in KEPT.items()}}
    rows = ["image,caption"]
    for name, file in odd.items():
        (folder / f"{name}.jpg").write_bytes(file)  # the name need not be right either
        rows.append(f"{name}.jpg,{name}")
    (folder / "captions.csv").write_text("\n".join([*rows, "absent.jpg,a", "rgb.jpg,again"]))
    pairs = load(folder, "all")
    assert [captions[0] for captions in pairs.captions] == list(KEPT)
    assert pairs.captions[0] == ["rgb", "again"]
    for image, (_, expected, _) in zip(pairs.images, KEPT.values(), strict=True):
        assert np.abs(image.astype(int) - expected).max() <= 8
    head, *notes = pairs.summary.split("; ")
    assert head == f"{len(KEPT)} images, {len(KEPT) + 1} captions"
    counted = {note.split(": ")[1]: int(note.split(":")[0].split()[1]) for note in notes}
    assert counted.pop("truncated") + counted.pop("unreadable") == 7
    assert counted == {
        "missing": 1, "too large": 2, "animated, first frame taken": 1, "converted from 1": 1,
        "converted from CMYK": 1, "converted from L": 2, "converted from LA": 1,
        "converted from P": 2, "converted from RGBA": 1}
    assert pairs.summary in capsys.readouterr().err  # said once, when the cache is built
    load(folder, "all")
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------- the cache


@pytest.fixture
def photos(folder) -> Path:
    write_images(folder / "Images", range(4))
    write_csv(folder / "captions.txt", range(4))
    return folder


def no_rows(self, split):
    raise AssertionError("the source was read again")


def test_the_second_time_nothing_is_read(photos, monkeypatch):
    first = load(photos, "all")
    larger = load_pairs(Source.find(str(photos)), "all", 3 * SIZE)
    monkeypatch.setattr(Source, "rows", no_rows)
    second = load(photos, "all")
    assert larger.images.shape[1:] == (3 * SIZE, 3 * SIZE, 3)
    assert isinstance(second.images, np.memmap) and not second.images.flags.writeable
    assert (second.images == first.images).all() and second.captions == first.captions
    assert second.summary == first.summary
    for again in ({"split": "train"}, {"split": "all", "limit": 2}):  # keys of their own
        with pytest.raises(AssertionError, match="read again"):
            load(photos, **again)
    with pytest.raises(AssertionError, match="read again"):
        load_pairs(Source.find(str(photos)), "all", 2 * SIZE)
    load(photos, "all")  # which did no harm to what is there
    monkeypatch.setattr(data, "CACHE_VERSION", data.CACHE_VERSION + 1)
    with pytest.raises(AssertionError, match="read again"):
        load(photos, "all")


def test_changed_files_are_noticed(photos):
    assert len(load(photos, "all")) == 4
    with open(photos / "captions.txt", "a") as file:
        file.write("0.jpg,one more\n4.jpg,a new one\n")
    assert load(photos, "all").captions[0][-1] == "one more"
    write_images(photos / "Images", [4])  # unpacked later, in the folder below
    assert len(load(photos, "all")) == 5
    write_images(photos / "Images", [4])
    (photos / "Images/3.jpg").write_bytes(encoded(picture(11), "JPEG"))
    assert np.abs(load(photos, "all").images[3].astype(int) - colour(11)).max() < 8


def test_a_new_shard_is_noticed(folder):
    write_shard(folder / "train-00000-of-00002.parquet", range(3))
    assert len(load(folder)) == 3
    write_shard(folder / "train-00001-of-00002.parquet", [3])
    check_pairs(load(folder), range(4))


@pytest.mark.parametrize("file, content", [
    ("images.u8", b"too short"), ("images.u8", None), ("meta.json", b'{"captions": [["a'),
    ("meta.json", b"{}"), ("meta.json", None)])
def test_a_damaged_cache_is_built_again(photos, cache, file, content):
    whole = load(photos, "all")
    images = np.array(whole.images)
    [entry] = cache.iterdir()
    if content is None:
        (entry / file).unlink()
    else:
        (entry / file).write_bytes(content)
    again = load(photos, "all")
    assert (again.images == images).all() and again.captions == whole.captions
    assert [path.name for path in cache.iterdir()] == [entry.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_a_build_that_fails_leaves_nothing_behind(photos, cache, monkeypatch, error):
    def fail(image, size):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(data, "decode", fail)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            load(photos, "all")
    assert not list(cache.iterdir())
    assert len(load(photos, "all")) == 4


@pytest.mark.parametrize("damaged", [False, True])
def test_two_builds_at_once_both_get_everything(photos, cache, monkeypatch, damaged):
    """Neither has finished when the other starts; the second to finish finds the first's cache."""
    if damaged:
        load(photos, "all")
        next(cache.glob("*/images.u8")).write_bytes(b"too short")
    together, results, rows = threading.Barrier(2, timeout=30), [], Source.rows
    replace = os.replace

    def rows_together(self, split):
        together.wait()
        yield from rows(self, split)
        together.wait()

    def replace_together(*paths):  # both have seen the damage before either mends it
        together.wait()
        replace(*paths)

    monkeypatch.setattr(Source, "rows", rows_together)
    monkeypatch.setattr(os, "replace", replace_together)
    threads = [threading.Thread(target=lambda: results.append(load(photos, "all")))
               for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    for pairs in results:
        check_pairs(pairs, range(4), lambda i: [f"{text}, in colour" for text in texts(i)])
    assert len(list(cache.iterdir())) == 1


def test_two_processes_at_once_both_get_everything(photos, cache):
    script = """if True:
        import sys
        from miniclip.data import Source, load_pairs
        print("ready", flush=True)
        sys.stdin.readline()
        pairs = load_pairs(Source.find(sys.argv[1]), "all", 16)
        print(len(pairs), int(pairs.images.sum()))
    """
    runs = [subprocess.Popen([sys.executable, "-c", script, str(photos)], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:  # both have imported everything: they start within a millisecond
        run.stdin.write("go\n")
        run.stdin.flush()
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert said == [f"4 {load(photos, 'all').images.sum()}\n"] * 2
    assert len(list(cache.iterdir())) == 1


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_CACHE", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MINICLIP_CACHE")
    assert data.cache_folder() == tmp_path / ".cache/miniclip"


# ------------------------------------------------------------------------------- the first n


def test_a_limit_does_not_read_the_rest(folder):
    """The second shard is no parquet at all: nobody looks at it."""
    write_shard(folder / "train-00000-of-00002.parquet", range(6))
    (folder / "train-00001-of-00002.parquet").write_bytes(b"not downloaded yet")
    check_pairs(load(folder, limit=4), range(4))
    with pytest.raises(ValueError, match="can't be read"):
        load(folder)


def test_a_limit_takes_the_first_rows_good_or_not(folder):
    images = [encoded(picture(i)) if i != 1 else b"broken" for i in range(5)]
    write_shard(folder / "train.parquet", range(5), images)
    check_pairs(load(folder, limit=3), [0, 2])
    check_pairs(load(folder, limit=99), [0, 2, 3, 4])


def test_more_rows_than_a_chunk_keep_their_order(folder):
    write_images(folder, range(6))
    names = [f"{i % 6}.jpg" for i in range(600)]
    for number, name in enumerate(names):
        if number >= 6:
            os.link(folder / name, folder / f"copy{number}.jpg")
            names[number] = f"copy{number}.jpg"
    rows = [f"{name},row {number}" for number, name in enumerate(names)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    pairs = load(folder, "all")
    assert pairs.captions == [[f"row {number}"] for number in range(600)]
    means = pairs.images.mean((1, 2))
    expected = np.array([colour(number % 6) for number in range(600)])
    assert np.abs(means - expected).max() < 8


# ------------------------------------------------------------------------------- pixels


def test_the_transform_is_clips():
    """Shorter side to S (bicubic), centre crop, [0, 1], CLIP's mean and deviation."""
    pixels = Transform(8)(flat("RGB", (255, 0, 51), 21, 13))
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.float32
    expected = [(1 - 0.48145466) / 0.26862954, (0 - 0.4578275) / 0.26130258,
                (0.2 - 0.40821073) / 0.27577711]
    for channel, value in zip(pixels, expected, strict=True):
        torch.testing.assert_close(channel, torch.full((8, 8), value))
    assert Transform(8)(flat("L", 200)).shape == (3, 8, 8)
    assert Transform(8)(flat("RGBA", (1, 2, 3, 4))).shape == (3, 8, 8)


@pytest.mark.parametrize("width, first", [(4, 0), (5, 0), (6, 1), (7, 2), (8, 2), (9, 2), (11, 4)])
def test_the_crop_is_where_clip_has_it(width, first):
    """torchvision's CenterCrop starts at round((width - size) / 2), halves to the even number."""
    ramp = np.arange(width, dtype=np.uint8).repeat(3).reshape(1, width, 3).repeat(4, 0)
    for image, axis in ((ramp, 1), (ramp.transpose(1, 0, 2), 0)):  # no resize: the side is 4
        found = data.resize_crop(Image.fromarray(image), 4)
        assert found[:, :, 0].take(0, axis=1 - axis).tolist() == list(range(first, first + 4))


def test_the_longer_side_keeps_the_ratio():
    """500 × 333, Flickr's usual size: 96 × 64 after the resize, and 16 columns cut on each side."""
    image = noise(500, 333)
    whole = np.asarray(image.resize((96, 64), Image.Resampling.BICUBIC))
    assert (data.resize_crop(image, 64) == whole[:, 16:80]).all()


def test_decoding_and_the_transform_agree(tmp_path):
    """A model meets the same pixels in training and in use."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((700, 500))
    for format, tolerance in (("PNG", 0), ("JPEG", 12)):  # a JPEG is decoded at a smaller scale
        file = encoded(smooth, format)
        found = normalize(decode(file, 64)[0][None])[0]
        exact = Transform(64)(Image.open(io.BytesIO(file)))
        assert (found - exact).abs().max() * STD[0] * 255 <= tolerance


def test_normalize_takes_arrays_and_tensors():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    expected = (images / 255 - MEAN) / STD
    for given in (images, torch.from_numpy(images)):
        found = normalize(given)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, atol=1e-5)


def test_captions_in_one_list():
    pairs = Pairs(np.zeros((3, 1, 1, 3), np.uint8), [["a", "b"], ["c"], ["d", "e", "f"]], "", "")
    texts, owner = pairs.flat_captions()
    assert texts == list("abcdef") and owner.tolist() == [0, 0, 1, 2, 2, 2]


# ------------------------------------------------------------------------------- augmentation

STILL = TrainConfig(crop=1.0, jitter=0.0, batch_size=4)


def scenes(count=16, side=24):
    """Smooth random images, no two alike and none its own mirror."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 3, 4, 3), np.uint8)
    return torch.from_numpy(np.stack([
        np.asarray(Image.fromarray(s).resize((side, side), Image.Resampling.BICUBIC))
        for s in small]))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_augment_without_crop_and_colour_only_mirrors():
    images = scenes()
    found, plain = augment(images, 24, STILL, seeded()), normalize(images)
    same = (found - plain).abs().amax((1, 2, 3)) < 1e-3
    mirrored = (found - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-3
    assert (same ^ mirrored).all() and 3 < same.sum() < 13  # each image has a coin of its own


@pytest.mark.parametrize("config", [STILL, TrainConfig(crop=0.3, jitter=0.5), TrainConfig()])
def test_augment_is_a_function_of_its_generator(config):
    images = scenes()
    torch.manual_seed(0)
    first = augment(images, 20, config, seeded(1))
    torch.manual_seed(1)
    assert first.shape == (16, 3, 20, 20) and first.dtype == torch.float32
    assert torch.equal(first, augment(images, 20, config, seeded(1)))
    assert not torch.equal(first, augment(images, 20, config, seeded(2)))
    assert first.isfinite().all() and first.abs().max() < 5


def test_each_image_gets_a_crop_of_its_own():
    """A ramp in both directions: what is seen of its range is what is seen of the image."""
    ramp = torch.arange(0, 250, 5, dtype=torch.uint8)  # 50 pixels
    image = torch.zeros(50, 50, 3, dtype=torch.uint8)
    image[..., 0], image[..., 1] = ramp, ramp[:, None]
    config = TrainConfig(crop=0.5, jitter=0.0)
    found = augment(image.expand(200, -1, -1, -1), 50, config, seeded())
    red, green = ((found[:, c] * STD[c] + MEAN[c]) * 255 for c in (0, 1))
    width, height = ((x.amax((1, 2)) - x.amin((1, 2))) / 245 for x in (red, green))
    area = width * height
    assert area.min() > 0.42 and area.min() < 0.55 and area.max() > 0.9  # from a half to the whole
    assert 0.65 < area.mean() < 0.8
    ratio = width / height
    assert 0.7 < ratio.min() < 0.85 and 1.18 < ratio.max() < 1.4  # 3:4 to 4:3
    left, top = red.amin((1, 2)), green.amin((1, 2))  # crops lie everywhere, and inside
    for offset, side in ((left, width), (top, height)):
        assert offset.min() >= -0.1 and (offset + 245 * side).max() <= 245.1
        assert offset.max() > 55 and offset.min() < 5
    assert len(np.unique(area.numpy().round(4))) > 150


def test_crops_stay_within_the_colours_of_the_image():
    images = scenes()
    found = augment(images, 24, TrainConfig(crop=0.3, jitter=0.0), seeded())
    plain = normalize(images)
    for c in range(3):
        assert (found[:, c].amax((1, 2)) <= plain[:, c].amax((1, 2)) + 1e-4).all()
        assert (found[:, c].amin((1, 2)) >= plain[:, c].amin((1, 2)) - 1e-4).all()


def test_jitter_changes_brightness_contrast_and_saturation():
    """Undone one by one: the mean, the spread of gray, the spread of colour around gray."""
    image = scenes(1)
    found = augment(image.expand(300, -1, -1, -1), 24, TrainConfig(crop=1.0, jitter=0.3), seeded())
    plain = normalize(image)
    gray, plain_gray = found.mean(1, keepdim=True), plain.mean(1, keepdim=True)
    brightness = (found.mean((1, 2, 3)) - plain.mean())
    contrast = gray.std((1, 2, 3)) / plain_gray.std() - 1
    colour = (found - gray).std((1, 2, 3)) / (plain - plain_gray).std()
    saturation = colour / (1 + contrast) - 1
    for change in (brightness, contrast, saturation):
        assert -0.301 < change.min() < -0.27 and 0.27 < change.max() < 0.301
        assert change.mean().abs() < 0.05
    changes = torch.stack([brightness, contrast, saturation])
    assert torch.corrcoef(changes).fill_diagonal_(0).abs().max() < 0.2  # each drawn for itself


# ------------------------------------------------------------------------------- batches

START, END = 90, 99


def number_tokenizer(texts):
    """ "image 7 caption 2" → start, 7, 2 twice or more, end: longer for later captions."""
    tokens = torch.zeros(len(texts), 12, dtype=torch.int64)
    for row, text in zip(tokens, texts, strict=True):
        _, image, _, caption = text.split()
        ids = [START, int(image), *[40 + int(caption)] * (2 + int(caption)), END]
        row[:len(ids)] = torch.tensor(ids)
    return tokens


def numbered(count=23, captions=None) -> Pairs:
    """Image i is all of value 10 i and has 1 + i % 5 captions that name it."""
    images = np.broadcast_to(10 * np.arange(count, dtype=np.uint8)[:, None, None, None],
                             (count, 6, 6, 3))
    return Pairs(images, [[f"image {i} caption {k}" for k in range(1 + i % 5)]
                          for i in range(count)], "numbered:train", "")


def read_batch(batch):
    """Which images, and which (image, caption) the texts are of."""
    pixels, tokens = batch
    values = (pixels[:, 0, 3, 3] * STD[0] + MEAN[0]) * 255
    return ((values / 10).round().long().tolist(),
            [(int(row[1]), int(row[2]) - 40) for row in tokens])


def batches_of(pairs=None, **changes) -> Batches:
    settings = {"batch_size": 5, "crop": 1.0, "jitter": 0.0} | changes
    return Batches(pairs or numbered(), number_tokenizer, 6, TrainConfig(**settings))


def test_no_image_twice_in_an_epoch_and_captions_belong():
    batches = batches_of()
    assert batches.per_epoch == 4  # 23 images: three are left out, others in each epoch
    drawn, orders = set(), []
    for epoch in range(40):
        seen = []
        for step in range(4 * epoch, 4 * epoch + 4):
            images, captions = read_batch(batches[step])
            assert len(images) == 5 and [i for i, _ in captions] == images
            seen += images
            drawn |= set(captions)
        assert len(set(seen)) == len(seen) == 20
        orders.append(tuple(seen))
    assert len(set(orders)) == 40
    assert drawn == {(i, k) for i in range(23) for k in range(1 + i % 5)}  # all of them, in time


def test_captions_are_drawn_evenly_and_afresh():
    batches = batches_of(numbered(5))
    counts = np.zeros(5)
    for step in range(400):
        counts[dict(read_batch(batches[step])[1])[4]] += 1
    assert counts.sum() == 400 and counts.min() > 50  # of image 4, which has five


def test_a_batch_is_a_function_of_seed_and_step():
    """So that a resumed run sees what an uninterrupted one would have."""
    changes = {"crop": 0.5, "jitter": 0.2, "word_dropout": 0.3}
    first, again = batches_of(**changes), batches_of(**changes)
    other = batches_of(**changes, seed=1)
    forward = [first[step] for step in range(9)]
    torch.manual_seed(5)
    np.random.seed(5)
    for step in reversed(range(9)):
        for a, b in zip(forward[step], again[step], strict=True):
            assert torch.equal(a, b)
        assert read_batch(other[step]) != read_batch(forward[step])
    for a, b in zip(forward, forward[1:]):  # no step repeats another's draws
        assert not torch.equal(a[0], b[0])


def test_crops_differ_from_step_to_step_and_from_seed_to_seed():
    """The same five images in every batch: which places are flipped must vary."""
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3), np.uint8)
    pairs = Pairs(images, [[f"image {i} caption 0"] for i in range(5)], "five", "")

    def flips(seed):
        batches = batches_of(pairs, seed=seed)
        for step in range(8):
            pixels, tokens = batches[step]
            change = pixels - normalize(images)[tokens[:, 1]]
            yield tuple((change.abs().amax((1, 2, 3)) > 1e-3).tolist())

    first, other = list(flips(0)), list(flips(1))
    assert len(set(first)) > 4 and first != other


def test_tokens_end_with_the_longest_text():
    batches = batches_of()
    widths = set()
    for step in range(20):
        tokens = batches[step][1]
        ends = (tokens == END).nonzero()[:, 1]
        assert len(ends) == 5 and tokens.shape[1] == ends.max() + 1
        assert tokens.dtype == torch.int64
        widths.add(tokens.shape[1])
    assert len(widths) > 1


def test_words_are_dropped_only_if_asked():
    kept = torch.cat([batches_of()[step][1].ne(0).sum(1) for step in range(20)])
    fewer = torch.cat([batches_of(word_dropout=0.5)[step][1].ne(0).sum(1) for step in range(20)])
    assert (fewer <= kept).all() and fewer.sum() < 0.85 * kept.sum()


def test_a_batch_larger_than_the_data():
    with pytest.raises(ValueError, match="batch_size 24 is larger than the 23 images of "
                                         "numbered:train; set --batch-size 23 or less") as error:
        batches_of(batch_size=24)
    assert "\n" not in str(error.value)
    images, _ = read_batch(batches_of(batch_size=23)[0])
    assert sorted(images) == list(range(23))


# ------------------------------------------------------------------------------- dropped words


def rows_of(*lengths):
    tokens = torch.zeros(len(lengths), 14, dtype=torch.int64)
    for row, length in zip(tokens, lengths):
        row[:length + 2] = torch.tensor([START, *range(1, length + 1), END])
    return tokens


def test_dropped_words_leave_the_order_and_both_ends():
    tokens = rows_of(0, 1, 5, 12, 7)
    for seed in range(30):
        found = drop_words(tokens, 0.4, seeded(seed))
        assert found.shape == tokens.shape and found.dtype == tokens.dtype
        for before, after in zip(tokens.tolist(), found.tolist()):
            end = after.index(END)
            inner = after[1:end]
            assert after[0] == START and not any(after[end + 1:])
            assert inner == sorted(set(inner)) and set(inner) <= set(before[1:before.index(END)])
    assert torch.equal(drop_words(tokens, 0.4, seeded(3)), drop_words(tokens, 0.4, seeded(3)))
    assert tokens.equal(rows_of(0, 1, 5, 12, 7))  # what was given is as it was


def test_how_many_words_are_dropped():
    tokens = rows_of(*[12] * 500)
    assert torch.equal(drop_words(tokens, 0.0, seeded()), tokens)
    kept = drop_words(tokens, 0.25, seeded()).ne(0).sum(1) - 2
    assert kept.float().mean().item() == pytest.approx(9, abs=0.3) and kept.min() < kept.max()
    bare = drop_words(tokens, 0.999999, seeded())
    assert bare[:, :2].tolist() == [[START, END]] * 500 and not bare[:, 2:].any()


# ------------------------------------------------------------------------------- real photographs


def test_flickr8k_itself(real_data):
    source = Source.find(str(real_data))
    for split, expected in (("train", 6000), ("validation", 1000)):
        shards = sorted(real_data.glob(f"{split}*.parquet"))
        if sum(pq.ParquetFile(path).metadata.num_rows for path in shards) != expected:
            pytest.skip("MINICLIP_DATA names other photographs than Flickr8k")
        count = 0
        for _, image, captions in source.rows(split):
            assert image[:2] == b"\xff\xd8" and len(captions) == 5 and all(captions)
            count += 1
        assert count == expected
        pairs = load_pairs(source, split, 64, 200)
        assert len(pairs) == 200 and all(len(captions) == 5 for captions in pairs.captions)
        assert pairs.summary.startswith("200 images, 1,000 captions")
        assert 80 < pairs.images.mean() < 150 and pairs.images.std() > 40  # photographs, not noise
