"""Pairs of every source → one form: `Pairs`, decoded once; then batches of tensors.

    rows of sources.py: (name, image as bytes, path or array, captions)
        ──decode once, resize──▶ uint8 images in a memory-mapped cache
        ──Batches──▶ pixels (B, 3, S, S) float32, tokens (B, L) int64

The cache lies in $MINICLIP_CACHE (default ~/.cache/miniclip), one folder for each source, split,
size and version; delete it whenever you like.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from miniclip.config import TrainConfig
from miniclip.sources import SPLIT_NAMES, Source
from miniclip.tokenizer import Tokenizer

CACHE_VERSION = 4  # raise it when the same source would give other pixels or captions
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's 400 M training images (openai/CLIP)
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PIXELS = 128 * 2**20  # of one image: beyond it decoding takes seconds and gigabytes
DAY = 24 * 60 * 60  # seconds


# ------------------------------------------------------------------------------- images to arrays


def resize_crop(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's preprocessing: shorter side to `size` (bicubic), centre crop → (S, S, 3) uint8.

    The very pixels of transformers' CLIPImageProcessor on Pillow, but of lines, which it resizes
    whole. openai/CLIP (torchvision) starts a crop of an odd margin one pixel further half the time.
    """
    if max(image.size) > 50 * min(image.size):  # a line: its middle is all that would remain
        side = 50 * min(image.size)
        image = ImageOps.crop(image, tuple((n - min(n, side)) // 2 for n in image.size * 2))
    width, height = (size * n // min(image.size) for n in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def rgb(image: Image.Image) -> Image.Image:
    """Of any mode → RGB. 16 bits a pixel, and F's 0 to 1, are scaled: Pillow and transformers cut
    what is above 255, and nearly all of it would be white."""
    if image.mode[0] in "IF":
        values = np.asarray(image, np.float32)
        white = 65535 if image.mode[0] == "I" else 255 if values.max() > 1 else 1
        image = Image.fromarray((values * (255 / white)).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


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

    Turned as its file says (EXIF), which transformers' processor leaves to its user.
    """

    size: int

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return normalize(resize_crop(rgb(ImageOps.exif_transpose(image)), self.size)[None])[0]


def decode(image, size: int) -> tuple[np.ndarray | None, str]:
    """Bytes, path or array → ((S, S, 3) uint8 or None if it must be skipped, what was odd)."""
    if image is None:
        return None, "missing"
    if isinstance(image, np.ndarray):
        return resize_crop(Image.fromarray(image), size), ""
    try:
        with Image.open(image if isinstance(image, str | Path) else io.BytesIO(image)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None, "too large"
            odd = "animated, first frame taken" if getattr(picture, "n_frames", 1) > 1 else (
                f"converted from {picture.mode}" if picture.mode != "RGB" else "")
            picture.draft("RGB", (2 * size, 2 * size))  # a JPEG decodes faster at half its size
            picture = ImageOps.exif_transpose(picture)  # phones write which side is up
            return resize_crop(rgb(picture), size), odd
    except Exception as error:  # decoders raise many kinds for broken files; each is counted
        return None, "too large" if isinstance(error, Image.DecompressionBombError) else (
            "truncated" if "truncated" in str(error) else "unreadable")


# ------------------------------------------------------------------------------- the one form


@dataclass(frozen=True)
class Pairs:
    """One split, ready: images (N, S, S, 3) uint8, memory-mapped; captions[i], those of image i."""

    images: np.ndarray
    captions: list[list[str]]
    name: str
    summary: str

    def __len__(self) -> int:
        return len(self.captions)

    def flat_captions(self) -> tuple[list[str], np.ndarray]:
        """All captions in one list, and the image index (M,) int64 that each belongs to."""
        owner = np.repeat(np.arange(len(self)), [len(c) for c in self.captions])
        return [caption for captions in self.captions for caption in captions], owner


def cache_folder() -> Path:
    """$MINICLIP_CACHE, or ~/.cache/miniclip."""
    return Path(os.environ.get("MINICLIP_CACHE") or "~/.cache/miniclip").expanduser()


def load_pairs(source: Source, split: str, size: int, limit: int = 0) -> Pairs:
    """The first `limit` images (0: all) of a split, from the cache, built first if need be.

    Raises ValueError for a negative limit and for a source that is not in one of the four forms,
    HubUnreachable for a Hub that does not answer.
    """
    if not 0 <= limit < 2**63:
        raise ValueError(f"limit is {limit}; it must be 0 (all) or a number of images")
    split = SPLIT_NAMES.get(split, split)
    key = "\n".join([str(CACHE_VERSION), source.kind, source.identity(split), split, str(size),
                     str(limit)])
    folder = cache_folder() / hashlib.sha256(os.fsencode(key)).hexdigest()[:24]
    meta = read_meta(folder, size)
    if meta is None:
        meta = build_cache(folder, source, split, size, limit)
        print(f"{source.where}, {split}: {meta['summary']}", file=sys.stderr)
    shape = (len(meta["captions"]), size, size, 3)
    images = np.memmap(folder / "images.u8", np.uint8, "r", shape=shape)
    name = source.where if source.kind == "hub" else Path(source.where).name  # a folder's own name
    return Pairs(images, meta["captions"], f"{name}:{split}", meta["summary"])


def read_meta(folder: Path, size: int) -> dict | None:
    """What a cache folder says of itself; None if it is not there or not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        whole = (folder / "images.u8").stat().st_size == len(meta["captions"]) * size * size * 3
        return meta if whole else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_dead_builds(folder: Path):
    """A build that was killed (SIGKILL, a power cut) left its folder: nobody wrote to it for a day.

    The files count as well as the folder: a slow build that lives writes to them all the time.
    """
    for building in folder.parent.glob(f"{folder.name}.*"):
        with suppress(OSError):  # another run has just removed or finished it
            if max(p.stat().st_mtime for p in (building, *building.iterdir())) < time.time() - DAY:
                shutil.rmtree(building, ignore_errors=True)


def build_cache(folder: Path, source: Source, split: str, size: int, limit: int) -> dict:
    """Decode a split into a temporary folder, then rename it: readers see all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_dead_builds(folder)
    building = folder.with_name(f"{folder.name}.{os.getpid()}.{time.time_ns()}")
    building.mkdir()  # not mkdtemp, which nobody else may read
    try:
        captions, skipped, odd, first = [], Counter(), Counter(), {}
        rows = islice(source.rows(split), limit or None)
        with (open(building / "images.u8", "wb") as file, ThreadPoolExecutor() as pool,
              warnings.catch_warnings()):  # around all threads, which share their filters
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            while chunk := list(islice(rows, 256)):
                decoded = pool.map(lambda row: decode(row[1], size), chunk)
                for (name, _, texts), (pixels, note) in zip(chunk, decoded):
                    texts = [text.strip() for text in texts if text.strip()]
                    if pixels is None or not texts:
                        note = note if pixels is None else "without a caption"
                        skipped[f"{note}, such as {first.setdefault(note, name)!r:.60}"] += 1
                        continue
                    odd[note] += bool(note)
                    captions.append(texts)
                    file.write(pixels.tobytes())
        summary = f"{len(captions):,} images, {sum(map(len, captions)):,} captions" + "".join(
            f"; {verb} {n}: {reason}" for verb, notes in (("skipped", skipped), ("kept", odd))
            for reason, n in sorted(notes.items()) if n)
        if not captions:
            raise ValueError(f"{source.where}, {split}: nothing to learn from ({summary})")
        meta = {"captions": captions, "summary": summary}
        (building / "meta.json").write_text(json.dumps(meta))
        try:
            building.rename(folder)
        except OSError:  # another run was faster: what it wrote is the same, unless it is damaged
            if read_meta(folder, size) is None:
                for name in ("images.u8", "meta.json"):  # and two that mend it write the same
                    os.replace(building / name, folder / name)
        return meta
    finally:
        shutil.rmtree(building, ignore_errors=True)


# ------------------------------------------------------------------------------- batches


def augment(images: torch.Tensor, size: int, config: TrainConfig, generator: torch.Generator):
    """uint8 (B, R, R, 3) → normalised float32 (B, 3, S, S): crop, flip and colour, each its own.

    The random resized crop (Szegedy et al. 2015, arXiv 1409.4842, section 6) and the flip are one
    affine map for each image; brightness, contrast and saturation change by up to `jitter`.
    """
    B = len(images)

    def uniform(low, high):  # drawn on the CPU, so that every device sees the same crops
        return torch.empty(B).uniform_(low, high, generator=generator)

    side = uniform(config.crop, 1).sqrt()  # of the crop, as a share of the image's side
    # Aspect ratios of 3:4 to 4:3; where nothing is cropped, of 1.
    stretch = uniform(-0.14, 0.14).mul(config.crop < 1).exp()
    height, width = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    flip = uniform(-1, 1).sign() if config.flip else torch.ones(B)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    # The image reaches from −1 to 1: a crop of width w can move by ±(1 − w).
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    pixels = normalize(images)
    grid = F.affine_grid(theta.to(pixels.device), (B, 3, size, size), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    if config.jitter:
        brightness, contrast, saturation = (
            uniform(-config.jitter, config.jitter)[:, None, None, None].to(pixels.device)
            for _ in range(3))
        # lerp(a, b, w) = a + w (b − a): a negative w leads away from grey.
        gray = pixels.mean(1, keepdim=True)
        pixels = torch.lerp(pixels, gray, -saturation)
        pixels = torch.lerp(pixels, gray.mean((2, 3), keepdim=True), -contrast) + brightness
    return pixels


class Batches:
    """`batches[step]` → pixels (B, 3, S, S), tokens (B, L): a pure function of seed and step.

    So a resumed run sees what an uninterrupted one would have. Within an epoch every image comes
    at most once, with one of its captions drawn at random: no batch holds an image twice, which
    would make a true pair a negative.
    """

    def __init__(self, pairs: Pairs, tokenizer: Tokenizer, size: int, config: TrainConfig,
                 device="cpu"):
        if (count := len(pairs)) < config.batch_size:
            raise ValueError(f"batch_size {config.batch_size} is larger than the {count} images of "
                             f"{pairs.name}; set --batch-size {count} or less (2 at least)")
        self.images, self.size, self.config, self.device = pairs.images, size, config, device
        self.per_epoch = len(pairs) // config.batch_size
        texts, owner = pairs.flat_captions()
        self.tokens = tokenizer(texts)  # (M, L), encoded once
        self.counts = np.bincount(owner)  # captions of each image
        self.first = np.cumsum(self.counts) - self.counts  # its first row in tokens
        # Once an epoch: of a million images it takes a tenth of a second.
        self.order = lru_cache(maxsize=1)(self.order)

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """A permutation of the images, and the caption row drawn for each, both (N,)."""
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(len(self.counts))
        return order, (self.first + rng.integers(self.counts))[order]

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = divmod(step, self.per_epoch)
        batch = slice(index * self.config.batch_size, (index + 1) * self.config.batch_size)
        images, rows = (part[batch] for part in self.order(epoch))
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + step) % 2**63)
        pixels = torch.from_numpy(self.images[images]).to(self.device)
        pixels = augment(pixels, self.size, self.config, generator)
        tokens = self.tokens[torch.from_numpy(rows)]
        if self.config.word_dropout:
            tokens = drop_words(tokens, self.config.word_dropout, generator)
        # Nothing behind the longest text's end token can change a result: leave it out.
        return pixels, tokens[:, : int(tokens.argmax(1).max()) + 1].to(self.device)


def drop_words(tokens: torch.Tensor, chance: float, generator: torch.Generator) -> torch.Tensor:
    """(B, L) → (B, L) with each inner token left out at random and the rest moved up."""
    end = tokens.argmax(1, keepdim=True)
    place = torch.arange(tokens.shape[1])
    gone = (torch.rand(tokens.shape, generator=generator) < chance) & (place > 0) & (place < end)
    # Zeros (kept) before ones (gone), and stable: the kept stay in their order.
    kept = torch.argsort(gone.long(), dim=1, stable=True)
    return tokens.gather(1, kept).masked_fill(place > end - gone.sum(1, keepdim=True), 0)
