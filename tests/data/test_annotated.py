"""Pictures with masks and boxes: scenes, folders in VOC's and COCO's form, and what is none."""

import doctest
import json

import numpy as np
import pytest
from PIL import Image

from miniclip.data import annotated as room
from miniclip.data.annotated import IGNORED, annotated, box_around


def test_the_examples():
    assert doctest.testmod(room).failed == 0


def test_scenes_have_masks_and_boxes_that_agree():
    rows = list(annotated("shapes", 64, count=30))
    assert len(rows) == 30
    for row in rows:
        assert row.picture.shape == (64, 64, 3) and row.mask.shape == (64, 64)
        assert set(np.unique(row.mask)) == set(range(len(row.asked) + 1))
        for k in range(len(row.asked)):
            around = box_around(row.mask == k + 1, k)
            own = [box for box in row.boxes if box.label == k]
            assert around.left == min(b.left for b in own)
            assert around.bottom == max(b.bottom for b in own)
    assert {len(row.asked) for row in rows} == {1, 2}
    again = list(annotated("shapes", 64, count=30))
    assert all((a.picture == b.picture).all() and a.asked == b.asked
               for a, b in zip(rows, again, strict=True))
    other = list(annotated("shapes", 64, count=30, seed=99))
    assert any((a.picture != b.picture).any() for a, b in zip(rows, other, strict=True))


def test_absent_labels_are_names_that_the_scene_does_not_show():
    plain = annotated("shapes", 64, count=20)
    asked = annotated("shapes", 64, count=20, absent=2)
    for row, more in zip(plain, asked, strict=True):
        assert more.asked[:len(row.asked)] == row.asked and (row.picture == more.picture).all()
        assert len(set(more.asked)) == len(row.asked) + 2 and more.boxes == row.boxes


@pytest.fixture
def voc(folder):
    """Two pictures of 40 × 20: the left half of the first is class 1, the rim is ignored."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    (folder / "classnames.txt").write_text("cat\n\n dog \n")
    mask = np.zeros((20, 40), np.uint8)
    mask[:, :20] = 1
    mask[0] = IGNORED
    for name, values in (("a", mask), ("b", np.full_like(mask, 2))):
        Image.new("RGB", (40, 20), "red").save(folder / "images" / f"{name}.png")
        Image.fromarray(values).save(folder / "masks" / f"{name}.png")
    return folder


def coco(folder, **changes):
    content = {
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": 1, "file_name": "some/where/a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "bbox": [10, 5, 20, 10]},
            {"image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 20], "iscrowd": 1}]} | changes
    (folder / "instances.json").write_text(json.dumps(content))


def test_a_folder_of_masks(voc):
    first, second = annotated(str(voc), 40)
    assert first.asked == ("cat", "dog") and first.boxes is None
    assert first.picture.shape == (40, 80, 3) and first.mask.shape == (40, 80)
    assert (first.mask[2:, :40] == 1).all() and (first.mask[:2] == IGNORED).all()
    assert (second.mask == 2).all() and len(list(annotated(str(voc), 40, 1))) == 1


def test_a_folder_of_boxes(voc):
    coco(voc)
    first, second = annotated(str(voc), 40)
    dog, crowd = first.boxes
    assert (dog.label, dog.left, dog.top, dog.right, dog.bottom) == (1, 20, 10, 60, 30)
    assert crowd.crowd and crowd.label == 0 and second.boxes == ()


def test_a_photograph_on_its_side(voc):
    """COCO's boxes are told in the upright image."""
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(voc / "images/c.jpg", exif=exif)
    for path in (voc / "masks").iterdir():
        path.unlink()
    (voc / "masks").rmdir()
    coco(voc, images=[{"id": n, "file_name": name} for n, name in enumerate(
        ("a.png", "b.png", "c.jpg"))], annotations=[
            {"image_id": 2, "category_id": 7, "bbox": [0, 0, 20, 40]}])
    *_, last = annotated(str(voc), 40)
    assert last.picture.shape == (80, 40, 3)
    (box,) = last.boxes
    assert (box.left, box.top, box.right, box.bottom) == (0, 0, 40, 80)


def test_hidden_files_are_no_images(voc):
    (voc / "images/._a.png").write_bytes(b"")
    assert len(list(annotated(str(voc), 20))) == 2


def test_a_palette_is_read_as_numbers(voc):
    image = Image.fromarray(np.full((20, 40), 2, np.uint8), "P")
    image.putpalette([0, 0, 0, 255, 0, 0, 9, 9, 9])
    image.save(voc / "masks/a.png")
    assert (next(annotated(str(voc), 20)).mask == 2).all()


@pytest.mark.parametrize("breakage, message", [
    (lambda root: (root / "classnames.txt").unlink(), "classnames.txt"),
    (lambda root: (root / "classnames.txt").write_text(" \n"), "names 0 classes"),
    (lambda root: (root / "masks/b.png").unlink(), "no mask .*b.png for the image of that name"),
    (lambda root: (root / "masks/b.png").write_text("no png"), "b.png can't be read"),
    (lambda root: Image.new("RGB", (4, 4)).save(root / "masks/b.png"), "holds RGB pixels"),
    (lambda root: Image.new("L", (40, 20), 3).save(root / "masks/b.png"), "holds class 3; .* 2"),
    (lambda root: [path.unlink() for path in (root / "images").iterdir()], "needs images/ and"),
    (lambda root: coco(root, categories=[]), "not in COCO's form"),
    (lambda root: coco(root, annotations=[{"image_id": 1, "category_id": 7,
                                           "bbox": [1, 1, 0, 4]}]), "has no area"),
    (lambda root: (root / "instances.json").write_text("[]"), "not in COCO's form"),
    (lambda root: coco(root, images=[{"id": 1, "file_name": "a.png"}]), "does not list b.png"),
    (lambda root: Image.new("L", (20, 40), 1).save(root / "masks/b.png"), "has another shape"),
])
def test_a_folder_that_is_none(voc, breakage, message):
    breakage(voc)
    with pytest.raises((ValueError, OSError), match=message) as error:
        list(annotated(str(voc), 32))
    assert "\n" not in str(error.value)
