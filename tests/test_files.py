"""Files: written whole or not at all, lines of JSON, one writer; damage is told in one line."""

import json

import pytest

from miniclip.files import (
    append_row,
    one_writer,
    read_rows,
    read_text,
    write_atomically,
    write_text,
)


def test_a_text_comes_back_and_replaces_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    for text in ("old", "neu: ä, 犬, \udcff"):  # the last stands for a byte that is no UTF-8
        write_text(path, text)
    assert path.read_bytes() == "neu: ä, 犬, ".encode() + b"\xff"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(temporary):
        temporary.write_text("half")
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with pytest.raises(OSError, match="a.txt can't be written, is the disk full"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    with pytest.raises(FileNotFoundError, match="gone is no folder"):
        write_text(tmp_path / "gone/a.txt", "new")


def test_text_of_others(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffa dog".encode())
    assert read_text(tmp_path / "a.txt") == "a dog"
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="b.txt is not UTF-8 text"):
        read_text(tmp_path / "b.txt")


def test_rows_come_back_but_a_last_one_that_was_cut_off(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    rows = [{"step": i, "loss": i / 3} for i in range(3)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows
    whole = path.read_text()
    path.write_text(whole + json.dumps(rows[0])[:-3])
    assert read_rows(path) == rows
    path.write_text("{\n" + whole)
    with pytest.raises(ValueError, match="rows.jsonl is damaged: not every line is JSON"):
        read_rows(path)


def test_one_writer_at_a_time(tmp_path, another_writer):
    with one_writer(tmp_path, "train"):
        pass
    with another_writer(tmp_path):
        with pytest.raises(ValueError, match="another `miniclip index` is writing to"):
            with one_writer(tmp_path, "index"):
                pass
    with one_writer(tmp_path, "train"):
        pass
