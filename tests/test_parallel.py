"""Several processes train what one trains, gradient caching too, and a process that dies is told.

The processes are gloo's, on this machine. Where figures are compared, all is float64.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from processes import together
from small_data import write_captioned
from torch import nn

from miniclip import parallel, plots
from miniclip.cli import build_parser, main
from miniclip.config import TINY, TrainConfig
from miniclip.data.batches import Batches
from miniclip.data.pairs import Pairs, load_pairs
from miniclip.data.sources import Source
from miniclip.model import CLIP
from miniclip.parallel import ALONE, Workers, cached, first_node, joined, surroundings, told
from miniclip.tokenizer import Tokenizer
from miniclip.train import contrast, train

if not torch.distributed.is_available():
    pytest.skip("PyTorch without distributed", allow_module_level=True)

TOY = replace(TINY, image_size=32, vision_width=16, text_width=16, embed_dim=8, vision_heads=2,
              text_heads=2, vision_layers=1, stem=(4,), vocab_size=600, context_length=16)
WORDS = ["red", "green", "blue", "white", "black"]
# Half of the captions are equal to another one, so that ids matter.
CONFIG = TrainConfig(batch_size=24, steps=4, eval_every=4, warmup=1, crop=0.5, jitter=0.2,
                     word_dropout=0.3, precision="float32", learning_rate=0.01)


@pytest.fixture
def data(tmp_path, cache):
    """160 plain images, of which a tenth is held out."""
    return write_captioned(tmp_path / "data", [
        f"a {WORDS[i % 5]} thing of kind {i % 40}" for i in range(160)])


# ------------------------------------------------------------------------------ one training


CASES = {
    "as usual": ({}, {}), "AdamW alone": ({"muon_learning_rate": 0.0}, {}),
    "sigmoid": ({}, {"loss": "sigmoid"}), "images locked": ({"lock": "image"}, {}),
    "a block unlocked": ({"lock": "text", "unlock_last": 1}, {}),
    "recomputed": ({"grad_checkpointing": True}, {}),
    "cached": ({"micro_batch": 5}, {}), "cached sigmoid": ({"micro_batch": 3}, {"loss": "sigmoid"}),
    "cached, images locked": ({"micro_batch": 4, "lock": "image"}, {})}


def all_trained(rank, count, data, folder):
    """Train every case, with so many processes."""
    plots.draw_run = lambda *_: None
    for number, (settings, shape) in enumerate(CASES.values()):
        config = replace(CONFIG, data=str(data), **settings)
        with joined(torch.device("cpu")) as workers:
            assert (workers.rank, workers.count) == (rank, count)
            figures = train(config, None, folder / str(number), "cpu", start=start(data, shape),
                            workers=workers)
            assert bool(figures) == (rank == 0)
            workers.wait()


def start(data, shape):
    """(model, tokenizer, transform) to begin with, in float64."""
    texts, _ = load_pairs(Source.find(str(data)), "train", TOY.image_size).flat_captions()
    tokenizer = Tokenizer.train(texts, TOY.vocab_size, TOY.context_length)
    config = replace(TOY, vocab_size=tokenizer.vocab_size, **shape)
    return CLIP(config).init_weights(torch.Generator().manual_seed(1)).double(), tokenizer, None


def results(folder, case):
    """Weights at the end, momenta, and the last line of figures."""
    run = folder / str(list(CASES).index(case))
    state = torch.load(run / "state.pt")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return state["model"], rows


@pytest.mark.slow
def test_several_processes_train_what_one_trains(data, tmp_path):
    """Weights after four steps: the same from 1, 2 and 4 processes, with every kind of training."""
    folders = [tmp_path / f"of {count}" for count in (1, 2, 4)]
    for folder, count in zip(folders, (1, 2, 4)):
        together(count, tmp_path, all_trained, data, folder)
    for case, (_, shape) in CASES.items():
        weights, rows = results(folders[0], case)
        before = start(data, shape)[0].state_dict()
        assert any((x - before[name]).abs().max() > 1e-3 for name, x in weights.items())
        for folder in folders[1:]:
            others, other_rows = results(folder, case)
            for name, x in weights.items():
                torch.testing.assert_close(others[name], x, rtol=0, atol=1e-9, msg=f"{case} {name}")
            recalls = [[row for row in found if "images" in row] for found in (rows, other_rows)]
            assert recalls[0] == recalls[1], case


@pytest.mark.slow
def test_cached_and_recomputed_trainings_are_the_usual_one(data, tmp_path):
    together(1, tmp_path, all_trained, data, tmp_path / "alone")
    for case, usual in (("recomputed", "as usual"), ("cached", "as usual"),
                        ("cached sigmoid", "sigmoid"), ("cached, images locked", "images locked")):
        weights, expected = (results(tmp_path / "alone", name)[0] for name in (case, usual))
        for name, x in expected.items():
            torch.testing.assert_close(weights[name], x, rtol=0, atol=1e-9, msg=f"{case}: {name}")


def test_the_parts_of_a_batch_are_the_batch(data):
    """Of every batch, pixel for pixel and token for token; no image comes twice."""
    pairs = load_pairs(Source.find(str(data)), "train", TOY.image_size)
    tokenizer = Tokenizer.train(pairs.flat_captions()[0], TOY.vocab_size, TOY.context_length)
    parts = [Workers(rank, 3).part(24) for rank in range(3)]
    whole, *shares = (Batches(pairs, tokenizer, TOY.image_size, CONFIG, part=part)
                      for part in (slice(None), *parts))
    for step in (0, 5, 6, 100):
        pixels, tokens, ids = whole[step]
        assert len(set(whole.numbers(step)[0].tolist())) == 24
        found = [share[step] for share in shares]
        assert torch.equal(torch.cat([x[0] for x in found]), pixels)
        assert torch.equal(torch.cat([x[2] for x in found]), ids)
        for part, (_, own, _) in zip(parts, found):
            assert torch.equal(own, tokens[part, :own.shape[1]])
            assert not tokens[part, own.shape[1]:].any()


def test_ids_are_given_by_all_or_by_none():
    """Whether a batch holds equal captions is asked of the whole, as the collectives need it."""
    captions = [["one"], ["two"], ["three"], ["one"]]
    pairs = Pairs(torch.zeros(4, 8, 8, 3, dtype=torch.uint8).numpy(), captions, "four", "")
    tokenizer = Tokenizer.train(["one two three"], 600, 8)
    config = replace(CONFIG, batch_size=4)
    for rank in range(4):
        part = Workers(rank, 4).part(4)
        assert Batches(pairs, tokenizer, 8, config, part=part)[0][2] is not None


def test_many_images_are_augmented_some_at_a_time(data, monkeypatch):
    pairs = load_pairs(Source.find(str(data)), "train", TOY.image_size)
    tokenizer = Tokenizer.train(pairs.flat_captions()[0], TOY.vocab_size, TOY.context_length)
    batches = Batches(pairs, tokenizer, TOY.image_size, CONFIG)
    expected = batches[3][0]
    monkeypatch.setattr("miniclip.data.batches.AT_ONCE", 7)
    assert torch.equal(batches[3][0], expected)


def test_a_batch_must_be_divisible():
    with pytest.raises(ValueError, match="batch_size is 10, of all processes together; it must be "
                                         "a multiple of their number, 4"):
        Workers(0, 4).part(10)
    assert ALONE.part(10) == slice(0, 10)


# ------------------------------------------------------------------------------ gradient caching


def batch(count=12):
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randn(count, 3, 32, 32, generator=generator)
    tokens = torch.randint(1, 200, (count, 9), generator=generator)
    tokens[:, -1] = 599
    return pixels, tokens


def gradients_of(model, size, dtype=None):
    """{name: gradient} of a batch at once (size 0), or cached."""
    torch.manual_seed(5)
    model.zero_grad()
    pixels, tokens = batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        if size:
            beside = [] if model.logit_bias is None else [model.logit_bias]
            loss, *features = cached(model, pixels, tokens, size,
                                     lambda *x: contrast(model, ALONE, None, *x), beside)
            assert [x.shape for x in features] == [(12, 8), (12, 8), ()]
        else:
            loss = contrast(model, ALONE, None, *model(pixels, tokens))
            loss.backward()
    return {"loss": loss.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("size", [1, 5, 12, 100])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_cached_gradients_are_those_of_the_whole_batch(kind, size):
    model = CLIP(replace(TOY, loss=kind)).init_weights(torch.Generator().manual_seed(0)).double()
    whole, found = gradients_of(model, 0), gradients_of(model, size)
    for name, x in whole.items():
        torch.testing.assert_close(found[name], x, rtol=1e-10, atol=1e-12, msg=name)


def test_cached_gradients_in_float32_and_under_autocast():
    """1e-6 in float32. In bfloat16 no weight loses its gradient to autocast's cache of weights."""
    model = CLIP(TOY).init_weights(torch.Generator().manual_seed(0))
    whole, found = gradients_of(model, 0), gradients_of(model, 5)
    for name, x in whole.items():
        torch.testing.assert_close(found[name], x, rtol=1e-5, atol=1e-6, msg=name)
    half = gradients_of(model, 5, "bf16")
    for name, x in gradients_of(model, 0, "bf16").items():
        assert (half[name] - x).norm() <= 0.03 * x.norm() + 1e-4, name


