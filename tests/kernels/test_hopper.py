"""The backend "hopper" against float64: on a GPU of compute capability 9, else in gluon_on_cpu.py.

The rule is kernel_truth.py's. On a CPU the sums' last step runs in Triton's interpreter, which
can't multiply bfloat16, so there the loss itself is looked at in float16 only.
"""

import importlib.util
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_truth import Case, check_no_tile_is_missed, excess, pairs, run

if find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)

import gluon_on_cpu
from miniclip_kernels import clip_loss, triton_blocks, triton_hopper, triton_loss

HERE = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
if torch.cuda.is_available() and not HERE:
    pytest.skip("this GPU is no Hopper", allow_module_level=True)
ON_HOPPER = pytest.mark.skipif(not HERE, reason="needs a GPU of compute capability 9")
ON_CPU = pytest.mark.skipif(HERE, reason="looks into the interpreter")
TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda x: str(x)[6:])


def prepare(monkeypatch, programs=3, block=256, seed=0, module=triton_hopper):
    """Few programs, so that each has several blocks of rows; and several blocks of G."""
    monkeypatch.setattr(module, "programs", lambda device: programs)
    monkeypatch.setattr(triton_blocks, "BLOCK", block)
    if HERE:
        return nullcontext()
    monkeypatch.setattr(triton_loss, "check", lambda backend, features: None)
    return gluon_on_cpu.on_cpu(module, monkeypatch, seed)


def ratios(case):
    """Errors over what is allowed."""
    found = excess(case, "hopper")
    if not HERE and case.images.dtype == torch.bfloat16:
        del found["loss"]
    return found


@TYPES
@pytest.mark.parametrize("M, N, D, options", [
    (1, 1, 1, {}), (2, 2, 3, {}), (17, 17, 33, {"scale": 100.0}), (128, 128, 64, {}),
    (129, 129, 200, {}), (300, 300, 512, {}), (300, 300, 257, {"captions": 5}),
    (113, 203, 33, {"offset": 0}), (113, 403, 33, {"offset": 90}), (252, 507, 123, {"offset": 131}),
    (70, 171, 5, {"offset": 1, "captions": 4}), (640, 640, 64, {"near": 20.0})], ids=str)
def test_it_is_right(M, N, D, options, dtype, monkeypatch):
    with prepare(monkeypatch):
        found = ratios(pairs(M, N, D, dtype=dtype, **options))
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("programs, block, D", [
    (1, 128, 70), (2, 384, 70), (5, 1024, 70), (132, 256, 70), (2, 1024, 512)])
def test_with_any_number_of_programs(programs, block, D, monkeypatch):
    """One for everything; several blocks each, of few parts and of more than the ring has room for;
    a part of a row of tiles each; more than there are tiles.
    """
    with prepare(monkeypatch, programs, block):
        found = ratios(pairs(600, 600, D, dtype=torch.float16))
    assert max(found.values()) <= 1, found


@TYPES
def test_no_tile_is_missed_or_met_twice(dtype, monkeypatch):
    """All of a GPU's programs at work, with more than one block of rows each where HERE."""
    if HERE:
        check_no_tile_is_missed("hopper", dtype, N=2**15, D=512)
    else:
        with prepare(monkeypatch):
            check_no_tile_is_missed("hopper", dtype, N=512, D=200, loss=dtype == torch.float16)


def test_with_more_lines_of_sums_than_are_added_at_a_time(monkeypatch):
    case = pairs(40, 3000, 16, offset=7, dtype=torch.float16)
    assert 2 * triton_hopper.grid(40, 3000, 132)[1] > 2 * triton_loss.LINES.value
    with prepare(monkeypatch, programs=132):
        found = ratios(case)
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("M, N, programs", [
    (8192, 8192, 132), (65536, 65536, 132), (20000, 20000, 132), (1, 1, 132), (100, 9000, 132),
    (9000, 9000, 1), (8192, 300, 7)])
