"""Training beyond what fits: from tar shards, with huge batches, in several processes, for long.

    python tests/benchmarks/bench_scale.py [--data WHERE] [--out FILE.json]

WHERE is a set of photographs (default: $MINICLIP_DATA, else Flickr8k). It is trained on as decoded
pixels and as tar shards of itself, ten minutes in all:

    cache, shards    the 5-minute recipe's steps: pairs a second, share of the time without a batch
    2 processes      the same batch, in two halves
    batch of 4,096   gradient caching: seconds a step, highest memory
    20,000 steps     a toy model on shards: memory after a tenth of them and at the end

Prints a table, and writes JSON. Every training is `miniclip train` in a process of its own.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

from miniclip.data.pairs import load_pairs
from miniclip.data.sources import Source
from miniclip.device import described, pick_device

EACH = 1000  # pairs of a shard
STEPS = 60
LONG = 20_000
TOY = ["--model", "micro", "--image-size", "32", "--patch-size", "16", "--stem", "8",
       "--vision-width", "16", "--text-width", "16", "--embed-dim", "8", "--vision-heads", "1",
       "--text-heads", "1", "--vision-layers", "1", "--batch-size", "16"]


def write_shards(data: str, folder: Path):
    """The set's training pairs as tar shards: its own files, or JPEGs of what is no file."""
    archive = None
    for number, (_, image, captions) in enumerate(Source.find(data).rows("train")):
        if number % EACH == 0:
            if archive:
                archive.close()
            archive = tarfile.open(folder / f"{number // EACH:05d}.tar", "w")
        for ending, content in (("jpg", as_file(image)), ("txt", "\n".join(captions).encode())):
            info = tarfile.TarInfo(f"{number:08d}.{ending}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    archive.close()


def as_file(image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str):
        return Path(image).read_bytes()
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "JPEG")
    return file.getvalue()


def resident(process) -> float:
    """MB of a running process; 0 if it has ended. (Linux.)"""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return 0.0


def last_step(rows: Path) -> int:
    lines = rows.read_text().splitlines() if rows.is_file() else []
    return max((json.loads(line)["step"] for line in lines[-1:] if line.endswith("}")), default=0)


def trained(*options: str, watch: int = 0) -> dict:
    """Train → the figures of a training; with watch, MB after so many steps and after ten times as
    many.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        process = subprocess.Popen(
            [sys.executable, "-m", "miniclip", "train", "--run", str(run), "--json", *options],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        memory = []
        while watch and process.poll() is None:
            if watch <= last_step(run / "metrics.jsonl") < 10 * watch - 20:  # not what comes after
                memory.append(resident(process))
            time.sleep(1)
        out, _ = process.communicate()
        if process.returncode:
            sys.exit(f"miniclip train {' '.join(options)} failed")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = json.loads(out)["training"]
    timed = [row for row in rows if "loss" in row][1:]  # the first steps warm up
    row = {"seconds": found["seconds"], "peak_memory_mb": found["peak_memory_mb"]}
    if timed:
        row |= {"pairs_per_second": mean(timed, "pairs_per_second"),
                "waiting_share": mean(timed, "waiting_share")}
    if watch:
        row |= {"mb_early": round(memory[0]), "mb_late": round(memory[-1])}
    return row


def mean(rows: list[dict], name: str) -> float:
    return round(sum(row[name] for row in rows) / len(rows), 4)


def main():
    parser = argparse.ArgumentParser(description="training beyond what fits")
    parser.add_argument("--data")
    parser.add_argument("--long", type=int, default=LONG, help="steps of the long training")
    parser.add_argument("--only", help="one of these, such as 'shards'; the others stay in --out")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    source = Source.find(arguments.data)
    load_pairs(source, "train", 64)  # decoded before anything is timed
    recipe = ["--preset", "flickr8k-5min", "--steps", str(STEPS), "--eval-every", str(STEPS)]
    whole = ["--data", source.where]
    record = {"data": Path(source.where).name, **described(pick_device())}
    if arguments.out and arguments.out.is_file() and arguments.only:
        record = json.loads(arguments.out.read_text())
    steps = str(arguments.long)
    with tempfile.TemporaryDirectory() as folder:
        write_shards(source.where, Path(folder))
        shards = ["--data", folder]
        for name, options, watch in (
                ("cache", [*recipe, *whole], 0), ("shards", [*recipe, *shards], 0),
                ("2 processes", [*recipe, *whole, "--processes", "2"], 0),
                ("batch of 4,096", ["--preset", "flickr8k-5min", "--batch-size", "4096",
                                    "--micro-batch", "128", "--steps", "3", "--eval-every", "3",
                                    *whole], 0),
                (f"{arguments.long:,} steps", [*TOY, *shards, "--steps", steps, "--eval-every",
                                               steps], arguments.long // 10)):
            if arguments.only in (None, name):
                record[name] = trained(*options, watch=watch)
                tell(name, record[name])
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


def tell(name: str, row: dict):
    print(f"{name:16}" + "  ".join(f"{key} {value:,}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
