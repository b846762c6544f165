"""A folder of photographs, embedded once and then found by a sentence or by another photograph.

    DIR/.miniclip/
      index.json     the model (its source, a hash of its weights) and the folder it looked at
      vectors.npy    float16 (N, D), one unit vector a row
      paths.jsonl    line i describes row i: its photograph's path, [size, mtime_ns] and sha256;
                     the path is null once the photograph is gone

Rows are only added: first the vector, then its line. A row counts once its line is complete, so a
kill does not lose the rows before. A moved photograph is recognised by its content and keeps its
vector. A move or a removal changes only paths.jsonl, which is replaced in one step.
"""

import hashlib
import io
import json
import os
import stat
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from miniclip.data.images import IMAGE_SUFFIXES, decode, in_threads, read_image
from miniclip.device import bf16_is_fast, pick_device
from miniclip.files import cache_folder, one_writer, read_rows, write_text
from miniclip.tasks.features import check_finite, embed_images, embed_texts
from miniclip.weights import pretrained

NAME = ".miniclip"  # an index's folder, inside the photographs' folder
FILES = ("lock", "paths.jsonl", "vectors.npy", "search.png")  # of an index, beside index.json
LAST = "last-index"  # in the cache: the index for a search that names none
DEFAULT_MODEL = "openai/clip-vit-base-patch32"
BATCH = 64  # images embedded, and kept, at once
CHUNK = 512  # rows that a query looks at in one go: a megabyte in float32, within a core's cache
SHORTLIST = 100


# ------------------------------------------------------------------------------- the folder


def photographs(root: Path, index: Path):
    """Images below root → ({path: [size, mtime_ns]}, [[path, reason], …] of unreadable paths).

    Hidden files and the index are left out. A broken link is included, so that it is reported.
    """
    found, locked = {}, []

    def note(error: OSError):
        locked.append([os.path.relpath(error.filename, root), error.strerror])

    for folder, folders, names in os.walk(root, onerror=note):
        folders[:] = [name for name in folders if name[0] != "." and Path(folder, name) != index]
        for path in (Path(folder, name) for name in names if name[0] != "."):
            try:
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    info = path.stat() if path.exists() else path.lstat()
                    if stat.S_ISREG(info.st_mode) or stat.S_ISLNK(info.st_mode):
                        found[os.path.relpath(path, root)] = [info.st_size, info.st_mtime_ns]
            except OSError as error:
                note(error)
    return found, locked


def reconcile(rows: list[dict], files: dict[str, list[int]], root: Path):
    """Compare an index's rows with the files → (files to embed, number moved, number removed).

    rows are changed in place. A file of the same path, size and time is unchanged. Any other file
    is read only if a vanished row had its size. If the content is equal too, the photograph was
    moved. Of several copies one counts as moved; the others are embedded again.
    """
    alive = [row for row in rows if row["path"] is not None]
    known = {row["path"] for row in alive if files.get(row["path"]) == row["stat"]}
    lost = {row["sha256"]: row for row in alive if row["path"] not in known}
    sizes = {row["stat"][0] for row in lost.values()}
    new, moved, removed = [], 0, 0
    for path in sorted(files.keys() - known):
        row = None
        with suppress(OSError):  # unreadable files are reported later
            if files[path][0] in sizes:
                row = lost.pop(hashlib.sha256((root / path).read_bytes()).hexdigest(), None)
        if row:
            moved += row["path"] != path  # else it was only touched
            row.update(path=path, stat=files[path])
        else:
            new.append(path)
    for row in alive:
        if files.get(row["path"]) != row["stat"]:
            removed += row["path"] not in files  # else it has changed
            row["path"] = None
    return new, moved, removed


def decode_file(root: Path, size: int, file: tuple[str, list[int]]) -> tuple:
    """(path, [size, mtime_ns]) → (line of paths.jsonl, uint8 (S, S, 3) or None, what is wrong)."""
    path, known = file
    try:
        data = (root / path).read_bytes()
    except OSError as error:
        return {"path": path}, None, error.strerror
    row = {"path": path, "stat": known, "sha256": hashlib.sha256(data).hexdigest()}
    return row, *decode(data, size)


# ------------------------------------------------------------------------------- the index


def read_index(folder: Path) -> tuple[dict, list[dict], np.ndarray]:
    """→ what index.json says, the N lines of paths.jsonl, float16 (N, D) mapped from the disk.

    ValueError if there is no index, or if its files don't fit together.
    """
    if not (folder / "index.json").is_file():
        raise ValueError(f"{folder} holds no index; `miniclip index FOLDER` makes one")
    try:
        meta = json.loads((folder / "index.json").read_text())
        rows = read_rows(folder / "paths.jsonl")
        vectors = np.load(folder / "vectors.npy", mmap_mode="c")[:len(rows)]
        _ = [row["path"] is None or (row["stat"], row["sha256"]) for row in rows]
        _ = Path(meta["model"], meta["root"])  # TypeError if they are no text
        if (vectors.shape, vectors.dtype) != ((len(rows), meta["width"]), np.float16):
            raise ValueError(f"{len(rows)} lines for vectors {vectors.dtype} {vectors.shape}")
        return {n: meta[n] for n in ("model", "weights", "quick_gelu", "root")}, rows, vectors
    except (ValueError, KeyError, TypeError, EOFError, FileNotFoundError) as error:
        raise ValueError(f"the index is damaged ({error}); delete {folder} and index again"
                         ) from error


