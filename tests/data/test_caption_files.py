"""Files of captions in every form that people were found to have."""

import json

import pytest

from miniclip.data.caption_files import read_caption_file

ROWS = [("0.jpg", ["a dog"], ""), ("1.jpg", ["a cat, asleep"], ""), ("0.jpg", ["a brown dog"], "")]
COMMA = 'image,caption\n0.jpg,a dog\n1.jpg,"a cat, asleep"\n0.jpg,a brown dog\n'


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name, content", [
    ("captions.csv", COMMA),
    ("captions.csv", COMMA.replace("image,caption", "filepath,title")),
    ("captions.csv", COMMA.replace("image,caption\n", "")),  # no header
    ("captions.csv", COMMA.encode("utf-16")), ("captions.csv", COMMA.encode("utf-8-sig")),
    ("captions.csv", ",Image, Caption,width\n0,0.jpg,a dog,3\n1,1.jpg,\"a cat, asleep\",4\n"
                     "2,0.jpg,a brown dog,5\n"),
    ("captions.tsv", "file_name\ttext\n0.jpg\ta dog\n1.jpg\ta cat, asleep\n0.jpg\ta brown dog\n"),
    ("captions.csv", "image;caption\n0.jpg;a dog\n1.jpg;a cat, asleep\n0.jpg;a brown dog\n"),
    ("results.csv", "image_name| comment_number| comment\n0.jpg| 0| a dog\n"
                    "1.jpg| 0| a cat, asleep\n0.jpg| 1| a brown dog\n"),  # Flickr30k's
    ("captions.txt", "0.jpg\ta dog\n1.jpg\ta cat, asleep\n0.jpg\ta brown dog\n"),
    ("results_20130124.token", "0.jpg#0\ta dog\n1.jpg#0\ta cat, asleep\n0.jpg#1\ta brown dog\n"),
    ("metadata.jsonl", "".join(json.dumps({"file_name": n, "text": t[0]}) + "\n\n"
                               for n, t, _ in ROWS)),
    ("captions.json", json.dumps([{"image": n, "caption": t} for n, t, _ in ROWS])),
    ("captions.json", json.dumps({"data": [{"image": n, "caption": t[0]} for n, t, _ in ROWS]}))])
def test_the_same_rows_in_every_form(tmp_path, name, content):
    assert read_caption_file(written(tmp_path, name, content)) == ROWS


def test_lists_of_captions_and_names(tmp_path):
    for content in ({"0.jpg": ["a dog", "a brown dog"], "1.jpg": "a cat"},
                    [{"image": "0.jpg", "captions": ["a dog", "a brown dog"]},
                     {"image": "1.jpg", "captions": ["a cat"]}]):
        found = read_caption_file(written(tmp_path, "x.json", json.dumps(content)))
        assert found == [("0.jpg", ["a dog", "a brown dog"], ""), ("1.jpg", ["a cat"], "")]
    table = 'image,captions\n0.jpg,"[""a dog"", ""a brown dog""]"\n'
    assert read_caption_file(written(tmp_path, "x.csv", table)) == [
        ("0.jpg", ["a dog", "a brown dog"], "")]


def test_cocos_captions(tmp_path):
    data = {"images": [{"id": 7, "file_name": "b.jpg"}, {"id": 3, "file_name": "a.jpg"}],
            "annotations": [{"image_id": 3, "caption": "a dog"}, {"image_id": 7, "caption": "a"},
                            {"image_id": 3, "caption": "one dog"}, {"image_id": 9, "caption": "?"}]}
    assert read_caption_file(written(tmp_path, "captions_val2017.json", json.dumps(data))) == [
        ("b.jpg", ["a"], ""), ("a.jpg", ["a dog", "one dog"], "")]


def test_karpathys_splits(tmp_path):
    data = {"dataset": "coco", "images": [
        {"filename": f"{name}.jpg", "filepath": "val2014", "split": name,
         "sentences": [{"raw": "a dog", "tokens": ["a", "dog"]}, {"raw": "one dog"}]}
        for name in ("train", "restval", "val", "test")]}
    found = read_caption_file(written(tmp_path, "dataset_coco.json", json.dumps(data)))
    assert found == [(f"val2014/{name}.jpg", ["a dog", "one dog"], split) for name, split in (
        ("train", "train"), ("restval", "train"), ("val", "validation"), ("test", "test"))]


