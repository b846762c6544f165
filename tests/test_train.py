"""The training loop: it learns, it resumes bit for bit, it stops safely, it says what went wrong.

Tiny models on the built-in scenes; each run takes seconds.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from miniclip_kernels import clip_loss
from small_data import write_captioned, write_images
from torch.utils._python_dispatch import TorchDispatchMode

import miniclip
from miniclip.cli import main
from miniclip.config import PRESETS, TINY, TrainConfig, load_config
from miniclip.data import batches, sources
from miniclip.data.hub import HubUnreachable
from miniclip.device import bf16_is_fast, pick_device
from miniclip.files import append_row, read_rows
from miniclip.model import CLIP
from miniclip.optim import schedule
from miniclip.train import Diverged, train
from miniclip.weights import checkpoint

MODEL = replace(TINY, vision_width=48, text_width=48, embed_dim=32, vision_heads=2, text_heads=2,
                vision_layers=1, stem=(8, 8), vocab_size=700, context_length=24)
SPEED = ("pairs_per_second", "waiting_share")  # in metrics.jsonl: differs from run to run
CONFIG = TrainConfig(data="shapes", limit=64, steps=6, batch_size=16, eval_every=2, warmup=2)


@pytest.fixture
def to_the_end():
    """For tests that look at what comes after training, which takes longer than these trainings."""


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    monkeypatch.setattr(sources, "SHAPES_SPLITS", {"train": (64, 1), "validation": (24, 2)})
    if "to_the_end" not in request.fixturenames:
        monkeypatch.setattr("miniclip.plots.draw_run", lambda *_: None)
        monkeypatch.setattr("miniclip.train.shapes_report", lambda *_: {
            "held_out": {"plain": 0.0}, "relations": 0.0})


def losses(folder):
    """Every row of metrics.jsonl, losses by step and evaluations, without what time it took."""
    rows = read_rows(folder / "metrics.jsonl")
    return [{name: x for name, x in row.items() if name not in SPEED} for row in rows]


def check_same_run(a, b):
    """The same figures, the same cosines, the same weights, bit for bit."""
    assert losses(a) == losses(b)
    for file in ("similarity.jsonl", "model.safetensors"):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


@pytest.fixture
def every_step(monkeypatch):
    monkeypatch.setattr("miniclip.train.LOG_EVERY", 1)


@pytest.mark.slow
def test_a_run_leaves_what_it_promises(tmp_path, every_step, to_the_end):
    metrics = train(CONFIG, MODEL, tmp_path / "run", device="cpu")
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"model.safetensors", "config.json", "train.json", "tokenizer.json", "state.pt",
                     "metrics.jsonl", "metrics.json", "similarity.jsonl", "curves.png",
                     "similarity.png", "retrieval.png", "zero_shot.png", "lock"}
    assert json.loads((tmp_path / "run/metrics.json").read_text()) == metrics
    rows = losses(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "images" in row] == [0, 2, 4, 6]
    assert set(metrics["shapes"]) == {"held_out", "relations"}
    best = max((row for row in reversed(rows) if "images" in row), key=lambda row: (
        row["image_to_text"]["R@10"] + row["text_to_image"]["R@10"]))
    assert metrics["image_to_text"] == best["image_to_text"]  # the best, not the last, is kept
    assert metrics["training"]["best_step"] == best["step"]


def test_ten_steps_agree_with_the_dense_loss(tmp_path, every_step, monkeypatch):
    """The training loop takes the loss that never holds N × N; plain PyTorch's gives the same.

    As far as it can: Muon's bfloat16 products magnify the last bit to some 3e-4 in ten steps.
    """
    config = replace(CONFIG, steps=10, eval_every=10)
    monkeypatch.setattr("miniclip.device.bf16_is_fast", lambda device: False)
    train(config, MODEL, tmp_path / "tiled", device="cpu")
    monkeypatch.setattr("miniclip.train.clip_loss", partial(clip_loss, backend="dense"))
    train(config, MODEL, tmp_path / "dense", device="cpu")
    tiled, dense = ([row["loss"] for row in losses(tmp_path / name) if "loss" in row]
                    for name in ("tiled", "dense"))
    assert len(tiled) == 10 and tiled == pytest.approx(dense, rel=1e-3)
    assert tiled != dense  # two ways of adding up: equal to the last bit would be one way twice


def test_it_learns_a_batch_by_heart(tmp_path, every_step):
    """16 pairs, seen again and again: the loss falls far below that of guessing, ln 16."""
    config = replace(CONFIG, limit=16, steps=60, eval_every=60, crop=1.0, jitter=0.0, warmup=5)
    train(config, MODEL, tmp_path / "run", device="cpu")
    rows = [row for row in losses(tmp_path / "run") if "loss" in row]
    # Before it has learnt, it can't be better than guessing; confidently wrong, it can be worse.
    assert rows[0]["loss"] > math.log(16) - 0.3
    assert rows[-1]["loss"] < 0.3 and rows[-1]["accuracy"] > 0.9


def test_it_learns_by_the_sigmoid_too(tmp_path, every_step):
    """`--loss sigmoid`: scale and bias begin where SigLIP's do, and are learnt and kept."""
    config = replace(CONFIG, limit=16, steps=60, eval_every=60, crop=1.0, jitter=0.0, warmup=5)
    train(config, replace(MODEL, loss="sigmoid"), tmp_path / "run", device="cpu")
    rows = [row for row in losses(tmp_path / "run") if "loss" in row]
    # At first all 240 wrong entries cost next to nothing, and the right ones 10 minus their share.
    assert 5 < rows[0]["loss"] < 15 and rows[-1]["loss"] < 2 and rows[-1]["accuracy"] > 0.8
    assert rows[0]["scale"] == pytest.approx(10, rel=0.01)
    kept, *_ = miniclip.load(tmp_path / "run")
    assert kept.config.loss == "sigmoid" and kept.logit_bias is not None
    assert checkpoint.load_state(tmp_path / "run")["model"]["logit_bias"] != -10, "it was learnt"


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes(tmp_path, every_step, to_the_end):
    for name in ("a", "b"):
        train(CONFIG, MODEL, tmp_path / name, device="cpu")
    check_same_run(tmp_path / "a", tmp_path / "b")
    for file in ("curves.png", "retrieval.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    train(replace(CONFIG, seed=1), MODEL, tmp_path / "c", device="cpu")
    assert losses(tmp_path / "a") != losses(tmp_path / "c")


class Killed(Exception):
    """Stands for a power cut."""


@pytest.mark.parametrize("when", ["before the save", "in the save", "after the save"])
def test_resume_is_bit_for_bit(tmp_path, every_step, monkeypatch, when):
    train(CONFIG, MODEL, tmp_path / "whole", device="cpu")
    real = torch.save

    def broken_save(state, path):
        if state["progress"]["step"] == 4:
            if when == "in the save":
                path.write_bytes(b"half a file")
            if when != "after the save":
                raise Killed
        real(state, path)

    def broken_step(self, step, real=batches.Batches.__getitem__):
        if step == 5:
            raise Killed
        return real(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", broken_save)
        patch.setattr(batches.Batches, "__getitem__", broken_step)
        with pytest.raises(Killed):
            train(CONFIG, MODEL, tmp_path / "cut", device="cpu")
    expected = 4 if when == "after the save" else 2
    assert checkpoint.load_state(tmp_path / "cut")["progress"]["step"] == expected
    train(CONFIG, load_config(type(MODEL), tmp_path / "cut/config.json"),
          tmp_path / "cut", device="cpu", resume=True)
    check_same_run(tmp_path / "whole", tmp_path / "cut")


SCRIPT = """
import sys, time
from miniclip import plots
from miniclip.data import sources
from miniclip.weights import checkpoint
from miniclip.cli import main
sources.SHAPES_SPLITS = {"train": (64, 1), "validation": (24, 2)}
plots.draw_run = lambda *_: None  # it takes longer than such a training
slow = sys.argv.pop(1) == "slow"
if slow:  # a save that takes long enough to be killed in
    import torch
    real = torch.save
    def save(state, path):
        real(state, path)
        print("SAVING", flush=True)
        time.sleep(1)
    torch.save = save
sys.exit(main(sys.argv[1:]))
"""
SMALL = ["--data", "shapes", "--limit", "64", "--batch-size", "16", "--warmup", "1",
         "--vision-width", "48", "--text-width", "48", "--embed-dim", "32", "--vision-heads", "2",
         "--text-heads", "2", "--vision-layers", "1", "--stem", "8,8", "--vocab-size", "700",
         "--device", "cpu"]


def launch(mode, *arguments):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, mode, "train", *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)


@pytest.mark.slow
def test_sigkill_in_the_middle_of_a_save(tmp_path):
    run = ["--run", str(tmp_path / "cut")]
    process = launch("slow", *run, *SMALL, "--steps", "20", "--eval-every", "5")
    for _ in range(2):  # the second save: the first, of step 5, is whole
        assert process.stdout.readline() == "SAVING\n", process.stderr.read()
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert checkpoint.load_state(tmp_path / "cut")["progress"]["step"] == 5
    for mode in (["--resume", *run, "--device", "cpu"],
                 ["--run", str(tmp_path / "whole"), *SMALL, "--steps", "20", "--eval-every", "5"]):
        process = launch("plain", *mode)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    check_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    process = launch("plain", "--run", str(folder), *SMALL, "--steps", "100000",
                     "--eval-every", "100000")
    deadline = time.time() + 60
    while not losses(folder)[1:] and time.time() < deadline:  # some steps are done
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"miniclip train --run {folder} --resume" in err and "Traceback" not in err
    assert checkpoint.load_state(folder)["progress"]["step"] > 0


@pytest.mark.parametrize("file, content", [
    ("state.pt", b""), ("state.pt", b"text"), ("state.pt", bytes(range(128, 227))),
    ("state.pt", None), ("config.json", b"[]"), ("train.json", b"[]"),
    ("metrics.jsonl", b'{"step": 1}\n{\n{}\n')])
def test_a_damaged_run_is_not_resumed(tmp_path, capsys, file, content):
    folder = tmp_path / "run"
    assert main(["train", "--run", str(folder), *SMALL, "--steps", "2", "--json"]) == 0
    if content is None:
        torch.save({"model": 1}, folder / file)
    else:
        (folder / file).write_bytes(content)
    kept = (folder / "metrics.jsonl").read_bytes()
    capsys.readouterr()
    assert main(["train", "--run", str(folder), "--resume"]) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1 and str(folder / file) in error[0]
    assert (folder / "metrics.jsonl").read_bytes() == kept


def test_data_may_move_but_not_change_before_a_resume(tmp_path, folder, cache, capsys):
    write_images(folder / "images", range(60))
    rows = [f"{i}.jpg,a picture\n" for i in range(60)]
    (folder / "captions.csv").write_text("".join(["image,caption\n", *rows[:50]]))
    small = [*SMALL[6:], "--batch-size", "8", "--run", str(tmp_path / "run")]
    assert main(["train", "--data", str(folder), *small, "--steps", "4"]) == 0
    moved, resume = tmp_path / "moved", ["train", "--run", str(tmp_path / "run"), "--resume"]
    folder.rename(moved)
    capsys.readouterr()
    assert main(resume) == 2 and "no such folder" in capsys.readouterr().err
    assert main([*resume, "--data", str(moved)]) == 0 == main(resume)  # it is known from now on
    (moved / "captions.csv").write_text("".join(["image,caption\n", *rows]))
    capsys.readouterr()
    assert main([*resume, "--data", str(moved)]) == 2
    assert re.search(r"was trained on 45 images.* and 5 images.*; .*moved has 54 images.* and 6 "
                     "images.* now: start a new --run", capsys.readouterr().err)
    assert main([*resume, "--data", str(moved), "--warmup", "9"]) == 2
    assert "leave out --warmup" in capsys.readouterr().err


def test_on_few_images_the_last_weights_are_kept(tmp_path, folder, cache):
    """Where a handful is held out R@10 is 100 % from the start: an untrained model's too."""
    write_images(folder / "images", range(40))
    (folder / "captions.csv").write_text("image,caption\n" + "".join(
        f"{i}.jpg,picture {i}\n" for i in range(40)))
    found = train(replace(CONFIG, data=str(folder), limit=0, steps=4, eval_every=2), MODEL,
                  tmp_path / "run", device="cpu")
    assert found["image_to_text"]["R@10"] == 100 and found["training"]["best_step"] == 4


def test_it_trains_in_a_thread(tmp_path):
    """As in a web server, where signals are another's business."""
    with ThreadPoolExecutor() as pool:
        metrics = pool.submit(train, replace(CONFIG, seed=2**62), MODEL, tmp_path / "run",
                              "cpu").result()
    assert metrics["training"]["steps"] == 6


def test_two_at_once_are_refused(tmp_path, another_writer):
    """The second would move the first one's folder away, or take its last lines back."""
    folder = tmp_path / "run"
    train(CONFIG, MODEL, folder, device="cpu")
    model = load_config(type(MODEL), folder / "config.json")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    message = f"another `miniclip train` is writing to {folder}"
    with another_writer(folder):
        for resume in (False, True):
            with pytest.raises(ValueError, match=message):
                train(replace(CONFIG, steps=9), model, folder, device="cpu", resume=resume)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
    train(CONFIG, model, folder, device="cpu", resume=True)


def test_a_run_knows_its_data_whatever_is_set_later(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_DATA", "shapes")
    train(replace(CONFIG, data="", steps=3), MODEL, tmp_path / "run", device="cpu")
    monkeypatch.setenv("MINICLIP_DATA", "/no/such/folder")
    config = load_config(TrainConfig, tmp_path / "run/train.json")
    assert config.data == "shapes"
    train(config, MODEL, tmp_path / "run", device="cpu", resume=True)


def test_a_loss_that_is_no_number_stops_with_a_diagnosis(tmp_path, monkeypatch):
    def poisoned(self, step, real=batches.Batches.__getitem__):
        pixels, *rest = real(self, step)
        return (pixels * float("nan") if step == 4 else pixels), *rest

    monkeypatch.setattr(batches.Batches, "__getitem__", poisoned)
    with pytest.raises(Diverged, match="step 5: loss nan.*learning-rate"):
        train(CONFIG, MODEL, tmp_path / "run", device="cpu")
    state = checkpoint.load_state(tmp_path / "run")
    assert state["progress"]["step"] == 4
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())
    checkpoint.load(tmp_path / "run")  # the best weights are still there and whole


def test_a_loss_that_is_no_number_is_found_before_anything_is_saved(tmp_path, monkeypatch):
    """Looked at every tenth step only; a stop that saves in between looks, too."""
    def poisoned(self, step, real=batches.Batches.__getitem__):
        pixels, *rest = real(self, step)
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)  # asks for a stop after this step
        return (pixels * float("nan") if step == 1 else pixels), *rest

    monkeypatch.setattr(batches.Batches, "__getitem__", poisoned)
    with pytest.raises(Diverged, match="step 2: loss nan"):
        train(replace(CONFIG, steps=50, eval_every=50), MODEL, tmp_path / "run", device="cpu")
    assert not (tmp_path / "run/state.pt").exists()
    checkpoint.load(tmp_path / "run")  # the untrained weights of step 0


