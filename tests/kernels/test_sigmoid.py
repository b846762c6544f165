"""The sigmoid loss: every backend against float64, as a caller sees it, and over several processes.

The rule is that of kernel_truth.py: the largest error of the loss and of each gradient is at most
twice that of plain PyTorch ("dense") at the same precision, plus the effect of rounding Z in
float32, and for 16-bit features of rounding G and the result.
"""

import math

import mutation
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernel_truth import BLOCKS, DEVICE, TRITON, skip_where_wrong
from miniclip_kernels import SigLipLoss, chunked, reference, sigmoid_loss, tiled
from miniclip_kernels.backends import HAS_TRITON
from processes import together
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils.flop_counter import FlopCounterMode

EACH = pytest.mark.parametrize("backend", [TRITON, BLOCKS, "tiled", "chunked"])
EVERY = pytest.mark.parametrize("backend", [TRITON, BLOCKS, "tiled", "chunked", "dense", "numpy"])
TYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda x: str(x)[6:])
NAMES = ("loss", "dI", "dT", "ds", "db")
UPSTREAM = 0.75


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Several tiles and blocks, all of them ragged."""
    monkeypatch.setattr(tiled, "TILE", 24)
    monkeypatch.setattr(chunked, "TILE", 40)
    if HAS_TRITON:
        from miniclip_kernels import triton_sigmoid

        monkeypatch.setattr(triton_sigmoid, "BLOCK", 64)


def features(N, D, seed=0, dtype=torch.float32, near=1.0):
    """Images and texts (N, D) whose texts lie near their images."""
    generator = torch.Generator().manual_seed(seed)
    images, texts = (torch.randn(N, D, generator=generator) for _ in range(2))
    return [F.normalize(x).to(DEVICE, dtype) for x in (images, texts + near * images)]


def run(images, texts, scale=10.0, bias=-10.0, loss=sigmoid_loss, **options):
    """Loss and gradients, as float64 arrays."""
    wide = torch.promote_types(images.dtype, torch.float32)
    leaves = [x.detach().requires_grad_() for x in (images, texts)]
    leaves += [torch.tensor(x, dtype=wide, device=DEVICE, requires_grad=True)
               for x in (scale, bias)]
    value = loss(*leaves, **options)
    (UPSTREAM * value).backward()
    return dict(zip(NAMES, (x.detach().double().cpu().numpy()
                            for x in (value, *(leaf.grad for leaf in leaves)))))


def arrays(images, texts, scale, bias):
    return (images.double().cpu().numpy(), texts.double().cpu().numpy(),
            float(np.float32(scale)), float(np.float32(bias)))


def truth(images, texts, scale=10.0, bias=-10.0, image_ids=None):
    ids = [None if image_ids is None else image_ids.cpu().numpy()] * 2
    loss, *gradients = reference.sigmoid_loss_and_gradients(
        *arrays(images, texts, scale, bias), 0, *ids)
    return dict(zip(NAMES, [loss, *(UPSTREAM * x for x in gradients)]))


def allowance(images, texts, scale=10.0, bias=-10.0, image_ids=None):
    """What rounding Z in float32, and G and the result in 16 bits, may do."""
    I, T, s, b = arrays(images, texts, scale, bias)  # noqa: E741
    Z, eps = s * I @ T.T + b, np.finfo(np.float32).eps
    δ = np.eye(len(I), dtype=bool)
    if image_ids is not None:
        δ |= np.equal.outer(*[image_ids.cpu().numpy()] * 2)
    σ = 1 / (1 + np.exp(-Z))
    half = least = 0.0
    if torch.finfo(images.dtype).bits == 16:
        half = torch.finfo(images.dtype).eps
        least = torch.finfo(images.dtype).smallest_normal * half
    ulps = 4 * np.spacing(np.float32(np.abs(Z).max() + abs(b) + s)) + len(I)**0.5 / 2 * eps
    error = (ulps * (σ + δ) + half * np.abs(σ - δ)) * UPSTREAM / len(I)
    A, B = np.abs(I), np.abs(T)
    lost = ulps * (np.abs(σ - δ).sum() / len(I) + 1)
    return {"loss": lost, "dI": (s * error @ B).max() + least,
            "dT": (s * error.T @ A).max() + least, "ds": (error * (A @ B.T)).sum(),
            "db": ulps * (σ + δ).sum() / len(I)}


def excess(backend, images, texts, loss=sigmoid_loss, **options):
    """{result: largest error over what the rule allows}: right if none is above 1."""
    true, allowed = truth(images, texts, **options), allowance(images, texts, **options)
    found, dense = ({name: np.abs(x - true[name]).max() for name, x in results.items()}
                    for results in (run(images, texts, loss=loss, backend=backend, **options),
                                    run(images, texts, backend="dense", **options)))
    ratios = {name: found[name] / (2 * dense[name] + allowed[name]) for name in NAMES}
    return {name: np.inf if np.isnan(x) else float(x) for name, x in ratios.items()}


def check(backend, images, texts, **options):
    ratios = excess(backend, images, texts, **options)
    assert max(ratios.values()) <= 1, ratios


# ------------------------------------------------------------------------------ parity


@EACH
@TYPES
@pytest.mark.parametrize("N, D", [(1, 1), (2, 3), (15, 16), (17, 33), (70, 5), (64, 64), (131, 67)])
def test_sizes(N, D, dtype, backend):
    skip_where_wrong(backend, dtype)
    check(backend, *features(N, D, seed=N, dtype=dtype))


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=lambda x: str(x)[6:])
@pytest.mark.parametrize("scale, bias", [(1.0, 0.0), (10.0, -10.0), (100.0, -50.0), (30.0, 20.0),
                                         (5.0, -90.0)])
@pytest.mark.parametrize("near", [0.0, 20.0])
def test_scales_and_biases(near, scale, bias, dtype, backend):
    """Far on either side of what training gives: probabilities of 1, and down to e⁻⁹⁵."""
    check(backend, *features(90, 12, dtype=dtype, near=near), scale=scale, bias=bias)


@EACH
@TYPES
def test_ids_name_all_texts_of_an_image(dtype, backend):
    skip_where_wrong(backend, dtype)
    ids = torch.arange(95, device=DEVICE) // 3
    given = features(95, 12, dtype=dtype)
    check(backend, *given, image_ids=ids)
    alone = truth(*given)["loss"]
    assert truth(*given, image_ids=ids)["loss"] > alone + 1, "other texts of an image count"


@EVERY
def test_by_hand(backend):
    """Two pairs at right angles: two entries of s + b that belong, two of b that don't."""
    found = run(torch.eye(2, device=DEVICE), torch.eye(2, device=DEVICE), 3.0, -1.0,
                backend=backend)
    right, wrong = math.log1p(math.exp(-2.0)), math.log1p(math.exp(-1.0))
    assert found["loss"] == pytest.approx(right + wrong, rel=1e-6)
    p, q = 1 / (1 + math.exp(-2.0)) - 1, 1 / (1 + math.exp(1.0))
    assert found["ds"] == pytest.approx(UPSTREAM * p, rel=1e-5)
    assert found["db"] == pytest.approx(UPSTREAM * (p + q), rel=1e-5)
    expected = UPSTREAM * 3 / 2 * np.array([[p, q], [q, p]])
    np.testing.assert_allclose(found["dI"], expected, rtol=1e-5)


