"""The shape of the project: rooms, order of imports, names, and the README's tree."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import loc
import pytest

from miniclip.config import PRESETS

ROOT = Path(__file__).parent.parent
# A room imports only from rooms in lines above its own.
ORDER = """
    files
    config device notices
    tokenizer tracking parallel
    data.drawing data.images data.captions data.splits data.hub
    data.scenes data.shifts data.columns data.shards
    data.caption_files data.streamed
    data.folders
    data.tables
    data.sources
    data.labelled data.annotated data.pairs
    data.batches data.caption_classes data.styled
    model
    optim
    weights.names weights.tensors
    weights.checkpoint weights.merges
    weights.pretrained weights.export weights.supervised weights.average weights.share
    tasks.features
    tasks.intervals tasks.retrieval tasks.zero_shot
    tasks.search tasks.segment tasks.probe tasks.relations tasks.robustness
    tasks.detect
    plots
    train
    experiments.fit experiments.objectives experiments.scaling
    experiments.upbringing experiments.efficiency experiments.photographs
    commands.shared
    commands.dense commands.experiments commands.training
    commands.transfer
    cli
"""
RANK = {room: rank for rank, line in enumerate(ORDER.split("\n")) for room in line.split()}
FOLDERS = ("data", "weights", "tasks", "experiments", "commands")
PACKAGES = [path.parent for path in (ROOT / "miniclip").glob("*/__init__.py")]
ROOMS = sorted(path for path in (ROOT / "miniclip").rglob("*.py")
               if path.name not in ("__init__.py", "__main__.py"))
KERNELS = sorted((ROOT / "kernels/miniclip_kernels").glob("*.py"))
BENCHMARKS = sorted([*ROOT.glob("kernels/benchmarks/*.py"), *ROOT.glob("tests/benchmarks/*.py")])
OURS = [*ROOMS, *KERNELS, *BENCHMARKS, *sorted((ROOT / "tests").rglob("test_*.py"))]


def room_of(path: Path) -> str:
    """miniclip/data/pairs.py → "data.pairs"."""
    return ".".join(path.relative_to(ROOT / "miniclip").with_suffix("").parts)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, as dotted names ("miniclip.data.pairs")."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
    return names


def rooms_imported(path: Path) -> set[str]:
    """The rooms of miniclip/ that a file imports."""
    return {name.removeprefix("miniclip.") for name in imported(path)
            if name.removeprefix("miniclip.") in RANK and name.startswith("miniclip.")}


@pytest.mark.parametrize("path", ROOMS, ids=room_of)
def test_a_room_imports_only_from_rooms_before_it(path):
    room = room_of(path)
    assert room in RANK, f"{path.name} is no room of the plan: give it its place in ORDER"
    wrong = {other for other in rooms_imported(path) if RANK[other] >= RANK[room]}
    assert not wrong, f"{room} imports from rooms after it: {wrong}"


def test_folders_follow_each_other_in_one_order():
    """data → weights → tasks: no folder has a room on both sides of another folder's."""
    ranks = {}
    for room, rank in RANK.items():
        if "." in room:
            ranks.setdefault(room.split(".")[0], []).append(rank)
    assert set(ranks) == {folder.name for folder in PACKAGES} == set(FOLDERS)
    ends = [(min(ranks[name]), max(ranks[name])) for name in FOLDERS]
    assert all(last < first for (_, last), (first, _) in zip(ends, ends[1:]))


def test_every_room_of_the_plan_is_there():
    assert set(RANK) == {room_of(path) for path in ROOMS}


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda path: path.name)
def test_a_folder_passes_nothing_on(folder):
    """Whoever reads an import sees the file that the name lives in."""
    assert not imported(folder / "__init__.py")


def test_the_import_test_sees_imports():
    found = rooms_imported(ROOT / "miniclip/train.py")
    assert {"config", "data.batches", "model", "weights.checkpoint"} <= found


