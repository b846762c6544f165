"""The lessons beside their code: exercises, excerpts, links, figures. (The code of the chapters
themselves runs as tests in lessons/, see lessons/conftest.py.)
"""

import importlib.util
import re
from code import InteractiveConsole
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
LESSONS = ROOT / "lessons"
CHAPTERS = sorted(LESSONS.glob("[0-9]*.md"))
CHECKS = sorted((LESSONS / "checks").glob("*.py"))
PAGES = [*CHAPTERS, LESSONS / "README.md"]

spec = importlib.util.spec_from_file_location("lessons_check", LESSONS / "check.py")
check = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Exercises train models so small that a second thread would only wait for the first."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def names(path):
    return path.stem


# ------------------------------------------------------------------------------ exercises


def test_every_chapter_has_an_exercise():
    for folder in ("exercises", "solutions", "checks"):
        found = [path.stem for path in sorted((LESSONS / folder).glob("*.py"))]
        assert found == [path.stem for path in CHAPTERS], folder


@pytest.mark.parametrize("path", CHECKS, ids=names)
def test_the_solution_passes(path):
    rows = check.results(check.load(path), check.load(LESSONS / "solutions" / path.name))
    assert rows and [row for row in rows if row[1]] == []


@pytest.mark.parametrize("path", CHECKS, ids=names)
def test_the_stub_fails_everywhere(path):
    rows = check.results(check.load(path), check.load(LESSONS / "exercises" / path.name))
    assert all(hint == "not written yet" for _, hint in rows), rows


@pytest.mark.slow
@pytest.mark.parametrize("path", CHECKS, ids=names)
def test_known_mistakes_get_their_hint(path):
    checks, solution = check.load(path), check.load(LESSONS / "solutions" / path.name)
    assert checks.WRONG, "name at least one mistake that people really make"
    for mistake, (functions, hint) in checks.WRONG.items():
        assert set(functions) <= set(vars(solution)), mistake
        rows = check.results(checks, SimpleNamespace(**(vars(solution) | functions)))
        hints = [found for _, found in rows if found]
        assert any(hint in found for found in hints), f"{mistake}: {hints}"


@pytest.mark.parametrize("path", CHECKS, ids=names)
def test_exercise_and_solution_ask_for_the_same(path):
    stub, solution = (check.load(LESSONS / folder / path.name)
                      for folder in ("exercises", "solutions"))
    asked = {name for name, value in vars(stub).items()
             if callable(value) and value.__module__ == stub.__name__}
    assert asked and asked <= set(vars(solution))


def test_check_says_what_is_open(capsys):
    assert check.main("2") == 1
    assert "not written yet" in capsys.readouterr().out
    assert check.main("99") == 2
    assert "no exercise '99'; there are N=01" in capsys.readouterr().err


# ------------------------------------------------------------------------------ the pages


def prose(text: str) -> str:
    """The page without code, comments, formulas and picture descriptions."""
    for pattern in (r"```.*?```", r"<!--.*?-->", r"\$\$.*?\$\$", r"!\[.*?\]\(.*?\)"):
        text = re.sub(pattern, " ", text, flags=re.DOTALL)
    return text


@pytest.mark.parametrize("path", CHAPTERS, ids=names)
def test_a_chapter_is_neither_a_note_nor_a_book(path):
    assert 1000 <= len(prose(path.read_text()).split()) <= 2200


@pytest.mark.parametrize("path", CHAPTERS, ids=names)
def test_a_chapter_has_its_parts(path):
    text = path.read_text()
    for part in ("## What you should now be able to explain", "## Exercise", "## Sources"):
        assert part in text
    assert f"make check N={path.stem[:2]}" in text
    assert re.search(r"!\[[^\]]{40,}\]\(figures/", text), "a figure with a real description"


@pytest.mark.parametrize("path", CHAPTERS, ids=names)
def test_chapters_are_linked_in_a_row(path):
    place, text = CHAPTERS.index(path), path.read_text()
    for neighbour in (place - 1, place + 1):
        if 0 <= neighbour < len(CHAPTERS):
            assert text.count(f"]({CHAPTERS[neighbour].name})") >= 2, "at the top and at the end"