def fingerprint(model) -> str:
    """A hash of the model's shape and of every weight: vectors of two models don't compare."""
    digest = hashlib.sha256(json.dumps(asdict(model.config)).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def load_model(source: str, meta: dict, device: str, quick_gelu: bool | None):
    """→ (model, tokenizer, transform), hash of its weights; ValueError if meta has another hash."""
    if source == meta.get("model") and os.path.isabs(source) and not os.path.exists(source):
        raise ValueError(f"{source}, the index's model, is gone; say where it is with --model")
    loaded = pretrained.load(source, pick_device(device), quick_gelu)
    weights = fingerprint(loaded[0])
    check_weights(meta, weights, source)
    return loaded, weights


def check_weights(meta: dict, weights: str, source: str):
    """ValueError if an index has vectors of other weights."""
    if meta.get("weights", weights) != weights:
        raise ValueError(
            f"the index was made with other weights: {meta['weights']}, then of {meta['model']}; "
            f"{source} has {weights}. Name the right --model, or delete the index and index again")


def index(folder, model: str | None = None, out=None, device: str = "auto",
          quick_gelu: bool | None = None) -> dict:
    """Embed the new photographs of a folder, and forget those that are gone.

    model, quick_gelu: as `pretrained.load` takes them; later calls remember both. out: where the
    index lies (default folder/.miniclip). After a stop or kill the next call goes on. Returns
    {"index", "photographs", "embedded", "moved", "removed", "unreadable": [[path, reason], …]}.
    ValueError for a folder without images, for an index of other weights or another folder, and for
    an `out` that is something else.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise ValueError(f"{folder}: no such folder")
    out = Path(out).expanduser().resolve() if out else root / NAME
    if root.is_relative_to(out):
        raise ValueError(f"{out} holds the photographs themselves; name another --out")
    files, locked = photographs(root, out)
    if not files:
        raise ValueError(f"{folder} holds no images ({' '.join(sorted(IMAGE_SUFFIXES))})"
                         + "".join(f"; {path}: {why}" for path, why in locked[:1]))
    meta = read_index(out)[0] if (out / "index.json").exists() else {}
    home = ".." if root == out.parent else str(root)  # a folder may move with the index in it
    if meta.get("root", home) != home:
        raise ValueError(f"{out} is the index of {meta['root']}; name another --out")
    if not meta and out.is_dir() and any(
            path.name not in FILES and path.name[0] != "." for path in out.iterdir()):
        raise ValueError(f"{out} is there already, and is no index; name another --out")
    source = model or meta.get("model", DEFAULT_MODEL)
    quick_gelu = meta.get("quick_gelu") if quick_gelu is None else quick_gelu
    (net, _, transform), weights = load_model(source, meta, device, quick_gelu)
    if Path(source).expanduser().exists():
        source = str(Path(source).expanduser().resolve())
    out.mkdir(exist_ok=True)
    with one_writer(out, "index"):
        # Another call may have started an index while the model was loading.
        meta, rows, _ = read_index(out) if (out / "index.json").exists() else (meta, [], None)
        check_weights(meta, weights, source)
        for row in rows:  # what can't be read now is not gone
            if any(f"{row['path']}/".startswith(f"{path}/") and row["path"] for path, _ in locked):
                files[row["path"]] = row["stat"]
        new, moved, removed = reconcile(rows, files, root)
        write_text(out / "paths.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        meta = {"model": source, "weights": weights, "quick_gelu": quick_gelu, "root": home,
                "width": net.config.embed_dim}
        write_vectors(out / "vectors.npy", np.empty((0, meta["width"]), np.float16), len(rows))
        write_text(out / "index.json", json.dumps(meta, indent=2) + "\n")
        with suppress(OSError):  # a convenience: a search can name its index
            cache_folder().mkdir(parents=True, exist_ok=True)
            write_text(cache_folder() / LAST, str(out))
        failed = embed_new(net, partial(decode_file, root, transform.size),
                           [(path, files[path]) for path in new], out, len(rows))
    there = sum(row["path"] is not None for row in rows) + len(new) - len(failed)
    return {"index": str(out), "photographs": there, "embedded": len(new) - len(failed),
            "moved": moved, "removed": removed, "unreadable": locked + failed}


def write_vectors(path: Path, vectors: np.ndarray, start: int):
    """Write float16 vectors (n, D) into a .npy file from row `start` on. The file ends there."""
    header = io.BytesIO()  # NumPy leaves room in it for the number of rows to grow
    np.lib.format.write_array_header_1_0(header, {
        "descr": "<f2", "fortran_order": False, "shape": (start + len(vectors), vectors.shape[1])})
    with open(path, "r+b" if path.exists() else "wb") as file:
        file.seek(header.tell() + 2 * vectors.shape[1] * start)
        file.write(vectors.tobytes())
        file.truncate()
        file.seek(0)
        file.write(header.getvalue())  # last: it never counts rows that are not written yet
        file.flush()
        os.fsync(file.fileno())


def embed_new(model, decoder, files: list, out: Path, count: int) -> list[list[str]]:
    """Decode in threads, embed in batches, append each → [path, reason] of what failed.

    Computes in bfloat16 where that is fast. Attention is PyTorch's own choice, the fastest without
    gradients (device.fast_math chooses another). count: the number of rows already there.
    """
    failed, device = [], model.logit_scale.device
    with tqdm(total=len(files), unit="image", disable=not files, dynamic_ncols=True) as bar:
        for batch in in_threads(decoder, iter(files), BATCH):
            rows = [row for row, pixels, _ in batch if pixels is not None]
            failed += [[row["path"], why] for row, pixels, why in batch if pixels is None]
            if rows:
                images = np.stack([pixels for _, pixels, _ in batch if pixels is not None])
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16_is_fast(device)):
                    vectors = embed_images(model, images)
                check_finite(vectors)
                write_vectors(out / "vectors.npy", vectors.half().numpy(), count)
                with open(out / "paths.jsonl", "a") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
                count += len(rows)
            bar.update(len(batch))
    return failed


def find(where=None) -> Path:
    """The index at `where` or in that folder. Default: the one in ".", else the last built."""
    if where is None:
        last = cache_folder() / LAST
        named = last.is_file() and not Path(NAME).is_dir()
        where = os.fsdecode(last.read_bytes()) if named else "."
    folder = Path(where).expanduser().resolve()
    return folder / NAME if (folder / NAME).is_dir() else folder


# ------------------------------------------------------------------------------- queries


def scan(vectors: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Cosines of all float16 vectors (N, D) with a query (D,), in float32 → (N,).

    Runs on one thread, because memory limits the speed. Waking other threads for every chunk costs
    more on a busy machine than it gains on a free one.
    """
    scores, buffer = torch.empty(len(vectors)), torch.empty(CHUNK, vectors.shape[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for i in range(0, len(vectors), CHUNK):
            part = vectors[i:i + CHUNK]
            torch.mv(buffer[:len(part)].copy_(part), query, out=scores[i:i + CHUNK])
    finally:
        torch.set_num_threads(threads)
    return scores


def nearest(vectors: np.ndarray, query: torch.Tensor, k: int, gone=()) -> list[tuple[float, int]]:
    """The k best rows of float16 (N, D) for a unit vector (D,) → [(cosine, row), …].

    Every row is compared. BLAS sums a row in an order that depends on its position. So the best
    hundred are multiplied again in float32, all in the same order. Equal photographs then get equal
    scores, and keep the order of their rows. Of more than a hundred equal ones, any hundred are
    taken. gone: rows to leave out.
    """
    vectors = torch.from_numpy(vectors)
    scores = scan(vectors, query)
    scores[list(gone)] = -torch.inf
    best = scores.topk(min(max(k, SHORTLIST), len(scores) - len(gone))).indices.sort().values
    scores = (vectors[best].float() * query).sum(1)  # (100,)
    order = scores.argsort(descending=True, stable=True)[:k]
    return list(zip(scores[order].tolist(), best[order].tolist()))


def search(text: str | None = None, image=None, k: int = 9, where=None, model: str | None = None,
           device: str = "auto") -> list[tuple[float, str]]:
    """A sentence, or the path of an image → the k nearest photographs, [(cosine, path), …].

    where: the index or its folder (see `find`). model: where the index's model is now, if it was
    moved. ValueError for a query of both or neither, and for an index of other weights.
    """
    if k < 1:
        raise ValueError(f"k is {k}; it must be at least 1")
    if bool(text and text.strip()) == bool(image):
        raise ValueError("give a sentence or an image to search for, one of the two")
    folder = find(where)
    meta, rows, vectors = read_index(folder)
    gone = [i for i, row in enumerate(rows) if row["path"] is None]
    if len(gone) == len(rows):
        raise ValueError(f"{folder} holds no photographs yet; run `miniclip index` again")
    (net, tokenizer, transform), _ = load_model(
        model or meta["model"], meta, device, meta["quick_gelu"])
    query = embed_texts(net, tokenizer, [text]) if not image else embed_images(
        net, read_image(image, transform.size)[None])
    check_finite(query)
    root = Path(os.path.normpath(folder / meta["root"]))
    return [(score, str(root / rows[i]["path"]))
            for score, i in nearest(vectors, query[0], k, gone)]