@pytest.mark.parametrize("path", ROOMS, ids=room_of)
def test_imports_are_absolute_here(path):
    assert not [name for name in imported(path) if name.startswith(".")]


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.stem)
def test_kernels_import_nothing_of_this_project_by_name(path):
    """So the folder works under any name: `from somebody.miniclip_kernels import clip_loss`."""
    names = {name.split(".")[0] for name in imported(path)}
    assert not names & {"miniclip", "miniclip_kernels"}


@pytest.mark.parametrize("path", ROOMS, ids=room_of)
def test_only_what_trains_imports_the_kernels(path):
    if room_of(path) not in ("train", "experiments.objectives"):
        assert not [name for name in imported(path) if name.startswith("miniclip_kernels")]


@pytest.mark.parametrize("path", OURS, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_imports_the_name_kernels(path):
    """`kernels` is another project's package on PyPI; ours is miniclip_kernels."""
    assert "kernels" not in {name.split(".")[0] for name in imported(path)}


def test_kernels_is_no_package_of_that_name():
    assert not (ROOT / "kernels/__init__.py").exists()


def test_there_is_a_folder_of_tests_for_each_room():
    """tests/data/test_pairs.py for data/pairs.py: whoever changes a file knows where to look."""
    elsewhere = {"config": "test_cli.py", "commands.shared": "test_cli.py",
                 "device": "test_train.py",
                 "data.drawing": "data/test_scenes.py", "data.hub": "data/test_sources.py",
                 "weights.checkpoint": "test_train.py",
                 "weights.names": "weights/test_pretrained.py",
                 "weights.merges": "weights/test_pretrained.py",
                 "weights.tensors": "weights/test_pretrained.py"}
    for path in ROOMS:
        room = room_of(path)
        *folder, name = room.split(".")
        tests = elsewhere.get(room, "/".join([*folder, f"test_{name}.py"]))
        assert (ROOT / "tests" / tests).exists(), room
        if room in elsewhere:
            line = f"`miniclip/{room.replace('.', '/')}.py` in `tests/{tests}`"
            text = " ".join((ROOT / "CONTRIBUTING.md").read_text().split())
            assert line in text, f"CONTRIBUTING.md should say: {line}"


def test_the_public_names():
    import miniclip

    assert set(miniclip.__all__) == {"load", "CLIP", "Tokenizer", "clip_loss"}
    assert all(callable(getattr(miniclip, name)) for name in miniclip.__all__)


def test_import_needs_no_triton():
    """Everything but the Triton backend works where Triton can't be installed."""
    code = "import sys; sys.modules['triton'] = None; import miniclip, miniclip.cli"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_the_counter_counts(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""Doc\nstring."""\n\n# comment\nx = 1  # one\n\n\ndef f():\n    "doc"\n'
                    '    return """two\nlines"""\n')
    assert loc.count(file) == 4  # x, def, and the two lines of the returned string


# `train` is read downwards once, from beginning to end: as long as the story is. The docstring of
# `clip_loss` is its manual.
STORIES = {"train", "clip_loss"}


@pytest.mark.parametrize("path", [*ROOMS, *KERNELS], ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_are_short_and_lines_fit(path):
    text = path.read_text()
    assert max(map(len, text.splitlines()), default=0) <= 100
    if path.name.startswith("triton_"):
        return  # kernels are excepted
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name not in STORIES:
            length = node.end_lineno - node.lineno + 1
            names = [x.arg for x in node.args.args + node.args.kwonlyargs]
            arguments = len(names) - (names[:1] == ["self"])
            assert length <= 66 and arguments <= 9, f"{node.name}: {length} lines, {arguments} args"


PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md",
                                  "kernels/README.md")]


@pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_are_there(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


def test_the_readmes_tree_is_the_real_one():
    """Every folder with code, and the files that matter: what is named is there."""
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(miniclip/.*?)```", text, re.DOTALL).group(1)
    folders, named = [], set()
    for line in filter(str.strip, tree.splitlines()):
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders = folders[:depth]
        path = "".join([*folders, name])
        assert (ROOT / path).exists(), path
        named.add(path.rstrip("/"))
        if name.endswith("/"):
            folders.append(name)
    with_code = {str(path.parent.relative_to(ROOT)) for path in OURS + [ROOT / "lessons/check.py"]}
    assert {path for path in with_code if not path.startswith("tests/")} <= named
    assert len(named) <= 45


def test_make_help_lists_every_target():
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    out = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in out.stdout.splitlines()[1:len(phony) + 1]] == phony


RESULTS = sorted((ROOT / "miniclip" / "results").glob("*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_the_readmes_figures_are_the_recorded_ones(path):
    metrics = json.loads(path.read_text())
    command = "make train-tiny" if path.stem == "tiny" else f"PRESET={path.stem}"
    rows = [line for line in (ROOT / "README.md").read_text().splitlines()
            if line.startswith("|") and command in line]
    assert len(rows) == 1, f"README.md needs one row for {command}"
    if "shapes" in metrics:
        figures = [metrics["shapes"]["held_out"]["plain"], metrics["shapes"]["relations"]]
    else:
        figures = [metrics[way]["R@10"] for way in ("image_to_text", "text_to_image")]
    for figure in [*figures, metrics["training"]["seconds"] / 60]:
        assert f"{figure:.1f}" in rows[0], f"{path.name} says {figure:.1f}"


TRANSFER = ROOT / "miniclip" / "results" / "transfer"
EXPERIMENTS = ROOT / "miniclip" / "results" / "experiments"
MACHINES = [path for path in sorted((ROOT / "miniclip" / "results").glob("*/*.json"))
            if path.parent not in (TRANSFER, EXPERIMENTS)]


@pytest.mark.parametrize("path", MACHINES, ids=lambda p: f"{p.parent.name}, {p.stem}")
def test_what_the_readme_says_of_other_machines_is_recorded(path):
    paragraph = next(p for p in (ROOT / "README.md").read_text().split("\n\n")
                     if f"(miniclip/results/{path.parent.name})" in p)
    metrics = json.loads(path.read_text())
    recall = " / ".join(f"{metrics[w]['R@10']:.1f}" for w in ("image_to_text", "text_to_image"))
    for figure in (recall, f"{metrics['training']['seconds'] / 60:.1f}"):
        assert figure in " ".join(paragraph.split()), f"{path} says {figure}"


def test_what_the_readme_says_of_averages_is_recorded():
    rows = json.loads((EXPERIMENTS / "average.json").read_text())["rows"]
    scenes, photographs = ([row["recall"][f"{name}:validation"] for row in rows]
                           for name in ("shapes", "flickr8k"))
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"{photographs[0]:.1f} % before, {photographs[10]:.1f} % after" in text
    assert (f"({scenes[3]:.1f} %, and {scenes[10]:.1f} %), and keeps {photographs[3]:.1f} % on "
            "photographs") in text


def test_what_the_readme_says_of_scale_is_recorded():
    record = json.loads((EXPERIMENTS / "scale.json").read_text())
    lines = (ROOT / "README.md").read_text().splitlines()
    for name, start in (("cache", "| the 5-minute recipe, decoded"),
                        ("shards", "| the same from tar shards"),
                        ("2 processes", "| the same in two processes")):
        line, row = next(line for line in lines if line.startswith(start)), record[name]
        assert [cell.strip() for cell in line.split("|")[2:4]] == [
            f"{row['pairs_per_second']:.0f}", f"{row['waiting_share']:.1%}".replace("%", " %")]
        assert f"| {row['peak_memory_mb']:,}" in line
    row = record["batch of 4,096"]
    line = next(line for line in lines if line.startswith("| batches of 4,096"))
    assert f"| {3 * 4096 / row['seconds']:.0f} |" in line
    assert f"| {row['peak_memory_mb']:,} |" in line and row["peak_memory_mb"] < 2000
    row, text = record["20,000 steps"], " ".join(" ".join(lines).split())
    assert (f"on shards at {row['pairs_per_second']:.0f} pairs a second. Its process had "
            f"{row['mb_early']} MB after 2,000 steps and {row['mb_late']} MB at the end") in text


def test_every_preset_is_recorded():
    """Of "finetune", which goes on from other weights, the sweeps are."""
    assert {path.stem for path in RESULTS} == set(PRESETS) - {"finetune"}
    assert list(EXPERIMENTS.glob("sweep-finetune-*.json"))


@pytest.mark.parametrize("name, row", [("segment", "segmentation, mean IoU"),
                                       ("detect", "detection, AP50")])
def test_the_readmes_figures_of_transfer_are_the_recorded_ones(name, row):
    figures = json.loads((TRANSFER / f"{name}.json").read_text())
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if row in line)
    told = [float(cell) for cell in line.split("|")[2:6]]
    first = next(iter(figures))
    expected = [figures[key] for key in (first, "untrained", "centre", "guessing")]
    assert told == [round(value, 1) for value in expected]
    text = " ".join((ROOT / "README.md").read_text().split())
    assert "{:.1f} to {:.1f}".format(*figures["interval"]) in text


@pytest.mark.parametrize("style", ["plain", "sketch"])
def test_what_the_readme_says_of_probes_is_recorded(style):
    figures = json.loads((TRANSFER / f"probe-{style}.json").read_text())
    text = " ".join((ROOT / "README.md").read_text().split())
    paragraph = text[text.index("A probe is a linear"):text.index("its sentences don't know them")]
    assert f"{figures['zero_shot']['accuracy']:.1f} %" in paragraph
    assert f"{figures['shots'][0]['accuracy']:.1f} %" in paragraph


EXPERIMENT_ROWS = [(name, row) for name in ("shapes", "photographs")
                   for row in json.loads((EXPERIMENTS / f"{name}.json").read_text())["rows"]]


@pytest.mark.parametrize("name, row", EXPERIMENT_ROWS, ids=lambda x: x if x is str else "")
def test_the_readmes_tables_of_experiments_are_the_recorded_ones(name, row):
    cells = [row["name"], *(f"{found['accuracy']:.1f}" for found in row["accuracy"].values())]
    assert "| " + " | ".join(cells) + " |" in (ROOT / "README.md").read_text(), name


def test_what_the_readme_says_of_efficiency_is_recorded():
    """A line for each objective: scenes, scenes with credits, photographs."""
    records = [json.loads((EXPERIMENTS / f"{name}.json").read_text())["curves"]
               for name in ("efficiency", "efficiency-credits", "efficiency-photographs")]
    for name in records[0]:
        last = [points[-1]["accuracy"] for curves in records for points in curves[name].values()]
        cells = [name, *(f"{accuracy:.1f}" for accuracy in last)]
        assert "| " + " | ".join(cells) + " |" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("record, sweep, experiment", [
    ("shapes", "sweep-shapes", "upbringing"), ("photographs", "sweep-photographs", "photographs"),
    ("efficiency", "sweep-efficiency", "efficiency"),
    ("efficiency-credits", "sweep-efficiency", "efficiency"),
    ("efficiency-photographs", "sweep-efficiency-photographs", "efficiency")])
def test_experiments_use_the_learning_rates_that_a_sweep_found(record, sweep, experiment):
    """None that was tried is better by more than chance could make it."""
    rates = importlib.import_module(f"miniclip.experiments.{experiment}").RATES
    if experiment == "efficiency":
        rates = rates["photographs" if record.endswith("photographs") else "shapes"]
    figures = json.loads((EXPERIMENTS / f"{record}.json").read_text())
    assert figures["rates"] == rates, "the record is that of the code"
    swept = json.loads((EXPERIMENTS / f"{sweep}.json").read_text())["rows"]
    for teacher, rate in rates.items():
        found = {row["rate"]: row["accuracy"] or 0 for row in swept if row["name"] == teacher}
        assert found[rate] > max(found.values()) - 2.5
