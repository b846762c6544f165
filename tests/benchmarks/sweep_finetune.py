"""Which rates, decay and warm-up train further best? The sweep behind the preset `finetune`.

    python tests/benchmarks/sweep_finetune.py RUN --data WHERE --out FILE.json

Each candidate goes on from the same weights, for as many steps, and differs from `finetune` in what
it names. The score is the mean of both R@10 on the validation split. (Rates are AdamW's, of gains,
biases, embeddings and the scale, and Muon's, of every matrix; with Muon's at 0, AdamW takes all.)
A sweep that was stopped goes on with the same command.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

from miniclip.config import PRESETS
from miniclip.device import described, pick_device
from miniclip.train import Diverged, train

CANDIDATES = (
    {}, {"learning_rate": 1e-4, "muon_learning_rate": 0.002},
    {"learning_rate": 1e-3, "muon_learning_rate": 0.02},
    {"learning_rate": 1e-4, "muon_learning_rate": 0.0},
    {"learning_rate": 1e-3, "muon_learning_rate": 0.0},
    {"weight_decay": 0.4}, {"warmup": 0})


def score(candidate: dict, arguments) -> dict:
    """One run → its figures; no recall if it diverged."""
    config = replace(PRESETS["finetune"], data=arguments.data, start_from=arguments.run,
                     steps=arguments.steps, seed=arguments.seed, limit=arguments.limit,
                     eval_every=arguments.steps, **candidate)
    row = {"settings": candidate, "recall": None}
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(config, folder=Path(folder) / "run")
        except Diverged:
            return row
        last = [json.loads(line) for line in open(Path(folder) / "run/metrics.jsonl")][-1]
    both = [last[way]["R@10"] for way in ("image_to_text", "text_to_image")]
    return row | {"recall": round(sum(both) / 2, 2)}


def main():
    parser = argparse.ArgumentParser(description="a sweep of the preset finetune")
    parser.add_argument("run", help="weights to begin with, as miniclip.load takes them")
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    record = {"from": Path(arguments.run).name, "data": Path(arguments.data).name,
              "steps": arguments.steps, "seed": arguments.seed, "preset": {
                  name: getattr(PRESETS["finetune"], name) for name in (
                      "learning_rate", "muon_learning_rate", "weight_decay", "warmup")},
              "machine": described(pick_device()), "rows": []}
    if arguments.out.is_file():  # go on where a sweep was stopped
        before = json.loads(arguments.out.read_text())
        if before | {"rows": []} != record:
            parser.error(f"{arguments.out} is of another sweep")
        record = before
    for candidate in CANDIDATES:
        if candidate in [row["settings"] for row in record["rows"]]:
            continue
        row = score(candidate, arguments)
        print(row["recall"], candidate or "as it is", flush=True)
        record["rows"].append(row)
        record["rows"].sort(key=lambda row: -(row["recall"] or 0))
        arguments.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
