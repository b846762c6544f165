"""The model of a training step: its counts are right, and its parts go the way that they should."""

import json
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from miniclip.cli import main
from miniclip.config import MODELS
from miniclip.experiments.scaling import MACHINES, operations, parameters, scaling_report, step
from miniclip.model import CLIP

B32 = MODELS["ViT-B/32"]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14"])
def test_operations_are_those_that_pytorch_counts(name):
    """But for the projections at the end, a thousandth."""
    config = MODELS[name]
    with torch.device("meta"):
        model = CLIP(config)
        pixels = torch.empty(1, 3, config.image_size, config.image_size)
        tokens = torch.zeros(1, config.context_length, dtype=torch.int64)
    counter = FlopCounterMode(display=False)
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        model(pixels, tokens)
    assert operations(config) == pytest.approx(counter.get_total_flops(), rel=2e-3)


def test_parameters_are_openais():
    assert parameters(B32) == 151_277_313


def test_what_gives_way():
    """Shared out to more processes, the towers shrink, the gradients don't; with the batch, the
    features grow."""
    gpu = MACHINES["H100"]
    few, many = step(B32, gpu, 32768, 8), step(B32, gpu, 32768, 1024)
    assert few["parts"]["towers"] == pytest.approx(128 * many["parts"]["towers"])
    assert few["parts"]["gradients"] == 0 < many["parts"]["gradients"]
    assert many["parts"]["gradients"] > many["parts"]["towers"]
    assert not few["fits"] and many["fits"]
    large = step(B32, gpu, 2**20, 4096)
    assert large["parts"]["features"] == pytest.approx(32 * many["parts"]["features"])
    assert step(B32, gpu, 256, 1)["parts"]["features"] == 0
    for row in (few, many, large):
        assert row["pairs_per_second"] == pytest.approx(row["N"] / sum(row["parts"].values()))


def test_the_command(tmp_path, capsys):
    assert main(["scaling", "--json", "--plot", str(tmp_path / "bars.png")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads(json.dumps(scaling_report()))
    assert (tmp_path / "bars.png").stat().st_size > 10_000
    assert main(["scaling"]) == 0
    assert "open_clip on 128 A100: 98,765 pairs/s" in capsys.readouterr().out


def test_the_appendix_has_the_recorded_figures():
    record = json.loads((ROOT / "miniclip/results/experiments/scaling.json").read_text())
    text = (ROOT / "lessons/scaling.md").read_text()
    for row in (*record["strong"], *record["weak"]):
        cells = [f"{row['N']:,}", f"{row['K']:,}", f"{1000 * row['seconds']:.0f}",
                 *(f"{1000 * x:.1f}" for x in row["parts"].values()), f"{row['gigabytes']:.0f}",
                 f"{row['pairs_per_second']:,.0f}"]
        assert "| " + " | ".join(cells) + " |" in text
    here = record["here"]["pairs_per_second"]
    told = " ".join(text.split())
    assert (f"at {record['measured']['peak'] / 1e9:.0f} billion operations a second, which is "
            f"{here:.1f} pairs") in told
    assert f"decode {record['measured']['decoded']:,.0f} images a second" in told
    assert f"A batch of 32,768 takes {32768 / here / 60:.0f} minutes" in told
    now = scaling_report()
    assert [record[key] for key in ("strong", "weak", "published")] == [
        json.loads(json.dumps(now[key])) for key in ("strong", "weak", "published")]
