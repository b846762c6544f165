"""Batches of pairs: which images, which captions, and how they are augmented.

    Pairs ──Batches[step]──▶ pixels (B, 3, S, S) float32, tokens (B, L) int64, ids (B,) int64
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial

import numpy as np
import torch
import torch.nn.functional as F

from miniclip.config import TrainConfig
from miniclip.data.captions import sentence_numbers
from miniclip.data.images import normalize
from miniclip.data.pairs import Pairs
from miniclip.tokenizer import Tokenizer

AT_ONCE = 512  # images that are augmented at a time: several copies of them are in memory


def augment(images: torch.Tensor, size: int, config: TrainConfig, generator: torch.Generator,
            sided: torch.Tensor | None = None, part: slice = slice(None), total: int = 0):
    """uint8 (B, R, R, 3) → normalised float32 (B, 3, S, S), each with a random crop, flip, colour.

    The random resized crop (Szegedy et al. 2015, arXiv 1409.4842, section 6) and the flip are one
    affine map for each image; brightness, contrast and saturation change by up to `jitter`. The
    images that are `sided` (B,) are never mirrored: their captions say left or right.

    part, total: the images are this part of a batch of so many (0: all of it), and get the numbers
    that are drawn for it.
    """
    B = len(images)

    def uniform(low, high):  # drawn on the CPU, so that every device sees the same crops
        return torch.empty(total or B).uniform_(low, high, generator=generator)[part]

    side = uniform(config.crop, 1).sqrt()  # of the crop, as a share of the image's side
    # Aspect ratios of 3:4 to 4:3; where nothing is cropped, of 1.
    stretch = uniform(-0.14, 0.14).mul(config.crop < 1).exp()
    height, width = (side * stretch).clamp(max=1), (side / stretch).clamp(max=1)
    flip = uniform(-1, 1).sign() if config.flip else torch.ones(B)
    if sided is not None:
        flip = flip.masked_fill(sided, 1)
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    # The image reaches from −1 to 1: a crop of width w can move by ±(1 − w).
    theta[:, 0, 2], theta[:, 1, 2] = uniform(-1, 1) * (1 - width), uniform(-1, 1) * (1 - height)
    colours = [uniform(-config.jitter, config.jitter) for _ in range(3)] if config.jitter else []
    if B <= AT_ONCE:
        return drawn(images, size, theta, colours)
    pixels = theta.new_empty(B, 3, size, size, device=images.device)
    for some in (slice(i, i + AT_ONCE) for i in range(0, B, AT_ONCE)):
        pixels[some] = drawn(images[some], size, theta[some], [x[some] for x in colours])
    return pixels


def drawn(images: torch.Tensor, size: int, theta: torch.Tensor, colours: list) -> torch.Tensor:
    """uint8 (B, R, R, 3) → normalised float32 (B, 3, S, S), with these maps and these colours.

    theta (B, 2, 3); colours: brightness, contrast and saturation, each (B,), or nothing.
    """
    pixels = normalize(images)
    grid = F.affine_grid(theta.to(pixels.device), (len(images), 3, size, size),
                         align_corners=False)
    pixels = F.grid_sample(pixels, grid, padding_mode="reflection", align_corners=False)
    if colours:
        brightness, contrast, saturation = (x[:, None, None, None].to(pixels.device)
                                            for x in colours)
        # lerp(a, b, w) = a + w (b − a): a negative w leads away from grey.
        gray = pixels.mean(1, keepdim=True)
        pixels = torch.lerp(pixels, gray, -saturation)
        pixels = torch.lerp(pixels, gray.mean((2, 3), keepdim=True), -contrast) + brightness
    return pixels


class Batches:
    """`batches[step]` → pixels (B, 3, S, S), tokens (B, L), ids (B,): a function of seed and step.

    So a resumed run sees the same data as an uninterrupted one. Within an epoch an image appears at
    most once, with one of its captions drawn at random. An image twice in a batch would make a true
    pair a negative. So would two images with the same caption: `ids` has equal numbers for equal
    captions, and is None where all differ.

    image_features (N, D), text_features (M, D): of a locked tower, for every image or caption. They
    come in place of pixels or tokens, and are not augmented.

    part: of each batch, for one of several processes. All draw the same random numbers, for the
    whole batch, so the parts together are the batch of a single process.
    """

    def __init__(self, pairs: Pairs, tokenizer: Tokenizer, size: int, config: TrainConfig,
                 device="cpu", image_features: torch.Tensor | None = None,
                 text_features: torch.Tensor | None = None, part: slice = slice(None)):
        if (count := len(pairs)) < 2:
            raise ValueError(f"{pairs.name} has {count} image: contrast needs 2 at least, beside "
                             "those that are held out for validation; add some")
        if count < config.batch_size:
            raise ValueError(f"batch_size {config.batch_size} is larger than the {count} images of "
                             f"{pairs.name}; set --batch-size {count} or less")
        self.images, self.size, self.config, self.device = pairs.images, size, config, device
        self.image_features, self.text_features = image_features, text_features
        self.part = part
        self.per_epoch = len(pairs) // config.batch_size
        texts, owner = pairs.flat_captions()
        self.counts = np.bincount(owner)  # captions of each image
        self.first = np.cumsum(self.counts) - self.counts  # the number of its first caption
        self.encoded = (EncodedWhenNeeded if pairs.streamed else EncodedOnce)(texts, tokenizer)
        self.sided = torch.from_numpy(pairs.name_a_side())  # (N,)
        # Cached for an epoch: a million images take a tenth of a second.
        self.order = lru_cache(maxsize=1)(self.order)

    def order(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """A permutation of the images, and the caption row drawn for each, both (N,)."""
        rng = np.random.default_rng((self.config.seed, epoch))
        order = rng.permutation(len(self.counts))
        return order, (self.first + rng.integers(self.counts))[order]

    def numbers(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Which images a batch holds, and which of all captions describe them, both (B,)."""
        epoch, index = divmod(step, self.per_epoch)
        batch = slice(index * self.config.batch_size, (index + 1) * self.config.batch_size)
        images, rows = self.order(epoch)
        return images[batch], rows[batch]

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        images, rows = self.numbers(step)
        ids = self.encoded.sentences(rows)
        equal = len(np.unique(ids)) < len(ids)  # in the whole batch: all processes find the same
        total, part = len(images), self.part
        images, rows, ids = images[part], rows[part], ids[part]
        generator = torch.Generator().manual_seed((self.config.seed * 1_000_003 + step) % 2**63)
        if self.image_features is None:
            pixels = self.sent(torch.from_numpy(self.images[images]))
            pixels = augment(pixels, self.size, self.config, generator, self.sided[images], part,
                             total)
        else:
            pixels = self.sent(self.image_features[images])
        if self.text_features is None:
            tokens = self.encoded.tokens(rows)
            if self.config.word_dropout:
                tokens = drop_words(tokens, self.config.word_dropout, generator, part, total)
            # Columns after the longest text's end token can't change a result: leave them out.
            tokens = tokens[:, : int(tokens.argmax(1).max()) + 1]
        else:
            tokens = self.text_features[rows]
        return pixels, self.sent(tokens), self.sent(torch.from_numpy(ids)) if equal else None

    def sent(self, tensor: torch.Tensor) -> torch.Tensor:
        """Copy a tensor to the device. From pinned memory the copy runs in the background."""
        if torch.device(self.device).type == "cuda":
            tensor = tensor.contiguous().pin_memory()
        return tensor.to(self.device, non_blocking=True)


