"""Small data sets that the tests of miniclip/data write: one plain colour an image."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from miniclip.data.caption_classes import NAMES
from miniclip.data.pairs import Pairs, load_pairs
from miniclip.data.sources import Source

SIZE = 16


def colour(i: int) -> tuple[int, int, int]:
    """The one colour of image i: it shows when images have changed places."""
    return (37 * i % 256, (91 * i + 40) % 256, (151 * i + 80) % 256)


def picture(i: int, width=40, height=30) -> Image.Image:
    return Image.new("RGB", (width, height), colour(i))


def flat(mode, value, width=40, height=30) -> Image.Image:
    return Image.new(mode, (width, height), value)


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


def write_captioned(folder: Path, captions: list[str]) -> Path:
    """A folder of plain images, each with its caption in captions.csv; a tenth will be held out."""
    folder.mkdir(exist_ok=True)
    write_images(folder / "images", range(len(captions)))
    (folder / "captions.csv").write_text("image,caption\n" + "".join(
        f"{i}.jpg,{caption}\n" for i, caption in enumerate(captions)))
    return folder


def write_classes(folder: Path, split: str, count: int):
    """A shard of noise, `count` images of each class that captions name; the hue says which."""
    images, captions = [], []
    for k, name in enumerate(NAMES):
        for i in range(count):
            noise = np.random.default_rng((count, k, i)).integers(0, 60, (20, 20, 3), np.uint8)
            noise[..., k % 3] += 60 + 60 * (k // 3)
            images.append(encoded(Image.fromarray(noise)))
            captions.append([f"a {name} number {i}"] * 5)
    write_shard(folder / f"{split}-00000-of-00001.parquet", range(len(images)), images, captions)


def write_images(folder: Path, ids):
    folder.mkdir(exist_ok=True)
    for i in ids:
        (folder / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))


def write_csv(path: Path, ids, count=5):
    """`count` rows an image: every round has one row of each image, as in a shuffled file."""
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


def smooth(width, height, seed=0) -> Image.Image:
    """Something like a photograph: soft, with hard edges, and clipped lights and shadows."""
    rng = np.random.default_rng(seed)
    image = rng.uniform(-80, 335, (height // 16 + 2, width // 16 + 2, 3)).clip(0, 255)
    image = np.array(Image.fromarray(image.astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC))
    image[height // 3:height // 2, width // 4:width // 2] = 255
    image[height // 2:, width // 2:width // 2 + 3] = 0
    return Image.fromarray(image)
