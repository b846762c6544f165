"""One mistake at a time in a copy of the kernels: the question that parity asks finds each.

A tolerance wide enough to let a wrong factor pass would let it pass everywhere. Each mistake is a
replacement in the source, which must be there exactly once: a kernel that is written anew takes its
mistakes along, or this file says so.
"""

import importlib.util
from pathlib import Path

import pytest
import torch
from kernel_truth import BLOCKS, DEVICE, FALLBACK, TRITON, Case, excess, pairs
from miniclip_kernels import clip_loss

KERNELS = Path(clip_loss.__file__).parent
FILES = {"triton": "triton_loss.py", "blocks": "triton_blocks.py", "tiled": "tiled.py"}


def sure():
    """Pairs at right angles to all others, with a probability of 0.992: exact in float16.

    So S is exact there too, and plain PyTorch's error small: what is left is that of G's cast.
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
# What is wrong: (backend, input that shows it, results that show it, (right, wrong)).
MUTANTS = {
    "the factor 1/2 is missing in the loss": (
        "triton", "square", ["loss"],
        ("            1 / (2 * N) if both else 1 / M, BOTH",
         "            1 / N if both else 1 / M, BOTH")),
    "the factor 1/2 is missing in the gradients": (
        "triton", "square", GRADIENTS,
        ("label_offset, 1 / (2 * N) if both else 1 / M, BOTH",
         "label_offset, 1 / N if both else 1 / M, BOTH")),
    "1/N is missing in the loss": (
        "triton", "square", ["loss"],
        ("            1 / (2 * N) if both else 1 / M, BOTH", "            0.5, BOTH")),
    "1/N is missing in the gradients": (
        "triton", "square", GRADIENTS,
        ("label_offset, 1 / (2 * N) if both else 1 / M, BOTH", "label_offset, 0.5, BOTH")),
    "1/N where 1/M belongs": (
        "triton", "part", GRADIENTS,
        ("label_offset, 1 / (2 * N) if both else 1 / M, BOTH",
         "label_offset, 1 / (2 * N) if both else 1 / N, BOTH")),
    "the loss has no columns": (
        "triton", "square", ["loss"], ("entropy += c_here\n", "entropy += r_here\n")),
    "the gradient has no columns": (
        "triton", "square", GRADIENTS,
        ("        Q = tl.exp2(S - c[None, :])\n",
         "        Q = tl.exp2(S - c[None, :]) * 0\n")),
    "the last column is masked": (
        "triton", "square", ALL,
        ("S = tl.where((rows < M)[:, None] & (columns < N)[None, :], S, -float(\"inf\"))",
         "S = tl.where((rows < M)[:, None] & (columns < N - 1)[None, :], S, -float(\"inf\"))")),
    "one column too many": (
        "triton", "square", ALL,
        ("S = tl.where((rows < M)[:, None] & (columns < N)[None, :], S, -float(\"inf\"))",
         "S = tl.where((rows < M)[:, None] & (columns <= N)[None, :], S, -float(\"inf\"))")),
    "one row too many": (
        "triton", "square", ALL,
        ("S = tl.where((rows < M)[:, None] & (columns < N)[None, :], S, -float(\"inf\"))",
         "S = tl.where((rows <= M)[:, None] & (columns < N)[None, :], S, -float(\"inf\"))")),
    "the last feature is masked": (
        "triton", "square", ALL,
        ("    shape, strides = list(features.shape),",
         "    shape, strides = [len(features), features.shape[1] - 1],")),
    "the diagonal is subtracted after the cast": (
        "triton", "sure", ["dI", "dT"],
        ("return tl.where(pair, G - (ROWS + COLUMNS), G)",
         "return tl.where(pair, G.to(tl.float16).to(tl.float32) - (ROWS + COLUMNS), G)")),
    "log2(e) is forgotten in the gradient": (
        "triton", "square", GRADIENTS,
        ("first_column, scale_value * LOG2E, D,", "first_column, scale_value, D,")),
    "log2(e) is forgotten in the loss": (
        "triton", "square", ["loss"], ("(weight / LOG2E)", "weight")),
    "the shift is forgotten": (
        "triton", "pointed", ALL,
        ("    result = tl.log2(total) + shift\n", "    result = tl.log2(total)\n")),
    "a sum that failed is not done again": (
        "triton", "opposite", ALL,
        ("if tl.min(good.to(tl.int32)) == 0:", "if tl.min(good.to(tl.int32)) == 2:")),
    "the label offset is ignored in the loss": (
        "triton", "part", ["loss"],
        ("S = similarities(A, B, first, first + label_offset,",
         "S = similarities(A, B, first, first,")),
    "the label offset is ignored in dT": (
        "triton", "part", ["dT"],
        ("i_ids, dT, N, M, -label_offset,", "i_ids, dT, N, M, 0,")),
    "ids are ignored": (
        "triton", "captions", ALL,
        ("\"HAS_IDS\": image_ids is not None", "\"HAS_IDS\": False")),
    "ids leave the pair itself out": (
        "triton", "captions", ALL,
        ("S = tl.where((own == others) & (pair == 0), -float(\"inf\"), S)",
         "S = tl.where(own == others, -float(\"inf\"), S)")),
    "what comes from above is ignored": (
        "triton", "square", GRADIENTS,
        ("factor = tl.load(upstream) * weight / BOOST", "factor = weight / BOOST")),
    "blocks: the factor 1/2 is missing": (
        "blocks", "square", GRADIENTS,
        ("(1 / (2 * N) if both else 1 / M)", "(1 / N if both else 1 / M)")),
    "blocks: 1/N where 1/M belongs": (
        "blocks", "part", GRADIENTS,
        ("(1 / (2 * N) if both else 1 / M)", "(1 / (2 * N) if both else 1 / N)")),
    "blocks: what comes from above is ignored": (
        "blocks", "square", GRADIENTS,
        ("* tl.load(upstream) * weight", "* weight")),
    "blocks: there are no columns": (
        "blocks", "square", GRADIENTS, ("COLUMNS=both", "COLUMNS=False")),
    "blocks: the last row is not written": (
        "blocks", "square", GRADIENTS,
        ("base.in_tiles(block, height, width)", "base.in_tiles(block[:-1], height, width)")),
    "blocks: the label offset is that of the whole": (
        "blocks", "part", GRADIENTS,
        ("label_offset + rows.start - columns.start,", "label_offset,")),
    "blocks: the first block of rows has the columns of all": (
        "blocks", "square", GRADIENTS, ("c[columns] if both else c", "c")),
    "blocks: each block begins the sums of the texts anew": (
        "blocks", "square", ["dT", "ds"],
        ("block.T, own, first=rows.start == 0)", "block.T, own, first=True)")),
    "blocks: each block begins the sums of the images anew": (
        "blocks", "square", ["dI"],
        ("block, T[columns], first=columns.start == 0)", "block, T[columns], first=True)")),
    "blocks: the boost stays in": (
        "blocks", "sure", GRADIENTS, (" / base.boost(I.dtype)\n", "\n")),
    "blocks: ids of the first columns": (
        "blocks", "captions", GRADIENTS, ("x if x is None else x[i]", "x if x is None else x")),
    "blocks: the scale is missing": (
        "blocks", "square", ["dI", "dT"], ("total * tl.load(scale), mask", "total, mask")),
    "blocks: rows of padded features are taken for narrower ones": (
        "blocks", "odd", ["ds"], ("A + row * stride", "A + row * D")),
    "blocks: the last rows get no gradient": (
        "blocks", "square", ["dI", "dT"], ("inside = (row < M)", "inside = (row < M - 1)")),
    "blocks: the tiles' order forgets the last rows": (
        "blocks", "tall", GRADIENTS,
        ("tl.cdiv(M, BLOCK_M) - group * GROUP, GROUP)", "tl.cdiv(M, BLOCK_M) - 1, GROUP)")),
    "tiled: the factor 1/2 is missing in the loss": (
        "tiled", "square", ["loss"],
        ("(loss + (c - positives).mean()) / 2 if", "(loss + (c - positives).mean()) if")),
    "tiled: 1/N is missing in the gradients": (
        "tiled", "square", GRADIENTS,
        ("upstream / (len(I) * (1 + both))", "upstream / (1 + both)")),
    "tiled: the factor 1/2 is missing in the gradients": (
        "tiled", "square", GRADIENTS,
        ("upstream / (len(I) * (1 + both))", "upstream / len(I)")),
    "tiled: the loss has no columns": (
        "tiled", "square", ["loss"],
        ("(loss + (c - positives).mean()) / 2 if", "(loss + (r - positives).mean()) / 2 if")),
    "tiled: the gradient has no columns": (
        "tiled", "square", GRADIENTS,
        ("            G += S.sub_(c[columns]).exp_()  # + Q\n", "            pass\n")),
    "tiled: the last column is missing": (
        "tiled", "square", ALL,
        ("slice(j, min(j + TILE, N))", "slice(j, min(j + TILE, N - 1))")),
    "tiled: the label offset is ignored in the gradients": (
        "tiled", "part", GRADIENTS,
        ("        G.diagonal(diagonal(rows, columns, label_offset)).sub_(1 + both)\n",
         "        G.diagonal(diagonal(rows, columns, 0)).sub_(1 + both)\n")),
    "tiled: ids are ignored": (
        "tiled", "captions", ALL,
        ("        S.masked_fill_(same, -torch.inf)\n", "")),
    "tiled: ids leave the pair itself out": (
        "tiled", "captions", ALL,
        ("        same.diagonal(diagonal(rows, columns, label_offset)).fill_(False)\n", "")),
}


def put_in_place(backend, folder, monkeypatch, right="", wrong=""):
    """Have clip_loss run a changed copy of the backend: a file, for Triton reads its source."""
    source = (KERNELS / FILES[backend]).read_text()
    if right:
        assert source.count(right) == 1, f"{FILES[backend]} must have this once: {right}"
    file = folder / f"mutant_{backend}.py"
    file.write_text(source.replace(right, wrong) if right else source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    mutant.BLOCK = 64  # of "blocks": several to an input, on CUDA too
    forward, _ = clip_loss.passes(backend)  # where the file has none of its own
    monkeypatch.setattr(clip_loss, "passes", lambda name: (
        getattr(mutant, "forward", forward), mutant.backward))
    return mutant


@pytest.mark.parametrize("backend", [TRITON, BLOCKS, "tiled"])
@pytest.mark.filterwarnings(*FALLBACK)
def test_a_copy_without_mistakes_passes(backend, tmp_path, monkeypatch):
    put_in_place(backend, tmp_path, monkeypatch)
    for name, case in CASES.items():
        if name != "tall" or backend == "blocks":  # seconds in the interpreter
            assert max(excess(case, backend).values()) <= 1, name


@pytest.mark.parametrize("mistake, backend", [
    pytest.param(name, backend, marks=() if backend == "tiled" else TRITON.marks, id=name)
    for name, (backend, *_) in MUTANTS.items()])
@pytest.mark.filterwarnings(*FALLBACK)
def test_a_mistake_is_found(mistake, backend, tmp_path, monkeypatch):
    """In the results where it must show, and well above the line."""
    _, case, shows, change = MUTANTS[mistake]
    mutant = put_in_place(backend, tmp_path, monkeypatch, *change)
    if case == "tall":
        mutant.BLOCK = 1024  # more than one group of tiles
    ratios = excess(CASES[case], backend)
    assert min(ratios[name] for name in shows) > 2, ratios
