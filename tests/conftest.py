"""Fixtures for every test: caches of their own, no Hub, and nothing from the user's environment."""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

SCRATCH = Path(tempfile.mkdtemp(prefix="miniclip-tests."))
REAL_DATA = os.environ.pop("MINICLIP_DATA", "")
# Set here, before any import of `datasets`, which reads them once. Nothing listens on port 9 of
# this machine, so a test that asks the Hub by mistake is refused at once, also behind a proxy.
os.environ.update(
    MINICLIP_CACHE=str(SCRATCH / "cache"), HF_HOME=str(SCRATCH / "hub"),
    HF_ENDPOINT="http://127.0.0.1:9", NO_PROXY="127.0.0.1", no_proxy="127.0.0.1")
if not torch.cuda.is_available():  # Triton's interpreter, in NumPy; read when triton is imported
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser):
    parser.addoption("--part", metavar="I/N", help="every N-th test from number I (0 to N − 1) on: "
                     "for N processes at once, as in make test-gpu")


def pytest_collection_modifyitems(config, items):
    if part := config.getoption("--part"):
        try:
            first, step = (int(x) for x in part.split("/"))
            items[:] = items[range(step)[first]::step]
        except (ValueError, IndexError):
            raise pytest.UsageError(
                f"--part must be I/N with I from 0 to N − 1, not {part!r}") from None


def pytest_unconfigure():
    shutil.rmtree(SCRATCH, ignore_errors=True)


@pytest.fixture(autouse=True)
def own_environment(monkeypatch):
    """One cache for the whole set, so that the built-in scenes are drawn once; no MINICLIP_DATA.

    And no test is spared a notice because another one has had it.
    """
    from miniclip.notices import notice  # not above: the environment is set first

    notice.cache_clear()
    monkeypatch.setenv("MINICLIP_CACHE", str(SCRATCH / "cache"))
    monkeypatch.delenv("MINICLIP_DATA", raising=False)


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("MINICLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def another_writer():
    """With it another process writes to a folder: it has locked the folder's file `lock`."""
    code = ("import fcntl, sys; lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
            "print(flush=True); input()")

    @contextmanager
    def writing_to(folder):
        with subprocess.Popen([sys.executable, "-c", code, str(folder / "lock")],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            other.stdout.readline()
            yield
            other.communicate("\n")

    return writing_to


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """(model, tokenizer, transform) of an untrained run."""
    from small_models import write_run

    import miniclip

    return miniclip.load(write_run(tmp_path_factory.mktemp("untrained") / "run"))


@pytest.fixture
def folder(tmp_path) -> Path:
    """An empty folder for a test's own data."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


@pytest.fixture
def real_data() -> Path:
    """The folder of parquet shards that MINICLIP_DATA named, for the few tests that look at it."""
    folder = Path(REAL_DATA).expanduser()
    if not REAL_DATA or not any(folder.glob("*.parquet")):
        pytest.skip("real photographs are not here: set MINICLIP_DATA to a folder with Flickr8k's "
                    "parquet files")
    return folder
