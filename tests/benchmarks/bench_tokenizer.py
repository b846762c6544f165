"""How fast is the tokenizer? Captions per second beside open_clip's SimpleTokenizer.

    python tests/benchmarks/bench_tokenizer.py [--rounds 5]

Both make the same (30,000, 77) ids, one after the other, round by round, in one thread; the medians
are compared. Captions come from the Parquet files in $MINICLIP_DATA, or are made up where there are
none; merges from $MINICLIP_CLIP_MERGES, or from open_clip's package. Only open_clip's tokenizer.py
is loaded, since `import open_clip` needs torchvision.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch

from miniclip.tokenizer import Tokenizer

CAPTIONS = 30_000


def find_peer() -> ModuleType:
    """open_clip/tokenizer.py as a module of its own; exits with one line where it is missing."""
    package = importlib.util.find_spec("open_clip")  # finds a package without importing it
    if package is None or package.origin is None:
        sys.exit("open_clip is not installed; run: pip install --no-deps open_clip_torch")
    path = Path(package.origin).with_name("tokenizer.py")
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_captions() -> tuple[list[str], str]:
    """30,000 captions, and in words where they come from."""
    files = sorted(Path(os.environ.get("MINICLIP_DATA") or ".").glob("train-*.parquet"))
    if os.environ.get("MINICLIP_DATA") and files:
        from pyarrow import parquet

        names = [n for n in parquet.read_schema(files[0]).names if n.startswith("caption")]
        columns = [
            parquet.read_table(f, columns=names)[n].to_pylist() for f in files for n in names
        ]
        return [text for column in columns for text in column][:CAPTIONS], "$MINICLIP_DATA"
    rng = random.Random(0)
    colours, animals = "brown black white small big".split(), "dog cat bird horse child".split()
    verbs, places = "runs jumps sits stands plays".split(), "grass snow water street sand".split()

    def phrase() -> str:
        return f"a {rng.choice(colours)} {rng.choice(animals)} {rng.choice(verbs)}"

    made_up = [f"{phrase()} near {phrase()} in the {rng.choice(places)} ." for _ in range(CAPTIONS)]
    return made_up, "made up: no Parquet files in $MINICLIP_DATA"


def seconds(work: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Check that the ids are equal, then time both in turn, then time training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each (default 5)")
    rounds = max(1, parser.parse_args().rounds)
    torch.set_num_threads(1)
    peer = find_peer()
    captions, source = read_captions()
    merges = os.environ.get("MINICLIP_CLIP_MERGES") or peer.default_bpe()
    ours, theirs = Tokenizer.from_clip(merges), peer.SimpleTokenizer(bpe_path=merges)
    print(f"{len(captions):,} captions ({source}), {ours.vocab_size:,} ids, {rounds} rounds")

    if not torch.equal(ours(captions), theirs(captions)):  # warms both caches, too
        sys.exit("the ids differ: the times would say nothing")
    print("ids are equal")
    times: dict[str, list[float]] = {"miniclip": [], "open_clip": []}
    for _ in range(rounds):
        times["miniclip"].append(seconds(lambda: ours(captions)))
        times["open_clip"].append(seconds(lambda: theirs(captions)))
    speeds = {name: len(captions) / statistics.median(taken) for name, taken in times.items()}
    for name, speed in speeds.items():
        taken = sorted(times[name])
        print(
            f"{name:>10} {speed:10,.0f} captions/s  ({taken[0]:.2f} to {taken[-1]:.2f} s a round)"
        )
    print(f"     ratio {speeds['miniclip'] / speeds['open_clip']:10.1f}")

    taken = statistics.median(
        seconds(lambda: Tokenizer.train(captions, vocab_size=4096)) for _ in range(min(rounds, 3))
    )
    made = Tokenizer.train(captions, vocab_size=4096).vocab_size
    print(f"training to {made:,} ids: {taken:.2f} s")


if __name__ == "__main__":
    main()
