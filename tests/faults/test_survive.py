"""A training is killed, stopped, starved and lied to: it goes on bit for bit, or ends in one line.

A short selection here; `make faults` repeats each so often as README says (MINICLIP_FAULTS).
"""

import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_data import encoded, picture, write_captioned
from small_shards import write_tar

from miniclip.cli import main
from miniclip.data.pairs import load_pairs
from miniclip.data.sources import Source
from miniclip.weights import checkpoint

TIMES = int(os.environ.get("MINICLIP_FAULTS", 3))
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
SHAPE = ["--batch-size", "24", "--eval-every", "4", "--device", "cpu", "--precision", "float32",
         "--vision-width", "16", "--text-width", "16", "--embed-dim", "8", "--vision-heads", "2",
         "--text-heads", "2", "--vision-layers", "1", "--stem", "4", "--image-size", "32",
         "--vocab-size", "600", "--steps", "80", "--word-dropout", "0.2"]


@pytest.fixture
def data(tmp_path, cache):
    """160 plain images, of which a tenth is held out."""
    return write_captioned(tmp_path / "data", [
        f"a thing of kind {i % 40} and number {i}" for i in range(160)])


@pytest.fixture
def shards(tmp_path, cache):
    """The same number of pairs in four tar shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for first in range(0, 160, 40):
        members = {}
        for i in range(first, first + 40):
            members |= {f"{i}.jpg": encoded(picture(i), "JPEG"),
                        f"{i}.txt": f"a thing of kind {i % 40} and number {i}".encode()}
        write_tar(folder / f"{first}.tar", members)
    return folder


def start(data, run, *options, **settings):
    """`miniclip train` in a process of its own: new, or resumed if something was saved."""
    if (run / "state.pt").is_file():
        command = ["--run", str(run), "--resume", *options]
    else:
        command = ["--data", str(data), "--run", str(run), *SHAPE, *options]
    return subprocess.Popen([sys.executable, "-m", "miniclip", "train", *command],
                            env=os.environ | ONE_THREAD, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **settings)


def finished(data, run, *options):
    """An undisturbed training → its last state, and seconds."""
    begin = time.time()
    process = start(data, run, *options)
    process.communicate(timeout=200)
    assert process.returncode == 0
    return checkpoint.load_state(run), time.time() - begin


def same(state, other) -> bool:
    return all(torch.equal(x, other["model"][name]) for name, x in state["model"].items()) and (
        state["progress"]["step"] == other["progress"]["step"])


def check_disturbed(data, run, whole, disturb, rng, *options, alike=None):
    """Train with a disturbance at TIMES random moments: each training that comes to its end has the
    weights of an undisturbed one. whole: its state, and seconds.
    """
    expected, seconds = whole
    alike = alike or (lambda state: same(expected, state))
    for _ in range(TIMES):
        process = start(data, run, *options)
        try:
            process.communicate(timeout=rng.uniform(0.3, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            disturb(process)
        process.communicate(timeout=200)
        assert process.returncode in (0, -9, 137), process.returncode
        if (run / "state.pt").is_file():
            checkpoint.load_state(run)  # whole, whatever was being written
        if process.returncode == 0:
            assert alike(checkpoint.load_state(run))
            shutil.rmtree(run)  # and once more
    process = start(data, run, *options)
    process.communicate(timeout=200)
    assert process.returncode == 0 and alike(checkpoint.load_state(run))


# ------------------------------------------------------------------------------ killed, stopped


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["data", "shards"])
def test_killed_at_random_moments(kind, tmp_path, request):
    """While it decodes, indexes, trains, evaluates or saves: the end is the same, bit for bit."""
    source, rng = request.getfixturevalue(kind), random.Random(1)
    whole = finished(source, tmp_path / "whole")
    shutil.rmtree(tmp_path / "cache")
    check_disturbed(source, tmp_path / "run", whole, lambda process: process.kill(), rng)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_one_process_of_two_killed(data, tmp_path):
    def kill_one(process):
        found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
        ranks = [int(line) for line in found.stdout.split()]
        os.kill(rng.choice(ranks), signal.SIGKILL) if ranks else process.kill()

    def alike(state):  # sums over processes may be added up in another order
        return all(torch.allclose(state["model"][name], x, rtol=1e-4, atol=1e-5)
                   for name, x in whole[0]["model"].items())

    rng = random.Random(2)
    whole = finished(data, tmp_path / "whole", "--processes", "2")
    check_disturbed(data, tmp_path / "run", whole, kill_one, rng, "--processes", "2", alike=alike)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_stopped_and_continued(data, tmp_path):
    """SIGSTOP for a while, as a laptop that sleeps, then SIGCONT: nothing is to be resumed."""
    def pause(process):
        process.send_signal(signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGCONT)

    whole = finished(data, tmp_path / "whole")
    check_disturbed(data, tmp_path / "run", whole, pause, random.Random(3))


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.parametrize("kind", ["data", "shards"])
def test_caches_killed_while_they_are_made(kind, tmp_path, request):
    """Decoded pixels and the index of shards: whoever comes next has all of it."""
    source, rng = request.getfixturevalue(kind), random.Random(4)
    code = ("import sys; from miniclip.data.pairs import load_pairs; "
            "from miniclip.data.sources import Source; print('go', flush=True); "
            f"[load_pairs(Source.find({str(source)!r}), s, 32) for s in ('train', 'validation')]")
    for _ in range(TIMES):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | ONE_THREAD,
                                   stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        process.stdout.readline()
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        process.communicate()
        texts = set()
        for split in ("train", "validation"):
            pairs = load_pairs(Source.find(str(source)), split, 32)
            assert pairs.images[:].shape == (len(pairs), 32, 32, 3)
            texts |= {text for captions in pairs.captions for text in captions}
        assert len(texts) == 160


# ------------------------------------------------------------------------------ starved


@pytest.mark.slow
@pytest.mark.parametrize("most", [50, 100, 2_000, 20_000, 60_000, 150_000])
def test_no_file_can_grow_beyond_a_limit(most, data, tmp_path):
    """As on a full disk: one line that names the file, and what was saved before can be loaded."""
    finished(data, tmp_path / "run")  # fills the cache
    shutil.move(tmp_path / "run", tmp_path / "before")
    run = tmp_path / "run"
    process = start(data, run, preexec_fn=lambda: resource.setrlimit(
        resource.RLIMIT_FSIZE, (most, most)))
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2 and "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("miniclip train: ") and str(run) in last
    assert not list(run.rglob(".*"))  # no half of a file stays
    if (run / "state.pt").is_file():
        checkpoint.load_state(run)


@pytest.mark.slow
def test_a_full_disk(data, tmp_path):
    """A real one: a small tmpfs, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)],
                             capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a tmpfs")
    try:
        process = start(data, disk / "run")
        _, said = process.communicate(timeout=100)
        assert process.returncode == 2 and "Traceback" not in said
        assert said.strip().splitlines()[-1].startswith("miniclip train: ")
        if (disk / "run/state.pt").is_file():
            checkpoint.load_state(disk / "run")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.slow
