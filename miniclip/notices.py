"""What a user should know although nothing failed: one line on standard error."""

import sys
from functools import cache


@cache
def notice(line: str):
    """Print a line on standard error. The same line is printed once in a process."""
    print(line, file=sys.stderr)


def one_line(error: Exception) -> str:
    """An error's text without its line breaks."""
    return " ".join(str(error).split())
