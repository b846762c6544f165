"""Image files → pixels: the only decoder, for training, search and classification alike.

    bytes | path | array ──decode──▶ uint8 (S, S, 3) ──normalize──▶ float32 (3, S, S)
"""

import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

with suppress(ImportError):  # an extra; with it Pillow opens HEIC, which phones write
    import pillow_heif

    pillow_heif.register_heif_opener()

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's 400 M training images (openai/CLIP)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 128 * 2**20  # of one image: beyond it decoding takes seconds and gigabytes
IMAGE_SUFFIXES = {*(".avif .bmp .gif .heic .heif .hif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm "
                    ".png .ppm .tga .tif .tiff .webp").split()}


def resize_crop(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's preprocessing: shorter side to `size` (bicubic), centre crop → (S, S, 3) uint8.

    The pixels equal those of transformers' CLIPImageProcessor on Pillow, except for long thin
    images, which it resizes whole. With an odd margin openai/CLIP (torchvision) starts its crop one
    pixel further half the time.
    """
    if max(image.size) > 50 * min(image.size):  # long and thin: only the middle would remain
        side = 50 * min(image.size)
        image = ImageOps.crop(image, tuple((n - min(n, side)) // 2 for n in image.size * 2))
    width, height = (size * n // min(image.size) for n in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def resize_whole(image: Image.Image, size: int) -> np.ndarray:
    """Shorter side to `size` (bicubic) → (H, W, 3) uint8; nothing is cut off.

    But of a long thin image only the middle is kept: at most ten times as long as wide.
    """
    limit = 10 * min(image.size)
    if max(image.size) > limit:
        image = ImageOps.crop(image, tuple((n - min(n, limit)) // 2 for n in image.size * 2))
    width, height = (max(size, round(size * n / min(image.size))) for n in image.size)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def rgb(image: Image.Image) -> Image.Image:
    """Any mode → RGB. Pixels of more than 8 bits, and mode F's 0 to 1, are scaled to 0 to 255.

    A file of 16 bits may hold a camera's 12: `white_of` looks at what is in it. Pillow and
    transformers clip at 255 instead, so that nearly all 16-bit pixels turn white.
    """
    if image.mode[0] in "IF":
        values = np.asarray(image, np.float32)
        white = white_of(values.max(), image.mode == "F")
        image = Image.fromarray((values * (255 / white)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def from_array(values: np.ndarray) -> Image.Image:
    """(H, W), (H, W, C) or (C, H, W) with 1, 3 or 4 channels → an image of mode RGB or RGBA.

    Whole numbers are 0 to 255, or up to 65,535; others 0 to 1, or 0 to 255. ValueError for what is
    no image.
    """
    if values.ndim == 3 and values.shape[2] not in (1, 3, 4) and values.shape[0] in (1, 3, 4):
        values = values.transpose(1, 2, 0)
    if not values.size or values.ndim not in (2, 3) or values.shape[2:] not in ((), (1,), (3,),
                                                                                (4,)):
        raise ValueError(f"an array of shape {values.shape}")
    if values.dtype != np.uint8:
        largest, smallest = values.max(), values.min()
        if not 0 <= smallest <= largest <= 65535:  # false for NaN too
            raise ValueError(f"an array with values from {smallest:.4g} to {largest:.4g}")
        values = (values * (255 / white_of(largest, values.dtype.kind == "f"))).astype(np.uint8)
    values = np.ascontiguousarray(values[..., 0] if values.shape[2:] == (1,) else values)
    return Image.fromarray(values)


def white_of(largest: float, fractions: bool) -> int:
    """The value of white: the largest number of 8, 10, 12, 14 or 16 bits, whichever holds all."""
    depths = (1, 8, 16) if fractions else (8, 10, 12, 14, 16)
    return next((2**d - 1 for d in depths if largest <= 2**d - 1), 2 ** depths[-1] - 1)


def fit(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, H, W, 3) → (N, S, S, 3), as `resize_crop` does it."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([resize_crop(Image.fromarray(image), size) for image in images])


def normalize(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (B, S, S, 3) → float32 (B, 3, S, S) with CLIP's mean and standard deviation."""
    # (x / 255 − mean) / std = −mean / std + x · 1 / (255 std): one pass over memory, not three.
    pixels = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images)
    mean, std = (torch.tensor(values, device=pixels.device).repeat(pixels.shape[2])
                 for values in (MEAN, STD))  # of a whole row: long rows are faster
    rows = torch.addcmul(-mean / std, pixels.flatten(2), 1 / (255 * std))  # (B, S, 3 S)
    return rows.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Transform:
    """A PIL image of any size and mode → pixels (3, S, S), float32, as the model takes them.

    The file's EXIF orientation is applied, which transformers' processor leaves to its user.
    """

    size: int

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return normalize(resize_crop(rgb(ImageOps.exif_transpose(image)), self.size)[None])[0]


def decode(image, size: int, resize=resize_crop) -> tuple[np.ndarray | None, str]:
    """Bytes, path, array or PIL image → ((S, S, 3) uint8 or None if skipped, what was odd).

    With `resize=resize_whole` nothing is cut off: (H, W, 3), the shorter side S.
    """
    if image is None:
        return None, "missing"
    try:
        if isinstance(image, np.ndarray | Image.Image):  # decoded already
            picture = image if isinstance(image, Image.Image) else from_array(image)
            return resize(rgb(picture), size), ""
    except ValueError as error:
        return None, str(error)
    try:
        with Image.open(image if isinstance(image, str | Path) else io.BytesIO(image)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None, "too large"
            odd = oddity(picture)
            picture.draft("RGB", (2 * size, 2 * size))  # a JPEG decodes faster at half its size
            picture = ImageOps.exif_transpose(picture)  # phones write which side is up
            return resize(rgb(picture), size), odd
    except Exception as error:  # decoders raise many kinds for broken files; each is counted
        if isinstance(error, Image.DecompressionBombError):
            return None, "too large"
        return None, "truncated" if "truncated" in str(error) else "unreadable"


def oddity(picture: Image.Image) -> str:
    """What is unusual about an image that is kept, or ""."""
    if getattr(picture, "n_frames", 1) > 1:
        return "animated, first frame taken"
    return "" if picture.mode == "RGB" else f"converted from {picture.mode}"


def read_image(path, size: int, resize=resize_crop) -> np.ndarray:
    """A file → uint8 (S, S, 3). ValueError, in one line, if it can't be opened."""
    pixels, why = decode(Path(path), size, resize)
    if pixels is None:
        try:
            open(path, "rb").close()
        except OSError as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ValueError(f"{path} is no image that can be opened: {why}")
    return pixels


def in_threads(function, items: Iterator, n: int) -> Iterator[list]:
    """Apply a function to every item, n at a time; threads work on the next n meanwhile.

    Decoders are C code that releases the interpreter's lock, so processes would not be faster. They
    would also outlive a caller that was killed.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        ahead = pool.map(function, islice(items, n))
        while found := list(ahead):
            ahead = pool.map(function, islice(items, n))
            yield found
    finally:  # if the caller stops early, drop what is pending
        pool.shutdown(cancel_futures=True)