def test_a_stop_that_is_asked_for_while_a_step_is_logged_is_saved_first(tmp_path, monkeypatch):
    """Ctrl-C may come at any moment, also between the look at it and the save."""
    def ask(path, row, real=append_row):
        real(path, row)
        if row.get("step") == 3 and "loss" in row:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("miniclip.train.LOG_EVERY", 3)
    monkeypatch.setattr("miniclip.tracking.append_row", ask)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        train(replace(CONFIG, steps=50, eval_every=50), MODEL, tmp_path / "run", device="cpu")
    assert checkpoint.load_state(tmp_path / "run")["progress"]["step"] == 4


def test_a_line_of_metrics_says_how_the_step_went(tmp_path, every_step):
    train(CONFIG, MODEL, tmp_path / "run", device="cpu")
    rows = [row for row in read_rows(tmp_path / "run/metrics.jsonl") if "loss" in row]
    assert list(rows[0]) == ["step", "loss", "scale", "gradient_norm", "pairs_per_second",
                             "waiting_share", "accuracy", "learning_rate"]
    for row in rows:
        assert 0 < row["gradient_norm"] < 100 and 0 < row["pairs_per_second"] < 1e6
        assert 0 <= row["waiting_share"] <= 1 and 0 <= row["accuracy"] <= 1


