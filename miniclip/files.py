"""Files: written completely or not at all. A bad file gives a one-line error."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def naming(path: Path):
    """An error of the disk names the file: write() itself says only what went wrong."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno:
            raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
        raise


def write_atomically(path: Path, write: Callable[[Path], None]):
    """Call `write` on a temporary neighbour of `path`, then put it in place in one step."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path.parent} is no folder: nothing can be written there")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{time.time_ns()}")
    try:
        with naming(path):
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())  # on the disk before it takes the name
            os.replace(temporary, path)
    except RuntimeError as error:  # torch.save's error for a full disk names neither path nor disk
        raise OSError(f"{path} can't be written, is the disk full? ({error})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str):
    """Write in one step: a reader sees either all of the old text or all of the new."""
    encoded = text.encode("utf-8", "surrogateescape")  # a path may hold bytes that are no UTF-8
    write_atomically(path, lambda temporary: temporary.write_bytes(encoded))


def read_text(file: Path) -> str:
    """A text file as people write them: UTF-8, perhaps with a byte order mark."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 text: {error}") from error


def append_row(path: Path, row: dict):
    """Add one line of JSON."""
    with naming(path), open(path, "a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict]:
    """Every line of JSON, except a last line cut short by a kill. ValueError for other damage."""
    lines = path.read_text().splitlines() if path.is_file() else []
    for whole in (lines, lines[:-1]):
        with suppress(ValueError):
            return [json.loads(line) for line in whole]
    raise ValueError(f"{path} is damaged: not every line is JSON")


def cache_folder() -> Path:
    """$MINICLIP_CACHE, or ~/.cache/miniclip."""
    return Path(os.environ.get("MINICLIP_CACHE") or "~/.cache/miniclip").expanduser()


@contextmanager
def one_writer(folder: Path, command: str):
    """One process at a time writes to a run or an index; ValueError if another one does."""
    with open(folder / "lock", "w") as lock:
        try:  # not lockf: it does not lock out other threads of the same process
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another `miniclip {command}` is writing to {folder}") from None
        yield
