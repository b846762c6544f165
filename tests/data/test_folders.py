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
        for other in ("instances", "person_keypoints", "image_info"):  # no captions
            (folder / f"annotations/{other}_{split}.json").write_text('{"images": []}')
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


def all_names(folder, split):
    return sorted(name for name, _, _ in ImageFolder(folder).splits[split])


def test_the_images_own_folders_name_their_splits(folder):
    """captions.csv beside train/ and val/; and texts beside images in images/train, images/val."""
    for split, part in (("train", range(8)), ("val", range(8, 12))):
        write_images(folder / split, part)
    (folder / "captions.csv").write_text(table(NAMES))
    assert all_names(folder, "validation") == ["10.jpg", "11.jpg", "8.jpg", "9.jpg"]
    assert len(all_names(folder, "train")) == 8
    (folder / "captions.csv").unlink()
    (folder / "images").mkdir()
    for split in ("train", "val"):
        (folder / split).rename(folder / "images" / split)
        for path in (folder / "images" / split).glob("*.jpg"):
            path.with_suffix(".txt").write_text(CAPTIONS[path.name][0])
    assert len(all_names(folder, "validation")) == 4 and len(all_names(folder, "train")) == 8


def test_a_column_of_splits_speaks_before_the_files_name(images):
    rows = [f'{name},"{CAPTIONS[name][0]}",{"val" if i < 3 else "train"}'
            for i, name in enumerate(NAMES)]
    (images / "train_val_test.csv").write_text("\n".join(["image,caption,split", *rows]))
    check(images, "validation", NAMES[:3])
    check(images, "train", NAMES[3:])


def test_a_column_of_splits_that_is_filled_only_once_an_image(images):
    (images / "captions.csv").write_text(
        "image,caption,split\n0.jpg,a,val\n0.jpg,b,\n1.jpg,c,train\n1.jpg,d,\n2.jpg,e,\n")
    found = ImageFolder(images).splits
    assert [(name, texts) for name, _, texts in found["validation"]] == [("0.jpg", ["a", "b"])]
    assert [(name, texts) for name, _, texts in found["train"]] == [
        ("1.jpg", ["c", "d"]), ("2.jpg", ["e"])]


def test_an_image_of_both_splits_is_left_out_of_train(images, capsys):
    (images / "train.csv").write_text(table(NAMES[:8]))
    (images / "val.csv").write_text(table(NAMES[6:]))
    check(images, "train", NAMES[:6])
    check(images, "validation", NAMES[6:])
    assert "2 images are in train and in validation; they are left out" in capsys.readouterr().err


def test_two_names_of_one_file_are_told(folder):
    """val/0001.jpg is not unpacked: its caption must not go to train/0001.jpg."""
    write_images(folder / "train", [0])
    (folder / "captions.csv").write_text("image,caption\ntrain/0.jpg,a dog\nval/0.jpg,a cat\n")
    with pytest.raises(ValueError, match="'train/0.jpg' and 'val/0.jpg' both lead to .*0.jpg; is"):
        ImageFolder(folder).read(folder)


def test_a_tenth_is_held_out_beside_a_test_split_too(images, capsys):
    (images / "train.csv").write_text(table(NAMES[:10]))
    (images / "test.csv").write_text(table(NAMES[10:]))
    assert [len(all_names(images, split)) for split in ("train", "validation", "test")] == [9, 1, 2]
    (images / "test.csv").write_text("image,id\n10.jpg,1\n")  # a contest's: no captions
    assert "test" not in ImageFolder(images).splits
    assert "test.csv needs a column of captions" in (said := capsys.readouterr().err)
    assert "left out" in said


def test_what_macos_and_links_leave_in_folders(folder):
    write_images(folder / "disk", range(3))
    for i in range(3):
        (folder / f"disk/{i}.txt").write_text(CAPTIONS[f"{i}.jpg"][0])
    for name in ("._0.jpg", "._0.txt"):
        (folder / "disk" / name).write_bytes(b"\0\5\x16\7\x81")
    data = folder / "data"
    data.mkdir()
    (data / "linked").symlink_to(folder / "disk")
    (folder / "disk/loop").symlink_to(data)
    assert all_names(data, "all") == ["linked/0.jpg", "linked/1.jpg", "linked/2.jpg"]


def test_flickr30ks_token_file_is_found(images):
    (images / "results_20130124.token").write_text("".join(
        f"{name}#0\t{CAPTIONS[name][0]}\n" for name in NAMES))
    check(images, "all", NAMES)


def test_a_changed_text_beside_an_image_is_noticed(folder, cache):
    from small_data import load
    write_images(folder, range(3))
    for i in range(3):
        (folder / f"{i}.txt").write_text(f"picture {i}")
    assert load(folder, "all").captions[0] == ["picture 0"]
    (folder / "0.txt").write_text("another text")
    assert load(folder, "all").captions[0] == ["another text"]
