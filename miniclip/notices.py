"""What a user should know although nothing failed: one line on standard error."""

import sys
from functools import cache

silent = False  # in all processes of a training but the first


@cache
def notice(line: str):
    """Print a line on standard error. The same line is printed once in a process."""
    if not silent:
        print(line, file=sys.stderr)


def silence(whether: bool):
    """From now on notices are printed, or not: other processes that train along print the same."""
    global silent
    silent = whether


def one_line(error: Exception) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split())
