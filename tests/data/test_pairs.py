"""Pairs: everything odd is counted, the cache, the first n."""

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from odd_images import KEPT, SKIPPED
from small_data import (
    SIZE,
    check_pairs,
    colour,
    encoded,
    load,
    picture,
    texts,
    write_csv,
    write_images,
    write_shard,
)

from miniclip.data import pairs
from miniclip.data.pairs import load_pairs
from miniclip.data.sources import Source

pytestmark = pytest.mark.usefixtures("cache")

# ------------------------------------------------------------------------------- odd images


@pytest.mark.filterwarnings("error")  # of size or anything else: the summary says it, not Pillow
def test_everything_odd_is_counted_and_nothing_is_fatal(folder, capsys):
    odd = {**{name: file for name, (file, _) in SKIPPED.items() if file is not None},
           **{name: file for name, (file, *_) in KEPT.items()}}
    rows = ["image,caption"]
    for name, file in odd.items():
        (folder / f"{name}.jpg").write_bytes(file)  # the name need not be right either
        rows.append(f"{name}.jpg,{name}")
    (folder / "captions.csv").write_text("\n".join([*rows, "absent.jpg,a", "rgb.jpg,again"]))
    pairs = load(folder, "all")
    assert [captions[0] for captions in pairs.captions] == list(KEPT)
    assert pairs.captions[0] == ["rgb", "again"]
    for image, (_, expected, _) in zip(pairs.images, KEPT.values(), strict=True):
        assert np.abs(image.astype(int) - expected).max() <= 8
    head, *notes = pairs.summary.split("; ")
    assert head == f"{len(KEPT)} images, {len(KEPT) + 1} captions"
    notes = [note.partition(", such as ")[0] for note in notes]
    counted = {note.split(": ")[1]: int(note.split(":")[0].split()[1]) for note in notes}
    assert counted.pop("truncated") + counted.pop("unreadable") == 7
    assert counted == {
        "missing": 1, "too large": 2, "animated, first frame taken": 1, "converted from 1": 1,
        "converted from CMYK": 1, "converted from F": 2, "converted from I": 1,
        "converted from I;16": 4, "converted from L": 2, "converted from LA": 1,
        "converted from P": 2, "converted from RGBA": 1}
    assert pairs.summary in capsys.readouterr().err  # said once, when the cache is built
    load(folder, "all")
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------- the cache


@pytest.fixture
def photos(folder) -> Path:
    write_images(folder / "Images", range(4))
    write_csv(folder / "captions.txt", range(4))
    return folder


def no_rows(self, split):
    raise AssertionError("the source was read again")


def test_the_second_time_nothing_is_read(photos, monkeypatch):
    first = load(photos, "all")
    larger = load_pairs(Source.find(str(photos)), "all", 3 * SIZE)
    monkeypatch.setattr(Source, "rows", no_rows)
    second = load(photos, "all")
    assert larger.images.shape[1:] == (3 * SIZE, 3 * SIZE, 3)
    assert isinstance(second.images, np.memmap) and not second.images.flags.writeable
    assert (second.images == first.images).all() and second.captions == first.captions
    assert second.summary == first.summary
    for again in ({"split": "train"}, {"split": "all", "limit": 2}):  # keys of their own
        with pytest.raises(AssertionError, match="read again"):
            load(photos, **again)
    with pytest.raises(AssertionError, match="read again"):
        load_pairs(Source.find(str(photos)), "all", 2 * SIZE)
    load(photos, "all")  # which did no harm to what is there
    monkeypatch.setattr(pairs, "CACHE_VERSION", pairs.CACHE_VERSION + 1)
    with pytest.raises(AssertionError, match="read again"):
        load(photos, "all")


def test_changed_files_are_noticed(photos):
    assert len(load(photos, "all")) == 4
    with open(photos / "captions.txt", "a") as file:
        file.write("0.jpg,one more\n4.jpg,a new one\n")
    assert load(photos, "all").captions[0][-1] == "one more"
    write_images(photos / "Images", [4])  # unpacked later, in the folder below
    assert len(load(photos, "all")) == 5
    write_images(photos / "Images", [4])
    (photos / "Images/3.jpg").write_bytes(encoded(picture(11), "JPEG"))
    assert np.abs(load(photos, "all").images[3].astype(int) - colour(11)).max() < 8