def test_most_steps_do_not_wait_for_the_device(tmp_path, monkeypatch):
    """A number that Python asks for is a wait. On a CPU `clip_loss` looks at the scale: no more."""
    asked, steps = [], []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                asked.append(arguments[0])
            return function(*arguments, **keywords or {})

    def clamped(self, real=CLIP.clamp_scale_):
        steps.append(len(asked))
        real(self)

    monkeypatch.setattr(CLIP, "clamp_scale_", clamped)
    with Watch():
        train(replace(CONFIG, steps=9, eval_every=9), MODEL, tmp_path / "run", device="cpu")
    assert len(steps) == 9 and np.diff(steps).tolist() == [1] * 8


def test_the_scale_never_passes_100(tmp_path, every_step, monkeypatch):
    monkeypatch.setattr("miniclip.model.MAX_SCALE", 14.5)  # reached soon; the mechanism is the same
    config = replace(CONFIG, learning_rate=0.05, steps=12, limit=16, crop=1.0, jitter=0.0)
    train(config, MODEL, tmp_path / "run", device="cpu")
    scales = [row["scale"] for row in losses(tmp_path / "run") if "scale" in row]
    assert max(scales) <= 14.5 * (1 + 1e-5)


def test_devices():
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    assert isinstance(bf16_is_fast(torch.device("cpu")), bool)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' is not here; found: .*cpu"):
            pick_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_it_trains_on_a_gpu(tmp_path):
    metrics = train(replace(CONFIG, steps=20, eval_every=10), MODEL, tmp_path / "run", "cuda")
    assert metrics["training"]["bf16"] is True


