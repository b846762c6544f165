"""`miniclip train --from`, locked towers, longer runs; `average` and `push`."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_weights import CLIPS, hf_tensors, write_merges

import miniclip
from miniclip.cli import main
from miniclip.commands.training import recipe, what_next
from miniclip.config import PRESETS, TrainConfig, load_config
from miniclip.data import sources
from miniclip.files import read_rows
from miniclip.train import train
from miniclip.weights import checkpoint

SHAPE = ["--vision-width", "48", "--text-width", "48", "--embed-dim", "32", "--vision-heads", "2",
         "--text-heads", "2", "--vision-layers", "2", "--stem", "8,8", "--vocab-size", "700"]
SETTINGS = ["--data", "shapes", "--limit", "64", "--batch-size", "16", "--eval-every", "4",
            "--device", "cpu"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(sources, "SHAPES_SPLITS", {"train": (64, 1), "validation": (60, 2)})
    monkeypatch.setattr("miniclip.plots.draw_run", lambda *_: None)
    monkeypatch.setattr("miniclip.train.shapes_report", lambda *_: {
        "held_out": {"plain": 0.0}, "relations": 0.0})


@pytest.fixture
def base(tmp_path):
    """A run of eight steps."""
    run_of(tmp_path / "base", *SHAPE, "--steps", "8")
    return tmp_path / "base"


def run_of(folder, *options) -> dict:
    """Train → the run's train.json."""
    assert main(["train", *SETTINGS, "--run", str(folder), *map(str, options)]) == 0
    return json.loads((folder / "train.json").read_text())


def refused(capsys, *arguments) -> str:
    """The last line that a refused command prints."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return err.splitlines()[-1]


def state_of(folder) -> dict:
    return checkpoint.load_state(folder)["model"]


# ------------------------------------------------------------------------------- from weights


def test_a_run_begins_where_another_ended(base, tmp_path):
    """At step 0 the recall is that of the weights; tokenizer and shape come with them."""
    config = run_of(tmp_path / "more", "--from", base, "--steps", "4")
    assert config["start_from"] == str(base)
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "more" / name).read_bytes() == (base / name).read_bytes()
    first = read_rows(tmp_path / "more/metrics.jsonl")[0]
    best = json.loads((base / "metrics.json").read_text())
    assert first["step"] == 0
    assert first["image_to_text"] == best["image_to_text"]
    assert first["text_to_image"] == best["text_to_image"]
    changed = state_of(tmp_path / "more")
    assert not torch.equal(changed["text.projection"], state_of(base)["text.projection"])


def test_weights_of_others_are_trained_on(tmp_path):
    """A file in Hugging Face's naming, 35 pixels wide, at 70."""
    from safetensors.torch import save_file
    file = tmp_path / "others/model.safetensors"
    file.parent.mkdir()
    save_file(hf_tensors(CLIPS), file)
    write_merges(file.parent, CLIPS.vocab_size - 514)
    run_of(tmp_path / "run", "--from", file, "--image-size", "70", "--quick-gelu", "true",
           "--steps", "2")
    model, tokenizer, transform = miniclip.load(tmp_path / "run")
    assert model.config == replace(CLIPS, image_size=70) and transform.size == 70
    assert tokenizer.vocab_size == CLIPS.vocab_size


@pytest.mark.parametrize("options, message", [
    (["--from", "nowhere"], "nowhere: no such run folder or weights file, and no Hub id"),
    (["--from", "{base}", "--vision-width", "96"], "from its weights; leave out --vision-width"),
    (["--from", "{base}", "--image-size", "63"], "patch_size 8 must divide image_size 63"),
    (["--preset", "finetune"], "goes on from weights: name them with --from"),
    (["--from", "{base}", "--model", "ViT-B/16"], "from its weights; leave out --model"),
    (["--from", "{base}", "--image-size", "0"], "image_size"),
    (["--lock", "image"], "that of a new model is noise: name weights with --from"),
    (["--lock", "both"], "lock is 'both'; it must be 'image' or 'text'"),
    (["--unlock-last", "1"], "unlock_last needs a tower that is locked"),
    (["--from", "{base}", "--lock", "image", "--unlock-last", "9"], "the image tower has 2 blocks"),
    (["--steps", "5", "--epochs", "2"], "both say how long; give one of them"),
    (["--precision", "fp8"], "precision is 'fp8'; it must be one of auto, bf16, float32"),
    (["--tracker", "paper"], "tracker is 'paper'; it must be one of tensorboard, wandb, trackio")])
