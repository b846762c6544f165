"""Search: a query to a large index, and how fast an index is built beside transformers.

    python tests/benchmarks/bench_search.py        (or: make bench)

Queries: random unit vectors, D = 512, warm cache; loading a model and embedding the sentence are
not counted. Each way is timed in a row: threads of one that still spin would cost the next time.
Building: JPEGs of 640 × 480, generated, or those of MINICLIP_DATA's parquet files,
against the loop that most people write. Both with a ViT-B/32 of random weights, round by round in
turn; ours is the whole of `index`, with loading the model. Last, what a
person waits for: `miniclip search` in that index, from the command to its answer.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from miniclip.data.scenes import generate
from miniclip.data.sources import Source
from miniclip.device import bf16_is_fast
from miniclip.tasks import search

D, QUERIES, IMAGES, ROUNDS = 512, 11, 640, 3
TARGETS = {100_000: 50, 1_000_000: 500}  # ms


def query_ways(vectors: np.ndarray, query: torch.Tensor) -> dict:
    """A query of `nearest`, and other ways to multiply the same float16 rows."""
    rows = torch.from_numpy(vectors)
    return {
        "nearest: float32, 512 rows at a time, one thread": lambda: search.nearest(
            vectors, query, 9),
        "products alone, float32, 512 rows at a time, all threads": lambda: torch.cat(
            [part.float() @ query for part in rows.split(search.CHUNK)]),
        "products alone, float16, all rows, all threads": lambda: rows @ query.half(),
        "products alone, bfloat16, 4,096 rows at a time, all threads": lambda: torch.cat(
            [part.bfloat16() @ query.bfloat16() for part in rows.split(4096)]),
        "products alone, NumPy, float32, 4,096 rows at a time": lambda: [
            vectors[i:i + 4096].astype(np.float32) @ query.numpy()
            for i in range(0, len(vectors), 4096)]}


def bench_queries(folder: Path):
    """Milliseconds of each way, at both sizes."""
    generator = torch.Generator().manual_seed(0)
    query = F.normalize(torch.randn(D, generator=generator), dim=0)
    for count, target in TARGETS.items():
        for start in range(0, count, 50_000):
            rows = F.normalize(torch.randn(50_000, D, generator=generator), dim=1).half().numpy()
            search.write_vectors(folder / "vectors.npy", rows, start)
        print(f"a query to {count:,} vectors (at most {target} ms)")
        for name, way in query_ways(
                np.load(folder / "vectors.npy", mmap_mode="c"), query).items():
            way()  # the file is in memory now
            seconds = [timed(way) for _ in range(QUERIES)]
            print(f"  {1000 * statistics.median(seconds):8.1f} ms, {1000 * min(seconds):8.1f} at "
                  f"best  {name}")
    (folder / "vectors.npy").unlink()


def timed(way) -> float:
    begin = time.perf_counter()
    way()
    return time.perf_counter() - begin


def write_photographs(folder: Path):
    """JPEGs, as cameras write them, but small: from MINICLIP_DATA, else scenes with grain."""
    shards = sorted(Path(os.environ.get("MINICLIP_DATA", "-")).expanduser().glob("*.parquet"))
    if shards:
        rows = Source("parquet", str(shards[0].parent)).rows("train")
        for i, (_, data, _) in zip(range(IMAGES), rows):
            (folder / f"{i:04}.jpg").write_bytes(data)
        return
    images, _, _ = generate(IMAGES, 5)
    rng = np.random.default_rng(0)
    for i, image in enumerate(images):
        pixels = np.asarray(Image.fromarray(image).resize((640, 480))).astype(int)
        grain = rng.integers(-12, 13, pixels.shape)
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(
            folder / f"{i:04}.jpg", quality=88)


def write_model(folder: Path):
    """A ViT-B/32 that nobody trained, as transformers saves it; its vocabulary is only bytes."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}
    model = CLIPModel(CLIPConfig(text_config=text)).eval()
    model.save_pretrained(folder)
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return model


def plain_loop(folder: Path, model, precision):
    """What a user of transformers writes → a function that embeds every photograph, (N, D)."""
    from transformers import CLIPImageProcessor

    processor, paths = CLIPImageProcessor(), sorted(folder.glob("*.jpg"))

    @torch.no_grad()
    def loop():
        found = []
        for i in range(0, len(paths), search.BATCH):
            images = [Image.open(path).convert("RGB") for path in paths[i:i + search.BATCH]]
            with precision():
                features = model.get_image_features(**processor(images=images, return_tensors="pt"))
            features = getattr(features, "pooler_output", features)  # since transformers 5
            found.append(F.normalize(features.float(), dim=1))
        return torch.cat(found)

    return loop


def bench_building(folder: Path):
    """The whole of `index`, beside the loop, round by round."""
    photographs = folder / "photographs"
    photographs.mkdir()
    write_photographs(photographs)
    model = write_model(folder / "model")
    numbers = iter(range(10**6))
    ways = {"miniclip index": lambda: search.index(
                photographs, folder / "model", folder / f"index{next(numbers)}", "cpu"),
            "transformers, a plain loop": plain_loop(photographs, model, nullcontext)}
    if bf16_is_fast(torch.device("cpu")):
        ways["the same loop in bfloat16"] = plain_loop(
            photographs, model, lambda: torch.autocast("cpu", torch.bfloat16))
    seconds = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            seconds[name].append(timed(way))
    vectors = torch.from_numpy(np.load(folder / "index0/vectors.npy")).float()
    cosines = (vectors * ways["transformers, a plain loop"]()).sum(1)
    print(f"an index of {IMAGES} photographs, ViT-B/32 (at least 1.3 x the plain loop's speed); "
          f"its vectors and the loop's: cosine {cosines.min():.5f} or more")
    ours = statistics.median(seconds["miniclip index"])
    for name, found in seconds.items():
        found = statistics.median(found)
        print(f"  {IMAGES / found:6.1f} images/s  {name}: {found / ours:.2f} x our time")
    command = [sys.executable, "-m", "miniclip.cli", "search", "two dogs", "--json", "--index",
               str(folder / "index0")]
    waits = [timed(lambda: subprocess.run(command, check=True, capture_output=True))
             for _ in range(ROUNDS)]
    print(f"  {statistics.median(waits):.1f} s  `miniclip search` in it, "
          "Python and the model loaded")


def main():
    try:
        import transformers
    except ImportError:
        sys.exit("bench_search needs its peer: pip install transformers")
    print(f"search, medians; torch {torch.__version__}, {torch.get_num_threads()} threads, "
          f"transformers {transformers.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MINICLIP_CACHE"] = folder
        bench_queries(Path(folder))
        bench_building(Path(folder))


if __name__ == "__main__":
    main()