def test_dropout_is_replayed():
    """The features that the loss has seen are those that get its gradients."""
    model = CLIP(TOY).init_weights(torch.Generator().manual_seed(0)).double().train()
    seen = []

    class Watched(nn.Dropout):
        def forward(self, x):
            dropped = super().forward(x)
            seen.append(dropped.detach() == 0)
            return dropped

    model.text.norm_final = nn.Sequential(model.text.norm_final, Watched(0.5))
    gradients_of(model, 5)
    assert len(seen) == 6
    for first, again in zip(seen[:3], seen[3:]):
        assert torch.equal(first, again)
    assert not torch.equal(seen[0], seen[1])
    # And what is drawn afterwards is what would have been drawn after the first pass.
    torch.manual_seed(5)
    for mask in seen[:3]:
        torch.nn.functional.dropout(torch.ones(mask.shape, dtype=torch.float64), 0.5)
    expected = torch.rand(1)
    gradients_of(model, 5)
    assert torch.equal(torch.rand(1), expected)


# ------------------------------------------------------------------------------ joining


def clear(monkeypatch, **given):
    for name in [*os.environ]:
        if name.startswith(("SLURM", "MASTER_")) or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)


def test_where_it_finds_the_others(monkeypatch):
    clear(monkeypatch)
    assert surroundings() is None
    mine = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    clear(monkeypatch, **mine)
    assert surroundings() == mine | {"LOCAL_RANK": "0"}
    clear(monkeypatch, **mine, LOCAL_RANK="2")
    assert surroundings() == mine | {"LOCAL_RANK": "2"}
    # A batch script, or a shell on a node, is no task among tasks.
    slurm = {"SLURM_JOB_ID": "70001", "SLURM_PROCID": "9", "SLURM_LOCALID": "1",
             "SLURM_STEP_NUM_TASKS": "16", "SLURM_STEP_NODELIST": "gpu[003-004]"}
    clear(monkeypatch, **slurm)
    assert surroundings() is None
    clear(monkeypatch, **slurm, SLURM_STEP_ID="0")
    assert surroundings() == {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1",
                              "MASTER_ADDR": "gpu003", "MASTER_PORT": "25001"}
    clear(monkeypatch, **slurm | {"SLURM_STEP_NUM_TASKS": "1"}, SLURM_STEP_ID="0")
    assert surroundings() is None