@pytest.mark.parametrize("path", PAGES, ids=names)
def test_links_lead_somewhere(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets
    for target in targets:
        if not target.startswith(("https://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", CHAPTERS, ids=names)
def test_figures_are_drawn_by_the_chapter_that_shows_them(path):
    text = path.read_text()
    shown = set(re.findall(r"\]\((figures/[^)]+)\)", text))
    drawn = set(re.findall(r"\"(figures/[^\"]+)\"", text))
    assert shown and shown == drawn


def test_no_figure_is_left_over():
    shown = {name for path in CHAPTERS for name in re.findall(r"figures/([^)\"]+)[)\"]",
                                                              path.read_text())}
    assert {path.name for path in (LESSONS / "figures").iterdir()} == shown


# An excerpt of the package: a ```py fence (```python would run) behind a comment that names it.
EXCERPT = re.compile(r"(?:<!-- excerpt: (\S+) -->\n)?```py\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("path", CHAPTERS, ids=names)
def test_excerpts_are_the_source(path):
    for source, code in EXCERPT.findall(path.read_text()):
        assert source, f"say where this comes from: <!-- excerpt: PATH -->\n{code}"
        real = [line.strip() for line in (ROOT / source).read_text().splitlines() if line.strip()]
        lines = [line.strip() for line in code.splitlines() if line.strip()]
        parts = [[]]  # "..." stands for lines left out
        for line in lines:
            parts.append([]) if line in ("...", "# ...") else parts[-1].append(line)
        start = 0
        for part in filter(None, parts):
            found = [i for i in range(start, len(real)) if real[i:i + len(part)] == part]
            assert found, f"not in {source}:\n" + "\n".join(part)
            start = found[0] + len(part)


class Prompt(InteractiveConsole):
    """A Python prompt that only reads, and remembers what it can't."""

    def __init__(self):
        super().__init__()
        self.refused = []

    def runcode(self, code):
        pass

    def showsyntaxerror(self, *_, **__):
        self.refused.append(list(self.buffer))


@pytest.mark.parametrize("path", CHAPTERS, ids=names)
def test_a_block_can_be_pasted_into_a_prompt(path):
    """Line by line: an empty line ends whatever is indented, and nothing else does."""
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        if block.startswith(">>> "):
            continue
        prompt = Prompt()
        more = [prompt.push(line) for line in [*block.splitlines(), ""]][-1]
        assert not prompt.refused and not more, block


def test_check_names_the_learners_own_line(tmp_path):
    """Of an error in their file its line; what comes back of a wrong type is said to be that."""
    checks = check.load(LESSONS / "checks/02_pairs.py")

    def hints(body):
        (tmp_path / "02_pairs.py").write_text(
            f"def info_nce(row, right):\n{body}\n\ndef blind_guess(n):\n    pass\n")
        return [hint for _, hint in check.results(checks, check.load(tmp_path / "02_pairs.py"))]

    found = hints("    x = 1\n    return row.nothing")
    assert "has no attribute 'nothing' (line 3)" in found[0]
    assert found[-1] == "blind_guess returns nothing: does it end with `return`?"
    assert "(in the check, which can't use what came back" in hints("    return 'text'")[0]


def test_the_map_names_every_minute_of_the_lecture():
    """0:14 to 22:43, without a hole: each row of the map begins where the one before ends."""
    text = (LESSONS / "README.md").read_text()
    rows = re.findall(r"^\| (\d+):(\d\d)–(\d+):(\d\d) \|(.*)$", text, re.MULTILINE)
    times = [(int(a) * 60 + int(b), int(c) * 60 + int(d)) for a, b, c, d, _ in rows]
    assert times[0][0] == 14 and times[-1][1] == 22 * 60 + 43
    assert all(end == begin for (_, end), (begin, _) in zip(times, times[1:]))
    for *_, row in rows:
        linked = re.findall(r"\]\((\d\d_\w+\.md)\)", row)
        assert linked or "14–16" in row, row


def test_the_glossary_names_a_chapter_that_says_the_term():
    """In its text: not in its code, and not under Sources alone."""
    text = (LESSONS / "README.md").read_text().partition("## Glossary")[2]
    rows = re.findall(r"^\| (.+?)(?: \(.+\))? \| .+ \| \[\d+\]\((\S+)\) \|$", text, re.MULTILINE)
    assert len(rows) > 40
    for term, chapter in rows:
        said = (LESSONS / chapter).read_text().partition("## Sources")[0]
        said = " ".join(re.sub(r"```.*?```", "", said, flags=re.DOTALL).split())
        assert term.lower() in said.lower(), f"{chapter} never says {term!r}"
