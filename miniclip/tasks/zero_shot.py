"""Retrieval and zero-shot classification: what a CLIP can do without being taught it.

Features are of unit length, (N, D) float32; a similarity is their dot product.
"""

import os
import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from miniclip import shapes
from miniclip.data import Pairs, decode, fit, normalize
from miniclip.sources import SPLIT_NAMES, Source, check_hub, telling, unknown_split

TEMPLATES = ("a photo of a {}", "a picture of a {}", "a drawing of a {}", "there is a {}", "a {}")
IMAGE_SUFFIXES = {*(".avif .bmp .gif .heic .heif .hif .j2k .jfif .jp2 .jpe .jpeg .jpg .pbm .pgm "
                    ".png .ppm .tga .tif .tiff .webp").split()}
DRAWN_CLASSES = 1000  # at most, in a confusion picture
CHUNK_FLOATS = 2**24  # similarities at once: 128 MiB in float64, whatever the number of images


@torch.no_grad()
def embed_images(model, images: np.ndarray, batch_size: int = 250) -> torch.Tensor:
    """uint8 (N, S, S, 3) → unit vectors (N, D), float32, on the CPU.

    Also where the model computes in bfloat16, the norm is taken in float32.
    """
    batches = (images[i:i + batch_size] for i in range(0, len(images), batch_size))
    parts = [model.encode_image(normalize(b).to(model.logit_scale)).float().cpu() for b in batches]
    return F.normalize(torch.cat(parts), dim=-1)


@torch.no_grad()
def embed_texts(model, tokenizer, texts: list[str], batch_size: int = 500) -> torch.Tensor:
    """M texts → unit vectors (M, D), float32, on the CPU."""
    device = model.logit_scale.device
    batches = tqdm(tokenizer(texts).split(batch_size), "texts", leave=False, unit="batch",
                   disable=len(texts) < 20_000)  # so many take minutes
    # What stands behind the longest text's end token can't change a result: leave it out.
    batches = (t[:, : int(t.argmax(1).max()) + 1].to(device) for t in batches)
    return F.normalize(torch.cat([model.encode_text(t).float().cpu() for t in batches]), dim=-1)


def check_finite(*features: torch.Tensor):
    """NaN compares as smaller than everything: without this a broken model would win."""
    if not all(torch.isfinite(f).all() for f in features):
        raise ValueError("features hold NaN or infinite values: the model has diverged")


def ranks(image_features: torch.Tensor, text_features: torch.Tensor, owner: np.ndarray):
    """Where the first right answer stands, 1 being the top → (N,) for images, (M,) for texts.

    owner (M,): the image that each text belongs to. Image → text: the best placed of the image's
    own texts. Ties count against the model: a wrong answer that scores just as high stands before
    the right one. In chunks: no N × M matrix is held.
    """
    check_finite(image_features, text_features)
    N, M = len(image_features), len(text_features)
    owner = torch.as_tensor(owner)
    if len(torch.unique(owner)) != N:
        raise ValueError("every image needs at least one caption to be searched for")
    image_ranks, text_ranks = [], []
    for part in chunks(N, M):
        scores = cosines(image_features[part], text_features)  # (n, M)
        own = owner == part[:, None]
        best = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        image_ranks.append(1 + ((scores >= best) & ~own).sum(1))
    for part in chunks(M, N):
        scores = cosines(text_features[part], image_features)  # (m, N)
        right = scores.gather(1, owner[part, None])
        text_ranks.append((scores >= right).sum(1))  # the right one counts itself: 1 is the top
    return torch.cat(image_ranks), torch.cat(text_ranks)