@pytest.mark.parametrize("nodes, first", [
    ("node7", "node7"), ("a,b", "a"), ("gpu[003-005,9],login", "gpu003"), ("n[8],m", "n8"),
    ("rack1-node[12,14]", "rack1-node12")])
def test_the_first_of_slurms_nodes(nodes, first):
    assert first_node(nodes) == first


def test_half_of_the_variables(monkeypatch, capsys):
    clear(monkeypatch, RANK="0", WORLD_SIZE="2")
    assert main(["train", "--data", "shapes", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == (
        "miniclip train: some of torchrun's variables are set, but not MASTER_ADDR, MASTER_PORT: "
        "start with torchrun, or unset RANK and WORLD_SIZE\n")
    clear(monkeypatch, RANK="0", WORLD_SIZE="1", MASTER_ADDR="a", MASTER_PORT="1")
    with joined(torch.device("cpu")) as workers:
        assert workers is ALONE
    clear(monkeypatch, RANK="0", WORLD_SIZE="2", MASTER_ADDR="a", MASTER_PORT="1")
    assert main(["train", "--data", "shapes", "--device", "cpu", "--processes", "2"]) == 2
    assert "leave it out under torchrun or srun" in capsys.readouterr().err
    assert main(["train", "--data", "shapes", "--device", "cpu", "--processes", "0"]) == 2
    assert "--processes is 0; it must be at least 1" in capsys.readouterr().err


def test_every_option_gets_through_torchrun():
    """torchrun completes its own options, also behind the script's name: "--run" is ambiguous."""
    from torch.distributed.run import get_args_parser

    commands = next(a for a in build_parser()._actions if a.dest == "command")
    actions = commands.choices["train"]._actions
    assert len(actions) > 40
    for action in actions:
        for option in action.option_strings:
            if option == "--run":
                assert "--folder" in action.option_strings
                continue
            given = get_args_parser().parse_args(
                ["--nproc-per-node", "2", "-m", "miniclip", "train", option, "x"])
            assert given.training_script_args == ["train", option, "x"], option


class Failure:
    def __init__(self, exitcode):
        self.exitcode = exitcode


@pytest.mark.parametrize("failures, code, says", [
    ({0: 3, 1: 3, 2: -9}, 137, "rank 2 was ended by SIGKILL"), ({0: -15, 3: 2}, 2, ""),
    ({1: 3, 0: -15, 2: -11}, 139, "rank 2 was ended by SIGSEGV"), ({0: 130, 1: 130}, 130, ""),
    ({1: 3}, 3, ""), ({0: -15}, 143, "rank 0 was ended by SIGTERM")])
def test_who_failed_first(failures, code, says, capsys):
    assert told({rank: Failure(end) for rank, end in failures.items()}) == code
    said = capsys.readouterr().err
    assert says in said and bool(said) == bool(says)


# ------------------------------------------------------------------------------ as a user runs it

COMMAND = [sys.executable, "-m", "miniclip", "train", "--batch-size", "24", "--eval-every", "5",
           "--device", "cpu", "--vision-width", "16", "--text-width", "16", "--embed-dim", "8",
           "--vision-heads", "2", "--text-heads", "2", "--vision-layers", "1", "--stem", "4",
           "--image-size", "32", "--vocab-size", "600"]


def run(data, folder, *options, **environment):
    return subprocess.Popen(
        [*COMMAND, "--data", str(data), "--run", str(folder), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment, stderr=subprocess.PIPE, text=True)


def rows(folder):
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def until(process, folder, step):
    begin = time.time()
    while not any(row["step"] >= step for row in rows(folder)):
        assert process.poll() is None and time.time() - begin < 120
        time.sleep(0.1)


def children(process):
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_another_number_goes_on(data, tmp_path):
    """Three processes, one of them killed; two go on, are stopped; one ends it."""
    folder = tmp_path / "run"
    process = run(data, folder, "--processes", "3", "--steps", "40000")
    until(process, folder, 10)
    begin = time.time()
    os.kill(children(process)[1], signal.SIGKILL)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 137 and time.time() - begin < 60
    assert re.search(r"miniclip train: rank \d was ended by SIGKILL\n", said)
    assert said.count("what was saved is kept: go on with --resume") <= 1
    assert "Traceback" not in said
    saved = torch.load(folder / "state.pt")["progress"]["step"]
    assert saved >= 10

    command = [sys.executable, "-m", "miniclip", "train", "--run", str(folder), "--resume"]
    process = subprocess.Popen([*command, "--processes", "2"], stderr=subprocess.PIPE, text=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    until(process, folder, saved + 20)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert said.count("stopped; go on with: miniclip train --run") == 1
    step = torch.load(folder / "state.pt")["progress"]["step"]
    assert step >= saved + 20
    assert main(["train", "--run", str(folder), "--resume", "--steps", str(step + 5)]) == 0
    steps = [row["step"] for row in rows(folder) if "loss" in row]
    assert steps == sorted(set(steps))


@pytest.mark.slow
def test_what_is_wrong_is_said_once(data, tmp_path):
    process = run(data, tmp_path / "run", "--processes", "3", "--steps", "4", "--batch-size", "25")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2
    assert said == ("miniclip train: batch_size is 25, of all processes together; it must be a "
                    "multiple of their number, 3\n")


@pytest.mark.slow
def test_under_torchrun(data, tmp_path):
    options = [*COMMAND[2:], "--steps", "4", "--data", str(data), "--folder", str(tmp_path / "run")]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "miniclip", *options[1:]], capture_output=True, text=True, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.count("4 steps") == 1
    assert torch.load(tmp_path / "run/state.pt")["progress"]["step"] == 4


def differing(rank, count):
    """Each finds out that one of them has other data, in the same line."""
    with joined(torch.device("cpu")) as workers:
        workers.check_alike("data", "the same")
        try:
            workers.check_alike("data", "photographs" if rank == 1 else "scenes")
        except ValueError as error:
            return str(error)


def test_all_must_have_the_same_data(tmp_path):
    assert together(3, tmp_path, differing) == [
        "the processes don't have the same data: rank 1 has another than rank 0"] * 3


def test_a_gpu_is_named_by_its_number(monkeypatch, tmp_path):
    """Batches are made in another thread, and there "cuda" is the first GPU."""
    given = []

    def batches(pairs, tokenizer, size, config, device, part):
        given.append(device)
        raise ValueError("far enough")

    monkeypatch.setattr("miniclip.train.pick_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr("miniclip.train.Batches", batches)
    monkeypatch.setattr("miniclip.data.sources.SHAPES_SPLITS", {
        "train": (64, 1), "validation": (24, 2)})
    with pytest.raises(ValueError, match="far enough"):
        train(replace(CONFIG, data="shapes", limit=64), TOY, tmp_path / "run")
    assert given == [torch.device("cuda", 3)]


def test_each_line_is_said_by_one(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    assert parallel.first_to_say(store, "a line")
    assert not parallel.first_to_say(store, "a line")
    assert parallel.first_to_say(store, "another")
    assert parallel.first_to_say(None, "a line")
