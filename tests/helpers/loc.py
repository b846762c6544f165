"""The lines of code of each file (make loc).

Blank lines, comments and docstrings do not count.
"""

import ast
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[2]
IGNORED = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENDMARKER, tokenize.ENCODING)


def docstring_lines(tree: ast.Module) -> set[int]:
    """Numbers of all lines that belong to a module's, class's or function's docstring."""
    lines = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
                node, clean=False) is not None:
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def count(path: Path) -> int:
    """Lines of code of one file."""
    with tokenize.open(path) as file:
        text = file.read()
    lines = set()
    for token in tokenize.generate_tokens(iter(text.splitlines(keepends=True)).__next__):
        if token.type not in IGNORED:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstring_lines(ast.parse(text)))


def counts() -> dict[str, int]:
    """{path below the root: lines of code} of miniclip/ and kernels/miniclip_kernels/."""
    paths = sorted([*ROOT.glob("miniclip/**/*.py"), *ROOT.glob("kernels/miniclip_kernels/*.py")])
    return {str(path.relative_to(ROOT)): count(path) for path in paths}


def main():
    found = counts()
    for path, lines in found.items():
        print(f"{lines:6}  {path}")
    print(f"{sum(found.values()):6}  in all")


if __name__ == "__main__":
    main()
