"""Every source of image–caption pairs → one form: `Pairs`, then batches of tensors.

    shapes | a Hub id | a folder of parquet shards | a folder of images and a caption file
        ──rows──▶ (name, JPEG bytes or array, captions)
        ──decode once, resize──▶ uint8 images in a memory-mapped cache
        ──Batches──▶ pixels (B, 3, S, S) float32, tokens (B, L) int64

The cache lies in $MINICLIP_CACHE (default ~/.cache/miniclip), one folder for each source, split,
size and version; delete it whenever you like.
"""

import csv
import hashlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from miniclip import drawing, shapes
from miniclip.config import TrainConfig
from miniclip.tokenizer import Tokenizer

CACHE_VERSION = 2  # raise it when the same source would give other pixels or captions
MEAN = (0.48145466, 0.4578275, 0.40821073)  # of CLIP's 400 M training images (openai/CLIP)
STD = (0.26862954, 0.26130258, 0.27577711)
HUB_DEFAULT = "jxie/flickr8k"
SHAPES_SPLITS = {"train": (8000, 1), "validation": (1000, 2), "test": (1000, 3)}  # images, seed
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
MAX_PIXELS = 128 * 2**20  # of one image: beyond it decoding takes seconds and gigabytes
CAPTION_FILES = ("captions.csv", "captions.txt", "Flickr8k.token.txt")
IMAGE_FOLDERS = ("", "images", "Images", "Flicker8k_Dataset", "Flickr8k_Dataset")


class HubUnreachable(ConnectionError):
    """The Hugging Face Hub did not answer; the message says why."""


# ---------------------------------------------------------------------------- where pairs are from


@dataclass(frozen=True)
class Source:
    """Where pairs come from: kind is 'shapes', 'hub', 'parquet' or 'folder'."""

    kind: str
    where: str
    explicit: bool = True

    @classmethod
    def find(cls, data: str | None = None) -> "Source":
        """`data`, else $MINICLIP_DATA, else Flickr8k on the Hub.

        'shapes', then an existing path, else a Hub id; ValueError for anything else.
        """
        text = data or os.environ.get("MINICLIP_DATA")
        if not text:
            return cls("hub", HUB_DEFAULT, explicit=False)
        path = Path(text).expanduser()
        if text == "shapes":
            return cls("shapes", "shapes")
        if path.is_dir():
            return cls("parquet" if any(path.glob("*.parquet")) else "folder", str(path.resolve()))
        if path.exists():
            raise ValueError(f"--data {text} is a file; name the folder that holds the data")
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
            return cls("hub", text)
        raise ValueError(f"--data {text}: no such folder; give 'shapes', a folder or a Hub id "
                         f"such as {HUB_DEFAULT}")

    def identity(self, split: str) -> str:
        """What the cache's key must know of the source, so that changed files are seen."""
        if self.kind == "shapes":
            texts = (Path(room.__file__).read_text() for room in (drawing, shapes))
            return "\n".join([*texts, str(SHAPES_SPLITS)])
        if self.kind == "hub":
            return self.where
        folders = [p for name in IMAGE_FOLDERS if (p := Path(self.where) / name).is_dir()]
        paths = sorted(p for folder in folders for p in folder.iterdir() if p.is_file())
        return "\n".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in paths)

    def rows(self, split: str) -> Iterator[tuple[str, object, list[str]]]:
        """(name, image as bytes, path or array, captions), in the source's own order.

        ValueError, in one line that names what was found, for an unknown split, a missing column
        or an empty caption file.
        """
        if self.kind == "shapes":
            return shapes_rows(split)
        return folder_rows(Path(self.where), split) if self.kind == "folder" else (
            table_rows(self, split))


def unknown_split(split: str, where: str, found) -> ValueError:
    return ValueError(f"no split {split!r} in {where}; found: {', '.join(sorted(found)) or 'none'}")


def shapes_rows(split: str):
    """Generated scenes, one at a time. Each split has a seed of its own."""
    if split not in SHAPES_SPLITS:
        raise unknown_split(split, "shapes", SHAPES_SPLITS)
    count, seed = SHAPES_SPLITS[split]
    images, captions, _ = shapes.generate(count, seed)
    for i in range(count):
        yield f"scene {i}", images[i], captions[i]