@pytest.mark.parametrize("backend", ["tiled", "chunked", "dense", "numpy"])
def test_float64(backend):
    given = features(50, 7, dtype=torch.float64)
    ids = torch.arange(50, device=DEVICE) // 2
    true = truth(*given, image_ids=ids)
    for name, x in run(*given, image_ids=ids, backend=backend).items():
        np.testing.assert_allclose(x, true[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("ids", [None, [0, 1, 1, 2, 0]])
def test_gradcheck(ids, monkeypatch):
    """PyTorch's own finite differences."""
    monkeypatch.setattr(tiled, "TILE", 3)
    given = [x.requires_grad_() for x in features(5, 3, dtype=torch.float64)]
    given += [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (2.0, -1.0)]
    ids = None if ids is None else torch.tensor(ids)
    assert torch.autograd.gradcheck(
        lambda *given: sigmoid_loss(*given, image_ids=ids, backend="tiled"), given)


@EVERY
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_nan_is_not_hidden(backend):
    images, texts = features(9, 4)
    images[3, 1] = torch.nan
    found = run(images, texts, backend=backend)
    assert all(np.isnan(found[name]).all() for name in ("loss", "ds", "db", "dT"))
    assert np.isnan(found["dI"][3]).all()


# ------------------------------------------------------------------------------ as a caller sees it


@EVERY
@pytest.mark.parametrize("wanted", range(16))
def test_only_who_asks_gets_a_gradient(wanted, backend):
    """wanted: a bit for each of images, texts, scale, bias."""
    leaves = [*features(5, 4), *(torch.tensor(x, device=DEVICE) for x in (10.0, -10.0))]
    everything = run(*leaves[:2], backend=backend)
    for bit, leaf in enumerate(leaves):
        leaf.requires_grad_(bool(wanted >> bit & 1))
    loss = sigmoid_loss(*leaves, backend=backend)
    assert loss.requires_grad == (wanted > 0)
    if wanted:
        (UPSTREAM * loss).backward()
    for leaf, name in zip(leaves, NAMES[1:], strict=True):
        if leaf.requires_grad:
            np.testing.assert_allclose(leaf.grad.cpu(), everything[name], rtol=1e-5, atol=1e-7)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("backend", ["tiled", "chunked"])
def test_three_products_and_none_that_nobody_wants(backend):
    """S, G T and Gᵀ I in the forward pass; the backward pass only multiplies by two factors."""
    images, texts = (x.requires_grad_() for x in features(40, 8))

    def operations(*given):
        with FlopCounterMode(display=False) as counter:
            loss = sigmoid_loss(*given, 10.0, -10.0, backend=backend)
        with FlopCounterMode(display=False) as later:
            loss.backward() if loss.requires_grad else None
        assert later.get_total_flops() == 0
        return counter.get_total_flops() / (2 * 40 * 40 * 8)

    frozen = [x.detach() for x in (images, texts)]
    assert [operations(*given) for given in (
        (images, texts), (frozen[0], texts), (images, frozen[1]), frozen)] == [3, 2, 2, 1]


def test_under_autocast_features_have_its_type():
    images, texts = features(40, 16)
    dtype = torch.bfloat16
    with torch.autocast(DEVICE, dtype):
        loss = sigmoid_loss(images, texts, 10.0, -10.0)
        mixed = sigmoid_loss(images.to(dtype), texts, 10.0, -10.0)
    expected = sigmoid_loss(images.to(dtype), texts.to(dtype), 10.0, -10.0)
    assert loss.equal(expected) and mixed.equal(expected) and loss.dtype == torch.float32


@pytest.mark.parametrize("backend", ["auto", "tiled", "dense", TRITON, BLOCKS])
def test_compiled_in_one_graph_for_any_scale(backend):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    ids = torch.arange(9, device=DEVICE) // 2
    images, texts = (x.requires_grad_() for x in features(9, 5))

    def whole(images, texts, scale, bias):
        return sigmoid_loss(images, texts, scale, bias, image_ids=ids, backend=backend)

    compiled = torch.compile(whole, backend=counter, fullgraph=True)
    for scale, bias in ((10.0, -10.0), (12.5, -9.0), (14.0, -8.0), (3.0, 1.5)):
        found, expected = ([loss, *torch.autograd.grad(loss, [images, texts])]
                           for loss in (f(images, texts, scale, bias) for f in (compiled, whole)))
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert counter.frame_count <= 2


def test_compiled_once_for_every_batch_size():
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *given: sigmoid_loss(*given, 10.0, -10.0), backend=counter,
                             fullgraph=True, dynamic=True)
    for N in range(5, 9):
        given = [x.requires_grad_() for x in features(N, 4)]
        found, expected = ([loss, *torch.autograd.grad(loss, given)] for loss in (
            compiled(*given), sigmoid_loss(*given, 10.0, -10.0)))
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    assert counter.frame_count == 1


def test_no_gradients_of_gradients():
    """They are refused, not wrong. "dense" has them."""
    images, texts = (x.requires_grad_() for x in features(5, 4))
    with pytest.raises(RuntimeError, match="no gradients of gradients"):
        torch.autograd.grad(sigmoid_loss(images, texts, 10.0, -10.0), images, create_graph=True)
    gradient, = torch.autograd.grad(sigmoid_loss(images, texts, 10.0, -10.0, backend="dense"),
                                    images, create_graph=True)
    gradient.sum().backward()


def test_shapes_without_data():
    images, texts = (torch.empty(9, 4, device="meta", requires_grad=True) for _ in range(2))
    loss = sigmoid_loss(images, texts, 10.0, -10.0)
    loss.backward()
    assert loss.is_meta and images.grad.shape == (9, 4)


@EVERY
def test_the_module_is_open_clips(backend):
    """open_clip's formula, written out: labels of 2·1 − 1, and logsigmoid."""
    images, texts = (x.requires_grad_() for x in features(11, 6))
    scale, bias = (torch.tensor(x, device=DEVICE, requires_grad=True) for x in (12.0, -9.0))
    logits = scale * images @ texts.T + bias
    loss = -F.logsigmoid((2 * torch.eye(11, device=DEVICE) - 1) * logits).sum() / 11
    leaves = [images, texts, scale, bias]
    expected = [loss, *torch.autograd.grad(loss, leaves)]
    ours = SigLipLoss(cache_labels=True, rank=0, world_size=1, dist_impl="bidir", backend=backend)
    for loss in (ours(*leaves), ours(*leaves, output_dict=True)["contrastive_loss"]):
        for x, y in zip([loss, *torch.autograd.grad(loss, leaves)], expected, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


X = torch.eye(4)


@pytest.mark.parametrize("arguments, options, message", [
    ((X, X[:3], 9.0, 0.0), {}, "direction 'both' needs as many texts as images"),
    ((X, X, -9.0, 0.0), {}, "logit_scale is the multiplier: finite and positive; got -9"),
    ((X, X, 9.0, None), {}, "logit_bias must be a float or a tensor, not None"),
    ((X, X, 9.0, torch.ones(2)), {}, "logit_bias must be a float or a tensor of one floating"),
    ((X, X, 9.0, True), {}, "logit_bias must be a float or a tensor, not True"),
    ((X, X, 9.0, 0.0), {"backend": "hopper"}, "backend 'hopper' takes bfloat16 or float16 and D"),
    ((X, X, 9.0, 0.0), {"backend": "cuda"}, "backend 'cuda' is not one of auto, triton"),
    ((X, X, 9.0, 0.0), {"image_ids": torch.ones(4)}, "image_ids must be a tensor (4,) of int64"),
    ((X, X, 9.0, 0.0), {"group": 3}, "group must be a torch.distributed.ProcessGroup")])
def test_bad_input_is_one_clear_line(arguments, options, message):
    with pytest.raises(ValueError) as error:
        sigmoid_loss(*arguments, **options)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_unknown_way_to_distribute_is_refused():
    with pytest.raises(ValueError, match="dist_impl 'star' is not one of bidir, shift"):
        SigLipLoss(dist_impl="star")


# ------------------------------------------------------------------------------ several processes


def shares(rank, count, cases):
    """Of each case, the mean over the processes of losses and gradients."""
    found = []
    for dtype, with_ids, weights, compiled, backend in cases:
        leaves, ids = batch(count, dtype)
        own = slice(rank * 6, (rank + 1) * 6)
        loss_of = SigLipLoss(rank=rank, world_size=count, backend=backend)
        if with_ids:
            def loss_of(*given, ids=ids[own], backend=backend):
                return sigmoid_loss(*given, image_ids=ids, backend=backend,
                                    group=torch.distributed.group.WORLD)
        if compiled:
            loss_of = torch.compile(loss_of, backend="aot_eager", fullgraph=True)
        loss = loss_of(leaves[0][own], leaves[1][own], *leaves[2:]) * weights[rank]
        results = [loss.detach(), *torch.autograd.grad(loss, leaves)]
        for x in results:
            torch.distributed.all_reduce(x)
            x /= count
        found.append(results)
    return found


def batch(count, dtype):
    generator = torch.Generator().manual_seed(count)
    leaves = [F.normalize(torch.randn(count * 6, 5, generator=generator, dtype=torch.float64))
              .to(dtype) for _ in range(2)]
    wide = torch.promote_types(dtype, torch.float32)
    leaves += [torch.tensor(x, dtype=wide) for x in (9.0, -4.0)]
    return ([x.requires_grad_() for x in leaves],
            torch.randint(count * 3, (count * 6,), generator=generator))


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_several_processes_are_one(count, tmp_path):
    alike, triton = [2.0] * count, "triton" if HAS_TRITON and DEVICE == "cpu" else "tiled"
    compiled = count == 2  # it takes seconds
    cases = [(torch.float64, False, alike, False, "auto"),
             (torch.float64, False, alike, compiled, "auto"),  # the module itself
             (torch.float64, True, alike, False, "tiled"),
             (torch.float64, True, alike, compiled, "tiled"),
             (torch.float32, True, alike, False, triton),
             (torch.float64, True, [1.0] * (count - 1) + [2.0], False, "tiled")]
    for found in together(count, tmp_path, shares, cases):
        for (dtype, with_ids, weights, *_), results in zip(cases, found, strict=True):
            leaves, ids = batch(count, dtype)
            if len(set(weights)) > 1:
                assert all(x.isnan().all() for x in results[1:])
                continue
            loss = 2 * sigmoid_loss(*leaves, image_ids=ids if with_ids else None, backend="dense")
            expected = [loss, *torch.autograd.grad(loss, leaves)]
            tolerance = 1e-12 if dtype == torch.float64 else 1e-5
            for x, y in zip(results, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


# ------------------------------------------------------------------------------ mistakes

ALL, GRADIENTS = list(NAMES), list(NAMES[1:])
MISTAKES = {
    "the bias is not in base 2": (
        "triton", "triton_sigmoid.py", ALL, "dot_products(S, first_row, first_column, tile) + "
        "bias * LOG2E", "dot_products(S, first_row, first_column, tile) + bias"),
    "the loss is in base 2": (
        "triton", "triton_sigmoid.py", ["loss"], "losses.sum() / LOG2E.value", "losses.sum()"),
    "softplus of the wrong sign": (
        "triton", "triton_sigmoid.py", ["loss"], "tl.where(belong, softplus - Z, softplus)",
        "tl.where(belong, softplus + Z, softplus)"),
    "small exponentials are dropped": (
        "triton", "triton_sigmoid.py", ["loss"], "(e - e * e * (0.5 - e / 3)) * LOG2E", "0.0"),
    "sigmoid of the wrong side": (
        "triton", "triton_sigmoid.py", GRADIENTS, "tl.where(Z < 0, e, 1.0)",
        "tl.where(Z < 0, 1.0, e)"),
    "the truth is not subtracted": (
        "triton", "triton_sigmoid.py", GRADIENTS, "tl.where(belong, G - 1, G)", "G"),
    "the edge counts": (
        "triton", "triton_sigmoid.py", ["loss", "db"],
        "(rows < M)[:, None] & (columns < N)[None, :]",
        "(rows <= M)[:, None] & (columns <= N)[None, :]"),
    "ids are ignored": (
        "triton", "triton_sigmoid.py", ALL, "belong | (own == others)", "belong"),
    "the transposed matrix is not": (
        "triton", "triton_sigmoid.py", ["dT"],
        "Matrix(texts, images, -pairs.label_offset, S.scale)", "S"),
    "both sides count": (
        "triton", "triton_sigmoid.py", ["db"], "totals.sum(), sum_I", "2 * totals.sum(), sum_I"),
    "blocks: each restarts the sums of the texts": (
        "blocks", "triton_sigmoid.py", ["dT"], "block.T, I[rows], first=rows.start == 0",
        "block.T, I[rows], first=True"),
    "blocks: each restarts the sums of the images": (
        "blocks", "triton_sigmoid.py", ["dI"], "block, T[columns], first=columns.start == 0",
        "block, T[columns], first=True"),
    "blocks: the boost stays in": (
        "blocks", "triton_sigmoid.py", ["dI", "dT", "ds"], "sums /= boost(I.dtype)", "pass"),
    "tiled: the pairs' sign": ("tiled", "tiled.py", ["loss"], "loss -= Z.where(belong, 0).sum()",
                               "loss += Z.where(belong, 0).sum()"),
    "tiled: the truth is not subtracted": (
        "tiled", "tiled.py", GRADIENTS, ".sub_(belong.to(Z.dtype))", ""),
    "tiled: other texts of the image don't belong": (
        "tiled", "tiled.py", ALL, "labels.image_ids[rows, None] == labels.text_ids[None, columns]\n"
        "    found.diagonal(diagonal(rows, columns, labels.label_offset)).fill_(True)",
        "torch.zeros(rows.stop - rows.start, columns.stop - columns.start, dtype=torch.bool)\n"
        "    found.diagonal(diagonal(rows, columns, labels.label_offset)).fill_(True)"),
    "the mean is over entries": ("tiled", "sigmoid_loss.py", ["loss"], "[loss / len(I), total]",
                                 "[loss / len(I) ** 2, total]"),
    "the upstream gradient is ignored": ("tiled", "sigmoid_loss.py", GRADIENTS,
                                         "upstream / ctx.count", "1 / ctx.count"),
    "the scale is missing": ("tiled", "sigmoid_loss.py", ["dI"], "(dI * (scale * factor))",
                             "(dI * factor)")}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tiled", TRITON, BLOCKS])
def test_a_copy_without_mistakes_passes(backend, tmp_path, monkeypatch):
    package = mutation.copied_package(tmp_path, monkeypatch)
    try:
        ids = torch.arange(67, device=DEVICE) // 2
        ratios = excess(backend, *features(67, 20, dtype=torch.float16), package.sigmoid_loss,
                        image_ids=ids)
    finally:
        mutation.forget(package)
    assert max(ratios.values()) <= 1, ratios


@pytest.mark.slow
@pytest.mark.parametrize("name, backend", [
    pytest.param(name, mistake[0], id=name, marks=() if mistake[0] == "tiled" else TRITON.marks)
    for name, mistake in MISTAKES.items()])
def test_a_mistake_is_found(name, backend, tmp_path, monkeypatch):
    """The errors of the results that must show it are well above the limit."""
    _, file, shows, right, wrong = MISTAKES[name]
    package = mutation.copied_package(tmp_path, monkeypatch, file, right, wrong)
    try:
        if backend == "blocks":
            mutation.module_of(package, "triton_sigmoid").BLOCK = 64
        ids = torch.arange(67, device=DEVICE) // 2
        ratios = excess(backend, *features(67, 20, dtype=torch.float16), package.sigmoid_loss,
                        image_ids=ids)
    finally:
        mutation.forget(package)
    assert min(ratios[name] for name in shows) > 2, ratios