def test_a_column_of_splits(tmp_path):
    table = "image,caption,split\n0.jpg,a,train\n1.jpg,b,VAL\n2.jpg,c,\n"
    assert [row[2] for row in read_caption_file(written(tmp_path, "captions.csv", table))] == [
        "train", "validation", ""]


def test_forms_that_were_once_misread(tmp_path):
    for name, content, expected in (
            ("a.txt", "0.jpg\tA dog, a cat, a bird\n", [("0.jpg", ["A dog, a cat, a bird"], "")]),
            ("a.tsv", 'image\tcaption\n0.jpg\t"Stop" sign\n', [("0.jpg", ['"Stop" sign'], "")]),
            ("a.jsonl", '{"image": "0.jpg", "text": "a\u2028b\u0085c"}\n',
             [("0.jpg", ["a\u2028b\u0085c"], "")]),
            ("A.JSON", '{"0.jpg": "a"}', [("0.jpg", ["a"], "")]),
            ("a.json", '{"train": [{"image": "0.jpg", "text": "a"}], "val": [{"image": "1.jpg",'
                       ' "text": "b"}]}', [("0.jpg", ["a"], "train"), ("1.jpg", ["b"],
                                                                       "validation")]),
            ("a.csv", "image,caption.0,caption.1\n0.jpg,a,b\n", [("0.jpg", ["a", "b"], "")])):
        assert read_caption_file(written(tmp_path, name, content)) == expected


def test_windows_letters_are_read_and_told(tmp_path, capsys):
    found = read_caption_file(written(tmp_path, "captions.csv",
                                      "image,caption\n0.jpg,a café – “red”\n".encode("cp1252")))
    assert found == [("0.jpg", ["a café – “red”"], "")]
    assert "is not UTF-8 text" in (said := capsys.readouterr().err) and "Windows-1252" in said


def test_one_broken_row_of_a_thousand_is_left_out_and_told(tmp_path, capsys):
    """Flickr30k's own results.csv has one: 2199200615.jpg| 4   A dog runs across the grass ."""
    rows = [f"{i}.jpg| 0| a dog" for i in range(1500)]
    rows[700] = "700.jpg| 4   A dog runs across the grass ."
    text = "\n".join(["image_name| comment_number| comment", *rows])
    found = read_caption_file(written(tmp_path, "results.csv", text))
    assert len(found) == 1499 and "700.jpg" not in {name for name, _, _ in found}
    assert "line 702: expected image_name|comment_number|comment; found: 700.jpg|4   A" in (
        said := capsys.readouterr().err) and "left out, as 1 of 1,500 rows are" in said


@pytest.mark.parametrize("name, content, message", [
    ("captions.csv", "a,b\n1,2\n", "needs a column of images, such as image; found: a, b"),
    ("captions.csv", "image,words\n0.jpg,2\n", "needs a column of captions.*found: image, words"),
    ("captions.csv", COMMA + "1.jpg,a, b\n", r"line 5: expected image,caption \(quote a caption"),
    ("captions.csv", "image,caption,caption\n0.jpg,a,b\n", "2 columns named 'caption'; number"),
    ("captions.json", '{"images": [{"id": 1, "file_name": 5}], "annotations": [{"image_id": 1, '
                      '"caption": 7}]}', "image 1: captions must be text; found: 7"),
    ("captions.csv", "", "must begin with a header such as image,caption; found: an empty file"),
    ("captions.csv", "image,caption\n", "holds no captions; expected rows of the form"),
    ("captions.csv", b"image,caption\n0.jpg,\x81\n", "is not UTF-8 text"),
    ("captions.jsonl", '{"image": "0.jpg"\n', "captions.jsonl, line 1 is no JSON"),
    ("captions.jsonl", "[1]\n", "every row must be an object"),
    ("captions.json", "{", "captions.json is no JSON"), ("captions.json", "7", "found: 7"),
    ("captions.json", '{"0.jpg": 7}', "0.jpg: captions must be text; found: 7"),
    ("captions.json", '[{"image": [[1, 2]], "caption": "a"}]', "row 1: the image must be a file's"),
    ("captions.json", '{"images": [{"id": 1}], "annotations": []}', "COCO's captions.*'file_name'"),
    ("captions.json", '{"images": [{"filename": "a.jpg"}]}', "missing: 'sentences'"),
    ("x.token.txt", "0.jpg a dog\n", "row 1: expected name.jpg#0<tab>caption; found: 0.jpg a dog")])
def test_a_file_gone_wrong_is_one_clear_line(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message) as error:
        read_caption_file(written(tmp_path, name, content))
    assert "\n" not in str(error.value) and name in str(error.value)
