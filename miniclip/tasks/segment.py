"""Segmentation: which label does each pixel fit best? Nothing is trained for it.

    picture ──overlapping windows──▶ model.vision.dense ──▶ a vector for each patch
            ──cosines with labels and backgrounds──▶ maps (K, H, W), averaged where windows overlap
            ──guided filter──▶ the maps' edges move to the picture's ──largest──▶ a label each pixel

A picture is uint8 (H, W, 3), its shorter side as long as the model's images: small windows of it
are enlarged, so that a model with few patches looks at details too.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F

from miniclip.data.annotated import IGNORED, Annotated
from miniclip.data.images import normalize
from miniclip.tasks.features import check_finite, embed_images, progress
from miniclip.tasks.intervals import draws_of, percentiles
from miniclip.tasks.zero_shot import TEMPLATES, class_vectors

# What a pixel may show besides the labels: words for what fills the rest of a photograph.
BACKGROUND = ("grass", "sky", "sand", "street", "water", "snow", "wall", "floor", "tree", "rock",
              "building", "ground", "white background", "black background", "grey background")
BACKGROUND_TEMPLATES = ("{}", "a photo of {}", "on {}")
FINE_GRID = 14  # patches a side that need no smaller windows, about: ViT-B/16 has 14
SMALL_WINDOWS = (1 / 4, 3 / 8, 1 / 2)  # in parts of the picture's shorter side
LARGE_PART = 0.25  # of the picture: what a background must fit best to count as there
RADIUS = 0.35  # of the guided filter, in parts of the shorter side; chosen on scenes
BATCH, MAPS = 250, 64  # windows, and maps to be filtered, at once


class Vocabulary:
    """What pixels are compared with: labels, and backgrounds, which count as none of them.

    A background that is asked for as a label is none for that question. Each label's vector is made
    once. ValueError for a missing or empty label, and for a template without {}.
    """

    def __init__(self, model, tokenizer, background=None, templates=TEMPLATES):
        self.model, self.tokenizer, self.templates = model, tokenizer, templates
        background = list(BACKGROUND if background is None else background)
        self.background_names = background
        self.background = torch.empty(0, model.config.embed_dim)  # (backgrounds, D)
        if background:
            self.background = class_vectors(model, tokenizer, background, BACKGROUND_TEMPLATES)
        self.known: dict[str, torch.Tensor] = {}

    def vectors(self, labels) -> torch.Tensor:
        """K labels → (K + other backgrounds, D) float32, of unit length."""
        new = [label for label in dict.fromkeys(labels) if label not in self.known]
        if new or not labels:
            found = class_vectors(self.model, self.tokenizer, new, self.templates)
            self.known.update(zip(new, found))
        asked = {label.strip().lower() for label in labels}
        others = [k for k, name in enumerate(self.background_names) if name.lower() not in asked]
        own = torch.stack([self.known[label] for label in labels])
        return torch.cat([own, self.background[others]])


def window_sizes(model) -> tuple[float, ...]:
    """Parts of the shorter side: the whole of it for a fine grid of patches, less for a coarse."""
    grid = model.config.image_size // model.config.patch_size
    return (1.0,) if grid >= FINE_GRID else SMALL_WINDOWS


def corners(length: int, window: int, stride: int) -> list[int]:
    """Where windows begin along a side, the last one at its very end.

    >>> corners(10, 4, 4)
    [0, 4, 6]
    """
    return sorted({*range(0, length - window, stride), length - window})


@torch.no_grad()
def similarity_maps(model, vectors: torch.Tensor, picture: np.ndarray, windows=None):
    """Cosine of each pixel's patches with each of K vectors (K, D) → (K, H, W) float32.

    A pixel's value is the mean over all patches, of all windows, that it lies in. The patches'
    embeddings are those of `VisionTransformer.dense` (MaskCLIP: Zhou et al. 2022, arXiv
    2112.01071). `windows`: their sides in parts of the picture's shorter side (default: what fits
    the model's grid).
    """
    pixels = normalize(picture[None])  # (1, 3, H, W)
    size, device = model.config.image_size, model.logit_scale.device
    total, count = 0.0, 0.0
    for part in windows or window_sizes(model):
        window = round(part * min(picture.shape[:2]))
        # Mirrored beyond the border, so that border pixels lie in as many windows as others.
        margin = window // 2 if part < 1 else 0
        wide = F.pad(pixels, (margin,) * 4, mode="reflect")
        H, W = wide.shape[2:]
        stride = max(1, window // 4 if part < 1 else window // 2)
        places = [(y, x) for y in corners(H, window, stride) for x in corners(W, window, stride)]
        sums, seen = torch.zeros(len(vectors), H, W), torch.zeros(H, W)
        for i in range(0, len(places), BATCH):
            batch = places[i:i + BATCH]
            crops = torch.cat([wide[:, :, y:y + window, x:x + window] for y, x in batch])
            if window != size:
                crops = F.interpolate(crops, size=(size, size), mode="bicubic", antialias=True)
            dense = model.vision.dense(crops.to(model.logit_scale))  # (n, G, G, D)
            dense = F.normalize(dense.float(), dim=-1)
            cosines = (dense @ vectors.to(device).T).permute(0, 3, 1, 2).cpu()  # (n, K, G, G)
            for (y, x), small in zip(batch, cosines):  # enlarged one by one: labels may be many
                block = F.interpolate(small[None], size=(window, window))[0]
                sums[:, y:y + window, x:x + window] += block
                seen[y:y + window, x:x + window] += 1
        inner = (..., slice(margin, H - margin), slice(margin, W - margin))
        total, count = total + sums[inner], count + seen[inner]
    maps = total / count
    check_finite(maps)
    return maps


def guided_filter(picture: np.ndarray, maps: torch.Tensor, radius: int, epsilon: float = 1e-3):
    """Move the edges of maps (K, H, W) to those of a picture (H, W, 3) uint8 → (K, H, W).

    Each map becomes, around every pixel, the linear function of the picture's three colours that
    fits it best (He et al. 2010, "Guided Image Filtering", equations 19 to 21). radius in pixels;
    epsilon keeps the slopes small, with colours from 0 to 1.
    """
    side = 2 * radius + 1

    def mean(x):  # over the square of `side` around each pixel, as far as it lies within, (n, H, W)
        for shape in ((side, 1), (1, side)):
            margin = (shape[0] // 2, shape[1] // 2)
            x = F.avg_pool2d(x, shape, stride=1, padding=margin, count_include_pad=False)
        return x

    colours = torch.tensor(picture).permute(2, 0, 1).double() / 255  # (3, H, W)
    maps, (K, H, W) = maps.double(), maps.shape
    mean_colour, mean_map = mean(colours), mean(maps)
    products = (colours[:, None] * colours).reshape(9, H, W)
    covariance = mean(products).view(3, 3, H, W) - mean_colour[:, None] * mean_colour
    covariance = covariance.permute(2, 3, 0, 1) + epsilon * torch.eye(3)  # (H, W, 3, 3)
    shared = mean((colours[:, None] * maps).reshape(3 * K, H, W)).view(3, K, H, W)
    shared = (shared - mean_colour[:, None] * mean_map).permute(2, 3, 0, 1)  # (H, W, 3, K)
    slopes = torch.linalg.solve(covariance, shared).permute(2, 3, 0, 1)  # (3, K, H, W)
    offsets = mean_map - (slopes * mean_colour[:, None]).sum(0)
    slopes = mean(slopes.reshape(3 * K, H, W)).view(3, K, H, W)
    return ((slopes * colours[:, None]).sum(0) + mean(offsets)).float()


def label_maps(model, vocabulary: Vocabulary, picture: np.ndarray, labels, windows=None):
    """How far each of K labels leads over the backgrounds, by pixel → (K, H, W) float32.

    Above zero a pixel fits the label better than any background that is there. Without backgrounds:
    the cosine.
    """
    K = len(labels)
    maps = similarity_maps(model, vocabulary.vectors(labels), picture, windows)
    there = [K + k for k in backgrounds_there(maps[K:])]
    radius = max(1, round(RADIUS * min(picture.shape[:2])))
    parts = maps[[*range(K), *there]].split(MAPS)
    maps = torch.cat([guided_filter(picture, part, radius) for part in parts])
    return maps[:K] - maps[K:].amax(0) if there else maps


def backgrounds_there(maps: torch.Tensor) -> list[int]:
    """Maps of the backgrounds alone (n, H, W) → those that fit a large part of the picture best.

    The others would take pixels from the labels: a black cross is much like "a black background".
    MaskCLIP leaves out labels that fit no pixel well ("prompt denoising").
    """
    if not len(maps):
        return []
    best = maps.argmax(0).flatten().bincount(minlength=len(maps))  # pixels, (n,)
    large = (best >= LARGE_PART * maps[0].numel()).nonzero().flatten().tolist()
    return large or [int(best.argmax())]


def segment(model, vocabulary: Vocabulary, picture: np.ndarray, labels, windows=None):
    """A picture → (H, W) uint8: 0 for background, k + 1 where labels[k] fits best.

    ValueError for more than 254 labels.
    """
    if len(labels) > 254:
        raise ValueError(f"a mask can hold 254 labels, not {len(labels):,}")
    best, label = label_maps(model, vocabulary, picture, labels, windows).max(0)
    with_background = len(vocabulary.vectors(labels)) > len(labels)
    shown = best > (0 if with_background else -torch.inf)
    return torch.where(shown, label + 1, 0).numpy().astype(np.uint8)


# ------------------------------------------------------------------------------- scores


class Overlaps:
    """Intersection and union of each label, summed over the pictures that were asked for it.

    So it is defined in PASCAL VOC's segmentation task (Everingham et al. 2010, section 4.2); the
    background is left out of the mean here.
    """

    def __init__(self):
        self.pictures: list[dict[str, tuple[int, int, int]]] = []  # label: shared, united, true

    def add(self, asked, truth: np.ndarray, said: np.ndarray):
        """Masks (H, W) of one picture; pixels that are IGNORED in the truth don't count."""
        known, pixels = truth != IGNORED, {}
        for number, label in enumerate(asked, start=1):
            true, found = known & (truth == number), known & (said == number)
            pixels[label] = tuple(int(mask.sum()) for mask in (true & found, true | found, true))
        self.pictures.append(pixels)

    def sums(self, weights: np.ndarray) -> tuple[list[str], np.ndarray]:
        """weights (n, pictures) → labels; their pixels shared, united and true, (3, labels, n)."""
        labels = sorted({label for pixels in self.pictures for label in pixels})
        counts = np.array([[pixels.get(label, (0, 0, 0)) for label in labels]
                           for pixels in self.pictures]).reshape(len(self.pictures), -1, 3)
        return labels, counts.transpose(2, 1, 0) @ weights.T

    def means(self, weights: np.ndarray) -> np.ndarray:
        """weights (n, pictures): how often each picture counts → mean IoU (n,), in percent.

        Draws without any true pixel are left out.
        """
        _, (shared, united, true) = self.sums(weights)  # (labels, n) each
        iou = np.divide(shared, united, out=np.full(shared.shape, np.nan), where=true > 0)
        known = np.isfinite(iou).any(0)  # a draw may hold no true pixel at all
        return 100 * np.nanmean(iou[:, known], axis=0)

    def iou(self) -> dict[str, float]:
        """Of each label that has a true pixel, in percent."""
        labels, (shared, united, true) = self.sums(np.ones((1, len(self.pictures))))
        return {label: 100 * float(shared[k, 0] / united[k, 0])
                for k, label in enumerate(labels) if true[k, 0]}

    def mean(self) -> float:
        """Mean IoU over those labels, in percent. ValueError if there are none."""
        values = self.iou() if self.pictures else {}
        if not values:
            raise ValueError("no picture has a true mask of what it was asked for")
        return sum(values.values()) / len(values)

    def interval(self) -> list[float]:
        """95 % interval of the mean: pictures are drawn with replacement, 1,000 times."""
        return percentiles(self.means(draws_of(len(self.pictures), 1000)))