def test_the_run_folder_vanishes(data, tmp_path):
    """One line; where it was moved to it can be resumed."""
    run, moved = tmp_path / "run", tmp_path / "moved"
    process = start(data, run, "--steps", "100000")
    while not (run / "state.pt").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    run.rename(moved)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 2 and "Traceback" not in said
    assert str(run) in said.strip().splitlines()[-1]
    step = checkpoint.load_state(moved)["progress"]["step"]
    assert step % 4 == 0 and main(["train", "--run", str(moved), "--resume", "--steps",
                                   str(step + 4)]) == 0
    assert not run.exists()


@pytest.mark.slow
def test_the_cache_is_deleted_while_it_is_mapped(data, tmp_path):
    expected, _ = finished(data, tmp_path / "whole")
    run = tmp_path / "run"
    process = start(data, run)
    while not (run / "train.json").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    shutil.rmtree(tmp_path / "cache")
    process.communicate(timeout=100)
    assert process.returncode == 0 and same(expected, checkpoint.load_state(run))


# ------------------------------------------------------------------------------ lied to


def test_a_state_with_code_in_it(data, tmp_path, capsys):
    """It is refused, and the code does not run."""
    assert main(["train", "--data", str(data), "--run", str(tmp_path / "run"), *SHAPE, "--steps",
                 "4"]) == 0
    capsys.readouterr()

    class Code:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/ran",)

    for content in (Code(), {"model": Code(), "optimizers": [], "progress": {}}):
        for write in (lambda path, x: torch.save(x, path),
                      lambda path, x: Path(path).write_bytes(pickle.dumps(x))):
            write(tmp_path / "run/state.pt", content)
            assert main(["train", "--run", str(tmp_path / "run"), "--resume"]) == 2
            said = capsys.readouterr().err
            assert "state.pt is damaged" in said and said.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_a_clock_that_jumps(data, tmp_path, monkeypatch):
    """Back and forth, by days: nothing that is trained depends on it, nor any cache."""
    usual = ["train", "--data", str(data), *SHAPE, "--steps", "8"]
    assert main([*usual, "--run", str(tmp_path / "whole")]) == 0
    shutil.rmtree(tmp_path / "cache")
    rng, now = random.Random(5), time.time
    monkeypatch.setattr(time, "time", lambda: now() + rng.uniform(-1e6, 1e6))
    assert main([*usual, "--run", str(tmp_path / "run")]) == 0
    assert same(*(checkpoint.load_state(tmp_path / name) for name in ("whole", "run")))