def test_what_can_not_be_is_told_before_anything_is_written(base, tmp_path, capsys, options,
                                                            message):
    named = [option.format(base=base) for option in options]
    error = refused(capsys, "train", *SETTINGS, "--run", tmp_path / "run", *named)
    assert message in error and not (tmp_path / "run").exists()


def test_a_start_has_its_own_shape(base, tmp_path):
    start = miniclip.load(base)
    with pytest.raises(ValueError, match="with a start, the model's shape is that of its weights"):
        train(TrainConfig(data="shapes", steps=2), CLIPS, tmp_path / "run", start=start)


# ------------------------------------------------------------------------------- locked towers


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_locked_tower_stays_and_is_computed_once(base, tmp_path, monkeypatch, capsys, side):
    """Its features come in place of its input."""
    towers = {"image": "vision.", "text": "text."}
    seen = []

    def counted(model, pixels, tokens, real=miniclip.CLIP.forward):
        seen.append((pixels.ndim, tokens.is_floating_point()))
        return real(model, pixels, tokens)

    monkeypatch.setattr(miniclip.CLIP, "forward", counted)
    monkeypatch.setattr("miniclip.train.LOG_EVERY", 1)
    run_of(tmp_path / "locked", "--from", base, "--lock", side, "--steps", "4", "--precision",
           "bf16")
    assert f"the {side} tower is locked: its features are computed" in capsys.readouterr().err
    assert seen == [(2, False) if side == "image" else (4, True)] * 4
    before, after = miniclip.load(base)[0].state_dict(), state_of(tmp_path / "locked")
    for name, tensor in before.items():
        moved = not torch.equal(tensor, after[name])
        assert moved == (not name.startswith(towers[side])), name


def test_the_end_of_a_locked_tower_may_be_trained(base, tmp_path):
    run_of(tmp_path / "part", "--from", base, "--lock", "image", "--unlock-last", "1", "--steps",
           "4")
    before, after = miniclip.load(base)[0].state_dict(), state_of(tmp_path / "part")
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    trained = {name for name in before if name.startswith(
        ("text.", "logit_scale", "vision.blocks.1.", "vision.norm_post", "vision.projection"))}
    assert moved == trained


def test_a_locked_run_is_resumed_bit_for_bit(base, tmp_path, monkeypatch):
    """The features are computed again, from the same weights."""
    options = ["--from", base, "--lock", "image", "--steps", "8"]
    run_of(tmp_path / "whole", *options)
    from miniclip.data.batches import Batches

    def killed(self, step, real=Batches.__getitem__):
        if step == 6:
            raise KeyboardInterrupt
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "__getitem__", killed)
        assert main(["train", *SETTINGS, "--run", str(tmp_path / "cut"), *map(str, options)]) == 130
    assert main(["train", "--run", str(tmp_path / "cut"), "--resume", "--device", "cpu"]) == 0
    whole, cut = state_of(tmp_path / "whole"), state_of(tmp_path / "cut")
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


# ------------------------------------------------------------------------------- how long


