"""One mistake at a time in a copy of the kernels: the parity rule finds each of them.

A tolerance wide enough to let a wrong factor pass would let it pass everywhere. Each mistake is an
expression and its replacement (`mutation.replace_expression`). White space and line breaks do not
count. A missing expression is reported.
"""

from typing import NamedTuple

import mutation
import pytest
import torch
from kernel_truth import BLOCKS, DEVICE, FALLBACK, TRITON, Case, excess, pairs


def sure():
    """Pairs at right angles to all others, with a probability of 0.992: exact in float16.

    So S is exact there too. Plain PyTorch's error is small: only the cast of G remains.
    """
    eye = torch.eye(64, device=DEVICE, dtype=torch.float16)
    return Case(eye, eye, 9.0)


CASES = {
    "square": pairs(67, 67, 20),
    "part": pairs(67, 75, 20, offset=5),
    "captions": pairs(67, 67, 20, captions=3),
    "opposite": Case(*(sign * torch.eye(1, 4, device=DEVICE).repeat(67, 1) for sign in (1, -1)),
                     100.0),
    "pointed": pairs(67, 67, 20, scale=100.0),
    "sure": sure(),
    "tall": pairs(1100, 1100, 8),
    "odd": pairs(67, 67, 21),  # features that are copied, into rows of 24
}

GRADIENTS = ["dI", "dT", "ds"]
ALL = ["loss", *GRADIENTS]


class Mistake(NamedTuple):
    """Where it is, the input and the results that show it, and what is wrong."""

    backend: str
    file: str
    case: str
    shows: list[str]
    right: str
    wrong: str


def in_triton(case, shows, right, wrong, file="triton_loss.py"):
    return Mistake("triton", file, case, shows, right, wrong)


def in_tiles(case, shows, right, wrong):
    return Mistake("triton", "triton_tiles.py", case, shows, right, wrong)


def in_blocks(case, shows, right, wrong):
    return Mistake("blocks", "triton_blocks.py", case, shows, right, wrong)


def in_tiled(case, shows, right, wrong):
    return Mistake("tiled", "tiled.py", case, shows, right, wrong)


