"""Pairs in tar shards: indexed once, read anywhere, from a folder or a server as the Hub."""

import io
import json
import os
import tarfile
import time
from dataclasses import replace

import numpy as np
import pytest
from small_data import encoded, picture
from small_shards import serving, write_tar

from miniclip.config import TrainConfig
from miniclip.data import streamed
from miniclip.data.batches import Batches
from miniclip.data.hub import HubUnreachable
from miniclip.data.images import MEAN, decode
from miniclip.data.pairs import load_pairs
from miniclip.data.sources import Source
from miniclip.tokenizer import Tokenizer

SIZE = 8


def pair(i, captions=None, kind="jpg") -> dict:
    """A sample: image i, and a caption or two."""
    captions = captions or [f"picture {i}", f"number {i}"][:1 + i % 2]
    content = encoded(picture(i), "JPEG" if kind == "jpg" else kind.upper())
    return {f"{i:05d}.{kind}": content, f"{i:05d}.txt": "\n".join(captions).encode()}


def write_shards(root, count=40, each=10, name="{:05d}.tar"):
    """So many pairs in shards of so many."""
    root.mkdir(parents=True, exist_ok=True)
    for first in range(0, count, each):
        members = {}
        for i in range(first, min(first + each, count)):
            members |= pair(i)
        write_tar(root / name.format(first // each), members)
    return root


def opened(root, split="train", limit=0):
    return load_pairs(Source.find(str(root)), split, SIZE, limit)


def numbers(pairs) -> list[int]:
    return [int(texts[0].split()[1]) for texts in pairs.captions]


def pixels_of(i):
    return decode(encoded(picture(i), "JPEG"), SIZE)[0]


# ------------------------------------------------------------------------------ what is read


def test_every_sample_is_read(folder, cache):
    root = write_shards(folder / "set")
    train, held = opened(root), opened(root, "validation")
    assert train.streamed and not held.streamed
    assert sorted(numbers(train) + numbers(held)) == list(range(40))
    assert len(held) == 4 and held.summary.startswith("4 images")
    assert train.summary == f"36 images, {36 + sum(i % 2 for i in numbers(train))} captions in 4 " \
                            "shards"
    for row, i in enumerate(numbers(train)):
        assert (train.images[row] == pixels_of(i)).all()
        assert train.captions[row] == [f"picture {i}", f"number {i}"][:1 + i % 2]
    shuffled = np.random.default_rng(0).permutation(36)
    assert (train.images[shuffled] == np.stack([train.images[int(i)] for i in shuffled])).all()
    assert train.images[3:5].shape == (2, SIZE, SIZE, 3) == (2, *train.images.shape[1:])
    texts, owner = train.flat_captions()
    assert list(texts) == [text for captions in train.captions for text in captions]
    assert owner.tolist() == [i for i, texts in enumerate(train.captions) for _ in texts]
    assert train.captions[-1] == train.captions[35] and len(texts[::2]) == -(-len(texts) // 2)
    with pytest.raises(IndexError):
        train.captions[36]
    assert numbers(opened(root, limit=7)) == numbers(train)[:7]


def test_splits_by_the_names_of_shards_and_folders(folder, cache):
    root = write_shards(folder / "names", 20, name="train-{}.tar")
    write_tar(root / "val-0.tar", pair(77))
    assert numbers(opened(root)) == list(range(20)) and numbers(opened(root, "val")) == [77]
    root = write_shards(folder / "folders/train", 20).parent
    write_shards(root / "test", 3)
    assert len(opened(root)) == 18 and len(opened(root, "validation")) == 2
    assert numbers(opened(root, "test")) == [0, 1, 2]
    with pytest.raises(ValueError, match="no split 'dev2' in .*found: test, train, validation"):
        opened(root, "dev2")


def test_one_shard_is_a_set(folder, cache):
    root = write_shards(folder / "set", 20, each=20)
    assert len(opened(root / "00000.tar")) == 18


def test_what_is_held_out_does_not_depend_on_the_shards(folder, cache):
    one, many = write_shards(folder / "one", 60, 60), write_shards(folder / "many", 60, 7)
    assert set(numbers(opened(one))) == set(numbers(opened(many)))
    assert numbers(opened(one)) == sorted(numbers(opened(one)))


def test_at_most_five_thousand_are_held_out(folder, cache, monkeypatch):
    monkeypatch.setattr(streamed, "HELD_OUT", 2)
    root = write_shards(folder / "set")
    assert len(opened(root, "validation")) == 2 and len(opened(root)) == 38


def test_captions_of_every_kind(folder, cache):
    image = encoded(picture(0), "PNG")
    root = folder / "set"
    root.mkdir()
    (root / "classnames.txt").write_text("bee\nred fox\n")
    write_tar(root / "a.tar", {
        "a/._1.png": b"a Mac's", "._b.json": b"a Mac's", "a/1.png": image,
        "a/1.txt": "\ufeffone\n\n  two ".encode(),
        "b.json": b'{"caption": "three", "width": 4}', "b.png": image,
        "c.cls": b"1\n", "c.PNG": image,
        "d.json": b'{"caption": "not this"}', "d.png": image, "d.txt": b"four",
        "e.seg.png": image, "e.png": image, "e.txt": b"five",  # of two images the image's own
        "x1.png": image, "x2.txt": b"no image", "x3.png": image, "x3.txt": b" \n ",
        "x4.png": image, "x4.json": b"{broken", "x5.png": image, "x5.cls": b"2",
        "x6.png": image, "x6.json": b'["' + b"[" * 100_000})
    pairs = opened(root)
    found = sorted(text for texts in pairs.captions for text in texts)
    found += [text for texts in opened(root, "validation").captions for text in texts]
    assert sorted(found) == ["a photo of a red fox.", "five", "four", "one", "three", "two"]
    assert pairs.summary.endswith("skipped 5: without a caption; skipped 1: without an image")


def test_members_of_a_key_need_not_be_neighbours(folder, cache):
    """A tar packed by `tar` has the folder's own order."""
    root = folder / "set"
    root.mkdir()
    members = {name: content for i in range(30) for name, content in pair(i).items()}
    names = sorted(members, key=lambda name: (name.endswith(".txt"), name[::-1]))
    write_tar(root / "a.tar", {name: members[name] for name in names})
    assert len(opened(root)) == 27 and "skipped" not in opened(root).summary


def test_of_several_captions_the_best(folder, cache):
    """An empty .txt leaves the .json's; a class is taken where there is nothing else."""
    root = folder / "set"
    root.mkdir()
    (root / "classnames.txt").write_text("bee\n")
    image = encoded(picture(0), "PNG")
    write_tar(root / "a.tar", {
        "a.cls": b"0", "a.json": b'{"caption": "one"}', "a.png": image, "a.txt": b"  ",
        "b.cls": b"0", "b.png": image, "b.txt": b"two", "c.cls": b"0", "c.png": image})
    texts = [*opened(root).captions, *opened(root, "validation").captions]
    assert sorted(text for [text] in texts) == ["a photo of a bee.", "one", "two"]


def test_equal_keys_in_every_shard(folder, cache, monkeypatch):
    """The limit of what is held out counts samples."""
    monkeypatch.setattr(streamed, "HELD_OUT", 5)
    root = folder / "set"
    root.mkdir()
    for number in range(20):
        members = {}
        for i in range(10):
            members |= pair(i)
        write_tar(root / f"{number}.tar", members)
    held = opened(root, "validation")
    assert 5 <= len(held) <= 20 and len(opened(root)) == 200 - len(held)


def test_what_shards_lose_is_told(folder, cache, capsys):
    root = folder / "set"
    root.mkdir()
    write_tar(root / "a.tar", {**pair(0), **pair(1), **pair(2), "x.txt": b"no image"})
    opened(root)
    assert "skipped 1: without an image" in capsys.readouterr().err


@pytest.mark.parametrize("leftover", ["images.tar", "images.tar.gz"])
def test_an_archive_beside_the_data_is_a_leftover(leftover, folder, cache):
    """A download that was unpacked and not deleted: the data beside it are read."""
    (folder / "images").mkdir()
    for i in range(20):
        (folder / "images" / f"{i}.jpg").write_bytes(encoded(picture(i), "JPEG"))
    (folder / "captions.csv").write_text("image,caption\n" + "".join(
        f"{i}.jpg,picture {i}\n" for i in range(20)))
    write_tar(folder / leftover, {"images/0.jpg": encoded(picture(0), "JPEG")})
    assert Source.find(str(folder)).kind == "folder" and len(opened(folder)) == 18


def test_img2datasets_shards(folder, cache):
    """With a table of addresses and one of counts beside each shard."""
    root = write_shards(folder / "set")
    for shard in root.glob("*.tar"):
        shard.with_suffix(".parquet").write_bytes(b"of addresses")
        shard.with_name(f"{shard.stem}_stats.json").write_text("{}")
    assert len(opened(root)) == 36


def test_what_says_left_is_not_mirrored(folder, cache):
    root = folder / "set"
    root.mkdir()
    write_tar(root / "a.tar", {**pair(0, ["a dog", "on the left"]), **pair(1), **pair(2)})
    pairs = opened(root)
    assert pairs.name_a_side().tolist() == ["on the left" in texts for texts in pairs.captions]


def test_images_that_cannot_be_opened_are_grey(folder, cache, capsys):
    root = folder / "set"
    root.mkdir()
    members = {}
    for i in range(10):
        members |= pair(i)
        if i % 2:
            members[f"{i:05d}.jpg"] = members[f"{i:05d}.jpg"][:30]
    write_tar(root / "a.tar", members)
    pairs = opened(root)
    images = pairs.images[np.arange(len(pairs))]
    for i, image in zip(numbers(pairs), images):
        grey = np.uint8(np.array(MEAN) * 255)
        assert (image == (grey if i % 2 else pixels_of(i))).all()
    said = capsys.readouterr().err
    assert said.count("a.tar holds images that are") == 1 and "grey stands in" in said


def test_what_is_no_plain_file_is_passed_over(folder, cache):
    """Links, devices, folders and names that lead out: nothing is followed, nothing written."""
    root = folder / "set"
    root.mkdir()
    with tarfile.open(root / "a.tar", "w") as archive:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE),
                           ("c.jpg", tarfile.CHRTYPE), ("f.jpg", tarfile.FIFOTYPE),
                           ("d.jpg", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name, content in {**pair(1), **pair(2), "../../out.jpg": encoded(picture(3), "JPEG"),
                              "../../out.txt": b"out", "/abs.txt": b"abs",
                              "/abs.jpg": encoded(picture(4), "JPEG")}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    before = sorted(folder.rglob("*"))
    found = [*opened(root).captions, *opened(root, "validation").captions]
    assert sorted(texts[0] for texts in found) == ["abs", "out", "picture 1", "picture 2"]
    assert sorted(path for path in folder.rglob("*") if "cache" not in path.parts) == before


# ------------------------------------------------------------------------------ damage, the cache


@pytest.mark.parametrize("damage, message", [
    (lambda content: content[:7000], "is no tar file, or breaks off"),
    (lambda content: b"\x89PNG" * 500, "is no tar file, or breaks off"),
    (lambda content: content[:1536] + b"\xff" * 512 + content[2048:], "is no tar file, or breaks"),
    (lambda content: content + content, "is no tar file, or breaks off: something comes after"),
    (lambda content: content[:124] + b"\xff" * 10 + b"\xfe\x00" + content[136:],
     "is no tar file, or breaks off"), (lambda content: b"", "is no tar file, or breaks off")])
def test_a_damaged_shard(damage, message, folder, cache):
    root = write_shards(folder / "set")
    shard = root / "00001.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ValueError, match=f"set, 00001.tar {message}") as error:
        opened(root)
    assert "\n" not in str(error.value)


def test_a_header_with_a_negative_size(folder, cache):
    """tarfile would step back to it for ever."""
    root = write_shards(folder / "set")
    info = tarfile.TarInfo("0.txt")
    info.size = -512
    (root / "00001.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 10240)
    with pytest.raises(ValueError, match="00001.tar is no tar file, or breaks off: 0.txt reaches"):
        opened(root)


def test_compressed_shards_are_refused(folder, cache):
    root = folder / "set"
    root.mkdir()
    (root / "a.tar.gz").write_bytes(b"x")
    with pytest.raises(ValueError, match="a.tar.gz is compressed, .* unpack it to a .tar"):
        opened(root)


def test_nothing_to_learn_from(folder, cache):
    root = folder / "set"
    root.mkdir()
    write_tar(root / "a.tar", {"a.txt": b"no image"})
    with pytest.raises(ValueError, match="nothing to learn from .*skipped 1: without an image.*; "
                                         "a sample is KEY.jpg and KEY.txt"):
        opened(root)


def test_each_shard_is_indexed_once_and_again_when_it_changes(folder, cache, monkeypatch):
    made = []
    index = streamed.index
    monkeypatch.setattr(streamed, "index", lambda *given: (made.append(given[1]), index(*given))[1])
    root = write_shards(folder / "set")
    first = numbers(opened(root))
    assert len(made) == 4 and numbers(opened(root)) == first and len(made) == 4
    write_tar(root / "00002.tar", {**pair(90), **pair(91)})
    os.utime(root / "00002.tar", ns=(time.time_ns(), time.time_ns() + 1))
    assert {90, 91} & set(numbers(opened(root))) and len(made) == 5
    write_shards(root, 50)  # a fifth
    opened(root)
    assert len(made) == 10  # all have been written again


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[:-9],
                                    lambda content: os.urandom(len(content)), None])
@pytest.mark.parametrize("ending", ["npz", "texts"])
def test_a_damaged_index_is_made_again(ending, damage, folder, cache, tmp_path):
    root = write_shards(folder / "set")
    before = [list(texts) for texts in opened(root).captions]
    for file in (tmp_path / "cache/shards").glob(f"*.{ending}"):
        if damage is None:
            file.unlink()
        elif ending == "npz" or len(damage(file.read_bytes())) != file.stat().st_size:
            file.write_bytes(damage(file.read_bytes()))
    assert [list(texts) for texts in opened(root).captions] == before


# ------------------------------------------------------------------------------ batches, the Hub


def test_batches_are_those_of_the_same_pairs_in_a_folder(folder, cache):
    """Pixels, tokens and ids, step by step; and again from the middle of an epoch."""
    root, plain = write_shards(folder / "set"), folder / "plain"
    streamed_pairs = opened(root)
    (plain / "train").mkdir(parents=True)
    (plain / "val").mkdir()
    for i in numbers(streamed_pairs):
        for name, content in pair(i).items():
            (plain / "train" / name).write_bytes(content)
    for name, content in pair(99).items():
        (plain / "val" / name).write_bytes(content)
    pairs = opened(plain)
    assert numbers(pairs) == numbers(streamed_pairs)
    tokenizer = Tokenizer.train(pairs.flat_captions()[0], 600, 12)
    config = TrainConfig(batch_size=8, word_dropout=0.2)
    ours, theirs = (Batches(x, tokenizer, SIZE, config) for x in (streamed_pairs, pairs))
    for step in (0, 1, 5, 17, 3):
        for x, y in zip(ours[step], theirs[step]):
            assert (x is None and y is None) or (x == y).all()


def test_equal_captions_in_shards_have_equal_ids(folder, cache):
    root = folder / "set"
    root.mkdir()
    members = {}
    for i in range(30):
        members |= pair(i, [f"kind {i % 3}"])
    write_tar(root / "a.tar", members)
    pairs = opened(root)
    batches = Batches(pairs, Tokenizer.train(["kind 0 1 2"], 600, 8), SIZE,
                      replace(TrainConfig(), batch_size=9))
    ids = batches[0][2]
    images, _ = batches.numbers(0)
    kinds = [pairs.captions[i][0] for i in images]
    assert all((a == b) == (x == y) for a, x in zip(kinds, ids) for b, y in zip(kinds, ids))


def test_from_the_hub(folder, cache, monkeypatch):
    """The same pairs; of the images only those that are asked for, by their place in the file."""
    write_shards(folder / "me/pairs")
    local = opened(folder / "me/pairs")
    with serving(folder, monkeypatch) as asked:
        pairs = load_pairs(Source.find("me/pairs"), "train", SIZE)
        assert pairs.name == "me/pairs:train" and numbers(pairs) == numbers(local)
        assert sum(path.endswith(".tar") for path, _ in asked) == 4
        del asked[:]
        rows = np.array([17, 3, 30])
        assert (pairs.images[rows] == local.images[rows]).all()
        assert len(asked) == 3 and all(part for _, part in asked)
        del asked[:]
        load_pairs(Source.find("me/pairs"), "train", SIZE)
        assert not any(".tar" in path for path, _ in asked)  # the index is in the cache
        held = load_pairs(Source.find("me/pairs"), "validation", SIZE)
        assert sorted(numbers(held) + numbers(pairs)) == list(range(40))


@pytest.mark.parametrize("ranges", [True, False])
def test_connections_that_break_and_servers_without_parts(ranges, folder, cache, monkeypatch):
    monkeypatch.setattr("miniclip.data.shards.WAIT", 0.001)
    write_shards(folder / "me/pairs", 12, 6)
    local = opened(folder / "me/pairs")
    with serving(folder, monkeypatch, break_after=900 if ranges else None, ranges=ranges):
        pairs = load_pairs(Source.find("me/pairs"), "train", SIZE)
        assert (pairs.images[:] == local.images[:]).all()


def test_a_hub_that_is_gone_while_training(folder, cache, monkeypatch):
    monkeypatch.setattr("miniclip.data.shards.WAIT", 0.001)
    write_shards(folder / "me/pairs")
    with serving(folder, monkeypatch):
        pairs = load_pairs(Source.find("me/pairs"), "train", SIZE)
    with pytest.raises(HubUnreachable, match="00000.tar"):
        pairs.images[np.arange(3)]


def test_the_index_holds_no_objects(folder, cache, tmp_path):
    """Nothing that is unpickled, and captions as they are, whatever bytes they hold."""
    root = folder / "set"
    root.mkdir()
    odd = ["naïve café ✂ \u202e left", "a\x00b\x1b[31m", "x" * 100_000]
    write_tar(root / "a.tar", {k: v for i, text in enumerate(odd)
                               for k, v in pair(i, [text]).items()})
    texts = [*opened(root).captions, *opened(root, "validation").captions]
    assert sorted(text for [text] in texts) == sorted(odd)
    index, = (tmp_path / "cache/shards").glob("*.npz")
    with np.load(index, allow_pickle=False) as arrays:
        assert json.loads(str(arrays["skipped"])) == {}
