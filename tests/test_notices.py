"""Notices: on standard error, each line once."""

from miniclip.notices import notice


def test_a_line_is_said_once_and_on_standard_error(capsys):
    for line in ("one thing", "one thing", "another"):
        notice(line)
    said = capsys.readouterr()
    assert said.err == "one thing\nanother\n" and not said.out