MISTAKES = {
    "the factor 1/2 is missing in the loss": in_triton(
        "square", ["loss"], "mean_weight(labels, M), r, c, losses",
        "2 * mean_weight(labels, M), r, c, losses"),
    "the factor 1/2 is missing in the gradients": in_triton(
        "square", GRADIENTS, "mean_weight(labels, M), r, c, dI",
        "2 * mean_weight(labels, M), r, c, dI"),
    "the factor 1/2 is missing everywhere": in_tiles(
        "square", ALL, "1 / (2 * M) if labels.both", "1 / M if labels.both"),
    "1/N is missing everywhere": in_tiles(
        "square", ALL, "1 / (2 * M) if labels.both", "0.5 if labels.both"),
    "1/N where 1/M belongs": in_triton(
        "part", ["loss"], "mean_weight(labels, M), r, c, losses",
        "mean_weight(labels, N), r, c, losses"),
    "1/N where 1/M belongs in the gradients": in_triton(
        "part", GRADIENTS, "mean_weight(labels, M), r, c, dI", "mean_weight(labels, N), r, c, dI"),
    "the loss has no columns": in_triton(
        "square", ["loss"], "entropy += c_here", "entropy += r_here"),
    "the gradient has no columns": in_tiles(
        "square", GRADIENTS, "Q = tl.exp2(S - c[None, :])", "Q = tl.exp2(S - c[None, :]) * 0"),
    "the last column is masked": in_tiles(
        "square", ALL, "(rows < M)[:, None] & (columns < N)[None, :]",
        "(rows < M)[:, None] & (columns < N - 1)[None, :]"),
    "one column too many": in_tiles(
        "square", ALL, "(rows < M)[:, None] & (columns < N)[None, :]",
        "(rows < M)[:, None] & (columns <= N)[None, :]"),
    "one row too many": in_tiles(
        "square", ALL, "(rows < M)[:, None] & (columns < N)[None, :]",
        "(rows <= M)[:, None] & (columns < N)[None, :]"),
    "the last feature is masked": in_tiles(
        "square", ALL, "list(features.shape)", "[len(features), features.shape[1] - 1]"),
    "the diagonal is subtracted after the cast": in_tiles(
        "sure", ["dI", "dT"], "tl.where(pair, G - (ROWS + COLUMNS), G)",
        "tl.where(pair, G.to(tl.float16).to(tl.float32) - (ROWS + COLUMNS), G)"),
    "log2(e) is forgotten in S'": in_tiles(
        "square", ALL, "product * (S.scale * LOG2E)", "product * S.scale"),
    "log2(e) is forgotten in the loss": in_triton(
        "square", ["loss"], "weight / LOG2E", "weight"),
    "the shift is forgotten": in_triton(
        "pointed", ALL, "tl.log2(total) + shift", "tl.log2(total)"),
    "a sum that failed is not done again": in_triton(
        "opposite", ALL, "tl.min(good.to(tl.int32)) == 0", "tl.min(good.to(tl.int32)) == 2"),
    "the label offset is ignored in the loss": in_triton(
        "part", ["loss"], "first, first + pairs.label_offset", "first, first"),
    "the label offset is ignored in dT": in_triton(
        "part", ["dT"], "else: S_T = Matrix(texts, images, -pairs.label_offset, S.scale)",
        "else:\n        S_T = Matrix(texts, images, 0, S.scale)"),
    "the transposed matrix is not": in_triton(
        "square", ["dT"], "else: S_T = Matrix(texts, images, -pairs.label_offset, S.scale)",
        "else:\n        S_T = S"),
    "ids are ignored": in_tiles(
        "captions", ALL, "labels.image_ids, labels.text_ids", "None, None"),
    "ids leave the pair itself out": in_tiles(
        "captions", ALL, "(own == others) & (pair == 0)", "own == others"),
    "the upstream gradient is ignored": in_triton(
        "square", GRADIENTS, "tl.load(upstream) * weight / BOOST", "weight / BOOST"),
    "blocks: the factor 1/2 is missing": in_blocks(
        "square", GRADIENTS, "mean_weight(labels, M) /", "2 * mean_weight(labels, M) /"),
    "blocks: M and N are exchanged": in_blocks(
        "part", GRADIENTS, "mean_weight(labels, M) /", "mean_weight(labels, N) /"),
    "blocks: the upstream gradient is ignored": in_blocks(
        "square", GRADIENTS, "* tl.load(upstream) * weight", "* weight"),
    "blocks: there are no columns": in_blocks(
        "square", GRADIENTS, "COLUMNS=labels.both", "COLUMNS=False"),
    "blocks: the last row is not written": in_blocks(
        "square", GRADIENTS, "in_tiles(block, tile.HEIGHT, tile.WIDTH)",
        "in_tiles(block[:-1], tile.HEIGHT, tile.WIDTH)"),
    "blocks: the label offset is that of the whole": Mistake(
        "blocks", "backends.py", "part", GRADIENTS,
        "self.label_offset + rows.start - columns.start", "self.label_offset"),
    "blocks: the first block of rows has the columns of all": in_blocks(
        "square", GRADIENTS, "c[columns] if labels.both else c", "c"),
    "blocks: each block restarts the sums of the texts": in_blocks(
        "square", ["dT", "ds"], "block.T, own, first=rows.start == 0", "block.T, own, first=True"),
    "blocks: each block restarts the sums of the images": in_blocks(
        "square", ["dI"], "block, T[columns], first=columns.start == 0",
        "block, T[columns], first=True"),
    "blocks: the boost stays in": in_blocks("sure", GRADIENTS, "/ boost(I.dtype)", ""),
    "blocks: ids of the first columns": Mistake(
        "blocks", "backends.py", "captions", GRADIENTS, "self.text_ids[columns]", "self.text_ids"),
    "blocks: the scale is missing": in_blocks(
        "square", ["dI", "dT"], "total * tl.load(scale)", "total"),
    "blocks: rows of padded features are taken for narrower ones": in_blocks(
        "odd", ["ds"], "own.A + row * own.stride", "own.A + row * D"),
    "blocks: the last rows get no gradient": in_blocks(
        "square", ["dI", "dT"], "(row < own.rows)", "(row < own.rows - 1)"),
    "blocks: the tiles' order forgets the last rows": in_blocks(
        "tall", GRADIENTS, "tl.cdiv(M, HEIGHT) - group * GROUP, GROUP",
        "tl.cdiv(M, HEIGHT) - 1, GROUP"),
    "tiled: the factor 1/2 is missing in the loss": in_tiled(
        "square", ["loss"], "(loss + (c - positives).mean()) / 2",
        "(loss + (c - positives).mean())"),
    "tiled: 1/N is missing in the gradients": in_tiled(
        "square", GRADIENTS, "upstream / (len(I) * directions)", "upstream / directions"),
    "tiled: the factor 1/2 is missing in the gradients": in_tiled(
        "square", GRADIENTS, "upstream / (len(I) * directions)", "upstream / len(I)"),
    "tiled: the loss has no columns": in_tiled(
        "square", ["loss"], "(loss + (c - positives).mean()) / 2",
        "(loss + (r - positives).mean()) / 2"),
    "tiled: the gradient has no columns": in_tiled(
        "square", GRADIENTS, "G += S.sub_(c[columns]).exp_()", "pass"),
    "tiled: the last column is missing": in_tiled(
        "square", ALL, "slice(j, min(j + tile, N))", "slice(j, min(j + tile, N - 1))"),
    "tiled: the label offset is ignored in the gradients": in_tiled(
        "part", GRADIENTS, "G.diagonal(diagonal(rows, columns, labels.label_offset))",
        "G.diagonal(diagonal(rows, columns, 0))"),
    "tiled: ids are ignored": in_tiled(
        "captions", ALL, "S.masked_fill_(same, -torch.inf)", "pass"),
    "tiled: ids leave the pair itself out": in_tiled(
        "captions", ALL, "same.diagonal(diagonal(rows, columns, labels.label_offset)).fill_(False)",
        "pass"),
}


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """copied(file, right, wrong) → a copy of the package; "blocks" has several blocks to an input.
    """
    made = []

    def copy(backend, *mistake):
        made.append(mutation.copied_package(tmp_path, monkeypatch, *mistake))
        if backend == "blocks":
            mutation.module_of(made[-1], "triton_blocks").BLOCK = 64  # on CUDA too
        return made[-1]

    yield copy
    for package in made:
        mutation.forget(package)


