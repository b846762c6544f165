"""Parquet, the Hub and what `datasets` saves, in every form that people were found to have."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_data import (
    check_pairs,
    colour,
    encoded,
    load,
    picture,
    texts,
    write_images,
    write_shard,
)

from miniclip.data.sources import Source

pytestmark = pytest.mark.usefixtures("cache")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(folder, columns, name="train"):
    pq.write_table(pa.table(columns), folder / f"{name}.parquet")


def pixels(i, dtype=np.uint8):
    return np.full((16, 16, 3), colour(i)).astype(dtype)


IMAGES = {
    "bytes": lambda i: encoded(picture(i)),
    "paths": lambda i: f"images/{i}.jpg",
    "paths in place of bytes": lambda i: {"bytes": None, "path": f"{i}.jpg"},
    "a list of images": lambda i: [{"bytes": encoded(picture(i)), "path": f"{i}.png"}],
    "lists of numbers": lambda i: pixels(i).tolist(),
    "channels first": lambda i: pixels(i).transpose(2, 0, 1).tolist(),
    "0 to 1": lambda i: (pixels(i, np.float64) / 255).tolist(),
    "floats to 255": lambda i: pixels(i, np.float64).tolist()}


@pytest.mark.parametrize("form", IMAGES)
def test_images_in_every_form(folder, form):
    write_images(folder / "images", range(5))
    kind = STRUCT if "in place" in form else None
    column = pa.array([IMAGES[form](i) for i in range(5)], kind)
    write(folder, {"image": column, "caption": [texts(i) for i in range(5)]})
    write(folder, {"image": column[:1], "caption": [texts(0)]}, "validation")
    check_pairs(load(folder), range(5))


@pytest.mark.parametrize("columns", [
    {"text": [texts(i) for i in range(3)]},
    {f"caption{k}": [texts(i)[k] for i in range(3)] for k in range(5)},
    {"captions": [str(texts(i)) for i in range(3)]},
    {"sentences": [[{"raw": text} for text in texts(i)] for i in range(3)]},
    {"url": ["a"] * 3, "width": [1] * 3, "title": [texts(i) for i in range(3)]}])
def test_captions_in_every_form(folder, columns):
    write(folder, {"jpg": [encoded(picture(i)) for i in range(3)], **columns})
    write(folder, {"jpg": [encoded(picture(9))], **{k: v[:1] for k, v in columns.items()}}, "val")
    check_pairs(load(folder), range(3))


def test_unusual_columns_are_named(folder):
    write(folder, {"bild": [encoded(picture(0))], "a": ["x"], "b": ["y"], "text": ["z"]})
    write(folder, {"bild": [encoded(picture(1))], "a": ["x"], "b": ["y"], "text": ["z"]}, "val")
    from miniclip.data.pairs import load_pairs
    pairs = load_pairs(Source.find(str(folder), "bild", "a,b"), "train", 16)
    assert pairs.captions == [["x", "y"]]
    assert load_pairs(Source.find(str(folder), "bild"), "train", 16).captions == [["z"]]


def test_a_tenth_is_held_out_where_there_is_only_train(folder):
    write_shard(folder / "train-00000.parquet", range(2))
    check_pairs(load(folder), [0])
    check_pairs(load(folder, "validation"), [1])
    write_shard(folder / "train-00000.parquet", range(60))
    train, validation = load(folder), load(folder, "validation")
    assert len(train) + len(validation) == 60 and 1 <= len(validation) <= 15
    assert not {c[0] for c in train.captions} & {c[0] for c in validation.captions}


def test_files_whose_names_say_no_split_are_for_training(folder):
    """As img2dataset writes them, and in `data/`, as a copy of a Hub set has them."""
    (folder / "data").mkdir()
    write_shard(folder / "data/00000.parquet", range(30))
    write_shard(folder / "data/00001.parquet", range(30, 40))
    assert len(load(folder)) + len(load(folder, "validation")) == 40
    assert Source.find(str(folder / "data/00000.parquet")).kind == "parquet"
    assert len(load(folder / "data/00000.parquet", "validation")) >= 1


def test_rows_of_one_image_that_follow_each_other_are_one(folder):
    ids = [0, 0, 0, 1, 2, 2]
    write(folder, {"image": [encoded(picture(i)) for i in ids], "text": list("abcdef")})
    write(folder, {"image": [encoded(picture(9))], "text": ["x"]}, "val")
    assert load(folder).captions == [["a", "b", "c"], ["d"], ["e", "f"]]


def test_a_column_of_splits(folder):
    """Flickr30k on the Hub: one split, named test, whose rows say where they belong."""
    write(folder, {"image": [encoded(picture(i)) for i in range(6)],
                   "caption": [texts(i) for i in range(6)],
                   "split": ["train", "val", "train", "test", "restval", "train"]}, "test")
    check_pairs(load(folder), [0, 2, 4, 5])
    check_pairs(load(folder, "validation"), [1])
    check_pairs(load(folder, "test"), [3])
    with pytest.raises(ValueError, match="no split 'extra' in .*; found: test, train, validation"):
        load(folder, "extra")


def test_splits_of_two_names_are_one(folder):
    """restval, which COCO's Karpathy splits add to train."""
    def saved(ids):
        return datasets.Dataset.from_dict(
            {"image": [picture(i) for i in ids], "text": [texts(i) for i in ids]},
            features=datasets.Features({"image": datasets.Image(),
                                        "text": datasets.List(datasets.Value("string"))}))
    datasets.DatasetDict({"train": saved(range(5)), "restval": saved([5, 6]),
                          "val": saved([7])}).save_to_disk(folder)
    before = sorted(folder.rglob("*"))
    check_pairs(load(folder), range(7))
    check_pairs(load(folder, "validation"), [7])
    assert sorted(folder.rglob("*")) == before, "nothing is written into the user's folder"


