"""The backend "hopper" against float64: on a GPU of compute capability 9, else in gluon_on_cpu.py.

The rule is that of kernel_truth.py. On a CPU, `finish` runs in Triton's interpreter, which can't
multiply bfloat16. So there the loss itself is checked in float16 only.
"""

from contextlib import nullcontext
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from kernel_truth import Case, check_no_tile_is_missed, excess, pairs, run

if find_spec("triton") is None:
    pytest.skip("the package triton is not installed", allow_module_level=True)

import gluon_on_cpu
import mutation
from miniclip_kernels import (
    backends,
    clip_loss,
    sigmoid_loss,
    triton_blocks,
    triton_hopper,
    triton_hopper_sigmoid,
    triton_loss,
    triton_sigmoid,
)

HERE = torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9
if torch.cuda.is_available() and not HERE:
    pytest.skip("this GPU is no Hopper", allow_module_level=True)
ON_HOPPER = pytest.mark.skipif(not HERE, reason="needs a GPU of compute capability 9")
ON_CPU = pytest.mark.skipif(HERE, reason="looks into the interpreter")
TYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda x: str(x)[6:])


def prepare(monkeypatch, programs=3, block=256, seed=0):
    """Few programs, so that each has several blocks of rows; and several blocks of G."""
    return prepared((backends, triton_blocks, triton_hopper), monkeypatch, programs, block, seed)


def prepared(modules, monkeypatch, programs, block, seed=0):
    """The same for these modules, the package's or a copy's."""
    backends, triton_blocks, triton_hopper = modules
    monkeypatch.setattr(triton_hopper, "programs", lambda device: programs)
    monkeypatch.setattr(triton_blocks, "BLOCK", block)
    if HERE:
        return nullcontext()
    monkeypatch.setattr(backends, "check", lambda backend, features: None)
    return gluon_on_cpu.on_cpu(triton_hopper, monkeypatch, seed)


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
    (70, 171, 5, {"offset": 1, "captions": 4}), (640, 640, 64, {"near": 20.0}),
    (1, 1, 513, {}), (300, 300, 600, {"captions": 5}), (113, 403, 768, {"offset": 90}),
    (257, 257, 1024, {"scale": 100.0}), (70, 300, 2048, {"offset": 1})], ids=str)
def test_it_is_right(M, N, D, options, dtype, monkeypatch):
    with prepare(monkeypatch):
        found = ratios(pairs(M, N, D, dtype=dtype, **options))
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("options", [
    {}, {"captions": 5}, {"near": 20.0}, {"scale": 100.0}], ids=str)
def test_one_exponential_an_entry(options, monkeypatch):
    """A candidate of the tuner; where it might overflow, a quarter of a tile takes two."""
    monkeypatch.setattr(triton_hopper, "ONCE", True)
    with prepare(monkeypatch):
        found = ratios(pairs(300, 300, 70, dtype=torch.float16, **options))
    assert max(found.values()) <= 1, found


@pytest.mark.slow
@pytest.mark.parametrize("programs, block, D", [
    (1, 128, 70), (2, 384, 70), (5, 1024, 70), (132, 256, 70), (2, 1024, 512), (1, 256, 520),
    (2, 1024, 520), (5, 384, 640), (132, 256, 520)])
def test_with_any_number_of_programs(programs, block, D, monkeypatch):
    """One program for everything; several blocks each, with few loads a tile and with more than the
    pipeline has stages; a part of a row of tiles each; more programs than tiles.
    """
    with prepare(monkeypatch, programs, block):
        found = ratios(pairs(600, 600, D, dtype=torch.float16))
    assert max(found.values()) <= 1, found


@TYPES
@pytest.mark.parametrize("D", [512, 768])
def test_no_tile_is_missed_or_met_twice(D, dtype, monkeypatch):
    """On a Hopper GPU all programs are busy, with more than one block of rows each."""
    if HERE:
        check_no_tile_is_missed("hopper", dtype, N=2**15, D=D)
    else:
        with prepare(monkeypatch):
            check_no_tile_is_missed("hopper", dtype, N=512, D=D, loss=dtype == torch.float16)


def test_with_more_lines_of_sums_than_are_added_at_a_time(monkeypatch):
    case = pairs(40, 3000, 16, offset=7, dtype=torch.float16)
    assert 2 * triton_hopper.grid(40, 3000, 132)[1] > 2 * triton_loss.LINES.value
    with prepare(monkeypatch, programs=132):
        found = ratios(case)
    assert max(found.values()) <= 1, found


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("M, N, programs", [
    (8192, 8192, 132), (65536, 65536, 132), (20000, 20000, 132), (1, 1, 132), (100, 9000, 132),
    (9000, 9000, 1), (8192, 300, 7)])
