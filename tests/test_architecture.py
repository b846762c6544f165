"""The shape of the project: rooms, order of imports, names, budget, and the README's tree."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import loc
import pytest

from miniclip.config import PRESETS

ROOT = Path(__file__).parent.parent
ORDER = [{"config"}, {"drawing"}, {"shapes", "tokenizer"}, {"sources"}, {"data"}, {"model"},
         {"checkpoint"}, {"pretrained"}, {"evaluate"}, {"plots"}, {"train"}, {"transfer", "search"},
         {"cli"}]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}
ROOMS = sorted((ROOT / "miniclip").glob("*.py"))
KERNELS = sorted((ROOT / "kernels").glob("*.py"))
OURS = [*ROOMS, *KERNELS, *sorted((ROOT / "tests").glob("*.py"))]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, as dotted names ("miniclip.data"); no string imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute here"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def rooms_imported(path: Path) -> set[str]:
    """The rooms of miniclip/ that a file imports."""
    dotted = (name.split(".") for name in imported(path))
    return {parts[1] for parts in dotted if parts[0] == "miniclip" and len(parts) > 1
            and (ROOT / "miniclip" / f"{parts[1]}.py").exists()}


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.stem)
def test_a_room_imports_only_from_rooms_to_its_left(path):
    if path.stem == "__init__":
        return
    assert path.stem in RANK, f"{path.name} is no room of the plan"
    wrong = {room for room in rooms_imported(path) if RANK[room] >= RANK[path.stem]}
    assert not wrong, f"{path.name} imports from its right: {wrong}"


def test_the_import_test_sees_imports():
    assert {"config", "data", "model"} <= rooms_imported(ROOT / "miniclip" / "train.py")


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.stem)
def test_kernels_import_nothing_of_miniclip(path):
    assert not [name for name in imported(path) if name.split(".")[0] == "miniclip"]


@pytest.mark.parametrize("path", ROOMS, ids=lambda p: p.stem)
def test_only_init_and_train_import_the_kernels(path):
    if path.stem not in ("__init__", "train"):
        assert not [name for name in imported(path) if name.startswith("miniclip_kernels")]


@pytest.mark.parametrize("path", OURS, ids=lambda p: p.stem)
def test_nothing_imports_the_name_kernels(path):
    """`kernels` is another project's package on PyPI; ours is miniclip_kernels."""
    assert "kernels" not in {name.split(".")[0] for name in imported(path)}


def test_kernels_is_no_package_of_that_name():
    assert not (ROOT / "kernels" / "__init__.py").exists()


def test_the_public_names():
    import miniclip

    assert set(miniclip.__all__) == {"load", "CLIP", "Tokenizer", "clip_loss"}
    assert all(callable(getattr(miniclip, name)) for name in miniclip.__all__)


def test_import_needs_no_triton():
    """Everything but the Triton backend works where Triton can't be installed."""
    code = "import sys; sys.modules['triton'] = None; import miniclip, miniclip.cli"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


def test_the_budget():
    found = loc.counts()
    assert set(loc.CORE) <= set(found)
    assert sum(found[path] for path in loc.CORE) <= loc.CORE_BUDGET
    assert sum(found.values()) <= loc.ALL_BUDGET
    assert {path: n for path, n in found.items() if n > loc.FILE_BUDGET} == {}


def test_the_counter_counts(tmp_path):
    file = tmp_path / "x.py"
    file.write_text('"""Doc\nstring."""\n\n# comment\nx = 1  # one\n\n\ndef f():\n    "doc"\n'
                    '    return """two\nlines"""\n')
    assert loc.count(file) == 4  # x, def, and the two lines of the returned string


@pytest.mark.parametrize("path", [*ROOMS, *KERNELS], ids=lambda p: p.stem)
def test_functions_are_short_and_lines_fit(path):
    text = path.read_text()
    assert max(map(len, text.splitlines()), default=0) <= 100
    if path.name.startswith("triton_"):
        return  # kernels are excepted
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            arguments = len(node.args.args) + len(node.args.kwonlyargs)
            assert length <= 66 and arguments <= 9, f"{node.name}: {length} lines, {arguments} args"


def test_the_readmes_tree_is_the_real_one():
    text = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(miniclip/.*?)```", text, re.DOTALL).group(1)
    named, folder = set(), ""
    for line in tree.splitlines():
        name = line.split()[0] if line.strip() else ""
        if name.endswith("/"):
            folder = name
        elif name:
            named.add(folder + name if line.startswith(" ") else name)
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout: the real tree is what git tracks")
    inside = {"results", "figures", "exercises", "checks", "solutions"}  # one line each
    real = {name for name in listed.stdout.split()
            if not name.startswith(".git") and not inside & set(Path(name).parts[:-1])}
    assert named == real


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


@pytest.mark.parametrize("path", sorted((ROOT / "miniclip" / "results").glob("*/*.json")),
                         ids=lambda p: f"{p.parent.name}, {p.stem}")
def test_what_the_readme_says_of_other_machines_is_recorded(path):
    paragraph = next(p for p in (ROOT / "README.md").read_text().split("\n\n")
                     if f"(miniclip/results/{path.parent.name})" in p)
    metrics = json.loads(path.read_text())
    recall = " / ".join(f"{metrics[w]['R@10']:.1f}" for w in ("image_to_text", "text_to_image"))
    for figure in (recall, f"{metrics['training']['seconds'] / 60:.1f}"):
        assert figure in " ".join(paragraph.split()), f"{path} says {figure}"


def test_every_preset_is_recorded():
    assert {path.stem for path in RESULTS} == set(PRESETS)
