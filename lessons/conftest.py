"""Runs the chapters: every ```python fence, in order, with one namespace for each chapter.

They run in a copy of this folder, so that a test leaves no trace, beside one small model that is
trained once on `shapes`, if a chapter asks for it; who has no runs/lessons yet gets it. With
MINICLIP_DRAW=1 (`make figures`) what was drawn comes back into figures/.
"""

import doctest
import fcntl
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

HERE = Path(__file__).parent
MODEL = "runs/lessons"  # what chapters that need a trained model open, as ../runs/lessons
TRAIN = [sys.executable, "-m", "miniclip.cli", "train", "--preset", "shapes", "--steps", "800",
         "--eval-every", "200", "--run", MODEL]

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton: kernels on any CPU

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(doctest_optionflags=doctest.NORMALIZE_WHITESPACE)],
    pattern="[0-9]*.md", fixtures=["in_the_lessons_folder"]).pytest()


def pytest_collection_modifyitems(items):
    """The first block that needs the model trains it, others wait: minutes on a slow machine."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def copy(tmp_path_factory):
    """A copy of lessons/ in an empty project folder; figures come back from it if asked for."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(HERE, root / "lessons")
    for results in ("miniclip/results", "kernels/results"):
        shutil.copytree(HERE.parent / results, root / results)
    yield root
    if os.environ.get("MINICLIP_DRAW"):
        shutil.copytree(root / "lessons/figures", HERE / "figures", dirs_exist_ok=True)


@pytest.fixture(scope="session")
def trained(copy, tmp_path_factory):
    """The one model of the lessons: 800 steps on scenes, about a minute.

    While you write a chapter, MINICLIP_LESSONS_RUN=FOLDER takes one trained before instead. Where
    tests run in several processes, the first trains for all.
    """
    if ready := os.environ.get("MINICLIP_LESSONS_RUN"):
        shutil.copytree(ready, copy / MODEL)
        return
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"process-{os.getpid()}")
    shared = tmp_path_factory.getbasetemp().parent / f"lessons-{session}"
    shared.mkdir(exist_ok=True)
    with open(shared / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / MODEL / "metrics.json").exists():
            threads = {"OMP_NUM_THREADS": str(os.cpu_count())}  # the other processes wait for it
            subprocess.run(TRAIN, cwd=shared, check=True, stderr=subprocess.DEVNULL,
                           env=os.environ | threads)
            if not (HERE.parent / MODEL).exists():
                shutil.copytree(shared / MODEL, HERE.parent / MODEL)
    shutil.copytree(shared / MODEL, copy / MODEL)


@pytest.fixture
def in_the_lessons_folder(copy, request, monkeypatch):
    if MODEL in request.node.path.read_text():
        request.getfixturevalue("trained")
    monkeypatch.setenv("MINICLIP_CACHE", str(copy / "cache"))  # whoever reads has one of their own
    monkeypatch.chdir(copy / "lessons")


# ------------------------------------------------------------------------- a line per chapter

seconds, failures = defaultdict(float), defaultdict(int)


def pytest_runtest_logreport(report):
    chapter = Path(report.fspath)
    if chapter.suffix == ".md":
        seconds[chapter.stem] += report.duration
        failures[chapter.stem] += report.failed


def pytest_terminal_summary(terminalreporter):
    for chapter in sorted(seconds):
        state = f"{failures[chapter]} FAILED" if failures[chapter] else "runs"
        terminalreporter.write_line(f"{chapter:28}{state:12}{seconds[chapter]:6.1f} s")
