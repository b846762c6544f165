"""Labelled images: folders, scenes, Hub sets, and what is no such set."""

import os

import datasets
import numpy as np
import pytest
from small_data import encoded, flat
from small_models import write_photograph

from miniclip.data import labelled
from miniclip.data.images import decode
from miniclip.data.labelled import labelled_images
from miniclip.tasks.zero_shot import zero_shot_report


def write_classes(root, counts: dict[str, int]):
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_photograph(root / name / f"{i}.png", 100 * number + i)


def test_a_folder_for_each_class(folder):
    write_classes(folder, {"dog": 3, "snow_leopard": 4, "cat/2019/deep": 2, ".hidden": 2,
                           "dog/.thumbs": 1, "notes": 0})
    (folder / "dog/._0.png").write_bytes(b"")
    (folder / "dog/list.txt").write_text("no image")
    write_photograph(folder / "loose.png", 5)
    rows, names, _ = labelled_images(str(folder))
    assert names == ["cat", "dog", "snow leopard"]
    rows = [(path.relative_to(folder.resolve()).parts, label) for path, label in rows]
    assert len(rows) == 9 and {(parts[0], label) for parts, label in rows} == {
        ("cat", 0), ("dog", 1), ("snow_leopard", 2)}
    again = labelled_images(str(folder))[0]  # the same order, and not class by class
    assert [path.name for path, _ in again] == [parts[-1] for parts, _ in rows]
    labels = [label for _, label in rows]
    assert labels != sorted(labels)
    _, names, _ = labelled_images(str(folder), None, {"snow_leopard": "big cat", "dog": "hound"})
    assert names == ["cat", "hound", "big cat"]


def test_what_is_no_file_is_no_image(folder):
    write_classes(folder, {"dog": 2})
    os.mkfifo(folder / "dog/waits for ever.jpg")
    assert sorted(path.name for path, _ in labelled_images(str(folder))[0]) == ["0.png", "1.png"]


def test_splits_of_a_folder(folder):
    write_classes(folder, {"val/dog": 2, "val/cat": 1, "train/dog": 4, "train/bird": 1})
    with pytest.raises(ValueError, match="holds splits; choose one with --split: train, val"):
        labelled_images(str(folder))
    rows, names, _ = labelled_images(str(folder), "val")
    assert names == ["cat", "dog"] and sorted(label for _, label in rows) == [0, 1, 1]


@pytest.mark.parametrize("where, renamed, message", [
    ("empty", {}, "needs one folder of images for each class; found none"),
    ("no/such/folder", {}, "no such folder"),
    ("classes", {"dgo": "dog"}, "no class 'dgo' in .*; found: cat, dog"),
    ("classes/dog/0.png", {}, "is a file; name the folder"),
])
def test_a_set_that_is_none(folder, where, renamed, message):
    (folder / "empty").mkdir()
    write_classes(folder / "classes", {"dog": 1, "cat": 1})
    with pytest.raises(ValueError, match=message):
        labelled_images(str(folder / where), None, renamed)


def test_generated_scenes_are_a_labelled_set():
    rows, names, _ = labelled_images("shapes")
    rows = list(rows)
    assert len(names) == 100 and len(rows) > 100
    assert rows[0][0].dtype == np.uint8 and decode(rows[0][0], 32)[0].shape == (32, 32, 3)
    assert len({label for _, label in rows}) == len(rows) / 20  # twenty of each held out


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one small classification set, which is streamed as a real one."""
    def table(labels, features):
        images = [{"bytes": encoded(flat("RGB", (60 * i, 0, 0))), "path": None} for i in range(4)]
        images[2] = {"bytes": b"broken", "path": None}
        return datasets.Dataset.from_dict(
            {"img": images, "fine": labels}, features=features).to_iterable_dataset()

    kinds = datasets.Features({"img": datasets.Image(decode=False),
                               "fine": datasets.ClassLabel(names=["sea_lion", "bee", "fox"])})
    kinds["img"] = datasets.Image()
    there = {"test": table([2, 0, 1, 2], kinds), "train": table([0, 0, 0, 0], kinds)}
    monkeypatch.setattr(labelled, "check_hub", lambda source: (set(), "main"))
    monkeypatch.setattr(datasets, "load_dataset", lambda where, streaming: (
        there if (where, streaming) == ("some/set", True) else None))
    return there


def test_a_hub_set(hub, loaded):
    rows, names, _ = labelled_images("some/set", None, {"fox": "red fox"})
    assert names == ["sea lion", "bee", "red fox"]
    rows = list(rows)
    assert [label for _, label in rows] == [2, 0, 1, 2]  # test, without being asked
    assert decode(rows[3][0], 8)[0][0, 0].tolist() == [180, 0, 0]
    figures, confusion = zero_shot_report(loaded, labelled_images("some/set", "train")[0], names)
    assert figures["unreadable"] == 1 and figures["images"] == confusion[0].sum() == 3


def test_a_hub_set_without_labels(hub):
    with pytest.raises(ValueError, match="no split 'dev' in some/set; found: test, train"):
        labelled_images("some/set", "dev")
    hub["test"] = hub["test"].cast_column("fine", datasets.Value("int64"))
    with pytest.raises(ValueError, match="needs a column of images and one of class labels; "
                                         "found: img, fine"):
        labelled_images("some/set")


def test_batches_are_decoded_for_each_decoder_and_count_what_they_leave_out():
    images = [encoded(flat("L", k)) for k in range(5)]
    images[1] = images[4] = b"broken"
    rows = iter([(image, k) for k, image in enumerate(images)])
    first, second, third = labelled.decoded_batches(
        rows, lambda image: decode(image, 4)[0], lambda image: decode(image, 6)[0], size=2)
    assert [pixels.shape for pixels in first.pixels] == [(1, 4, 4, 3), (1, 6, 6, 3)]
    assert [(batch.labels.tolist(), batch.unreadable) for batch in (first, second, third)] == [
        ([0], 1), ([2, 3], 0), ([], 1)]
    assert (second.pixels[0][1] == 3).all() and second.labels.dtype == np.int64
    secret = iter([(images[0], 0), (images[2], -1)])
    with pytest.raises(ValueError, match="kept secret; choose another --split"):
        list(labelled.decoded_batches(secret, lambda image: decode(image, 4)[0]))


def test_a_hub_set_whose_labels_are_secret(hub, loaded):
    secret = [(row["img"]["bytes"], None) for row in hub["train"].cast_column(
        "img", datasets.Image(decode=False))]
    with pytest.raises(ValueError, match="kept secret"):
        zero_shot_report(loaded, iter(secret), ["a", "b", "c"])


def test_a_hub_that_breaks_off(hub, monkeypatch):
    """Of the libraries below, each has errors of its own."""
    def broken():
        yield {"img": {"bytes": b""}, "fine": 0}
        raise RuntimeError("Dataset scripts are no longer supported")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", lambda self: broken())
    rows, *_ = labelled_images("some/set")
    with pytest.raises(ConnectionError, match="some/set .*RuntimeError: Dataset scripts"):
        list(rows)


def test_a_split_must_be_there(folder):
    for split in ("val", "train"):
        (folder / split / "dog").mkdir(parents=True)
        flat("RGB", (1, 2, 3)).save(folder / split / "dog/1.png")
    with pytest.raises(ValueError, match="no split 'vla' in .*; found: train, val"):
        labelled_images(str(folder), "vla")


def test_a_hub_out_of_reach():
    with pytest.raises(ConnectionError):
        labelled_images("some/set")
