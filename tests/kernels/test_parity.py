"""The loss's backends against the reference in float64: on CUDA if present, else on this CPU.

Without CUDA, Triton's kernels run in its interpreter (conftest.py sets TRITON_INTERPRET=1): the
same source and the same tests, tile by tile in NumPy. kernel_truth.py states the rule in full: the
largest error of the loss and of each gradient is at most twice that of plain PyTorch ("dense") at
the same precision, plus an allowance. The allowance is the effect of 4 ulp of the largest |S| and
√N / 2 ulp of 1 in float32, and for 16-bit features the rounding of G and of the result.
"""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_truth import (
    BLOCKS,
    DEVICE,
    FALLBACK,
    TRITON,
    Case,
    allowance,
    check,
    check_no_tile_is_missed,
    excess,
    matrices,
    pairs,
    run,
    skip_where_wrong,
    truth,
)
from miniclip_kernels import chunked, clip_loss, tiled
from miniclip_kernels.backends import HAS_TRITON

EACH = pytest.mark.parametrize("backend", [TRITON, BLOCKS, "tiled", "chunked"])
TYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda x: str(x)[6:])
ON_CUDA = pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
WHOLE_TILE = tiled.TILE


def small_blocks(monkeypatch, rows):
    if HAS_TRITON:
        from miniclip_kernels import triton_blocks

        monkeypatch.setattr(triton_blocks, "BLOCK", rows)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Few rows make several tiles for the tiled backend too, all of them ragged. For "blocks" they
    make several blocks, on CUDA as in the interpreter."""
    monkeypatch.setattr(tiled, "TILE", 24)
    monkeypatch.setattr(chunked, "TILE", 40)
    small_blocks(monkeypatch, 64)


# ------------------------------------------------------------------------------ sizes


@pytest.mark.slow
@EACH
@TYPES
def test_no_tile_is_missed_or_met_twice(dtype, backend, monkeypatch):
    """On a GPU, the size keeps all of it busy."""
    skip_where_wrong(backend, dtype)
    if DEVICE == "cuda":
        monkeypatch.setattr(tiled, "TILE", WHOLE_TILE)
        small_blocks(monkeypatch, 3000)
    check_no_tile_is_missed(backend, dtype, N=8192 if DEVICE == "cuda" else 256, D=256)


@EACH
@TYPES
@pytest.mark.parametrize("D", [1, 2, 3, 16, 33, 123])
@pytest.mark.parametrize("N", [1, 2, 15, 17])
def test_small(N, D, dtype, backend):
    skip_where_wrong(backend, dtype)
    check(pairs(N, N, D, dtype=dtype, seed=N + D), backend)


@pytest.fixture
def once(monkeypatch):
    """The tuner's candidate of "blocks" with one exponential an entry."""
    from miniclip_kernels import triton_tiles

    usual = triton_tiles.launch_options
    monkeypatch.setattr(triton_tiles, "launch_options", lambda kernel, *arguments: {
        **usual(kernel, *arguments), **({"ONCE": True} if kernel == "block" else {})})


