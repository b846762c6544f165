"""`make check N=08`: is the exercise of a chapter solved, and if not, what is wrong?

The checks of a chapter stand in checks/NN_….py, as functions named check_…: each takes the
exercise's module, has a docstring that says what is right once it passes, and asserts with a
message that is the hint. WRONG names the mistakes that people really make:

    WRONG = {"only the rows": ({"gradient": a_wrong_function}, "words of the hint it must get")}
"""

import importlib.util
import sys
import traceback
from functools import wraps
from pathlib import Path
from types import FunctionType, ModuleType, SimpleNamespace

HERE = Path(__file__).parent


def find(folder: str, number: str) -> Path:
    """The file of that chapter; ValueError names the chapters that there are."""
    found = sorted((HERE / folder).glob(f"{number.zfill(2)}_*.py"))
    if not found or not number.isdigit():
        known = ", ".join(sorted(path.name[:2] for path in (HERE / folder).glob("[0-9]*.py")))
        raise ValueError(f"no exercise {number!r}; there are N={known}")
    return found[0]


def load(path: Path) -> ModuleType:
    """Import a file whose name begins with a digit."""
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def returning(name: str, function):
    """The same function, which says so if it ends without `return`."""
    @wraps(function)
    def wrapper(*arguments, **options):
        found = function(*arguments, **options)
        assert found is not None, f"{name} returns nothing: does it end with `return`?"
        return found
    return wrapper


def results(checks: ModuleType, answer) -> list[tuple[str, str]]:
    """[(what is checked, hint or "")] in the order of the file. answer: the exercise's module."""
    answer = SimpleNamespace(**{
        name: returning(name, value) if isinstance(value, FunctionType) else value
        for name, value in vars(answer).items()})
    rows = []
    for name, check in list(vars(checks).items()):
        if name.startswith("check_"):
            try:
                check(answer)
                hint = ""
            except NotImplementedError:
                hint = "not written yet"
            except AssertionError as error:
                hint = str(error)
            except Exception as error:  # the learner's own code may raise anything
                own = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                       if frame.filename == answer.__file__]
                where = f"line {own[-1]}" if own else (
                    "in the check, which can't use what came back: is it of the right type?")
                hint = f"{type(error).__name__}: {error} ({where})"
            rows.append((" ".join(check.__doc__.split()), hint))
    return rows


def main(number: str) -> int:
    try:
        exercise = find("exercises", number)
        rows = results(load(find("checks", number)), load(exercise))
    except (ValueError, SyntaxError) as error:
        print(error, file=sys.stderr)
        return 2
    for what, hint in rows:
        print(f"  ✗ {what}\n      {hint}" if hint else f"  ✓ {what}")
    open_ = sum(bool(hint) for _, hint in rows)
    print(f"{exercise.relative_to(HERE.parent)}: "
          + (f"{open_} of {len(rows)} still open" if open_ else f"all {len(rows)} right"))
    return int(open_ > 0)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python lessons/check.py NN, the number of a chapter")
    sys.exit(main(sys.argv[1]))