def test_a_changed_file_in_a_folder_of_ones_own_is_noticed(folder):
    write_images(folder / "holiday", range(3))
    (folder / "captions.csv").write_text("image,caption\n" + "".join(
        f"holiday/{i}.jpg,a caption\n" for i in range(3)))
    assert len(load(folder, "all")) == 3
    (folder / "holiday/1.jpg").unlink()
    assert load(folder, "all").summary == (
        "2 images, 2 captions; skipped 1: missing, such as 'holiday/1.jpg'")


@pytest.mark.parametrize("how", ["by whole paths", "through a link"])
def test_a_change_is_noticed_wherever_the_images_are(folder, tmp_path, how):
    write_images(tmp_path / "elsewhere", range(3))
    (folder / "photos").symlink_to(tmp_path / "elsewhere")
    where = "photos" if how == "through a link" else tmp_path / "elsewhere"
    (folder / "captions.csv").write_text("image,caption\n" + "".join(
        f"{where}/{i}.jpg,a caption\n" for i in range(3)))
    before = np.array(load(folder, "all").images)
    (tmp_path / "elsewhere/1.jpg").write_bytes(encoded(picture(7)))
    (tmp_path / "elsewhere/2.jpg").unlink()
    pairs = load(folder, "all")
    assert len(pairs) == 2 and (pairs.images[0] == before[0]).all()
    assert (pairs.images[1] != before[1]).any()
    (tmp_path / "elsewhere/2.jpg").write_bytes(encoded(picture(8)))
    assert len(load(folder, "all")) == 3  # what was missing, and is there


def test_only_what_is_read_is_a_change(photos, cache):
    """An index or a run may lie in the folder, and a desktop leaves files everywhere."""
    load(photos, "all")
    for name in (".miniclip/search.png", "Images/.DS_Store", "runs/tiny/curves.png", "notes.txt",
                 "Images/new.jpg"):
        (photos / name).parent.mkdir(exist_ok=True, parents=True)
        (photos / name).write_bytes(b"new")
    load(photos, "all")
    [entry] = cache.iterdir()
    os.utime(photos / "Images/1.jpg", (1, 1))
    load(photos, "all")
    assert len(list(cache.iterdir())) == 2
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(entry.stat().st_mode) == 0o777 & ~mask  # others may read what they share


def test_a_file_whose_name_is_no_text_does_no_harm(photos):
    Path(os.fsdecode(os.fsencode(photos) + b"/caf\xe9.txt")).touch()
    assert len(load(photos, "all")) == 4


def test_a_new_shard_is_noticed(folder):
    write_shard(folder / "val.parquet", [9])
    write_shard(folder / "train-00000-of-00002.parquet", range(3))
    assert len(load(folder)) == 3
    write_shard(folder / "train-00001-of-00002.parquet", [3])
    check_pairs(load(folder), range(4))


@pytest.mark.parametrize("file, content", [
    ("images.u8", b"too short"), ("images.u8", None), ("meta.json", b'{"captions": [["a'),
    ("meta.json", b"{}"), ("meta.json", b"[]"), ("meta.json", None)])
def test_a_damaged_cache_is_built_again(photos, cache, file, content):
    whole = load(photos, "all")
    images = np.array(whole.images)
    [entry] = cache.iterdir()
    if content is None:
        (entry / file).unlink()
    else:
        (entry / file).write_bytes(content)
    again = load(photos, "all")
    assert (again.images == images).all() and again.captions == whole.captions
    assert [path.name for path in cache.iterdir()] == [entry.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("disk full")])
def test_a_build_that_fails_leaves_nothing_behind(photos, cache, monkeypatch, error):
    def fail(image, size):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(pairs, "decode", fail)
        with pytest.raises(type(error) if isinstance(error, Exception) else error):
            load(photos, "all")
    assert not list(cache.iterdir())
    assert len(load(photos, "all")) == 4


def test_a_build_that_was_killed_is_removed_after_a_day(photos, cache):
    """Folders of this cache alone, and only those that nobody wrote to: neither file nor folder."""
    load(photos, "all")
    [entry] = cache.iterdir()
    old, now = time.time() - pairs.DAY - 60, time.time()
    for name, folder_time, file_time in (
            (f"{entry.name}.dead", old, old), (f"{entry.name}.slow", old, now),
            (f"{entry.name}.new", now, old), ("another.dead", old, old)):
        (cache / name).mkdir()
        (cache / name / "images.u8").write_bytes(b"half")
        os.utime(cache / name / "images.u8", (file_time, file_time))
        os.utime(cache / name, (folder_time, folder_time))
    load(photos, "all")  # read, not built: nothing is looked for
    assert len(list(cache.iterdir())) == 5
    (entry / "meta.json").unlink()
    assert len(load(photos, "all")) == 4
    left = {path.name.removeprefix(entry.name) for path in cache.iterdir()}
    assert left == {"", ".slow", ".new", "another.dead"}


