"""Names of splits, and the tenth that is held out."""

import pytest

from miniclip.data.splits import held_out, in_held_out_tenth, split_in, standard


@pytest.mark.parametrize("name, split", [
    ("train", "train"), ("captions_train2017", "train"), ("train-00000-of-00002", "train"),
    ("captions_val2014", "validation"), ("valid", "validation"), ("my_dev_set", "validation"),
    ("Validation", "validation"), ("test", "test"), ("testing.tsv", "test"), ("restval", "train"),
    ("training_data", "train"), ("trainers", None), ("latest", None), ("captions", None),
    ("devices", None), ("contest", None), ("interval", None)])
def test_a_name_that_speaks_of_a_split(name, split):
    assert split_in(name) == split


def test_standard_names():
    assert [standard(name) for name in ("VAL", "dev", "restval", "train", "extra")] == [
        "validation", "validation", "train", "train", "extra"]


@pytest.mark.parametrize("count, expected", [(1, 0), (2, 1), (10, 1), (11, 2), (250, 25)])
def test_a_tenth_is_held_out_whatever_the_order(count, expected):
    names = [f"{i}.jpg" for i in range(count)]
    assert len(held_out(names)) == expected and held_out(names) == held_out(reversed(names))


def test_rows_that_stream_by():
    kept = sum(in_held_out_tenth(str(i).encode()) for i in range(10_000))
    assert 900 < kept < 1130
