"""Search: what is kept, what is found, whoever is killed, moved or broken."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image
from safetensors.torch import load_file, save_file
from small_models import drawn, write_photograph, write_run

from miniclip import plots
from miniclip.data.images import decode
from miniclip.tasks import search
from miniclip.tasks.features import embed_images, embed_texts
from miniclip.weights import checkpoint


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "run")


@pytest.fixture
def photographs(folder, cache) -> Path:
    """Twelve in three folders; a cache of its own, where the last index is remembered."""
    for i in range(12):
        write_photograph(folder / ("", "beach", "2019/snow")[i % 3] / f"{i}.png", i)
    return folder


def kept(index: Path) -> dict[str, np.ndarray]:
    """{path: vector} of what an index holds, read without its code."""
    rows = [json.loads(line) for line in (index / "paths.jsonl").read_text().splitlines()]
    vectors = np.load(index / "vectors.npy")
    assert vectors.dtype == np.float16 and len(vectors) == len(rows)
    return {row["path"]: vector for row, vector in zip(rows, vectors) if row["path"] is not None}


def check_same(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    for path, vector in found.items():  # batches of another size may round another way
        np.testing.assert_allclose(vector, expected[path], atol=4e-3, err_msg=path)


def fresh(root: Path, run: Path, tmp_path: Path) -> dict[str, np.ndarray]:
    """The same of an index made anew."""
    shutil.rmtree(tmp_path / "fresh", ignore_errors=True)
    search.index(root, run, tmp_path / "fresh")
    return kept(tmp_path / "fresh")


def counts(told: dict) -> tuple[int, ...]:
    return tuple(told[name] for name in ("photographs", "embedded", "moved", "removed"))


# ------------------------------------------------------------------------------- building


def test_an_index_holds_a_unit_vector_for_every_photograph(photographs, run):
    told = search.index(photographs, run)
    assert counts(told) == (12, 12, 0, 0) and told["unreadable"] == []
    index = photographs / ".miniclip"
    assert told["index"] == str(index.resolve())
    found = kept(index)
    assert list(found) == sorted(f"{('', 'beach/', '2019/snow/')[i % 3]}{i}.png" for i in range(12))
    model, _, transform = checkpoint.load(run)
    for path, vector in found.items():
        pixels, _ = decode(photographs / path, transform.size)
        truth = embed_images(model, pixels[None])[0]
        assert np.linalg.norm(vector.astype(float)) == pytest.approx(1, abs=2e-3)
        assert float(truth @ torch.from_numpy(vector).float()) > 0.999  # bfloat16 where it is fast
    assert json.loads((index / "index.json").read_text()) == {
        "model": str(run), "weights": search.fingerprint(model), "quick_gelu": None, "root": "..",
        "width": 16}


def test_a_second_call_embeds_nothing(photographs, run, monkeypatch):
    search.index(photographs, run)
    before = kept(photographs / ".miniclip")
    monkeypatch.setattr(search, "decode", None)  # whoever decodes, fails
    assert counts(search.index(photographs)) == (12, 0, 0, 0)
    after = kept(photographs / ".miniclip")
    assert list(after) == list(before)
    assert all((after[path] == before[path]).all() for path in before)


def test_added_moved_renamed_touched_changed_removed(photographs, run, tmp_path, monkeypatch):
    search.index(photographs, run)
    write_photograph(photographs / "new/20.png", 20)
    (photographs / "0.png").rename(photographs / "new/0.png")
    (photographs / "beach/1.png").rename(photographs / "beach/holiday.png")
    shutil.copy(photographs / "beach/4.png", photographs / "copied.png")  # with another time
    (photographs / "beach/4.png").unlink()
    os.utime(photographs / "3.png", (1, 1))
    write_photograph(photographs / "6.png", 99)
    (photographs / "9.png").unlink()
    decoded = []
    monkeypatch.setattr(search, "decode", lambda data, size: (decoded.append(1), decode(
        data, size))[1])
    told = search.index(photographs)
    assert counts(told) == (12, 2, 3, 1) and len(decoded) == 2  # only the new and the changed one
    monkeypatch.undo()
    monkeypatch.setenv("MINICLIP_CACHE", str(tmp_path / "cache"))
    check_same(kept(photographs / ".miniclip"), fresh(photographs, run, tmp_path))
    assert counts(search.index(photographs)) == (12, 0, 0, 0)
    found = [path for _, path in search.search("a red dog", k=50, where=photographs)]
    assert len(found) == len(set(found)) == 12 and all(Path(path).is_file() for path in found)


def test_copies_are_told_apart(photographs, run, tmp_path):
    """Three files of one content; one goes, one moves, and another of the same size comes."""
    for name in ("a.png", "b.png", "c.png"):
        shutil.copy(photographs / "0.png", photographs / name)
    assert counts(search.index(photographs, run)) == (15, 15, 0, 0)
    (photographs / "a.png").unlink()
    (photographs / "b.png").rename(photographs / "d.png")
    assert counts(search.index(photographs)) == (14, 0, 1, 1)
    (photographs / "c.png").rename(photographs / "e.png")
    data = bytearray((photographs / "0.png").read_bytes())
    data[-1] ^= 1  # the same size, another content; decoders do not mind
    (photographs / "c.png").write_bytes(data)
    assert counts(search.index(photographs)) == (15, 1, 1, 0)
    check_same(kept(photographs / ".miniclip"), fresh(photographs, run, tmp_path))


@given(steps=st.lists(st.tuples(st.sampled_from(["add", "move", "remove", "change", "cut"]),
                                st.integers(0, 9), st.integers(0, 9)), max_size=12))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_any_history_ends_in_the_same_index(steps):
    """Whatever was done between calls, the index is that of the folder as it is now."""
    base = Path(os.environ["MINICLIP_CACHE"]).parent / "history"
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir(parents=True)
    root, run = base / "photos", write_run(base / "run")
    write_photograph(root / "always.png", 1000)
    for number, (what, a, b) in enumerate([*steps, ("add", 0, 0)]):
        path, other = root / f"{a}.png", root / f"{b}.png"
        if what in ("add", "change"):
            write_photograph(path, 10 + number if what == "change" else a)
        elif what == "move" and path.exists():
            path.rename(other)
        elif what == "remove":
            path.unlink(missing_ok=True)
        elif what == "cut" and (root / ".miniclip/paths.jsonl").exists():
            lines = (root / ".miniclip/paths.jsonl").read_bytes()
            (root / ".miniclip/paths.jsonl").write_bytes(lines[:len(lines) * a // 10])
        if number % 2:
            search.index(root, run)
    told = search.index(root, run)
    assert told["photographs"] == len(list(root.glob("*.png")))
    check_same(kept(root / ".miniclip"), fresh(root, run, base))


def test_what_is_left_out(photographs, run):
    """Listed with the reason, never fatal; hidden files and the index's own folder are no news."""
    (photographs / "text.jpg").write_text("no picture")
    (photographs / "empty.png").write_bytes(b"")
    data = (photographs / "3.png").read_bytes()
    (photographs / "cut.png").write_bytes(data[:len(data) // 2])
    (photographs / "nowhere.jpg").symlink_to(photographs / "gone.jpg")
    (photographs / "a folder.jpg").mkdir()
    (photographs / "notes.txt").write_text("no picture, and no such name")
    for hidden in (".hidden.png", ".thumbs/1.png", "beach/._1.png", "index/search.png"):
        write_photograph(photographs / hidden, 50)
    os.mkfifo(photographs / "pipe.jpg")  # whoever opens it waits for ever
    Image.new("RGB", (1, 1), "red").save(photographs / "pixel.PNG")
    told = search.index(photographs, run, photographs / "index")
    reasons = dict(told["unreadable"])
    assert set(reasons) == {"text.jpg", "empty.png", "cut.png", "nowhere.jpg"}
    assert reasons["text.jpg"] == "unreadable" and reasons["cut.png"] == "truncated"
    assert reasons["nowhere.jpg"] == "No such file or directory"
    assert counts(told) == (13, 13, 0, 0) and "pixel.PNG" in kept(photographs / "index")
    again = search.index(photographs, None, photographs / "index")  # they are tried again
    assert counts(again) == (13, 0, 0, 0) and again["unreadable"] == told["unreadable"]


def test_a_folder_of_nothing_readable(folder, cache, run):
    (folder / "text.jpg").write_text("no picture")
    assert counts(search.index(folder, run)) == (0, 0, 0, 0)
    with pytest.raises(ValueError, match="holds no photographs yet"):
        search.search("a dog", where=folder)
    write_photograph(folder / "1.png", 1)
    assert counts(search.index(folder)) == (1, 1, 0, 0)
    assert len(search.search("a dog", where=folder)) == 1


def test_many_are_decoded_in_threads(photographs, run, tmp_path, monkeypatch):
    """The same index, in the same order, however many decode; and no process that could be left."""
    expected, threads = fresh(photographs, run, tmp_path), set()

    def watched(*file):
        threads.add(threading.current_thread())
        return decode_file(*file)

    decode_file = search.decode_file
    monkeypatch.setattr(search, "decode_file", watched)
    monkeypatch.setattr(search, "BATCH", 2)
    (photographs / "text.jpg").write_text("no picture")
    told = search.index(photographs, run)
    assert threads and threading.main_thread() not in threads
    assert not multiprocessing.active_children()
    assert told["unreadable"] == [["text.jpg", "unreadable"]]
    check_same(kept(photographs / ".miniclip"), expected)
    assert list(kept(photographs / ".miniclip")) == list(expected)


def test_what_phones_write(photographs, run):
    """HEIC is read where the extra is installed, the right way up; else the extra is named."""
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 250  # left red, right blue
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: the sensor's left is up
    Image.fromarray(pixels).save(photographs / "IMG_1.HEIC", exif=exif.tobytes())
    (photographs / "IMG_2.HEIC").write_bytes(b"no picture")
    shutil.copy(photographs / "IMG_1.HEIC", photographs / "IMG_3.HIF")
    told = search.index(photographs, run)
    assert counts(told) == (14, 14, 0, 0) and told["unreadable"] == [["IMG_2.HEIC", "unreadable"]]
    upright, _ = decode(photographs / "IMG_1.HEIC", 32)
    assert upright[2, :, 0].min() > 150 and upright[-3, :, 2].min() > 150
    code = ("import sys; sys.modules['pillow_heif'] = None; from miniclip.cli import main; "
            "sys.exit(main(sys.argv[1:]))")
    for command, hint in (([sys.executable, "-c", code], " (it may need: pip install pillow-heif)"),
                          ([sys.executable, "-m", "miniclip.cli"], "")):
        shutil.rmtree(photographs / ".miniclip")
        ran = subprocess.run([*command, "index", str(photographs), "--model", str(run)],
                             capture_output=True, text=True, check=True)
        assert f"  left out, unreadable{hint}: IMG_2.HEIC\n" in ran.stdout
        assert ("IMG_1.HEIC" in ran.stdout) == bool(hint)


def test_names_that_are_no_text(photographs, run):
    """Linux has names that are no UTF-8; a line break is legal everywhere."""
    write_photograph(photographs / "new\nline \u2028 \u00e9.png", 30)
    try:
        write_photograph(Path(os.fsdecode(os.fsencode(photographs) + b"/caf\xe9.png")), 31)
        total = 14
    except OSError:  # macOS has no such names
        total = 13
    assert counts(search.index(photographs, run)) == (total, total, 0, 0)
    found = search.search("a dog", k=99, where=photographs)
    assert len(found) == total and all(Path(path).is_file() for _, path in found)
    assert counts(search.index(photographs)) == (total, 0, 0, 0)


# ------------------------------------------------------------------------------- stopped, broken


@pytest.mark.parametrize("cut", [1, 17, 150, 1000, 10**6])
def test_a_cut_line_costs_only_what_it_told(photographs, run, tmp_path, cut):
    search.index(photographs, run)
    expected, index = kept(photographs / ".miniclip"), photographs / ".miniclip"
    lines = (index / "paths.jsonl").read_bytes()
    (index / "paths.jsonl").write_bytes(lines[:max(0, len(lines) - cut)])
    whole = lines[:max(0, len(lines) - cut)].count(b"\n")
    if cut == 1:  # only the line's end is gone: the row is whole
        whole += 1
    if whole:  # and can be searched as it is
        assert len(search.search("a dog", k=99, where=photographs)) == whole
    assert counts(search.index(photographs)) == (12, 12 - whole, 0, 0)
    check_same(kept(index), expected)


def test_ctrl_c_keeps_what_was_embedded(photographs, run, tmp_path, monkeypatch):
    monkeypatch.setattr(search, "BATCH", 5)
    calls, check = [], search.check_finite

    def stop(features):
        calls.append(len(features))
        if len(calls) == 2:
            raise KeyboardInterrupt
        check(features)

    monkeypatch.setattr(search, "check_finite", stop)
    with pytest.raises(KeyboardInterrupt):
        search.index(photographs, run)
    assert len(kept(photographs / ".miniclip")) == 5
    monkeypatch.setattr(search, "check_finite", check)
    assert counts(search.index(photographs)) == (12, 7, 0, 0)
    check_same(kept(photographs / ".miniclip"), fresh(photographs, run, tmp_path))


def test_a_disk_that_fills_between_vector_and_line(photographs, run, tmp_path, monkeypatch):
    """The vectors are there, their lines are not: they are embedded again, in their place."""
    monkeypatch.setattr(search, "BATCH", 5)
    write, calls = search.write_vectors, []

    def fill(path, vectors, start):
        write(path, vectors, start)
        calls.append(len(vectors))
        if len(calls) == 3:  # the empty file, the first batch, the second
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(search, "write_vectors", fill)
    with pytest.raises(OSError, match="No space left"):
        search.index(photographs, run)
    index = photographs / ".miniclip"
    assert len(np.load(index / "vectors.npy")) == 10
    assert len((index / "paths.jsonl").read_text().splitlines()) == 5
    assert len(search.search("a dog", k=99, where=photographs)) == 5
    monkeypatch.setattr(search, "write_vectors", write)
    assert counts(search.index(photographs)) == (12, 7, 0, 0)
    check_same(kept(index), fresh(photographs, run, tmp_path))


def test_kill_and_go_on(folder, cache, run, tmp_path):
    """SIGKILL, which nothing can catch, while batches are written."""
    for i in range(300):
        write_photograph(folder / f"{i:03}.png", i)
    code = ("import sys; from miniclip.tasks import search; search.BATCH = 3; "
            "search.index(sys.argv[1], sys.argv[2])")
    process = subprocess.Popen([sys.executable, "-c", code, str(folder), str(run)],
                               stderr=subprocess.DEVNULL)
    lines = folder / ".miniclip/paths.jsonl"
    deadline = time.monotonic() + 60
    while not lines.is_file() or lines.stat().st_size < 1000:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    told = search.index(folder)
    assert told["photographs"] == 300 and 0 < told["embedded"] < 300
    check_same(kept(folder / ".miniclip"), fresh(folder, run, tmp_path))


def test_two_at_once_are_refused(photographs, run, another_writer):
    search.index(photographs, run)
    with another_writer(photographs / ".miniclip"):
        with pytest.raises(ValueError, match="another `miniclip index` is writing to"):
            search.index(photographs)
        assert len(search.search("a dog", where=photographs)) == 9  # who only reads, may
    assert counts(search.index(photographs)) == (12, 0, 0, 0)


def test_a_diverged_model_writes_nothing(photographs, tmp_path):
    broken = write_run(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["vision.projection"][0, 0] = torch.nan
    save_file(weights, broken / "model.safetensors")
    with pytest.raises(ValueError, match="the model has diverged"):
        search.index(photographs, broken)
    assert (photographs / ".miniclip/paths.jsonl").read_text() == ""


@pytest.mark.parametrize("breakage", [
    lambda index: (index / "index.json").write_text("{"),
    lambda index: (index / "index.json").write_text("[]"),
    lambda index: (index / "index.json").write_text('{"model": "x"}'),
    lambda index: (index / "vectors.npy").unlink(),
    lambda index: (index / "vectors.npy").write_bytes(b""),
    lambda index: (index / "vectors.npy").write_bytes(
        (index / "vectors.npy").read_bytes()[:-100]),
    lambda index: np.save(index / "vectors.npy", np.zeros((12, 16), np.float32)),
    lambda index: np.save(index / "vectors.npy", np.zeros((12, 8), np.float16)),
    lambda index: np.save(index / "vectors.npy", np.zeros((11, 16), np.float16)),
])
def test_a_damaged_index_is_named(photographs, run, breakage):
    search.index(photographs, run)
    breakage(photographs / ".miniclip")
    for call in (lambda: search.search("a dog", where=photographs),
                 lambda: search.index(photographs)):
        with pytest.raises(ValueError, match="the index is damaged .* and index again") as error:
            call()
        assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- whose model


def test_the_fingerprint_sees_every_weight_and_the_shape(run):
    first, again = (checkpoint.load(run)[0] for _ in range(2))
    mark = search.fingerprint(first)
    assert mark == search.fingerprint(again) and len(mark) == 16
    for parameter in again.parameters():
        with torch.no_grad():
            old = parameter.flatten()[-1].item()
            parameter.view(-1)[-1] = old + 1
            assert search.fingerprint(again) != mark
            parameter.view(-1)[-1] = old
    assert search.fingerprint(again) == mark
    again.config = replace(again.config, quick_gelu=True)  # the same tensors, another function
    assert search.fingerprint(again) != mark


def test_an_index_of_other_weights_is_refused(photographs, tmp_path):
    mine, other = write_run(tmp_path / "mine"), write_run(tmp_path / "other", seed=1)
    search.index(photographs, mine)
    before = kept(photographs / ".miniclip")
    write_photograph(photographs / "new.png", 40)
    for call in (lambda: search.index(photographs, other),
                 lambda: search.search("a dog", where=photographs, model=other)):
        with pytest.raises(ValueError, match="the index was made with other weights: .*mine; "):
            call()
    shutil.copy(other / "model.safetensors", mine / "model.safetensors")  # trained once more
    with pytest.raises(ValueError, match="the index was made with other weights"):
        search.search("a dog", where=photographs)
    assert list(kept(photographs / ".miniclip")) == list(before)


def test_a_model_that_moved(photographs, tmp_path):
    mine = write_run(tmp_path / "mine")
    search.index(photographs, mine)
    moved = mine.rename(tmp_path / "moved")
    for call in (partial(search.search, "a dog", where=photographs),
                 partial(search.index, photographs)):
        with pytest.raises(ValueError, match=f"^{mine}, the index's model, is gone; .*--model"):
            call()
    first = search.search("a dog", where=photographs, model=moved)
    search.index(photographs, moved)  # which remembers it
    assert search.search("a dog", where=photographs) == first


def test_the_default_model_is_tried_only_if_none_is_known(photographs, run, monkeypatch):
    asked, load = [], search.pretrained.load
    monkeypatch.setattr(search.pretrained, "load", lambda source, *rest: asked.append(
        str(source)) or load(run, *rest))
    search.index(photographs)
    assert asked == [search.DEFAULT_MODEL]
    search.index(photographs)
    search.search("a dog", where=photographs)
    assert asked == [search.DEFAULT_MODEL] * 3  # an id, and no path


# ------------------------------------------------------------------------------- which index


def test_nothing_is_left_of_a_call_that_was_refused(photographs, run, tmp_path):
    listing = sorted(photographs.rglob("*"))
    (tmp_path / "empty").mkdir()
    for folder, model, out, message in (
            (tmp_path / "none", run, None, "no such folder"),
            (photographs / "0.png", run, None, "no such folder"),
            (tmp_path / "empty", run, None, "holds no images"),
            (photographs, tmp_path / "no run", None, "no run"),
            (photographs, run, tmp_path / "no/such", "No such file"),
            (photographs, run, photographs / "0.png/x", "Not a directory")):
        with pytest.raises((ValueError, OSError), match=message):
            search.index(folder, model, out)
    assert sorted(photographs.rglob("*")) == listing
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_folder_moves_with_its_index(photographs, run, tmp_path):
    search.index(photographs, run)
    moved = photographs.rename(tmp_path / "elsewhere")
    found = search.search("a dog", where=moved)
    assert all(Path(path).is_file() and path.startswith(str(moved.resolve())) for _, path in found)
    assert counts(search.index(moved)) == (12, 0, 0, 0)


def test_an_index_is_of_one_folder(photographs, run, tmp_path):
    out = tmp_path / "index"
    search.index(photographs, run, out)
    assert not (photographs / ".miniclip").exists()
    write_photograph(tmp_path / "others/1.png", 1)
    with pytest.raises(ValueError, match="is the index of .*; name another --out"):
        search.index(tmp_path / "others", run, out)
    found = search.search("a dog", where=out)
    assert all(Path(path).is_file() for _, path in found) and len(found) == 9


def test_an_index_is_not_put_among_other_files(photographs, run, tmp_path):
    """Its names are plain ones: somebody may have a vectors.npy of his own."""
    (tmp_path / "out").mkdir()
    for name in ("vectors.npy", "notes.txt"):
        (tmp_path / "out" / name).write_text(name)
    with pytest.raises(ValueError, match="out is there already, and is no index; name another"):
        search.index(photographs, run, tmp_path / "out")
    assert {p.name: p.read_text() for p in (tmp_path / "out").iterdir()} == {
        "vectors.npy": "vectors.npy", "notes.txt": "notes.txt"}
    (tmp_path / "empty").mkdir()  # as good as none
    assert counts(search.index(photographs, run, tmp_path / "empty")) == (12, 12, 0, 0)


def test_which_index_is_meant(photographs, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="holds no index; `miniclip index FOLDER` makes one"):
        search.search("a dog")
    search.index(photographs, run)
    assert search.find() == (photographs / ".miniclip").resolve()  # the last one, from anywhere
    write_photograph(tmp_path / "other/1.png", 1)
    search.index(tmp_path / "other", run)
    assert search.find() == (tmp_path / "other/.miniclip").resolve()
    monkeypatch.chdir(photographs)
    assert search.find() == (photographs / ".miniclip").resolve()  # the one here
    for where in (tmp_path / "other", tmp_path / "other/.miniclip", "../other"):
        assert search.find(where) == (tmp_path / "other/.miniclip").resolve()
    assert len(search.search("a dog", where="../other")) == 1


# ------------------------------------------------------------------------------- queries


@pytest.mark.parametrize("k", [1, 5, 12, 99])
def test_found_is_what_brute_force_finds(photographs, run, k):
    search.index(photographs, run)
    model, tokenizer, transform = checkpoint.load(run)
    everything = kept(photographs / ".miniclip")
    pixels, _ = decode(photographs / "beach/4.png", transform.size)
    for asked, query in (({"text": "a red dog"}, embed_texts(model, tokenizer, ["a red dog"])),
                         ({"image": photographs / "beach/4.png"},
                          embed_images(model, pixels[None]))):
        cosines = {path: float(vector.astype(float) @ query[0].double().numpy())
                   for path, vector in everything.items()}
        expected = sorted(cosines, key=cosines.get, reverse=True)[:k]
        found = search.search(k=k, where=photographs, **asked)
        assert [Path(path).relative_to(photographs.resolve()) for _, path in found] == [
            Path(path) for path in expected]
        assert [score for score, _ in found] == pytest.approx(
            [cosines[path] for path in expected], abs=1e-6)
    assert found[0][1].endswith("beach/4.png") and found[0][0] > 0.999


@given(data=st.data())
@settings(max_examples=80, deadline=None, derandomize=True)
def test_nearest_against_float64(data):
    """Any number of rows, chunks and copies; those that are gone never come."""
    count = data.draw(st.integers(1, 60))
    width, seed = data.draw(st.sampled_from([1, 3, 16, 129])), data.draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    rows = F.normalize(torch.randn(count, width, generator=generator), dim=1).half().numpy()
    copies = data.draw(st.lists(st.integers(0, count - 1), min_size=count, max_size=count))
    rows = rows[copies] if data.draw(st.booleans()) else rows
    gone = sorted(data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1)))
    k = data.draw(st.integers(1, count + 3))
    query = F.normalize(torch.randn(width, generator=generator), dim=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CHUNK", data.draw(st.sampled_from([1, 2, 7, 512])))
        patch.setattr(search, "SHORTLIST", data.draw(st.sampled_from([1, count, 100])))
        found = search.nearest(rows, query, k, gone)
    cosines = rows.astype(float) @ query.double().numpy()
    alive = [i for i in range(count) if i not in gone]
    assert len(found) == min(k, len(alive)) and len({i for _, i in found}) == len(found)
    assert {i for _, i in found} <= set(alive)
    best = sorted(cosines[alive], reverse=True)[:k]
    assert [score for score, _ in found] == pytest.approx(best, abs=1e-6)
    for score, i in found:
        assert score == pytest.approx(cosines[i], abs=1e-6)
    for (score, i), (following, j) in zip(found, found[1:]):
        assert score > following or (score == following and i < j)
        assert score == following or not (rows[i] == rows[j]).all()  # copies share a score


def test_nearest_looks_at_every_row():
    """A needle anywhere among more rows than a chunk and a short list hold."""
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(2000, 64, generator=generator), dim=1).half().numpy()
    for needle in (0, 511, 512, 1023, 1999):
        (score, first), *_ = search.nearest(rows, torch.from_numpy(rows[needle]).float(), 3)
        assert first == needle and score == pytest.approx(1, abs=1e-3)
    # A hundred and fifty copies: more than the short list, all of one score, in their order.
    rows[300:450] = rows[7]
    found = search.nearest(rows, torch.from_numpy(rows[7]).float(), 120)
    assert len({score for score, _ in found}) == 1
    assert [i for _, i in found] == sorted(i for _, i in found)


def test_a_query_leaves_the_threads_as_they_were(monkeypatch):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        rows = np.zeros((3, 4), np.float16)
        search.nearest(rows, torch.zeros(4), 1)
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError):
            search.nearest(rows, torch.zeros(5), 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_no_words_beside_an_image_are_none(photographs, run):
    search.index(photographs, run)
    image = str(photographs / "3.png")
    found = search.search(" ", image, where=photographs)
    assert found == search.search(None, image, where=photographs) and found[0][1] == image


@pytest.mark.parametrize("asked, message", [
    ({}, "one of the two"), ({"text": " "}, "one of the two"),
    ({"text": "a dog", "image": "x.png"}, "one of the two"),
    ({"text": "a dog", "k": 0}, "k is 0; it must be at least 1"),
    ({"image": "none.png"}, "none.png is no image that can be opened: no such file"),
    ({"image": __file__}, "is no image that can be opened: unreadable"),
])
def test_a_query_that_is_none(photographs, run, asked, message):
    search.index(photographs, run)
    with pytest.raises(ValueError, match=message):
        search.search(where=photographs, **asked)


# ------------------------------------------------------------------------------- odd folders


def test_two_first_calls_with_other_weights_do_not_mix(photographs, run, tmp_path, monkeypatch):
    """The second has looked before the first was done: it must look again."""
    other, load = write_run(tmp_path / "other", seed=1), search.load_model

    def slow(source, *arguments):
        if source == other and not (photographs / ".miniclip").exists():
            search.index(photographs, run)
        return load(source, *arguments)

    monkeypatch.setattr(search, "load_model", slow)
    with pytest.raises(ValueError, match="made with other weights"):
        search.index(photographs, other)
    assert json.loads((photographs / ".miniclip/index.json").read_text())["model"] == str(run)
    assert counts(search.index(photographs)) == (12, 0, 0, 0)


def test_a_locked_folder_is_told_of_and_not_forgotten(photographs, run, monkeypatch):
    search.index(photographs, run)
    look = os.scandir

    def scandir(path):
        if isinstance(path, str) and Path(path).name == "beach":
            raise PermissionError(13, "Permission denied", str(path))
        return look(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        told = search.index(photographs)
        assert told["unreadable"] == [["beach", "Permission denied"]]
        assert counts(told) == (12, 0, 0, 0)
        for path in (*photographs.glob("*.png"), *photographs.glob("2019/snow/*.png")):
            path.unlink()
        shutil.rmtree(photographs / ".miniclip")
        with pytest.raises(ValueError, match="no images .*; beach: Permission denied"):
            search.index(photographs, run)
    assert counts(search.index(photographs, run)) == (4, 4, 0, 0)


def test_links_to_what_is_no_photograph(photographs, run):
    os.mkfifo(photographs / "pipe")
    for name, target in (("fifo.jpg", "pipe"), ("album.jpg", "beach"), ("zero.jpg", "/dev/zero"),
                         ("gone.jpg", "nowhere"), ("loop.jpg", "loop.jpg")):
        (photographs / name).symlink_to(target)
    told = search.index(photographs, run)
    assert counts(told) == (12, 12, 0, 0)
    assert sorted(path for path, _ in told["unreadable"]) == ["gone.jpg", "loop.jpg"]


def test_a_folder_whose_name_is_no_text(folder, cache, run):
    root = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    write_photograph(root / "1.png", 1)
    search.index(root, run)
    assert search.search("a dog")[0][1] == str(root / "1.png")  # the one built last


def test_the_last_index_is_remembered_where_that_is_possible(photographs, run, monkeypatch):
    (photographs / "file").write_text("")
    monkeypatch.setenv("MINICLIP_CACHE", str(photographs / "file/cache"))
    assert counts(search.index(photographs, run)) == (12, 12, 0, 0)


def test_an_index_is_not_put_over_its_photographs(photographs, run):
    for out in (photographs, photographs.parent):
        with pytest.raises(ValueError, match="holds the photographs themselves"):
            search.index(photographs, run, out)


@pytest.mark.parametrize("line", ["{}", "3", "null", '{"path": "x"}', '{"path": "x", "stat": []}'])
def test_lines_that_are_of_no_index(photographs, run, line):
    search.index(photographs, run)
    with open(photographs / ".miniclip/paths.jsonl", "r+") as file:
        rows = file.readlines()
        file.seek(0)
        file.truncate()
        file.writelines([line + "\n", *rows[1:]])
    for call in (lambda: search.search("a dog", where=photographs),
                 lambda: search.index(photographs)):
        with pytest.raises(ValueError, match="the index is damaged"):
            call()


# ------------------------------------------------------------------------------- the sheet


@pytest.mark.parametrize("count, shape", [(1, (1, 1)), (2, (1, 2)), (3, (2, 2)), (9, (3, 3))])
def test_the_contact_sheet(photographs, tmp_path, monkeypatch, count, shape):
    paths = [str(path) for path in sorted(photographs.rglob("*.png"))][:count]
    found = [(0.9 - i / 10, path) for i, path in enumerate(paths)]
    sheet = tmp_path / "sheet.png"
    figure = drawn(monkeypatch, lambda: plots.contact_sheet("$\\frac$ a_dog", found, sheet))
    assert figure.get_suptitle() == "$\\frac$ a_dog"
    assert figure.axes[0].get_gridspec().get_geometry() == shape
    for axis, (score, path) in zip(figure.axes, found):
        shown = axis.images[0].get_array()
        np.testing.assert_array_equal(shown, np.asarray(Image.open(path)))
        assert axis.get_xlabel() == f"{score:.3f}  {Path(path).name}"
    with Image.open(sheet) as image:
        assert np.asarray(image.convert("RGB")).std() > 5


def test_a_sheet_of_odd_files(photographs, tmp_path, monkeypatch, recwarn):
    """Gone since the index was built; on its side; gray; a name without letters in the font."""
    turned = Image.new("RGB", (40, 20), "red")
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(photographs / "turned.jpg", exif=exif)
    Image.new("L", (900, 30), 128).save(photographs / "犬.png")
    names = ["gone.png", "turned.jpg", "犬.png", "caf\udce9 " + "x" * 99 + ".png"]
    found = [(0.5, str(photographs / name)) for name in names]
    figure = drawn(monkeypatch, lambda: plots.contact_sheet("犬", found, tmp_path / "s.png"))
    shapes = [axis.images[0].get_array().shape for axis in figure.axes]
    assert shapes[1] == (40, 20, 3) and shapes[2][1] == 320  # turned; as wide as a thumbnail
    assert (figure.axes[0].images[0].get_array() == 225).all()
    label = figure.axes[3].get_xlabel()
    assert len(label) < 45 and label.endswith("x.png")
    assert not [w for w in recwarn if "Glyph" in str(w.message)]


def test_every_kind_of_picture_is_written_whole_or_not_at_all(tmp_path, photographs):
    found = [(0.5, str(photographs / "0.png"))]
    for name, start in (("s.jpg", b"\xff\xd8"), ("s.svg", b"<?xml"), ("s.PNG", b"\x89PNG"),
                        ("s.pdf", b"%PDF"), ("s", b"\x89PNG")):
        plots.contact_sheet("a dog", found, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="txt"):
        plots.contact_sheet("a dog", found, tmp_path / "s.txt")
    assert sorted(tmp_path.iterdir()) == before and not plt.get_fignums()