def cosines(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(n, D), (m, D) → (n, m) float32, the same for the same features wherever they stand.

    BLAS sums one column in another order than the next. In float64 that is gone with the rounding
    to float32; in float32 equal features could get scores that differ, and a tie would be lost.
    """
    return (a.double() @ b.double().T).float()


def chunks(rows: int, columns: int) -> tuple[torch.Tensor, ...]:
    """Row numbers in even parts, of about CHUNK_FLOATS scores each."""
    return torch.arange(rows).tensor_split(-(-rows // max(1, CHUNK_FLOATS // columns)))


def recalls(ranks: torch.Tensor) -> dict[str, float]:
    """Ranks → R@1, R@5, R@10 in percent, and the median rank."""
    result = {f"R@{k}": round(100 * (ranks <= k).double().mean().item(), 4) for k in (1, 5, 10)}
    return result | {"median_rank": float(np.median(ranks.numpy()))}


def retrieval(model, tokenizer, pairs: Pairs) -> dict:
    """The standard protocol (Hodosh et al. 2013, JAIR 47; Karpathy and Fei-Fei 2015).

    Every image against all captions of every image, and every caption against all images →
    {"image_to_text": {"R@1", "R@5", "R@10", "median_rank"}, "text_to_image": {…}, "images",
    "captions"}, recalls in percent.
    """
    texts, owner = pairs.flat_captions()
    image_ranks, text_ranks = ranks(
        embed_images(model, pairs.images), embed_texts(model, tokenizer, texts), owner)
    return {"image_to_text": recalls(image_ranks), "text_to_image": recalls(text_ranks),
            "images": len(pairs), "captions": len(texts)}


def class_vectors(model, tokenizer, names: list[str], templates=TEMPLATES) -> torch.Tensor:
    """One unit vector for each class → (C, D): normalise, mean over the templates, normalise.

    Prompt ensembling in the latent space (Radford et al. 2021, section 3.1.4). ValueError without
    a name, and for a template that has no place for it.
    """
    if isinstance(names, str) or not names or not all(map(str.strip, names)):
        raise ValueError("a class needs a name: give at least one label, and no empty one")
    if wrong := [template for template in templates if "{}" not in template]:
        raise ValueError(f"the template {wrong[0]!r} has no {{}}, where the label goes")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    vectors = embed_texts(model, tokenizer, prompts).view(len(names), len(templates), -1)
    return F.normalize(vectors.mean(dim=1), dim=-1)


def zero_shot(model, tokenizer, images: np.ndarray, labels: np.ndarray, names: list[str]) -> float:
    """Share, in percent, of images (N, S, S, 3) whose nearest class among `names` is labels (N,).

    Nothing is trained: the classes are sentences (Radford et al. 2021, section 3.1; lecture,
    minute 18:44).
    """
    images, classes = embed_images(model, images), class_vectors(model, tokenizer, names)
    check_finite(images, classes)
    scores = images @ classes.T  # (N, C)
    return round(100 * (scores.argmax(1) == torch.as_tensor(labels)).double().mean().item(), 2)


def shapes_report(model, tokenizer, seed: int = 9) -> dict:
    """What a model trained on `shapes` makes of what it never saw, in percent.

    held_out: colour × shape combinations of no training scene, among all 100 (chance 1), plain
    and in each shifted style; relations: the right caption against the one with its two objects
    swapped (chance 50).
    """
    size = model.config.image_size

    def held_out(style):
        images, labels = shapes.held_out_set(20, seed, style)
        return zero_shot(model, tokenizer, fit(images, size), labels, shapes.class_names())

    images, right, swapped = shapes.relation_set(500, seed)
    images = embed_images(model, fit(images, size))
    right, swapped = (embed_texts(model, tokenizer, texts) for texts in (right, swapped))
    wins = ((images * right).sum(1) > (images * swapped).sum(1)).double().mean().item()
    return {"held_out": {style: held_out(style) for style in shapes.STYLES},
            "relations": round(100 * wins, 2)}


# ------------------------------------------------------------------------------- a user's images


def read_image(path, size: int) -> np.ndarray:
    """A file → uint8 (S, S, 3). ValueError, in one line, if that can't be."""
    pixels, why = decode(Path(path), size)
    if pixels is None:
        try:
            open(path, "rb").close()
        except OSError as error:
            why = "no such file" if isinstance(error, FileNotFoundError) else error.strerror
        raise ValueError(f"{path} is no image that can be opened: {why}")
    return pixels


def in_threads(function, items: Iterator, n: int) -> Iterator[list]:
    """function of every item, n at a time: threads have the next n while the caller has these.

    Decoders are C, which doesn't hold the interpreter's lock: processes are not faster, and those
    of a caller that was killed would stay.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        ahead = pool.map(function, islice(items, n))
        while found := list(ahead):
            ahead = pool.map(function, islice(items, n))
            yield found
    finally:  # at once, should the caller be stopped
        pool.shutdown(cancel_futures=True)


def classify(images, labels: list[str], loaded, templates=TEMPLATES) -> torch.Tensor:
    """Paths of N images, C labels → probabilities (N, C), float32: softmax of scale · cosine.

    loaded: (model, tokenizer, transform), as `miniclip.load` gives them. Nothing is taught: the
    labels are put into the templates (Radford et al. 2021, section 3.1; Figure 1, steps 2 and 3).
    ValueError for an image that can't be opened, no or empty labels, a template without {}.
    """
    model, tokenizer, transform = loaded
    pixels = np.stack([*ThreadPoolExecutor().map(lambda x: read_image(x, transform.size), images)])
    classes = class_vectors(model, tokenizer, labels, templates)
    features = embed_images(model, pixels)
    scores = model.logit_scale.exp().item() * features @ classes.T  # (N, C)
    check_finite(scores)
    return scores.softmax(dim=1)


def labelled_images(where: str, split: str | None = None, renamed: dict[str, str] | None = None):
    """A labelled set → (iterator of (image, class number), class names).

    where: a folder with one folder of images for each class, perhaps below one for each split; the
    id of a Hub classification set; or `shapes`, of which it takes combinations held out of
    training. renamed: {folder or label: a better name}; the others are named as they are, with
    spaces for underscores. ValueError says what is missing.
    """
    source = Source.find(where)
    if source.kind == "shapes":
        if split:
            raise ValueError("the held-out combinations of shapes have no splits")
        images, numbers = shapes.held_out_set(20, seed=9)
        rows, labels = zip(images, numbers.tolist()), shapes.class_names()
    elif source.kind == "hub":
        rows, labels = hub_images(source, split)
    else:
        root = Path(source.where)
        if split and not (root / split).is_dir():
            raise unknown_split(split, where, (path.name for path in root.iterdir()
                                               if path.is_dir()))
        root = root / (split or "")
        paths = [p for p in root.glob("*/**/*") if p.suffix.lower() in IMAGE_SUFFIXES
                 and "/." not in f"/{p.relative_to(root)}" and p.is_file()]  # nothing hidden
        labels = sorted({p.relative_to(root).parts[0] for p in paths})
        if not labels:
            raise ValueError(f"{root} needs one folder of images for each class; found none")
        if set(labels) <= {"train", "val", "valid", "validation", "test"}:
            raise ValueError(f"{root} holds splits; choose one with --split: {', '.join(labels)}")
        # In an order that is the same everywhere, and whose first so many are of every class.
        paths = random.Random(0).sample(sorted(paths), len(paths))
        rows = ((p, labels.index(p.relative_to(root).parts[0])) for p in paths)
    if unknown := sorted(set(renamed or {}) - set(labels)):
        raise ValueError(f"no class {unknown[0]!r} in {where}; found: {', '.join(labels[:20])}")
    return iter(rows), [(renamed or {}).get(label, label.replace("_", " ")) for label in labels]


def hub_images(source: Source, split: str | None) -> tuple[Iterator, list[str]]:
    """`labelled_images` of a Hub set: its first columns of type Image and ClassLabel, streamed."""
    import datasets  # takes a second; only those who need it wait

    check_hub(source)
    with telling(source, split or "test"):
        splits = datasets.load_dataset(source.where, streaming=True)
    split = next((name for name in splits if SPLIT_NAMES.get(name, name) == split), split)
    split = split or next((name for name in ("test", "validation") if name in splits), "test")
    if split not in splits:
        raise unknown_split(split, source.where, splits)
    table = splits[split]
    image, label = (next((name for name, feature in (table.features or {}).items()
                          if isinstance(feature, kind)), None)
                    for kind in (datasets.Image, datasets.ClassLabel))
    if not (image and label):
        raise ValueError(f"{source.where} needs a column of images and one of class labels; "
                         f"found: {', '.join(table.column_names or [])}")
    names = table.features[label].names
    table = table.cast_column(image, datasets.Image(decode=False))  # one broken image is not fatal

    def rows():
        with telling(source, split):
            for row in table:
                yield (row[image] or {}).get("bytes"), row[label]

    return rows(), names


def zero_shot_report(loaded, rows: Iterator, names: list[str], templates=TEMPLATES):
    """Every image against every class → (figures, confusion (C, C) int64: truth by what was said).

    rows: (image as `decode` takes it, class number), as `labelled_images` gives them. figures:
    {"top1", "top5", "images", "unreadable", "classes": [{"name", "images", "top1", "top5",
    "mistaken_for"}, …]}, in percent; only of classes that have images. No confusion (None) of more
    than 1,000 classes: nobody could look at it, and 10,000 × 10,000 numbers take a gigabyte.
    """
    model, tokenizer, transform = loaded
    classes = class_vectors(model, tokenizer, names, templates)
    truth, said, unreadable = [], [], 0
    with tqdm(unit="image", dynamic_ncols=True) as bar:
        for batch in in_threads(lambda row: (decode(row[0], transform.size)[0], row[1]), rows, 250):
            kept = [(pixels, label) for pixels, label in batch if pixels is not None]
            bar.update(len(batch))
            unreadable += len(batch) - len(kept)
            if any(label is None or label < 0 for _, label in kept):
                raise ValueError("the labels of this split are kept secret; choose another --split")
            if kept:
                images = embed_images(model, np.stack([pixels for pixels, _ in kept]))
                check_finite(images, classes)
                said.append((images @ classes.T).topk(min(5, len(names))).indices)  # (n, 5)
                truth += [label for _, label in kept]
    if not truth:
        raise ValueError(f"none of the {unreadable:,} images can be opened")
    truth, said, C = torch.tensor(truth), torch.cat(said), len(names)
    hits = (said == truth[:, None]).double()  # (N, 5)
    pairs = Counter(zip(truth.tolist(), said[:, 0].tolist()))
    mistakes = sorted((count, -b, a) for (a, b), count in pairs.items() if a != b)
    mistaken_for = {a: names[-b] for _, b, a in mistakes}  # the last, that is the most frequent
    confusion = torch.bincount(truth * C + said[:, 0], minlength=C * C).view(C, C) if (
        C <= DRAWN_CLASSES) else None

    def figures(rows):
        return {f"top{k}": round(100 * hits[rows, :k].amax(1).mean().item(), 2) for k in (1, 5)}

    return {**figures(truth >= 0), "images": len(truth), "unreadable": unreadable, "classes": [
        {"name": names[c], **figures(truth == c), "images": (truth == c).sum().item(),
         "mistaken_for": mistaken_for.get(c)}
        for c in truth.unique().tolist()]}, confusion
