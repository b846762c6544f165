"""Folders of images with captions, in every form that people were found to have."""

import json
import unicodedata

import pytest
from small_data import encoded, picture, write_images

from miniclip.data.folders import ImageFiles, ImageFolder

CAPTIONS = {f"{i}.jpg": [f"a dog, number {i}"] for i in range(12)}


def table(names, header="image,caption"):
    return "\n".join([header, *(f'{name},"{CAPTIONS[name][0]}"' for name in names)]) + "\n"


def check(folder, split, names, **keys):
    """The split has these images, found on the disk, with their captions."""
    rows = ImageFolder(folder, **keys).splits[split]
    assert sorted(name.rpartition("/")[2] for name, _, _ in rows) == sorted(names)
    for name, path, captions in rows:
        assert path and path.endswith(name.rpartition("/")[2])
        assert captions == CAPTIONS[name.rpartition("/")[2]]


NAMES = sorted(CAPTIONS)


@pytest.fixture
def images(folder):
    write_images(folder / "images", range(12))
    return folder


def test_a_file_of_captions_for_all(images):
    (images / "captions.csv").write_text(table(NAMES))
    found = ImageFolder(images).splits
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 10, "validation": 2, "all": 12}
    check(images, "all", NAMES)
    (images / "captions.csv").rename(images / "of my dogs.csv")  # any name, if it is the only one
    check(images, "all", NAMES)
    check(images / "of my dogs.csv", "all", NAMES)  # or the file itself


def test_a_file_for_each_split(images):
    parts = {"train": NAMES[:8], "validation": NAMES[8:10], "test": NAMES[10:]}
    for name, part in zip(("train", "val", "test"), parts.values()):
        (images / f"{name}.csv").write_text(table(part))
    for split, part in parts.items():
        check(images, split, part)
    (images / "val.csv").unlink()
    (images / "test.csv").unlink()
    assert len(ImageFolder(images).splits["validation"]) == 1  # a tenth of train


def test_a_folder_for_each_split(folder):
    for name, part in (("train", range(8)), ("validation", range(8, 12))):
        write_images(folder / name, part)
        rows = [{"file_name": f"{i}.jpg", "text": CAPTIONS[f"{i}.jpg"]} for i in part]
        (folder / name / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check(folder, "train", [f"{i}.jpg" for i in range(8)])
    check(folder, "validation", [f"{i}.jpg" for i in range(8, 12)])
    names = [name for name, _, _ in ImageFolder(folder).splits["all"]]
    assert len(set(names)) == 12  # both folders may have a 0.jpg


def test_cocos_folders(folder):
    (folder / "annotations").mkdir()
    for split, part in (("train2017", range(8)), ("val2017", range(8, 12))):
        write_images(folder / split, part)
        data = {"images": [{"id": i, "file_name": f"{i}.jpg"} for i in part],
                "annotations": [{"image_id": i, "caption": CAPTIONS[f"{i}.jpg"][0]} for i in part]}
        (folder / f"annotations/captions_{split}.json").write_text(json.dumps(data))
        (folder / f"annotations/instances_{split}.json").write_text("{}")  # boxes, no captions
    check(folder, "train", [f"{i}.jpg" for i in range(8)])
    check(folder, "validation", [f"{i}.jpg" for i in range(8, 12)])


def test_karpathys_file(images):
    data = {"images": [{"filename": name, "split": "val" if i < 2 else "train",
                        "sentences": [{"raw": CAPTIONS[name][0]}]} for i, name in enumerate(NAMES)]}
    (images / "dataset_flickr8k.json").write_text(json.dumps(data))
    check(images, "validation", NAMES[:2])
    check(images, "train", NAMES[2:])


def test_img2datasets_folders(folder):
    """00000/000000000.jpg with .txt and .json beside it, and 00000.parquet of addresses."""
    for shard in range(2):
        write_images(folder / f"0000{shard}", range(6 * shard, 6 * shard + 6))
        for i in range(6 * shard, 6 * shard + 6):
            (folder / f"0000{shard}/{i}.txt").write_text(CAPTIONS[f"{i}.jpg"][0])
            (folder / f"0000{shard}/{i}.json").write_text('{"status": "success"}')
        (folder / f"0000{shard}_stats.json").write_text("{}")
    check(folder, "all", NAMES)
    (folder / "00000/0.txt").unlink()
    (folder / "00000/0.json").write_text(json.dumps({"caption": CAPTIONS["0.jpg"][0]}))
    check(folder, "all", NAMES)
    assert len(ImageFolder(folder).splits["validation"]) == 2


def test_many_rows_of_an_image_are_one(images):
    (images / "captions.csv").write_text("image,caption\n0.jpg,a\n1.jpg,b\n0.jpg,c\n")
    assert [(name, texts) for name, _, texts in ImageFolder(images).splits["all"]] == [
        ("0.jpg", ["a", "c"]), ("1.jpg", ["b"])]


@pytest.mark.parametrize("name", [
    "images\\0.jpg", "0.JPG", "IMAGES/0.jpg", "elsewhere/images/0.jpg", "0", "./images/0.jpg"])
def test_names_that_are_nearly_right(images, name):
    assert ImageFiles(images).find(name) == str(images / "images/0.jpg")


def test_letters_as_macos_writes_them(folder):
    (folder / unicodedata.normalize("NFD", "café.jpg")).write_bytes(encoded(picture(0), "JPEG"))
    assert ImageFiles(folder).find(unicodedata.normalize("NFC", "café.jpg"))


def test_a_name_that_two_images_have_is_none_of_them(folder):
    for part in ("a", "b"):
        write_images(folder / part, [0])
    files = ImageFiles(folder)
    assert files.find("0.jpg") is None and files.find("a/0.jpg") == str(folder / "a/0.jpg")
    assert files.find("") is None and files.find("9.jpg") is None
    assert files.find(str(folder / "b/0.jpg")) == str(folder / "b/0.jpg")


@pytest.mark.parametrize("contents, message", [
    ({}, "needs .*captions.csv that begins with image,caption; metadata.jsonl;.*found: images"),
    ({"a.csv": table(NAMES), "b.csv": table(NAMES)}, "several files.*: a.csv, b.csv; name one: -"),
    ({"captions.csv": "url,caption\n0.jpg,a\n"}, "found: url, caption.*--image-key"),
    ({"captions.csv": "image,caption\nhttps://a.b/0.jpg,a\n"}, "addresses such as https://a.b/"),
    ({"images/0.json": "{", "README.md": ""}, "0.json is no JSON")])
def test_a_folder_gone_wrong_is_one_clear_line(images, contents, message):
    for name, text in contents.items():
        (images / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        ImageFolder(images).read(images)
    assert "\n" not in str(error.value)


def test_unusual_columns_are_named(images):
    (images / "captions.csv").write_text(table(NAMES, "bild,satz"))
    check(images, "all", NAMES, image_key="bild", caption_key="satz")


def test_one_image_is_for_training(images):
    (images / "captions.csv").write_text("image,caption\n0.jpg,a\n")
    found = ImageFolder(images).splits
    assert len(found["train"]) == 1 and not found["validation"]