@pytest.mark.slow
@pytest.mark.parametrize("backend", [TRITON, BLOCKS, "tiled"])
@pytest.mark.filterwarnings(*FALLBACK)
def test_a_copy_without_mistakes_passes(backend, copied):
    package = copied(backend)
    for name, case in CASES.items():
        if name != "tall" or backend == "blocks":  # seconds in the interpreter
            assert max(excess(case, backend, loss=package.clip_loss).values()) <= 1, name


@pytest.mark.slow
@pytest.mark.parametrize("name, backend", [
    pytest.param(name, mistake.backend, id=name,
                 marks=() if mistake.backend == "tiled" else TRITON.marks)
    for name, mistake in MISTAKES.items()])
@pytest.mark.filterwarnings(*FALLBACK)
def test_a_mistake_is_found(name, backend, copied):
    """The errors of the results that must show it are well above the limit."""
    mistake = MISTAKES[name]
    package = copied(backend, mistake.file, mistake.right, mistake.wrong)
    if mistake.case == "tall":
        mutation.module_of(package, "triton_blocks").BLOCK = 1024  # more than one group of tiles
    ratios = excess(CASES[mistake.case], backend, loss=package.clip_loss)
    assert min(ratios[name] for name in mistake.shows) > 2, ratios


def test_a_mistake_finds_its_place_however_the_code_is_laid_out():
    source = "if x:\n    y = f(a,\n          b)  # why\nz = 1\n"
    changed = mutation.replace_expression(source, "f(a, b)", "g(b)")
    assert changed == "if x:\n    y = g(b)  # why\nz = 1\n"
    with pytest.raises(AssertionError, match="must be there once, and is 0 times"):
        mutation.replace_expression(source, "f(b, a)", "g(b)")
    with pytest.raises(AssertionError, match="is 2 times"):
        mutation.replace_expression("a + b\na  +  b\n", "a + b", "a - b")