def table_rows(source: Source, split: str):
    """`read_table`, with the errors of the libraries below it told in one line."""
    import pyarrow

    try:
        yield from read_table(source, split)
    except pyarrow.ArrowException as error:  # Arrow says what is wrong, but not where
        raise ValueError(f"{source.where}, {split}, can't be read: {one_line(error)}") from error
    except (ValueError, HubUnreachable):
        raise
    except Exception as error:  # the Hub answered, but its files are refused or broke off
        if source.kind != "hub":
            raise
        raise HubUnreachable(f"{type(error).__name__}: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def read_table(source: Source, split: str):
    """Rows of a Hub data set or of local parquet shards, streamed: only what is read is fetched.

    Columns: `image` and one or several of `caption`, `caption_0`, `caption_1`, …
    """
    import datasets  # takes a second; only those who need it wait

    if source.kind == "hub":
        check_hub(source)
        args, options = (source.where,), {}
    else:
        shards = {}
        for path in sorted(Path(source.where).glob("*.parquet")):
            shards.setdefault(path.stem.split("-")[0], []).append(str(path))
        found = {SPLIT_NAMES.get(name, name): files for name, files in shards.items()}
        if split not in found:
            raise unknown_split(split, source.where, found)
        args, options = ("parquet",), {"data_files": {split: found[split]}}
    splits = datasets.load_dataset(*args, streaming=True, **options)
    name = next((n for n in splits if SPLIT_NAMES.get(n, n) == split), None)
    if name is None:
        raise unknown_split(split, source.where, splits)
    table = splits[name]
    columns = table.column_names
    captions = sorted(c for c in columns if re.fullmatch(r"caption(_\d+)?", c))
    if "image" not in columns or not captions:
        raise ValueError(f"{source.where} needs the columns image, caption_0, caption_1, …; "
                         f"found: {', '.join(columns)}")
    # Undecoded, so that one broken image is counted and not fatal.
    table = table.cast_column("image", datasets.Image(decode=False))
    for i, row in enumerate(table):
        image, texts = row["image"] or {}, [row[c] or "" for c in captions]
        if wrong := next((t for t in texts if not isinstance(t, str)), None):
            raise ValueError(f"{source.where}: captions must be text; found in row {i}: "
                             f"{str(wrong)[:80]}")
        yield image.get("path") or f"row {i}", image.get("bytes"), texts


def check_hub(source: Source):
    """One quick question before `datasets` retries for half a minute. Raises HubUnreachable.

    ValueError if someone asked for a data set that isn't there; of the default, which nobody asked
    for, a proxy's 403 only means that the Hub is out of reach.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().dataset_info(source.where, timeout=10)
    except Exception as error:  # any transport's own error; the reason is told, never swallowed
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        if source.explicit and status in (401, 403, 404):
            raise ValueError(f"the Hub has no public data set {source.where!r}") from error
        raise HubUnreachable(f"{type(error).__name__}: {one_line(error)}") from error


def folder_rows(root: Path, split: str):
    """Images and a caption file: `image,caption` rows, or Flickr8k's original token list.

    The original's split lists (Flickr_8k.trainImages.txt, …) are followed where they are there.
    Without lists a fixed tenth of the images, chosen by a hash of their names, is 'validation',
    the rest 'train'; 'all' is everything.
    """
    file = next((root / name for name in CAPTION_FILES if (root / name).is_file()), None)
    if file is None:
        found = ", ".join(sorted(p.name for p in root.iterdir())[:8]) or "nothing"
        raise ValueError(f"{root} needs *.parquet or one of {', '.join(CAPTION_FILES)}; "
                         f"found: {found}")
    captions = read_captions(file)
    lists = {"train": "train", "validation": "dev", "test": "test"}
    lists = {name: root / f"Flickr_8k.{stem}Images.txt" for name, stem in lists.items()}
    splits = {name: read_text(path).split() for name, path in lists.items() if path.is_file()}
    if not splits:
        ranked = sorted(captions, key=lambda name: hashlib.sha256(name.encode()).digest())
        held_out = set(ranked[:-(-len(ranked) // 10)])
        splits = {"train": [n for n in captions if n not in held_out],
                  "validation": [n for n in captions if n in held_out]}
    splits["all"] = list(captions)
    if split not in splits:
        raise unknown_split(split, str(root), splits)
    for name in splits[split]:
        paths = (root / folder / name for folder in IMAGE_FOLDERS)
        yield name, next((p for p in paths if p.is_file()), None), captions.get(name, [])


def read_text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error


def read_captions(file: Path) -> dict[str, list[str]]:
    """{image name: captions}, in the file's order. ValueError names what is wrong with the file."""
    text = read_text(file)
    captions: dict[str, list[str]] = {}
    if file.name == "Flickr8k.token.txt":  # name.jpg#0<TAB>A child in a pink dress …
        rows = [re.split(r"#\d+\t", line, maxsplit=1) for line in text.splitlines() if line.strip()]
        header, form = ["image", "caption"], "name.jpg#0<tab>caption"
    else:
        try:
            header, *rows = list(csv.reader(io.StringIO(text), skipinitialspace=True)) or [[]]
        except csv.Error as error:  # a quote never closed, for one
            raise ValueError(f"{file} is not a table of image,caption: {error}") from error
        form = "image,caption (quote a caption that has a comma)"
    if [h.strip().lower() for h in header] != ["image", "caption"]:
        raise ValueError(f"{file} must begin with the header image,caption; "
                         f"found: {','.join(header)[:80] or 'an empty file'}")
    for number, row in enumerate(filter(None, rows), start=1):
        if len(row) != 2:
            raise ValueError(f"{file}, row {number}: expected {form}; found: {','.join(row)[:80]}")
        captions.setdefault(row[0].strip(), []).append(row[1])
    if not captions:
        raise ValueError(f"{file} holds no captions; expected rows of the form {form}")
    return captions


# ------------------------------------------------------------------------------- images to arrays


def resize_crop(image: Image.Image, size: int) -> np.ndarray:
    """CLIP's preprocessing: shorter side to `size` (bicubic), centre crop → (S, S, 3) uint8."""
    if max(image.size) > 50 * min(image.size):  # a line: its middle is all that would remain
        side = 50 * min(image.size)
        image = ImageOps.crop(image, tuple((n - min(n, side)) // 2 for n in image.size * 2))
    width, height = image.size
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)  # as torchvision's crop
    return np.asarray(image.crop((left, top, left + size, top + size)))


def fit(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, H, W, 3) → (N, S, S, 3), as `resize_crop` does it."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([resize_crop(Image.fromarray(image), size) for image in images])


def normalize(images: np.ndarray | torch.Tensor) -> torch.Tensor:
    """uint8 (B, S, S, 3) → float32 (B, 3, S, S) with CLIP's mean and standard deviation."""
    pixels = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images)
    pixels = pixels.permute(0, 3, 1, 2).float() / 255
    return (pixels - pixels.new_tensor(MEAN)[:, None, None]) / (
        pixels.new_tensor(STD)[:, None, None])


@dataclass(frozen=True)
class Transform:
    """A PIL image of any size and mode → pixels (3, S, S), float32, as the model takes them."""

    size: int

    def __call__(self, image: Image.Image) -> torch.Tensor:
        return normalize(resize_crop(image.convert("RGB"), self.size)[None])[0]


def decode(image, size: int) -> tuple[np.ndarray | None, str]:
    """Bytes, path or array → ((S, S, 3) uint8 or None if it must be skipped, what was odd)."""
    if image is None:
        return None, "missing"
    if isinstance(image, np.ndarray):
        return resize_crop(Image.fromarray(image), size), ""
    try:
        with Image.open(image if isinstance(image, Path) else io.BytesIO(image)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None, "too large"
            odd = "animated, first frame taken" if getattr(picture, "n_frames", 1) > 1 else (
                f"converted from {picture.mode}" if picture.mode != "RGB" else "")
            picture.draft("RGB", (2 * size, 2 * size))  # a JPEG decodes faster at half its size
            picture = ImageOps.exif_transpose(picture)  # phones write which side is up
            return resize_crop(picture.convert("RGB"), size), odd
    except Image.DecompressionBombError:
        return None, "too large"
    except Exception as error:  # decoders raise many kinds for broken files; each is counted
        return None, "truncated" if "truncated" in str(error) else "unreadable"


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

    Raises ValueError for a source that is not in one of the four forms, HubUnreachable for a Hub
    that does not answer.
    """
    split = SPLIT_NAMES.get(split, split)
    key = "\n".join([str(CACHE_VERSION), source.kind, source.identity(split), split, str(size),
                     str(limit)])
    folder = cache_folder() / hashlib.sha256(key.encode()).hexdigest()[:24]
    meta = read_meta(folder, size)
    if meta is None:
        meta = build_cache(folder, source, split, size, limit)
        print(f"{source.where}, {split}: {meta['summary']}", file=sys.stderr)
    shape = (len(meta["captions"]), size, size, 3)
    images = np.memmap(folder / "images.u8", np.uint8, "r", shape=shape)
    return Pairs(images, meta["captions"], f"{source.where}:{split}", meta["summary"])


def read_meta(folder: Path, size: int) -> dict | None:
    """What a cache folder says of itself; None if it is not there or not whole."""
    try:
        meta = json.loads((folder / "meta.json").read_text())
        whole = (folder / "images.u8").stat().st_size == len(meta["captions"]) * size * size * 3
        return meta if whole else None
    except (OSError, ValueError, KeyError):
        return None


def build_cache(folder: Path, source: Source, split: str, size: int, limit: int) -> dict:
    """Decode a split into a temporary folder, then rename it: readers see all of it or nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        captions, skipped, odd = [], Counter(), Counter()
        rows = islice(source.rows(split), limit or None)
        with (open(building / "images.u8", "wb") as file, ThreadPoolExecutor() as pool,
              warnings.catch_warnings()):  # around all threads, which share their filters
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            while chunk := list(islice(rows, 256)):
                decoded = pool.map(lambda row: decode(row[1], size), chunk)
                for (_, _, texts), (pixels, note) in zip(chunk, decoded):
                    texts = [text.strip() for text in texts if text.strip()]
                    if pixels is None or not texts:
                        skipped[note if pixels is None else "without a caption"] += 1
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
    stretch = uniform(-0.14, 0.14).mul(config.crop < 1).exp()  # aspect ratios of 3:4 to 4:3
    height, width = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    flip = uniform(-1, 1).sign()
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    pixels = normalize(images)
    grid = F.affine_grid(theta.to(pixels.device), (B, 3, size, size), align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    if config.jitter:
        brightness, contrast, saturation = (
            uniform(-config.jitter, config.jitter)[:, None, None, None].to(pixels.device)
            for _ in range(3))
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
        if len(pairs) < config.batch_size:
            raise ValueError(f"batch_size {config.batch_size} is larger than the {len(pairs)} "
                             f"images of {pairs.name}; set --batch-size {len(pairs)} or less")
        self.images, self.size, self.config, self.device = pairs.images, size, config, device
        self.per_epoch = len(pairs) // config.batch_size
        texts, owner = pairs.flat_captions()
        self.tokens = tokenizer(texts)  # (M, L), encoded once
        self.counts = np.bincount(owner)  # captions of each image
        self.first = np.cumsum(self.counts) - self.counts  # its first row in tokens

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """A permutation of the images, and the caption row drawn for each, both (N,)."""
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(len(self.counts))
        return order, (self.first + rng.integers(self.counts))[order]

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        epoch, index = divmod(step, self.per_epoch)
        batch = slice(index * self.config.batch_size, (index + 1) * self.config.batch_size)
        images, rows = (part[batch] for part in self.order(epoch))
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
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
    kept = torch.argsort(gone.long(), dim=1, stable=True)
    return tokens.gather(1, kept).masked_fill(place > end - gone.sum(1, keepdim=True), 0)
