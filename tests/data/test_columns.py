"""Which column is which, and every form of a cell."""

import numpy as np
import pytest
from PIL import Image

from miniclip.data.columns import choose, image_of, texts_of


@pytest.mark.parametrize("names, image, captions", [
    (["image", "caption_0", "caption_1", "caption_10"], "image",
     ["caption_0", "caption_1", "caption_10"]),
    (["image", "text"], "image", ["text"]), (["filepath", "title"], "filepath", ["title"]),
    (["", "File_Name", "Captions", "split"], "File_Name", ["Captions"]),
    (["jpg", "txt", "caption", "url", "key"], "jpg", ["caption"]),
    (["image", "caption1", "caption2"], "image", ["caption1", "caption2"]),
    (["image_name", " comment_number", " comment"], "image_name", [" comment"]),
    (["img", "sentences", "label"], "img", ["sentences"]),
    (["image", "caption", "text"], "image", ["caption"])])
def test_columns_are_found_by_their_names(names, image, captions):
    found = choose(names, "table")
    assert (found.image, found.captions) == (image, captions)
    assert found.split == ("split" if "split" in names else None)


def test_columns_are_named_where_their_names_are_unusual():
    names = ["bild", "text", "english", "deutsch", "image"]
    assert choose(names, "table", "bild", "english,deutsch")[:2] == ("bild", ["english", "deutsch"])
    assert choose(names, "table", "bild").captions == ["text"]


@pytest.mark.parametrize("names, keys, message", [
    (["a", "b"], (), "table needs a column of images, such as image; found: a, b.*--image-key"),
    (["image", "b"], (), "a column of captions, such as caption or text; found: image, b"),
    (["image", "text"], ("picture",), "needs the column 'picture' of images; found: image, text"),
    (["image", "text"], ("", "text,alt"), "needs the column 'alt' of captions"),
    ([], (), "found: none")])
def test_columns_that_are_missing_are_told(names, keys, message):
    with pytest.raises(ValueError, match=message):
        choose(names, "table", *keys)


@pytest.mark.parametrize("cell, texts", [
    ("a dog", ["a dog"]), (["a", "b"], ["a", "b"]), (None, []), (float("nan"), []), ([], []),
    (np.array(["a", "b"], object), ["a", "b"]), ('["a", "b, c"]', ["a", "b, c"]),
    ("['a', \"b\"]", ["a", "b"]), ("[sic] a dog [so]", ["[sic] a dog [so]"]),
    ("[1, 2]", ["[1, 2]"]),
    ({"raw": ["a", "b"], "tokens": []}, ["a", "b"]), ([{"raw": "a"}, {"raw": "b"}], ["a", "b"]),
    ("[" * 5000 + "]" * 5000, ["[" * 5000 + "]" * 5000])])
def test_captions_of_every_form(cell, texts):
    assert texts_of(cell, "table, row 3") == texts


@pytest.mark.parametrize("cell", [7, 1.5, {"words": "a"}, b"bytes", [3]])
def test_what_is_no_caption_is_told(cell):
    with pytest.raises(ValueError, match="table, row 3: captions must be text; found: "):
        texts_of(cell, "table, row 3")


def test_images_of_every_form():
    assert image_of({"bytes": b"x", "path": "a.jpg"}, "row") == ("a.jpg", b"x")
    assert image_of({"bytes": None, "path": "a.jpg"}, "row") == ("a.jpg", "a.jpg")
    assert image_of([{"bytes": b"x", "path": None}, {"bytes": b"y"}], "row") == ("", b"x")
    assert image_of("a.jpg", "row") == ("a.jpg", "a.jpg") and image_of(b"x", "row") == ("", b"x")
    for nothing in (None, [], "", {"bytes": None, "path": None}):
        assert image_of(nothing, "row")[1] is None
    picture = Image.new("RGB", (2, 2))
    assert image_of([picture], "row") == ("", picture)
    for cell, kind in (([[[0, 255, 7]]], np.int64), ([[[0.5, 1.0, 0.0]]], np.float32),
                       (np.zeros((2, 2), np.uint8), np.int64)):
        array = image_of(cell, "row")[1]
        assert array.dtype == kind and np.array_equal(array, np.asarray(cell, kind))


@pytest.mark.parametrize("cell", [7, {"width": 3}, [[1, 2], [3]], [["a"]]])
def test_what_is_no_image_is_told(cell):
    with pytest.raises(ValueError, match=r"row 3: an image must be bytes, a path or an array"):
        image_of(cell, "row 3")