def test_a_finished_run_goes_on(base, capsys):
    assert main(["train", "--run", str(base), "--resume", "--steps", "12"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"schedule is that of 12 steps now: the learning rate goes on at \d+% of its "
                     r"peak, from \d+%, and falls to 0", said)
    assert load_config(TrainConfig, base / "train.json").steps == 12
    steps = [row["step"] for row in read_rows(base / "metrics.jsonl") if "images" in row]
    assert steps == [0, 4, 8, 12]
    assert "has taken 12 steps already; --steps must be more" in refused(
        capsys, "train", "--run", base, "--resume", "--steps", "11")
    assert "leave out --batch-size, --vision-width" in refused(
        capsys, "train", "--run", base, "--resume", "--batch-size", "8", "--vision-width", "9")


def test_epochs_in_place_of_steps(tmp_path):
    config = run_of(tmp_path / "run", *SHAPE, "--epochs", "2")
    assert config["steps"] == 2 * (64 // 16) and config["epochs"] == 2


def test_precision(tmp_path, monkeypatch):
    used = []
    real = torch.autocast

    def watched(device, *kind, enabled=True):
        if kind:  # the loss turns it off for its own computation
            used.append(enabled)
        return real(device, *kind, enabled=enabled)

    monkeypatch.setattr(torch, "autocast", watched)
    for precision, expected in (("bf16", True), ("float32", False)):
        used.clear()
        run_of(tmp_path / precision, *SHAPE, "--steps", "2", "--precision", precision)
        assert set(used) == {expected}


# ------------------------------------------------------------------------------- what comes next


@pytest.mark.parametrize("preset", PRESETS)
def test_what_to_try_next_is_never_what_has_just_run(preset):
    config = replace(PRESETS[preset], data=PRESETS[preset].data or "/photos", seed=3)
    metrics = {"images": 100, "different_captions": 500}
    found = what_next(metrics, config, "runs/x")
    assert not any(f"--preset {preset}" in command for command, _ in found)
    assert any("train" in command or "index" in command or "relations" in command
               for command, _ in found)
    assert not any("--zero-shot" in command for command, _ in found)
    after = what_next(metrics, replace(config, start_from="runs/base"), "runs/x")
    assert any(command.startswith("average runs/base runs/x") for command, _ in after)
    few = what_next(metrics | {"different_captions": 4}, config, "runs/x")
    assert any("--zero-shot" in command for command, _ in few)


def test_a_preset_with_what_the_command_line_changes():
    config, shape = recipe("tiny", {"steps": 7}, {"embed_dim": 8})
    assert config == replace(PRESETS["tiny"], steps=7) and shape.embed_dim == 8


# ------------------------------------------------------------------------------- average, push


def test_averages_and_their_curve(base, tmp_path, capsys):
    run_of(tmp_path / "tuned", "--from", base, "--steps", "4")
    capsys.readouterr()
    pair = [str(base), str(tmp_path / "tuned")]
    assert main(["average", *pair, "--data", "shapes", "--alpha", "0.25", "--json",
                 "--out", str(tmp_path / "mean"), "--plot", str(tmp_path / "curve.png")]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["alpha"] for row in rows] == [i / 10 for i in range(11)]
    ends = [np.mean([json.loads((folder / "metrics.json").read_text())[way]["R@10"] for way in
                     ("image_to_text", "text_to_image")]) for folder in (base, tmp_path / "tuned")]
    assert [rows[0]["recall"]["shapes:validation"], rows[-1]["recall"]["shapes:validation"]] == (
        pytest.approx(ends, abs=0.01))
    assert (tmp_path / "curve.png").stat().st_size > 5000
    a, b, mean = (miniclip.load(folder)[0].text.projection for folder in (*pair, tmp_path / "mean"))
    assert torch.allclose(mean, 0.75 * a + 0.25 * b, atol=1e-6)
    assert main(["average", *pair, "--out", str(tmp_path / "half")]) == 0
    assert "written to" in capsys.readouterr().out


@pytest.mark.parametrize("options, message", [
    ([], "give --out DIR to write the average, --data WHERE to see the curve"),
    (["--out", "x", "--plot", "y"], "--plot draws recall on data: give --data"),
    (["--out", "x", "--alpha", "2"], "alpha is 2.0; it must be from 0")])
def test_averages_that_can_not_be(base, capsys, options, message):
    assert message in refused(capsys, "average", base, base, *options)


def test_push_asks_for_a_licence(base, capsys, monkeypatch):
    assert "--license mit, for example" in refused(capsys, "push", base, "me/dogs")
    sent = []
    monkeypatch.setattr("miniclip.commands.training.push",
                        lambda *arguments: sent.append(arguments) or "https://hub/me/dogs")
    assert main(["push", str(base), "me/dogs", "--license", "mit", "--private"]) == 0
    assert sent == [(str(base), "me/dogs", "mit", True)]
    assert capsys.readouterr().out == "https://hub/me/dogs\n"