def test_without_the_hub_it_says_so_and_takes_the_recipe_for_scenes(tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise HubUnreachable("ConnectError: connection refused")

    monkeypatch.delenv("MINICLIP_DATA", raising=False)
    monkeypatch.setattr(sources, "check_hub", refused)
    run = ["--run", str(tmp_path / "run"), "--preset", "tiny", *SMALL[2:], "--steps", "6"]
    assert main(["train", *run]) == 0
    said = capsys.readouterr()
    assert "connection refused" in said.err and "MINICLIP_DATA" in said.err
    assert "recipe made for them" in said.err and "Traceback" not in said.err
    used = load_config(TrainConfig, tmp_path / "run/train.json")
    changed = {"steps": 6, "batch_size": 16, "warmup": 1, "limit": 64}
    assert used == replace(PRESETS["shapes"], **changed)  # what was asked for is kept
    with pytest.raises(HubUnreachable):  # a recipe is the command line's affair
        train(replace(CONFIG, data=""), MODEL, tmp_path / "python", device="cpu")
    assert main(["train", *run, "--run", str(tmp_path / "named"), "--data", "jxie/flickr8k"]) == 2
    assert "refused" in capsys.readouterr().err  # asked for by name: an error
    assert not (tmp_path / "python").exists() and not (tmp_path / "named").exists()


# ------------------------------------------------------------------ silent, and ruinous


def write_coloured(folder, captions):
    """160 images, of which a tenth is held out; image i has captions[i % len(captions)]."""
    write_captioned(folder, [captions[i % len(captions)] for i in range(160)])


def test_captions_longer_than_the_context_lengthen_it(tmp_path, folder, cache, capsys):
    shared = " ".join(f"word{i}" for i in range(20))
    write_coloured(folder, [f"{shared} number {i}" for i in range(160)])
    config = replace(CONFIG, data=str(folder), limit=0, steps=2, warmup=0)
    train(config, MODEL, tmp_path / "long", device="cpu")
    said = capsys.readouterr().err
    found = re.search(r"100% of the captions are longer than 24 tokens: the model reads (\d+)",
                      said)
    kept, tokenizer, _ = miniclip.load(tmp_path / "long")
    assert kept.config.context_length == tokenizer.context_length == int(found[1]) > 24
    assert "cut off" not in said
    train(config, MODEL, tmp_path / "short", device="cpu", fit_context=False)
    said = capsys.readouterr().err
    assert f"--context-length {found[1]} would hold 99 % of them" in said
    assert re.search(r"144 of 144 texts are longer than the model's 24 tokens", said)
    assert miniclip.load(tmp_path / "short")[1].context_length == 24
    assert main(["train", "--data", str(folder), *SMALL[4:], "--steps", "3", "--run",
                 str(tmp_path / "cli"), "--context-length", "24", "--json"]) == 0
    assert load_config(type(MODEL), tmp_path / "cli/config.json").context_length == 24


def test_the_context_is_lengthened_to_77_at_most(tmp_path, folder, cache, capsys):
    write_coloured(folder, [" ".join(f"{i}{k}" for k in range(60)) for i in range(160)])
    train(replace(CONFIG, data=str(folder), limit=0, steps=2, warmup=0), MODEL, tmp_path / "run",
          device="cpu")
    assert "the model reads 77 tokens" in capsys.readouterr().err


def test_equal_captions_are_no_wrong_answers(tmp_path, folder, cache, every_step, monkeypatch):
    """Four captions on 160 images: every loss gets ids, and recall knows the answers as right."""
    given = []
    monkeypatch.setattr("miniclip.train.clip_loss", lambda *features, image_ids, group: (
        given.append(image_ids), clip_loss(*features, image_ids=image_ids, group=group))[1])
    write_coloured(folder, ["red", "green", "blue", "white"])
    metrics = train(replace(CONFIG, data=str(folder), limit=0), MODEL, tmp_path / "run", "cpu")
    assert all(len(ids.unique()) <= 4 and len(ids) == 16 for ids in given) and len(given) == 6
    assert metrics["different_captions"] == 3 and metrics["images"] == 16
    assert metrics["training"]["best_by"] == "the last step"  # recall can't tell
    assert metrics["training"]["best_step"] == 6


def test_where_recall_tells_it_chooses(tmp_path, folder, cache, capsys):
    """And where it can't, the last weights are kept, with a notice before the start."""
    for number, count in ((0, 600), (1, 100)):
        data = write_captioned(folder / str(number), [f"picture {i}" for i in range(count)])
        found = train(replace(CONFIG, data=str(data), limit=0, steps=2, warmup=0), MODEL,
                      tmp_path / f"run{number}", device="cpu")
        assert found["training"]["best_by"] == ("recall", "the last step")[number]
        assert ("the last are kept" in capsys.readouterr().err) == bool(number)


def test_images_whose_captions_name_sides_are_told(tmp_path, folder, cache, capsys):
    write_coloured(folder, ["an arrow to the left", "an arrow to the right", "a dot", "a square"])
    config = replace(CONFIG, data=str(folder), limit=0, steps=2, warmup=0)
    train(config, MODEL, tmp_path / "run", device="cpu")
    assert re.search(r"\d\d of 144 images are never mirrored", capsys.readouterr().err)
    train(replace(config, flip=False), MODEL, tmp_path / "still", device="cpu")
    assert "mirrored" not in capsys.readouterr().err


@pytest.mark.parametrize("settings, message", [
    (["--steps", "30", "--warmup", "100"], "warmup is 100, and the run has 30 steps.*--warmup 3"),
    (["--steps", "30", "--warmup", "30"], "would never reach its peak"),
    (["--learning-rate", "20"], "learning_rate is 20.0; it must be from 0 to 1; usual are 0.001"),
    (["--muon-learning-rate", "1.5"], "muon_learning_rate is 1.5"),
    (["--learning-rate", "nan"], "learning_rate is nan")])
def test_settings_that_can_never_learn_are_refused_before_the_start(tmp_path, capsys, settings,
                                                                    message):
    run = [*SMALL[:6], *SMALL[8:], "--run", str(tmp_path / "run"), *settings]
    assert main(["train", *run]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and re.search(message, said[0])
    assert not (tmp_path / "run").exists()


def test_a_few_steps_warm_up_in_a_tenth_of_them():
    assert TrainConfig(steps=30).warmup_steps == 3 and TrainConfig(steps=4).warmup_steps == 0
    assert TrainConfig(steps=5000).warmup_steps == 100
    assert TrainConfig(steps=30, warmup=7).warmup_steps == 7
    shares = [schedule(step, TrainConfig(steps=30)) for step in range(30)]
    assert max(shares) == 1 and shares.index(1) in (2, 3)


def test_a_training_that_collapses_says_so(tmp_path):
    """Such a rate drives the scale to 0: the loss is ln N, and stays there."""
    config = replace(CONFIG, learning_rate=1.0, muon_learning_rate=0.5, steps=60, eval_every=60)
    with pytest.raises(Diverged, match="all pairs look alike, .* a lower --learning-rate"):
        train(config, MODEL, tmp_path / "run", device="cpu")


@pytest.mark.slow
def test_a_compiled_model_trains_alike(tmp_path, every_step, monkeypatch):
    """By torch.compile's own tracing, without a C++ compiler: texts of many lengths, one graph or
    two; weights are saved under their usual names."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    config = replace(CONFIG, precision="float32")
    train(config, MODEL, tmp_path / "usual", device="cpu")
    train(replace(config, compile=True), MODEL, tmp_path / "compiled", device="cpu")
    usual, compiled = (checkpoint.load_state(tmp_path / name)["model"]
                       for name in ("usual", "compiled"))
    for name, x in usual.items():
        torch.testing.assert_close(compiled[name], x, rtol=1e-3, atol=1e-3)
