"""Copies of the kernels' package with one mistake each.

A mistake is a pair (right, wrong). `right` is found by its tokens: white space, line breaks,
indentation and comments do not count, so that moving or re-wrapping code breaks no test. It must
be there exactly once. If the place of a mistake is gone, its test fails and says so.
"""

import importlib
import io
import shutil
import sys
import tokenize
from itertools import count
from pathlib import Path

import miniclip_kernels

SOURCE = Path(miniclip_kernels.__file__).parent
LAYOUT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT,
          tokenize.ENCODING, tokenize.ENDMARKER}
number = count()


def tokens_of(text: str) -> list[tokenize.TokenInfo]:
    """The tokens of code, without layout and comments."""
    found = tokenize.generate_tokens(io.StringIO(text).readline)
    return [token for token in found if token.type not in LAYOUT]


def replace_expression(source: str, right: str, wrong: str) -> str:
    """`source` with the one place that has the tokens of `right` replaced by `wrong`."""
    tokens, wanted = tokens_of(source), [token.string for token in tokens_of(right)]
    strings = [token.string for token in tokens]
    places = [i for i in range(len(strings) - len(wanted) + 1)
              if strings[i:i + len(wanted)] == wanted]
    assert len(places) == 1, f"must be there once, and is {len(places)} times: {right}"
    first, last = tokens[places[0]], tokens[places[0] + len(wanted) - 1]
    lines = source.splitlines(keepends=True)
    before = "".join(lines[:first.start[0] - 1]) + lines[first.start[0] - 1][:first.start[1]]
    after = lines[last.end[0] - 1][last.end[1]:] + "".join(lines[last.end[0]:])
    return before + wrong + after


def copied_package(folder: Path, monkeypatch, file="", right="", wrong=""):
    """Import a copy of miniclip_kernels, with a mistake in one of its files if one is named."""
    name = f"copy_{next(number)}_of_the_kernels"
    shutil.copytree(SOURCE, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    if file:
        path = folder / name / file
        path.write_text(replace_expression(path.read_text(), right, wrong))
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def module_of(package, name: str):
    """A module of the copy, by its file's name."""
    return importlib.import_module(f"{package.__name__}.{name}")


def forget(package):
    """Remove the copy's modules from sys.modules."""
    for name in [name for name in sys.modules if name.split(".")[0] == package.__name__]:
        del sys.modules[name]