@pytest.mark.parametrize("damaged", [False, True])
def test_two_builds_at_once_both_get_everything(photos, cache, monkeypatch, damaged):
    """Neither has finished when the other starts; the second to finish finds the first's cache."""
    if damaged:
        load(photos, "all")
        next(cache.glob("*/images.u8")).write_bytes(b"too short")
    together, results, rows = threading.Barrier(2, timeout=30), [], Source.rows
    replace = os.replace

    def rows_together(self, split):
        together.wait()
        yield from rows(self, split)
        together.wait()

    def replace_together(*paths):  # both have seen the damage before either mends it
        together.wait()
        replace(*paths)

    monkeypatch.setattr(Source, "rows", rows_together)
    monkeypatch.setattr(os, "replace", replace_together)
    threads = [threading.Thread(target=lambda: results.append(load(photos, "all")))
               for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    for found in results:
        check_pairs(found, range(4), lambda i: [f"{text}, in colour" for text in texts(i)])
    assert len(list(cache.iterdir())) == 1


@pytest.mark.slow
def test_two_processes_at_once_both_get_everything(photos, cache):
    script = """if True:
        import sys
        from miniclip.data.pairs import load_pairs
        from miniclip.data.sources import Source
        print("ready", flush=True)
        sys.stdin.readline()
        pairs = load_pairs(Source.find(sys.argv[1]), "all", 16)
        print(len(pairs), int(pairs.images.sum()))
    """
    runs = [subprocess.Popen([sys.executable, "-c", script, str(photos)], text=True,
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:  # both have imported everything: they start within a millisecond
        run.stdin.write("go\n")
        run.stdin.flush()
    said = [run.communicate(timeout=60)[0] for run in runs]
    assert said == [f"4 {load(photos, 'all').images.sum()}\n"] * 2
    assert len(list(cache.iterdir())) == 1


def test_where_the_cache_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("MINICLIP_CACHE", "~/here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pairs.cache_folder() == tmp_path / "here"
    monkeypatch.delenv("MINICLIP_CACHE")
    assert pairs.cache_folder() == tmp_path / ".cache/miniclip"


# ------------------------------------------------------------------------------- the first n


def test_a_limit_does_not_read_the_rest(folder):
    """The second shard is no parquet at all: nobody looks at it."""
    write_shard(folder / "val.parquet", [9])
    write_shard(folder / "train-00000-of-00002.parquet", range(6))
    (folder / "train-00001-of-00002.parquet").write_bytes(b"not downloaded yet")
    check_pairs(load(folder, limit=4), range(4))
    with pytest.raises(ValueError, match="can't be read"):
        load(folder)


def test_a_limit_takes_the_first_rows_good_or_not(folder):
    images = [encoded(picture(i)) if i != 1 else b"broken" for i in range(5)]
    write_shard(folder / "train.parquet", range(5), images)
    write_shard(folder / "val.parquet", [9])
    check_pairs(load(folder, limit=3), [0, 2])
    check_pairs(load(folder, limit=99), [0, 2, 3, 4])


def test_a_negative_limit(folder, cache):
    with pytest.raises(ValueError, match="^limit is -1; it must be 0 .all. or a number of images$"):
        load(folder, limit=-1)
    assert not cache.exists()


def test_more_rows_than_a_chunk_keep_their_order(folder):
    write_images(folder, range(6))
    names = [f"{i % 6}.jpg" for i in range(600)]
    for number, name in enumerate(names):
        if number >= 6:
            os.link(folder / name, folder / f"copy{number}.jpg")
            names[number] = f"copy{number}.jpg"
    rows = [f"{name},row {number}" for number, name in enumerate(names)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    pairs = load(folder, "all")
    assert pairs.captions == [[f"row {number}"] for number in range(600)]
    means = pairs.images.mean((1, 2))
    expected = np.array([colour(number % 6) for number in range(600)])
    assert np.abs(means - expected).max() < 8