class EncodedOnce:
    """All M captions, encoded beforehand. Of some rows (B,):"""

    def __init__(self, texts: list[str], tokenizer: Tokenizer):
        self.all_tokens, self.numbers = tokenizer(texts), sentence_numbers(texts)

    def tokens(self, rows: np.ndarray) -> torch.Tensor:  # (B, L)
        return self.all_tokens[rows]

    def sentences(self, rows: np.ndarray) -> np.ndarray:  # (B,): equal for equal captions
        return self.numbers[rows]


class EncodedWhenNeeded:
    """The same for captions that are too many to keep: those of a batch at a time."""

    def __init__(self, texts, tokenizer: Tokenizer):
        self.texts, self.tokenizer = texts, tokenizer

    def tokens(self, rows: np.ndarray) -> torch.Tensor:
        return self.tokenizer([self.texts[row] for row in rows.tolist()], tell=False)

    def sentences(self, rows: np.ndarray) -> np.ndarray:
        return sentence_numbers([self.texts[row] for row in rows.tolist()])


def prefetch(batches: Batches, steps: range) -> Iterator[tuple]:
    """(step, pixels, tokens, ids, seconds waited): a thread prepares one batch ahead."""
    device, ready = torch.device(batches.device), None
    if device.type == "cuda" and device.index is not None:  # each thread has one of its own
        ready = partial(torch.cuda.set_device, device)
    with ThreadPoolExecutor(1, initializer=ready) as pool:
        ahead = pool.submit(batches.__getitem__, steps.start) if steps else None
        for step in steps:
            begin = time.perf_counter()
            batch = ahead.result()
            waited = time.perf_counter() - begin
            if step + 1 in steps:
                ahead = pool.submit(batches.__getitem__, step + 1)
            yield step, *batch, waited


def drop_words(tokens: torch.Tensor, chance: float, generator: torch.Generator,
               part: slice = slice(None), total: int = 0) -> torch.Tensor:
    """(B, L) → (B, L) with each inner token left out at random and the rest moved up.

    part, total: as in `augment`.
    """
    end = tokens.argmax(1, keepdim=True)
    place = torch.arange(tokens.shape[1])
    drawn = torch.rand(total or len(tokens), tokens.shape[1], generator=generator)[part]
    gone = (drawn < chance) & (place > 0) & (place < end)
    # Zeros (kept) before ones (gone), and stable: the kept stay in their order.
    kept = torch.argsort(gone.long(), dim=1, stable=True)
    return tokens.gather(1, kept).masked_fill(place > end - gone.sum(1, keepdim=True), 0)