def test_every_program_has_about_as_much_to_do(M, N, programs, streamed):
    groups, splits = triton_hopper.grid(M, N, programs, streamed)
    blocks, tiles = -(-M // 128), -(-N // (256 if streamed else 128))
    assert 1 <= groups <= blocks and 1 <= splits <= tiles and groups * splits <= programs
    most = -(-blocks // groups) * -(-tiles // splits)
    assert most <= 1.15 * blocks * tiles / programs + 2


@pytest.mark.slow
@ON_CPU
def test_the_same_bits_whatever_arrives_first(monkeypatch):
    case, found = pairs(520, 520, 300, dtype=torch.float16), []
    for seed in range(4):
        with prepare(monkeypatch, programs=2, seed=seed):
            found.append(run(case, "hopper"))
    for other in found[1:]:
        assert all((x == other[name]).all() for name, x in found[0].items())


@pytest.mark.parametrize("dtype, D, message", [
    (torch.float32, 64, "backend 'hopper' takes bfloat16 or float16 and D up to 2048, not 64 in"),
    (torch.float16, 2049, "takes bfloat16 or float16 and D up to 2048, not 2049 in float16"),
    (torch.float16, 512, r"backend 'hopper' needs a GPU of compute capability 9 \(H100, H200\)")])
def test_it_says_what_it_needs(dtype, D, message):
    with pytest.raises(ValueError, match=message):
        clip_loss(*torch.ones(2, 2, D, dtype=dtype), 1.0, backend="hopper")


# ------------------------------------------------------------------------------ the sigmoid loss


def sigmoid_errors(N, D, dtype, with_ids, monkeypatch, block=256, modules=None, loss=sigmoid_loss):
    """Errors of loss and gradients over those of "dense", for few programs and small blocks."""
    programs = 3 if block == 256 else 2
    modules = modules or (backends, triton_sigmoid, triton_hopper, triton_hopper_sigmoid)
    chosen, blocks, hopper, its = modules
    monkeypatch.setattr(hopper, "programs", lambda device: programs)
    monkeypatch.setattr(blocks, "BLOCK", block)
    here = nullcontext()
    if not HERE:
        monkeypatch.setattr(chosen, "check", lambda backend, features: None)
        here = gluon_on_cpu.on_cpu(its, monkeypatch, 0)
    case = pairs(N, N, D, dtype=dtype, captions=4 if with_ids else None)
    ids = case.options.get("image_ids")

    def results(loss, I, T, backend):  # noqa: E741
        leaves = [x.detach().requires_grad_() for x in (I, T)]
        leaves += [torch.tensor(x, dtype=torch.promote_types(I.dtype, torch.float32),
                                device=I.device, requires_grad=True) for x in (10.0, -10.0)]
        value = loss(*leaves, image_ids=ids, backend=backend)
        value.backward()
        return [value.detach().double(), *(x.grad.double() for x in leaves)]

    with here:
        found = results(loss, case.images, case.texts, "hopper")
    right = results(sigmoid_loss, case.images.double(), case.texts.double(), "dense")
    plain = results(sigmoid_loss, case.images, case.texts, "dense")
    return [((x - y).abs().max() / (2 * (z - y).abs().max() + torch.finfo(dtype).eps
                                    * y.abs().max())).item()
            for x, y, z in zip(found, right, plain, strict=True)]


@TYPES
@pytest.mark.parametrize("N, D, with_ids", [
    (1, 1, False), (17, 33, False), (128, 64, False), (129, 200, True), (300, 512, False),
    (403, 33, True), (300, 600, True), (130, 1024, False)])
def test_the_sigmoid_loss_is_right(N, D, with_ids, dtype, monkeypatch):
    errors = sigmoid_errors(N, D, dtype, with_ids, monkeypatch)
    assert max(errors) <= 1, errors


SIGMOID_MISTAKES = {
    "no consumer waits for its turn": (
        "mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER))", "pass"),
    "both consumers count in one line": ("(program * 2 + CONSUMER) * BLOCK", "program * 2 * BLOCK"),
    "all programs count in one line": (
        "gl.program_id(0) * gl.num_programs(1) + gl.program_id(1)", "gl.program_id(1)"),
    "only the last tile counts": ("loss += loss_here", "loss = loss_here"),
    "both consumers store from the same buffers": ("2 * CONSUMER + q % 2", "q % 2"),
    "a quarter has another's columns": (
        "block * BLOCK, tile * BLOCK + q * WIDTH", "block * BLOCK, tile * BLOCK"),
    "the block of I is given back by one": ("mbarrier.arrive(resident.empty)", "pass"),
    "no fence before a quarter leaves": ("hopper.fence_async_shared()", "pass"),
    "a quarter is written over one before": ("tma.store_wait(1)", "tma.store_wait(2)"),
    "the end does not wait": ("tma.store_wait(0)", "pass"),
    "the bias is forgotten": ("+ gl.load(bias)", "+ 0.0")}


@pytest.mark.slow
@ON_CPU
@pytest.mark.parametrize("mistake", SIGMOID_MISTAKES)
@pytest.mark.filterwarnings("ignore")  # of threads that end with the mistake
def test_a_mistake_in_the_sigmoid_is_found(mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(gluon_on_cpu, "SECONDS", 2.0)
    monkeypatch.setattr(gluon_on_cpu, "EARLY", 0.0)
    package = mutation.copied_package(tmp_path, monkeypatch, "triton_hopper_sigmoid.py",
                                      *SIGMOID_MISTAKES[mistake])
    modules = [mutation.module_of(package, name) for name in (
        "backends", "triton_sigmoid", "triton_hopper", "triton_hopper_sigmoid")]
    try:
        errors = sigmoid_errors(600, 300, torch.float16, True, monkeypatch, block=1024,
                                modules=modules, loss=package.sigmoid_loss)
    except (gluon_on_cpu.Deadlock, AssertionError) as error:
        assert "must be there once" not in str(error)
    else:
        assert not max(errors) <= 2
    finally:
        mutation.forget(package)


# ------------------------------------------------------------------------------ mistakes

# What is wrong: (expression, what stands in its place).
MISTAKES = {
    "a stage is given back before it is multiplied": (
        "mbarrier.arrive(pipeline.empty.index((load - 1) % STAGES), pred=k > 0)",
        "mbarrier.arrive(pipeline.empty.index(load % STAGES), pred=k < K_BLOCKS - 1)"),
    "the last stage is given back before it is multiplied": (
        "hopper.warpgroup_mma_wait(0, deps=[S])", "hopper.warpgroup_mma_wait(1, deps=[S])"),
    "no consumer of sums waits for its turn": (
        "row_sum = gl.full([BLOCK], 0.0, gl.float32, gl.SliceLayout(1, TILE_LAYOUT)) "
        "if not STREAMED: mbarrier.wait(resident.full, rounds & 1) "
        "for tile in range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2): "
        "mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER))",
        """row_sum = gl.full([BLOCK], 0.0, gl.float32, gl.SliceLayout(1, TILE_LAYOUT))
        if not STREAMED:
            mbarrier.wait(resident.full, rounds & 1)
        for tile in range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2):
            pass"""),
    "no consumer of the gradient waits for its turn": (
        "mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER)) turns += 1 "
        "if tile < work.last_tile: first_column = tile * BLOCK",
        """turns += 1
            if tile < work.last_tile:
                first_column = tile * BLOCK"""),
    "the second consumer begins": (
        "mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER)) turns += 1 "
        "if tile < work.last_tile: first_column = tile * BLOCK",
        """mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ CONSUMER)
            turns += 1
            if tile < work.last_tile:
                first_column = tile * BLOCK"""),
    "stages are loaded while they are full": (
        "mbarrier.wait(pipeline.empty.index(stage), (loads // STAGES & 1) ^ 1) "
        "mbarrier.expect(full, T.block_type.nbytes)",
        "mbarrier.expect(full, T.block_type.nbytes)"),
    "stages are multiplied before they are loaded": (
        "mbarrier.wait(pipeline.full.index(stage), load // STAGES & 1)",
        "mbarrier.wait(pipeline.full.index(stage), (load // STAGES & 1) ^ 1)"),
    "sums do not wait for the block of I": (
        "if not STREAMED: mbarrier.wait(resident.full, rounds & 1) for tile in "
        "range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2): "
        "mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER)) turns += 1 "
        "if tile < work.last_tile: columns",
        """for tile in range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2):
            mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER))
            turns += 1
            if tile < work.last_tile:
                columns"""),
    "the first consumer alone frees the block of I": ("barriers(1, 2)", "barriers(1, 1)"),
    "fewer bytes are announced than come": (
        "K_BLOCKS * I.block_type.nbytes", "(K_BLOCKS - 1) * I.block_type.nbytes"),
    "no fence before a quarter leaves": ("hopper.fence_async_shared()", "pass"),
    "a quarter is written over one before": ("tma.store_wait(1)", "tma.store_wait(2)"),
    "quarters are exchanged": (
        "gl.split(left) + gl.split(right)", "gl.split(right) + gl.split(left)"),
    "both consumers store from the same buffers": ("2 * CONSUMER + q % 2", "q % 2"),
    "all quarters are stored from one buffer": ("2 * CONSUMER + q % 2", "2 * CONSUMER"),
    "c is that of the first quarter": ("c_here[q]", "c_here[0]"),
    "the end does not wait": ("tma.store_wait(0)", "pass"),
    "an odd number of tiles": (
        "else: mbarrier.arrive(order.index(1 - CONSUMER)) if not STREAMED: "
        "mbarrier.arrive(resident.empty) rounds += 1 tma", """else:
                pass
        if not STREAMED:
            mbarrier.arrive(resident.empty)
        rounds += 1
    tma"""),
    "both consumers write one line": (
        "gl.program_id(1) * 2 + CONSUMER", "gl.program_id(1) * 2"),
    "every group adds to one line": (
        "gl.cast(gl.program_id(0), gl.int64) * pairs.N", "0 * pairs.N"),
    "the second consumer of sums has the first's tiles": (
        "range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2): "
        "mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER)) turns += 1 "
        "if tile < work.last_tile: columns",
        """range(work.first_tile, work.last_tile, 2):
            mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER))
            turns += 1
            if tile < work.last_tile:
                columns"""),
    "the scale is missing": (
        "S = product(resident, pipeline, order, number, K_BLOCKS, STREAMED, CONSUMER) * scale2",
        "S = product(resident, pipeline, order, number, K_BLOCKS, STREAMED, CONSUMER)"),
    "the label offset is ignored": (
        "first_row + pairs.label_offset - first_column", "first_row - first_column"),
}
STREAMED_MISTAKES = {
    "one consumer alone frees a stage": ("barriers(STAGES, EACH)", "barriers(STAGES, 1)"),
    "both consumers multiply one half of T": ("2 * stage + CONSUMER", "2 * stage"),
    "the halves of T are exchanged": ("2 * stage + half", "2 * stage + 1 - half"),
    "every product has the first stage of I": ("stage if STREAMED else k", "0 if STREAMED else k"),
    "the bytes of I are not announced": (
        "I.block_type.nbytes + 2 * T.block_type.nbytes", "2 * T.block_type.nbytes"),
    "stages of both are loaded while they are full": (
        "mbarrier.wait(pipeline.empty.index(stage), (loads // STAGES & 1) ^ 1) "
        "mbarrier.expect(full, I.block_type.nbytes + 2 * T.block_type.nbytes)",
        "mbarrier.expect(full, I.block_type.nbytes + 2 * T.block_type.nbytes)"),
    "the second consumer is never called": ("pred=k == (LEAD - 1) * (1 - CONSUMER)", "pred=False"),
    "a tile beyond the edge counts": ("M % ROWS or N % width", "M % ROWS or N % ROWS"),
    "loads are counted as if each tile had its own": (
        "S = product(resident, pipeline, order, number, K_BLOCKS, STREAMED, CONSUMER) * scale2",
        "S = product(resident, pipeline, order, 2 * number, K_BLOCKS, STREAMED, CONSUMER)"),
}


@pytest.fixture
def errors_of(tmp_path, monkeypatch):
    """errors_of(cases, right, wrong) → errors of a copy with that mistake in these cases."""
    monkeypatch.setattr(gluon_on_cpu, "SECONDS", 2.0)
    monkeypatch.setattr(gluon_on_cpu, "EARLY", 0.0)
    made = []

    def errors(cases, *mistake):
        file = ("triton_hopper.py",) if mistake else ()
        package = mutation.copied_package(tmp_path, monkeypatch, *file, *mistake)
        made.append(package)
        modules = [mutation.module_of(package, name)
                   for name in ("backends", "triton_blocks", "triton_hopper")]
        with prepared(modules, monkeypatch, programs=2, block=1024):
            return [max(excess(case, "hopper", loss=package.clip_loss).values()) for case in cases]

    yield errors
    for package in made:
        mutation.forget(package)


def resident():
    """Cases with both directions and with rows alone. There is an odd number of tiles, and a tile
    has more loads than the pipeline has stages.
    """
    return [pairs(600, 600, 300, dtype=torch.float16),
            pairs(500, 600, 300, dtype=torch.float16, offset=77)]


def streamed():
    """The same with wider features. The last tile of a row has no second beside it."""
    return [pairs(640, 640, 600, dtype=torch.float16),
            pairs(512, 640, 600, dtype=torch.float16, offset=77)]


@pytest.mark.slow
@ON_CPU
@pytest.mark.parametrize("cases", [resident, streamed])
def test_a_copy_without_mistakes_passes(cases, errors_of):
    assert max(errors_of(cases())) <= 1


@pytest.mark.slow
@ON_CPU
@pytest.mark.parametrize("mistake", [*MISTAKES, *STREAMED_MISTAKES])
@pytest.mark.filterwarnings("ignore")  # of threads that end with the mistake
def test_a_mistake_is_found(mistake, errors_of):
    """It gives NaN or wrong numbers, fails an assertion, or makes a part wait in vain."""
    cases = resident() if mistake in MISTAKES else streamed()
    try:
        errors = errors_of(cases, *(MISTAKES | STREAMED_MISTAKES)[mistake])
    except (gluon_on_cpu.Deadlock, AssertionError) as error:
        assert "must be there once" not in str(error)
    else:
        assert max(errors) > 2


# ------------------------------------------------------------------------------ on a GPU


WIDTHS = pytest.mark.parametrize("D", [512, 1024])


@ON_HOPPER
@TYPES
@WIDTHS
@pytest.mark.parametrize("programs", [5, 132])
def test_the_same_bits_200_times(programs, D, dtype, monkeypatch):
    case = pairs(1500, 1500, D, dtype=dtype)
    with prepare(monkeypatch, programs, block=1024):
        first = run(case, "hopper")
        for _ in range(200):
            again = run(case, "hopper")
            assert all((x == again[name]).all() for name, x in first.items())


@ON_HOPPER
@TYPES
@WIDTHS
@pytest.mark.parametrize("options", [{}, {"captions": 5}, {"offset": 8192}], ids=str)
def test_eight_thousand_against_blocks(options, D, dtype):
    """The backend "blocks" gives the same numbers. test_parity.py tests that one."""
    case = pairs(8192, 3 * 8192 if "offset" in options else 8192, D, dtype=dtype, **options)
    found, expected = (run(case, backend) for backend in ("hopper", "blocks"))
    for name, x in expected.items():
        tolerance = 1e-4 if name == "loss" else 2 * torch.finfo(dtype).eps
        assert np.abs(found[name] - x).max() <= tolerance * np.abs(x).max(), name


@ON_HOPPER
@TYPES
@WIDTHS
@pytest.mark.parametrize("M, offset", [(5000, 0), (5000, 3001), (8192, None)])
def test_every_entry_of_a_block_against_blocks(M, offset, D, dtype):
    """Gradients hide errors in small entries of G, because those of the pairs are much larger."""
    N, both = 8192, offset is None
    case = pairs(M, N, D, dtype=dtype, offset=offset)
    labels = backends.Labels(offset or 0, both)
    I, T, scale = case.images, case.texts, torch.tensor(case.scale, device="cuda")  # noqa: E741
    _, r, c = triton_loss.forward(I, T, scale, labels)
    found, expected = (I.new_full((M, N), torch.nan) for _ in range(2))
    for module, block in ((triton_hopper, found), (triton_blocks, expected)):
        module.write(block, I, T, scale, r, c, labels)
    torch.testing.assert_close(found, expected, rtol=2 * torch.finfo(dtype).eps,
                               atol=torch.finfo(dtype).tiny)


@ON_HOPPER
@TYPES
def test_auto_is_hopper_compiled_or_not(dtype):
    case = pairs(3000, 3000, 512, dtype=dtype)
    expected = run(case, "hopper")
    compiled = torch.compile(clip_loss, fullgraph=True)
    for name, x in run(case, "auto").items():
        assert (x == expected[name]).all(), name
    assert compiled(case.images, case.texts, case.scale).item() == expected["loss"]


@ON_HOPPER
def test_sums_that_fail_are_done_again():
    """Every text is opposite to its image, at scale 100: `finish` needs its running maximum."""
    images = torch.eye(1, 64, device="cuda", dtype=torch.float16).repeat(300, 1)
    assert max(excess(Case(images, -images, 100.0), "hopper").values()) <= 1