def test_a_column_of_splits_beside_splits_of_their_own(folder):
    for name, ids in (("train", range(4)), ("val", [4])):
        write(folder, {"image": [encoded(picture(i)) for i in ids], "split": [None] * len(ids),
                       "caption": [texts(i) for i in ids]}, name)
    check_pairs(load(folder), range(4))
    check_pairs(load(folder, "validation"), [4])


def test_a_column_of_splits_that_names_none(folder):
    write(folder, {"image": [encoded(picture(0))], "caption": ["a"], "split": [" train"]})
    assert load(folder).captions == [["a"]]
    with pytest.raises(ValueError, match="its column 'split' names no validation, only 'train'"):
        load(folder, "validation")


def test_parquet_in_a_folder_for_each_split(folder):
    odd = folder / "photos [2024]"
    for name, ids in (("train", range(3)), ("val", [3])):
        (odd / name).mkdir(parents=True)
        write_shard(odd / name / "0000.parquet", ids)
        (odd / name / "._0000.parquet").write_bytes(b"mac!")
    check_pairs(load(odd), range(3))
    check_pairs(load(odd, "validation"), [3])


@pytest.mark.parametrize("both", [True, False])
def test_what_datasets_saved_to_the_disk(folder, both):
    table = datasets.Dataset.from_dict(
        {"image": [picture(i) for i in range(20)], "text": [texts(i) for i in range(20)]},
        features=datasets.Features({"image": datasets.Image(),
                                    "text": datasets.List(datasets.Value("string"))}))
    if both:
        datasets.DatasetDict({"train": table, "val": table.select([3])}).save_to_disk(folder)
        check_pairs(load(folder), range(20))
        check_pairs(load(folder, "validation"), [3])
    else:
        table.save_to_disk(folder)
        assert len(load(folder)) + len(load(folder, "validation")) == 20
    assert Source.find(str(folder)).kind == "saved"


def test_lists_of_images_are_not_decoded_by_datasets(folder):
    """One broken image is counted; it does not end the reading."""
    kind = datasets.Features({"images": datasets.List(datasets.Image()),
                              "text": datasets.Value("string")})
    rows = [{"images": [{"bytes": data, "path": None}], "text": "a"}
            for data in (encoded(picture(0)), b"broken", encoded(picture(1)))]
    datasets.Dataset.from_list(rows, features=kind).to_parquet(folder / "train.parquet")
    write(folder, {"images": [encoded(picture(9))], "text": ["x"]}, "val")
    assert load(folder).summary == (
        "2 images, 2 captions; skipped 1: unreadable, such as 'row 1'")


@pytest.mark.parametrize("image, message", [
    ("https://a.b/0.jpg", "found the address https://a.b/0.jpg: `img2dataset` fetches"),
    (7, "row 0: an image must be bytes, a path or an array .*; found: 7")])
def test_images_that_are_none(folder, image, message):
    for name in ("train", "val"):
        write(folder, {"image": [image], "caption": ["a"]}, name)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_arrays_that_are_no_images_are_counted(folder):
    images = [pixels(0).tolist(), [[[1] * 7] * 4] * 5, [[[-1, 2, 3]]], [[]]]
    write(folder, {"image": images, "caption": ["a"] * 4})
    write(folder, {"image": images[:1], "caption": ["a"]}, "val")
    assert load(folder).summary == (
        "1 images, 1 captions; skipped 1: an array of shape (1, 0), such as 'row 3'; "
        "skipped 1: an array of shape (5, 4, 7), such as 'row 1'; "
        "skipped 1: an array with values from -1 to 3, such as 'row 2'")