def test_every_program_has_about_as_much_to_do(M, N, programs):
    groups, splits = triton_hopper.grid(M, N, programs)
    blocks, tiles = -(-M // 128), -(-N // 128)
    assert 1 <= groups <= blocks and 1 <= splits <= tiles and groups * splits <= programs
    most = -(-blocks // groups) * -(-tiles // splits)
    assert most <= 1.15 * blocks * tiles / programs + 2


@ON_CPU
def test_the_same_bits_whatever_arrives_first(monkeypatch):
    case, found = pairs(520, 520, 300, dtype=torch.float16), []
    for seed in range(4):
        with prepare(monkeypatch, programs=2, seed=seed):
            found.append(run(case, "hopper"))
    for other in found[1:]:
        assert all((x == other[name]).all() for name, x in found[0].items())


@pytest.mark.parametrize("dtype, D, message", [
    (torch.float32, 64, "backend 'hopper' takes bfloat16 or float16 and D up to 512, not 64 in f"),
    (torch.float16, 513, "takes bfloat16 or float16 and D up to 512, not 513 in float16"),
    (torch.float16, 512, r"backend 'hopper' needs a GPU of compute capability 9 \(H100, H200\)")])
def test_it_says_what_it_needs(dtype, D, message):
    with pytest.raises(ValueError, match=message):
        clip_loss.clip_loss(*torch.ones(2, 2, D, dtype=dtype), 1.0, backend="hopper")


# ------------------------------------------------------------------------------ mistakes

WAIT_FOR_GO = "            mbarrier.wait(go.index(TURN), (turns & 1) ^ (1 - TURN))\n"
MISTAKES = {
    "a part is given back before it is multiplied": (
        "(number + k - 1) % STAGES), pred=k > 0)", "(number + k) % STAGES), pred=k < K_STEPS - 1)"),
    "the last part is given back before it is multiplied": (
        "    S = hopper.warpgroup_mma_wait(0, deps=[S])\n",
        "    S = hopper.warpgroup_mma_wait(1, deps=[S])\n"),
    "nobody waits for a turn": (WAIT_FOR_GO, ""),
    "the second turn begins": (WAIT_FOR_GO, WAIT_FOR_GO.replace("1 - TURN", "TURN")),
    "parts are fetched into a full ring": (
        "                mbarrier.wait(empty.index(slot), (number // STAGES & 1) ^ 1)\n", ""),
    "parts are multiplied before they are there": (
        "(number + k) // STAGES & 1)", "((number + k) // STAGES & 1) ^ 1)"),
    "the block of I is not waited for": ("        mbarrier.wait(full_I, round_I & 1)\n", ""),
    "the block of I goes with the first turn": ("barriers(1, 2)", "barriers(1, 1)"),
    "fewer bytes are announced than come": ("K_STEPS * I.block", "(K_STEPS - 1) * I.block"),
    "no fence before a tile leaves": ("    hopper.fence_async_shared()\n", ""),
    "a quarter is written over one before": ("tma.store_wait(1)  # the q", "tma.store_wait(2)  #"),
    "quarters are exchanged": ("split(left) + gl.split(right)", "split(right) + gl.split(left)"),
    "both turns leave by one piece of memory": ("index(2 * TURN + q % 2)", "index(q % 2)"),
    "two quarters leave by one piece of memory": ("index(2 * TURN + q % 2)", "index(2 * TURN)"),
    "c is that of the first quarter": ("numbers_I, c[q], G", "numbers_I, c[0], G"),
    "the end does not wait": ("    if G is not None:\n        tma.store_wait(0)\n", ""),
    "an odd number of tiles": ("                mbarrier.arrive(go.index(1 - TURN))\n",
                               "                pass\n"),
    "both turns write one line": ("gl.program_id(1) * 2 + TURN", "gl.program_id(1) * 2"),
    "every group adds to one line": ("gl.cast(gl.program_id(0), gl.int64) * N", "0 * N"),
    "the second turn has the first's tiles": ("first + TURN, last + TURN, 2", "first, last, 2"),
    "the scale is missing": ("number, TURN) * scale2", "number, TURN)"),
    "the label offset is ignored": ("first_row + labels[2]", "first_row"),
}


def copy_of_it(tmp_path, right="", wrong=""):
    """The module with a mistake, from a file: Gluon reads its source."""
    source = Path(triton_hopper.__file__).read_text()
    assert not right or source.count(right) == 1, f"triton_hopper.py must have this once: {right}"
    file = tmp_path / "mistaken.py"
    file.write_text(source.replace(right, wrong) if right else source)
    spec = importlib.util.spec_from_file_location("mistaken", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def errors_of(module, monkeypatch):
    """Of square pairs and of a part: an odd number of tiles, more parts than the ring has slots."""
    monkeypatch.setattr(clip_loss, "passes", lambda backend: (module.forward, module.backward))
    monkeypatch.setattr(gluon_on_cpu, "SECONDS", 2.0)
    monkeypatch.setattr(gluon_on_cpu, "EARLY", 0.0)
    with prepare(monkeypatch, programs=2, block=1024, module=module):
        cases = [pairs(600, 600, 300, dtype=torch.float16),
                 pairs(500, 600, 300, dtype=torch.float16, offset=77)]
        return [max(excess(case, "hopper").values()) for case in cases]


@ON_CPU
def test_a_copy_without_mistakes_passes(tmp_path, monkeypatch):
    assert max(errors_of(copy_of_it(tmp_path), monkeypatch)) <= 1


@ON_CPU
@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.filterwarnings("ignore")  # of threads that end with the mistake
def test_a_mistake_is_found(mistake, tmp_path, monkeypatch):
    """By NaN or wrong numbers, or a part of the program says that it waits in vain."""
    try:
        errors = errors_of(copy_of_it(tmp_path, *MISTAKES[mistake]), monkeypatch)
    except (gluon_on_cpu.Deadlock, AssertionError) as error:
        assert "must have this once" not in str(error)
    else:
        assert max(errors) > 2


# ------------------------------------------------------------------------------ on a GPU


@ON_HOPPER
@TYPES
@pytest.mark.parametrize("programs", [5, 132])
def test_the_same_bits_200_times(programs, dtype, monkeypatch):
    case = pairs(1500, 1500, 512, dtype=dtype)
    with prepare(monkeypatch, programs, block=1024):
        first = run(case, "hopper")
        for _ in range(200):
            again = run(case, "hopper")
            assert all((x == again[name]).all() for name, x in first.items())


@ON_HOPPER
@TYPES
@pytest.mark.parametrize("options", [{}, {"captions": 5}, {"offset": 8192}], ids=str)
def test_eight_thousand_against_blocks(options, dtype):
    """The same numbers by the other way, whose tests are test_kernel_parity.py's."""
    case = pairs(8192, 3 * 8192 if "offset" in options else 8192, 512, dtype=dtype, **options)
    found, expected = (run(case, backend) for backend in ("hopper", "blocks"))
    for name, x in expected.items():
        tolerance = 1e-4 if name == "loss" else 2 * torch.finfo(dtype).eps
        assert np.abs(found[name] - x).max() <= tolerance * np.abs(x).max(), name


@ON_HOPPER
@TYPES
@pytest.mark.parametrize("M, offset", [(5000, 0), (5000, 3001), (8192, None)])
def test_every_entry_of_a_block_against_blocks(M, offset, dtype):
    """Gradients hide what is wrong with small entries of G, beside those of the pairs."""
    N, D, both = 8192, 512, offset is None
    case = pairs(M, N, D, dtype=dtype, offset=offset)
    labels, offset = clip_loss.Labels(offset or 0, both), offset or 0
    I, T, scale = case.images, case.texts, torch.tensor(case.scale, device="cuda")  # noqa: E741
    _, r, c = triton_loss.forward(I, T, scale, labels)
    found, expected = (I.new_full((M, N), torch.nan) for _ in range(2))
    for module, block in ((triton_hopper, found), (triton_blocks, expected)):
        module.write(block, I, T, scale, r, c, (None, None), offset, both)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps,
                               atol=torch.finfo(dtype).tiny)


@ON_HOPPER
@TYPES
def test_auto_is_hopper_compiled_or_not(dtype):
    case = pairs(3000, 3000, 512, dtype=dtype)
    expected = run(case, "hopper")
    compiled = torch.compile(clip_loss.clip_loss, fullgraph=True)
    for name, x in run(case, "auto").items():
        assert (x == expected[name]).all(), name
    assert compiled(case.images, case.texts, case.scale).item() == expected["loss"]


@ON_HOPPER
def test_sums_that_fail_are_done_again():
    """Every image's text opposite to it, at scale 100: the running maximum of `finish`."""
    images = torch.eye(1, 64, device="cuda", dtype=torch.float16).repeat(300, 1)
    assert max(excess(Case(images, -images, 100.0), "hopper").values()) <= 1