def guess(asked, truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask (H, W) of one who gives every pixel to a label or the background by chance."""
    return rng.integers(len(asked) + 1, size=truth.shape).astype(np.uint8)


def centre_mask(shape: tuple[int, int], label: int, share: float) -> np.ndarray:
    """A disc with `share` of the pixels in the middle of a mask (H, W), all of one label."""
    H, W = shape
    y, x = np.indices(shape)
    distance = np.hypot(y - (H - 1) / 2, x - (W - 1) / 2)
    return np.where(distance < np.sqrt(share * H * W / np.pi), label, 0).astype(np.uint8)


def segmentation_report(model, vocabulary: Vocabulary, rows) -> dict:
    """Every picture against its true mask → mean IoU, in percent.

    Args:
        rows: a function that gives the pictures (Annotated), again and again.

    Returns:
        {"mean_iou", "interval", "guessing", "centre", "pictures", "labels": {label: IoU}}, with
        the 95 % interval of the mean. Baselines: "guessing" gives every pixel to a label or the
        background by chance; "centre" is a disc in the middle, as large as objects are on
        average, named as the whole picture by zero-shot.
    """
    ours, guessing, centre = Overlaps(), Overlaps(), Overlaps()
    rng = np.random.default_rng(0)
    share = mean_share(rows())
    pictures = 0
    for row in progress(rows(), "picture"):
        pictures += 1
        ours.add(row.asked, row.mask, segment(model, vocabulary, row.picture, row.asked))
        guessing.add(row.asked, row.mask, guess(row.asked, row.mask, rng))
        label = 1 + whole_label(model, vocabulary, row.picture, row.asked)
        centre.add(row.asked, row.mask, centre_mask(row.mask.shape, label, share))
    return {"mean_iou": round(ours.mean(), 2), "interval": ours.interval(),
            "guessing": round(guessing.mean(), 2),
            "centre": round(centre.mean(), 2), "pictures": pictures,
            "labels": {label: round(iou, 2) for label, iou in sorted(ours.iou().items())}}


def mean_share(rows: Iterable[Annotated]) -> float:
    """Share of all pixels that objects cover. ValueError for a picture without a mask."""
    covered = pixels = 0
    for row in rows:
        if row.mask is None:
            raise ValueError("the data have boxes and no masks: use `miniclip detect`")
        covered += int(((row.mask > 0) & (row.mask != IGNORED)).sum())
        pixels += row.mask.size
    if not pixels:
        raise ValueError("there is no picture to segment")
    return covered / pixels


@torch.no_grad()
def whole_label(model, vocabulary: Vocabulary, picture: np.ndarray, labels) -> int:
    """The number of the label that the middle square of a picture is nearest to: zero-shot."""
    side = min(picture.shape[:2])
    top, left = ((n - side) // 2 for n in picture.shape[:2])
    feature = embed_images(model, picture[None, top:top + side, left:left + side])[0]
    return int((vocabulary.vectors(labels)[:len(labels)] @ feature).argmax())