@pytest.mark.parametrize("backend", [BLOCKS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("options", [
    {}, {"captions": 5}, {"scale": 100.0}, {"near": 20.0}], ids=str)
def test_one_exponential_an_entry(options, dtype, backend, once):
    check(pairs(150, 150, 33, dtype=dtype, **options), backend)


@pytest.mark.parametrize("backend", [BLOCKS])
def test_where_one_exponential_would_overflow_two_are_taken(backend, once):
    """Rows and columns whose sums lie 2^250 apart in one tile, as of features of many lengths."""
    case = pairs(64, 64, 33, scale=14.3)
    case.images[::2] *= 12
    case.texts[::2] *= 12
    check(case, backend)


@pytest.mark.slow
@EACH
@TYPES
@pytest.mark.parametrize("M, N, D, offset", [
    (15, 15, 507, None), (17, 17, 2048, None), (64, 64, 64, None), (113, 203, 33, 0),
    (113, 203, 33, 90), (252, 507, 123, 131), (1, 150, 20, 149), (70, 71, 5, 1)])
def test_larger(M, N, D, offset, dtype, backend):
    """Whole and ragged tiles, several slices of features, and fewer rows than columns."""
    skip_where_wrong(backend, dtype)
    check(pairs(M, N, D, offset=offset, dtype=dtype), backend)


@pytest.mark.slow
@EACH
def test_more_than_a_whole_tile(backend, monkeypatch):
    """Tiles and blocks as large as they are, or nearly."""
    monkeypatch.setattr(tiled, "TILE", WHOLE_TILE)
    small_blocks(monkeypatch, 512)
    check(pairs(600, 600, 6, scale=30.0), backend)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("seed", range(6))
def test_random_sizes(seed, backend):
    rng = np.random.default_rng(seed)
    M, more, D = rng.integers(1, 150), rng.integers(0, 80), rng.integers(1, 70)
    offset = None if seed % 2 else int(rng.integers(0, more + 1))
    dtype = (torch.float32, torch.float16)[seed // 2 % 2]
    check(pairs(M, M if offset is None else M + more, D, offset=offset, dtype=dtype, seed=seed,
                scale=float(rng.uniform(1, 60))), backend)


@pytest.mark.slow
@EACH
@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.data())
def test_any_size(backend, data):
    """Sizes and options drawn by hypothesis, the extremes first."""
    M, D = data.draw(st.integers(1, 70), "M"), data.draw(st.integers(1, 20), "D")
    N = M + data.draw(st.integers(0, 40), "N − M")
    rows = N > M or data.draw(st.booleans(), "rows only")
    check(pairs(M, N, D, offset=data.draw(st.integers(0, N - M), "offset") if rows else None,
                dtype=data.draw(st.sampled_from([torch.float32, torch.float16]), "dtype"),
                captions=data.draw(st.sampled_from([None, 1, 3]), "captions"),
                scale=data.draw(st.sampled_from([0.5, 14.3, 60.0]), "scale"),
                seed=data.draw(st.integers(0, 99), "seed")), backend)


# ------------------------------------------------------------------------------ structure


def planted(kind, scale, dtype):
    """70 pairs as training may produce them, or as only a test would make them."""
    case = pairs(70, 70, 10, scale=scale, dtype=dtype, near=20.0 if kind == "aligned" else 1.0)
    images, texts = case.images, case.texts
    if kind == "duplicates":  # every pair twice: a wrong answer as good as the right one
        images, texts = (x[:35].repeat(2, 1) for x in (images, texts))
    elif kind == "opposite":
        texts = -images
    elif kind == "one-hot":
        images = texts = torch.eye(70, device=DEVICE, dtype=dtype)
    elif kind == "all equal":
        images, texts = (x[:1].repeat(70, 1) for x in (images, texts))
    elif kind == "shifted":  # every image is as sure as can be of its neighbour's text
        texts = images.roll(1, 0)
    return Case(images, texts, scale)


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
@pytest.mark.parametrize(
    "kind", ["aligned", "duplicates", "opposite", "one-hot", "all equal", "shifted"])
@pytest.mark.filterwarnings(*FALLBACK)
def test_structure(kind, scale, dtype, backend):
    check(planted(kind, scale, dtype), backend)


@pytest.mark.slow
@EACH
@TYPES
@pytest.mark.parametrize("offset", [None, 0, 40])
def test_ids(offset, dtype, backend):
    skip_where_wrong(backend, dtype)
    M, N = (100, 100) if offset is None else (90, 130)
    case = pairs(M, N, 12, offset=offset, dtype=dtype, captions=5)
    left_out = np.isneginf(matrices(case)[0])
    assert left_out.sum() > 2 * N
    check(case, backend)


@EACH
def test_strides(backend):
    """Columns of storage as rows, and every second feature of wider ones."""
    case = pairs(70, 90, 20, offset=13)
    images = case.images.T.contiguous().T
    texts = case.texts.repeat_interleave(2, 1)[:, ::2]
    assert images.stride() == (1, 70) and texts.stride() == (40, 2)
    check(dataclasses.replace(case, images=images, texts=texts), backend)


@pytest.mark.parametrize("_", [TRITON])
def test_rows_are_copied_only_where_a_descriptor_cannot_take_them(_):
    """Pieces of memory that begin on 16 bytes: 4 float32, 8 of 16 bits."""
    from miniclip_kernels.triton_tiles import aligned

    x = torch.arange(96.0, device=DEVICE).reshape(6, 16)
    for fits in (x, x[2:], x[:, 4:9], x[::2], x.half()[:, 8:], x[:, :3]):
        assert aligned(fits) is fits
    for unfit in (x.T, x[:, 1:], x[:, ::2], x[:1, :5].expand(6, 5), x.half()[:, 4:],
                  x.flatten()[:90].reshape(18, 5)):
        copy = aligned(unfit)
        assert copy is not unfit and copy.equal(unfit) and aligned(copy) is copy


@pytest.mark.slow
@pytest.mark.parametrize("backend", [TRITON, BLOCKS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("M, N, D, options", [
    (128, 128, 64, {}), (113, 203, 33, {"offset": 90}), (70, 70, 67, {"captions": 5}),
    (1, 9, 5, {"offset": 8})], ids=str)
@pytest.mark.skipif(DEVICE != "cpu", reason="a GPU takes the way that it has hardware for")
def test_the_same_bits_without_hardware_for_descriptors(M, N, D, options, dtype, backend,
                                                        monkeypatch):
    """The path for GPUs older than Hopper."""
    from miniclip_kernels import triton_tiles

    case = pairs(M, N, D, dtype=dtype, **options)
    expected, ways = run(case, backend), []
    monkeypatch.setattr(triton_tiles, "architecture", lambda x: ways.append(x) or (8, 0))
    found = run(case, backend)
    assert len(ways) >= 7 and found.keys() == expected.keys()
    assert all((x == expected[name]).all() for name, x in found.items())


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("options", [
    {}, {"scale": 100.0}, {"offset": 0, "captions": 4}], ids=str)
def test_16_bits_are_read_exactly(options, dtype, backend):
    """Only G and the result are rounded. Plain PyTorch also rounds S, and is less exact."""
    skip_where_wrong(backend, dtype)
    case = pairs(90, 90, 16, dtype=dtype, **options)
    check(case, backend, plain=0)
    assert max(excess(case, "dense", plain=0).values()) > 1


@pytest.mark.parametrize("N, options", [
    (40, {}), (40, {"scale": 100.0}), (40, {"norm": 30.0, "scale": 100.0}), (40, {"captions": 4}),
    (43, {"offset": 3}), (43, {"offset": 2, "captions": 4})], ids=str)
def test_plain_pytorch_is_right_itself(N, options):
    """This is in float32. Otherwise "twice the error of plain PyTorch" would mean nothing."""
    check(pairs(40, N, 16, **options), "dense", plain=0)


@pytest.mark.parametrize("backend", ["tiled", "chunked", "dense", "numpy"])
@pytest.mark.parametrize("offset", [None, 5])
def test_float64(offset, backend):
    """No step in between is float32."""
    case = pairs(50, 50 if offset is None else 60, 7, dtype=torch.float64, captions=3,
                 offset=offset)
    true = truth(case)
    for name, found in run(case, backend).items():
        tolerance = 1e-6 if name == "ds" else 1e-13  # the scale's gradient is float32, as the scale
        np.testing.assert_allclose(found, true[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("options", [
    {}, {"direction": "rows", "label_offset": 3},
    {"direction": "rows", "label_offset": 2, "text_ids": [0, 1, 2, 1, 0, 4, 1, 0, 5]},
    {"text_ids": [0, 1, 2, 1, 0, 4]}], ids=str)
def test_gradcheck(options, monkeypatch):
    """PyTorch's own finite differences of clip_loss, called as a user calls it."""
    monkeypatch.setattr(tiled, "TILE", 4)
    M, N = (5, 9) if "direction" in options else (6, 6)
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(n, 3, generator=generator, dtype=torch.float64) for n in (M, N))
    options = dict(options)
    if "text_ids" in options:
        ids = torch.tensor(options["text_ids"])
        offset = options.get("label_offset", 0)
        options |= {"text_ids": ids, "image_ids": ids[offset:offset + M]}
    assert torch.autograd.gradcheck(
        lambda *given: clip_loss(*given, **options, backend="tiled"),
        [x.requires_grad_() for x in (images, texts, torch.tensor(1.5, dtype=torch.float64))])


# ------------------------------------------------------------------------------ running maxima


def near_an_axis(images, texts, **options):
    """Unit vectors within some 20° of an axis, or of its other end where the sign is −1."""
    generator = torch.Generator().manual_seed(0)
    features = []
    for signs in (images, texts):
        x = 0.1 * torch.randn(len(signs), 6, generator=generator)
        x[:, 0] += 1
        features.append((F.normalize(x) * torch.tensor(signs)[:, None]).to(DEVICE))
    return Case(*features, 100.0, options)


# Inputs for which a fixed shift is not enough, and the sums that fail.
FAILING = {
    "all opposite": (near_an_axis([1] * 70, [-1] * 70), "every row", "every column"),
    "one image": (near_an_axis([1] + [-1] * 69, [-1] * 70), "some row", "no column"),
    "one text": (near_an_axis([-1] * 70, [-1] * 66 + [1] + [-1] * 3), "no row", "some column"),
    "long": (pairs(70, 70, 10, norm=30.0, scale=100.0), "every row", "every column"),
    "too long for dense in float16": (pairs(70, 70, 10, norm=300.0, scale=100.0), "every row",
                                      "every column"),
    "rows only": (near_an_axis([1] * 40 + [-1] * 30, [-1] * 90, direction="rows", label_offset=11),
                  "some row", "no column"),
}


def outside(case):
    """Rows and columns whose sums of 2^(S' − shift) leave the window, in float32 NumPy."""
    from miniclip_kernels.triton_loss import HEADROOM, LARGEST, SMALLEST

    S = matrices(case)[0] / np.log(2)
    scale = case.scale / np.log(2)
    shift = max(0, scale - (HEADROOM - np.log2(max(S.shape))))
    with np.errstate(over="ignore", under="ignore"):
        E = np.exp2((S - shift).astype(np.float32))
        return [~((total >= SMALLEST.value) & (total <= LARGEST.value))
                for total in (E.sum(1), E.sum(0))]


@pytest.mark.parametrize("name", FAILING)
@pytest.mark.parametrize("backend", [TRITON])
def test_these_sums_do_fail(name, backend):
    """Without a running maximum the next test's inputs would give infinities or too small a sum."""
    case, *expected = FAILING[name]
    for failed, word in zip(outside(case), expected, strict=True):
        quantity, what = word.split()
        assert quantity == ("every" if failed.all() else "some" if failed.any() else "no"), what


@pytest.mark.slow
@EACH
@TYPES
@pytest.mark.parametrize("name", FAILING)
@pytest.mark.filterwarnings(*FALLBACK)
def test_sums_that_fail_are_done_again(name, dtype, backend):
    """With a running maximum, in the block of rows or columns that failed."""
    skip_where_wrong(backend, dtype)
    case = FAILING[name][0]
    check(dataclasses.replace(
        case, images=case.images.to(dtype), texts=case.texts.to(dtype)), backend)


@pytest.mark.parametrize("backend", [TRITON])
def test_unit_vectors_do_without(backend):
    """No sum of an ordinary batch fails, so the tests above do test the fixed shift."""
    for scale in (1.0, 14.3, 100.0):
        assert not any(failed.any() for failed in outside(pairs(100, 100, 16, scale=scale)))


# ------------------------------------------------------------------------------ PyTorch's switch


@pytest.fixture
def float32_precision():
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("backend", [TRITON])
def test_tf32_only_where_asked_for(backend, float32_precision):
    from miniclip_kernels.triton_tiles import tile_and_options

    images = pairs(4, 4, 4).images
    for precision, expected in (("highest", "ieee"), ("high", "tf32"), ("highest", "ieee")):
        float32_precision(precision)
        for kernel in ("sums", "finish", "gradient", "block"):
            tile, _ = tile_and_options(kernel, images, images)
            assert tile.PRECISION == expected


# ------------------------------------------------------------------------------ on a GPU


KERNELS = pytest.mark.parametrize("backend", ["triton", "blocks"])


@ON_CUDA
@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_200_times(dtype, backend, monkeypatch):
    small_blocks(monkeypatch, 512)
    case = pairs(1500, 1500, 64, dtype=dtype)
    first = run(case, backend)
    for _ in range(200):
        again = run(case, backend)
        assert all((x == again[name]).all() for name, x in first.items())


@ON_CUDA
@KERNELS
def test_tf32_is_felt(backend, float32_precision):
    case = pairs(500, 500, 64, scale=100.0)
    allowed, true = allowance(case), truth(case)
    for precision in ("highest", "high"):
        float32_precision(precision)
        error = np.abs(run(case, backend)["dI"] - true["dI"]).max() / allowed["dI"]
        assert (error <= 1) == (precision == "highest")


@ON_CUDA
@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"captions": 5}, {"offset": 8192}])
def test_eight_thousand_against_tiled(options, dtype, backend, monkeypatch):
    """A float64 matrix of this size takes too long for a test. "tiled" is the standard instead."""
    monkeypatch.setattr(tiled, "TILE", WHOLE_TILE)
    small_blocks(monkeypatch, 3000)
    case = pairs(8192, 3 * 8192 if "offset" in options else 8192, 256, dtype=dtype, **options)
    found, expected = (run(case, backend) for backend in (backend, "tiled"))
    rounding = 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 1e-4
    for name, x in expected.items():
        tolerance = 1e-4 if name == "loss" else rounding
        assert np.abs(found[name] - x).max() <= tolerance * np.abs(x).max(), name
