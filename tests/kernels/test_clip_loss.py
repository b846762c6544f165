"""Tests of clip_loss.py: what a caller may pass and gets back, from every backend alike.

test_parity.py tests how exact each backend is, test_reference.py the equations.
"""

import itertools
import math
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernel_truth import BLOCKS, DEVICE, FALLBACK, TRITON, pairs, run, truth
from miniclip_kernels import ClipLoss, autograd, backends, clip_loss, sigmoid_loss, tiled
from miniclip_kernels.backends import choose
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

EVERY = pytest.mark.parametrize("backend", ["dense", "tiled", "chunked", TRITON, BLOCKS, "numpy"])
ROUNDING = 3e-5  # of a loss or gradient near 0, with |S| = 100 and the logarithms of GPUs
BUT_NUMPY = pytest.mark.parametrize("backend", ["dense", "tiled", "chunked", TRITON, BLOCKS])


def features(M, D, N=None, seed=0, dtype=torch.float32):
    """Unit vectors (M, D) and (N, D), both leaves that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    return [F.normalize(torch.randn(n, D, generator=generator)).to(DEVICE, dtype).requires_grad_()
            for n in (M, N or M)]


def loss_and_gradients(images, texts, scale, **options):
    """The loss and the gradients of all three, as if nothing had been computed before."""
    leaves = [x.detach().requires_grad_() for x in (images, texts)]
    scale = torch.as_tensor(scale, device=DEVICE).detach().requires_grad_()
    loss = clip_loss(*leaves, scale, **options)
    return [loss, *torch.autograd.grad(loss, [*leaves, scale])]


def assert_same(found, expected):
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------ what comes back


@EVERY
def test_the_loss_is_a_float32_scalar_with_gradients_like_the_input(backend):
    for dtype in (torch.float32, torch.float16, torch.float64):
        if dtype == torch.float64 and backend in ("triton", "blocks"):
            continue
        images, texts = features(5, 4, dtype=dtype)
        scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
        loss = clip_loss(images, texts, scale, backend=backend)
        loss.backward()
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert loss.shape == () and loss.dtype == wide and loss.device == images.device
        for leaf in (images, texts, scale):
            assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == leaf.dtype


@EVERY
@pytest.mark.parametrize("n", [2, 17, 100])
def test_features_that_say_nothing_cost_ln_n(n, backend):
    """All are alike, so every answer is as good as any other: ln N, whatever the scale."""
    same = torch.ones(n, 8, device=DEVICE) / math.sqrt(8)
    for scale in (1.0, 100.0):
        loss = clip_loss(same, same, scale, backend=backend)
        assert loss.item() == pytest.approx(math.log(n), abs=ROUNDING)


@EVERY
def test_one_pair_has_no_wrong_answer(backend):
    """All is 0 but for a GPU's rounding of S' up to 144; gradients have it times the scale."""
    loss, *gradients = loss_and_gradients(*features(1, 8), 100.0, backend=backend)
    assert loss.abs() < ROUNDING
    allowed = ROUNDING if DEVICE == "cpu" else 100 * 2**-15
    assert all(x.abs().max() < allowed for x in gradients)


@EVERY
def test_right_pairs_cost_nothing_and_wrong_ones_the_scale(backend):
    eye = torch.eye(4, device=DEVICE)
    assert clip_loss(eye, eye, 100.0, backend=backend).item() == pytest.approx(0, abs=ROUNDING)
    wrong = clip_loss(eye, eye.roll(1, 0), 100.0, backend=backend)
    assert wrong.item() == pytest.approx(100, rel=1e-5)


@EVERY
def test_both_directions_count(backend):
    """All texts lie near image 0. Exchanging images and texts does not change the loss."""
    images = torch.eye(3, device=DEVICE)
    texts = torch.tensor([[1, 0, 0], [1, 0.1, 0], [1, 0, 0.1]], device=DEVICE)
    both, back = (clip_loss(x, y, 10.0, backend=backend) for x, y in ((images, texts),
                                                                     (texts, images)))
    rows, columns = (clip_loss(x, y, 10.0, direction="rows", backend=backend)
                     for x, y in ((images, texts), (texts, images)))
    assert abs(rows - columns) > 1
    assert_same([both, both], [back, (rows + columns) / 2])


@EVERY
@pytest.mark.filterwarnings(*FALLBACK)
def test_large_similarities_do_not_overflow(backend):
    images, texts = (1000 * x for x in features(8, 4))
    assert all(x.isfinite().all() for x in loss_and_gradients(images, texts, 100.0,
                                                              backend=backend))


@EVERY
@pytest.mark.filterwarnings(*FALLBACK)
def test_nan_is_not_hidden(backend):
    """One NaN in an image reaches every text's gradient: each text is compared with that image."""
    images, texts = features(5, 4)
    for index in range(5):
        broken = images.detach().clone()
        broken[index, 1] = torch.nan
        loss, dI, dT, ds = loss_and_gradients(broken, texts, 10.0, backend=backend)
        assert loss.isnan() and ds.isnan() and dI[index].isnan().all() and dT.isnan().all()
    for scale in (math.nan, torch.tensor(math.nan)):
        assert clip_loss(images, texts, scale, backend=backend).isnan()


@EVERY
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.filterwarnings(*FALLBACK)
def test_infinity_is_not_hidden(value, backend):
    """inf − inf is nothing: one infinite feature leaves no loss and no gradient."""
    images, texts = features(9, 4)
    broken = images.detach().clone()
    broken[3, 1] = value
    assert all(x.isnan().all() for x in loss_and_gradients(broken, texts, 10.0, backend=backend))


@BUT_NUMPY
@pytest.mark.parametrize("norm", [1e3, 1e6, 1e10, 1e15])
@pytest.mark.filterwarnings(*FALLBACK)
def test_features_far_from_unit_length_have_finite_gradients(norm, backend):
    """The loss is right, and gradients are finite, if not exact: "triton" multiplies S again in
    other tiles, and what is rounded differently is some 1e-7 of a large S."""
    images, texts = (norm * x.detach() for x in features(40, 8))
    loss, *gradients = loss_and_gradients(images, texts, 10.0, backend=backend)
    expected = loss_and_gradients(images.double(), texts.double(), 10.0, backend="numpy")
    torch.testing.assert_close(loss, expected[0].float(), rtol=1e-5, atol=0)
    for found, right in zip(gradients, expected[1:], strict=True):
        assert found.isfinite().all()
        if backend != "triton":
            assert (found - right).abs().max() < 1e-4 * right.abs().max()


@BUT_NUMPY
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-6), (torch.float16, 1e-4)])
def test_the_scales_gradient_where_every_pair_comes_twice(dtype, most, backend):
    """Two right answers for every question: the gradient is next to nothing, a difference of large
    terms. In 16 bits G is rounded before they are summed ("tiled" and "dense" don't round it)."""
    images = features(40, 256, dtype=dtype)[0].detach().repeat(2, 1)
    ds = loss_and_gradients(images, images, 14.3, backend=backend)[3]
    right = loss_and_gradients(images.double(), images.double(), 14.3, backend="numpy")[3]
    assert -1e-3 < right < -1e-5 and abs(ds - right) < most


# ------------------------------------------------------------------------------ the arguments


@EVERY
@pytest.mark.parametrize("scale", [
    20, np.float64(20), torch.tensor(20.0), torch.tensor([20.0]), torch.tensor([[20.0]]),
    torch.tensor(20.0).double(), torch.tensor(20.0).half(), torch.nn.Parameter(torch.tensor(20.0)),
], ids=repr)
def test_the_scale_is_a_number_or_a_tensor_of_one(scale, backend):
    expected = clip_loss(*features(6, 4), 20.0, backend=backend).item()
    loss = clip_loss(*features(6, 4), scale, backend=backend)
    assert loss.dtype == torch.float32 and loss.item() == expected
    if isinstance(scale, torch.Tensor):
        scale = scale.detach().requires_grad_()
        clip_loss(*features(6, 4), scale, backend=backend).backward()
        assert scale.grad.shape == scale.shape and scale.grad.dtype == scale.dtype


@EVERY
@pytest.mark.parametrize("wanted", range(8))
def test_only_who_asks_gets_a_gradient(wanted, backend):
    """wanted: a bit for each of images, texts, scale."""
    leaves = [*features(5, 4), torch.tensor(10.0, device=DEVICE)]
    everything = loss_and_gradients(*leaves, backend=backend)
    for bit, leaf in enumerate(leaves):
        leaf.requires_grad_(bool(wanted >> bit & 1))
    loss = clip_loss(*leaves, backend=backend)
    assert loss.requires_grad == (wanted > 0)
    if wanted:
        loss.backward()
    for leaf, gradient in zip(leaves, everything[1:], strict=True):
        if leaf.requires_grad:
            assert_same([leaf.grad], [gradient])
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("backend", ["tiled", "chunked", BLOCKS])
@pytest.mark.parametrize("frozen", ["images", "texts", "both"])
def test_a_frozen_tower_costs_no_product(frozen, backend, monkeypatch):
    """G T, or Gᵀ I: a product of PyTorch's for each gradient that is wanted."""
    monkeypatch.setattr(tiled, "TILE", 16)
    images, texts = features(40, 8)
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)

    def operations(*given):
        loss = clip_loss(*given, scale, backend=backend)
        with FlopCounterMode(display=False) as counter:
            loss.backward()
        return counter.get_total_flops()

    with_products = backend != "blocks"  # S of "blocks" is computed by a kernel
    product = operations(images, texts) / (2 + with_products)
    assert product == 2 * 40 * 40 * 8
    given = [x.detach() if frozen in (name, "both") else x
             for name, x in (("images", images), ("texts", texts))]
    assert operations(*given) == (1 + with_products) * product


@pytest.mark.parametrize("backend", [TRITON])
def test_a_frozen_tower_has_no_programs(backend, monkeypatch):
    from miniclip_kernels import triton_loss

    grids, kernel = [], triton_loss.gradient_kernel

    class Watched:
        def __getitem__(self, grid):
            grids.append(grid)
            return kernel[grid]

    monkeypatch.setattr(triton_loss, "gradient_kernel", Watched())
    images, texts = features(70, 8, N=200)
    options = {"direction": "rows", "backend": backend}
    for given in ((images, texts), (images.detach(), texts), (images, texts.detach())):
        clip_loss(*given, 10.0, **options).backward()
    blocks_I, blocks_T = -(-70 // 32), -(-200 // 32)  # of 32 rows, in float32
    assert [grid[0] for grid in grids] == [blocks_I + blocks_T, blocks_T, blocks_I]


@EVERY
def test_twice_in_one_graph(backend):
    """Gradients add up, each with the factor that its loss got."""
    images, texts = features(5, 4)
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    once = loss_and_gradients(images, texts, scale, backend=backend)
    swapped = loss_and_gradients(texts.flip(0), images, scale, backend=backend)
    loss = (3 * clip_loss(images, texts, scale, backend=backend)
            - clip_loss(texts.flip(0), images, scale, backend=backend) / 2)
    loss.backward()
    assert_same([images.grad, texts.grad, scale.grad], [
        3 * once[1] - swapped[2] / 2, 3 * once[2] - swapped[1].flip(0) / 2,
        3 * once[3] - swapped[3] / 2])


@pytest.mark.slow
@EVERY
def test_any_strides(backend):
    """Transposed, every second number, a corner of something wider, one row or column repeated."""
    wide = torch.randn(10, 12, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    views = [wide[:6, :6].T, wide[:6, ::2], wide[1:7, 6:], wide[:1, :6].expand(6, 6),
             wide[:6, :1].expand(6, 6)]
    for images, texts in itertools.product(views, views):
        expected = loss_and_gradients(images.clone(memory_format=torch.contiguous_format),
                                      texts.clone(memory_format=torch.contiguous_format), 1.5,
                                      backend=backend)
        assert_same(loss_and_gradients(images, texts, 1.5, backend=backend), expected)


@EVERY
def test_a_view_with_its_sign_turned(backend):
    """PyTorch may keep a minus in a tensor's flags, where a kernel does not see it."""
    images, texts = features(9, 8)
    turned = torch._neg_view(images.detach())
    assert turned.is_neg()
    assert_same(loss_and_gradients(turned, texts, 9.0, backend=backend),
                loss_and_gradients(-images.detach(), texts, 9.0, backend=backend))


@EVERY
def test_the_same_bits_every_time(backend):
    images, texts = features(70, 9)
    first, second = (loss_and_gradients(images, texts, 30.0, backend=backend) for _ in range(2))
    assert all(x.equal(y) for x, y in zip(first, second, strict=True))


def test_no_gradients_of_gradients():
    """They are refused, not wrong. "dense" supports them."""
    images, texts = features(3, 4)
    gradient, = torch.autograd.grad(
        clip_loss(images, texts, 10.0, backend="tiled"), images, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula was registered"):
        gradient.sum().backward()


# ------------------------------------------------------------------------------ who belongs to whom


@EVERY
@pytest.mark.parametrize("offset", [0, 1, 9])
def test_rows_are_cross_entropy_towards_their_labels(offset, backend):
    images, texts = features(5, 4, N=14)
    found = loss_and_gradients(images, texts, 10.0, label_offset=offset, direction="rows",
                               backend=backend)
    labels = torch.arange(offset, offset + 5, device=DEVICE)
    scale = torch.tensor(10.0, device=DEVICE, requires_grad=True)
    loss = F.cross_entropy(scale * images @ texts.T, labels)
    assert_same(found, [loss, *torch.autograd.grad(loss, [images, texts, scale])])


@EVERY
def test_rows_in_two_halves_are_the_whole(backend):
    """What the label offset is for: each process has its share of the images."""
    images, texts = features(6, 4)
    whole = clip_loss(images, texts, 10.0, direction="rows", backend=backend)
    halves = [clip_loss(images[i:i + 3], texts, 10.0, direction="rows", label_offset=i,
                        backend=backend) for i in (0, 3)]
    assert_same([whole], [sum(halves) / 2])


@EVERY
def test_captions_of_the_same_image_are_no_wrong_answers(backend):
    """By hand: pairs 0 and 1 share an image; each has one wrong answer left, pair 2 has two."""
    eye, s = torch.eye(3, device=DEVICE), 2.0
    ids = torch.tensor([7, 7, 9], device=DEVICE)
    loss, dI, dT, ds = loss_and_gradients(eye, eye, s, image_ids=ids, backend=backend)
    one, two = (k / (k + math.exp(s)) for k in (1, 2))  # probability of all wrong answers
    assert loss.item() == pytest.approx((2 * math.log1p(math.exp(-s))
                                         + math.log1p(2 * math.exp(-s))) / 3)
    # ∂L/∂S = ½ (row softmax + column softmax − 2δ) / 3, and 0 for what is left out
    wrong = (one + two / 2) / 2  # softmax of row 0 at column 2, and of column 2 at row 0
    expected = torch.tensor(
        [[-one, 0, wrong], [0, -one, wrong], [wrong, wrong, -two]], device=DEVICE) / 3
    assert_same([dI, dT, ds], [s * expected, s * expected.T, expected.diagonal().sum()])


@EVERY
def test_ids_of_either_side(backend):
    """Their numbers don't matter, only which are equal; one stands for both where M = N."""
    images, texts = features(5, 4)
    ids = torch.tensor([3, 1, 3, 2, 1], device=DEVICE)
    expected = loss_and_gradients(images, texts, 10.0, image_ids=ids, text_ids=ids,
                                  backend=backend)
    plain = loss_and_gradients(images, texts, 10.0, backend=backend)
    assert expected[0] < plain[0] - 0.01
    for options in ({"image_ids": ids}, {"text_ids": ids}, {"image_ids": ids.int()},
                    {"image_ids": ids * 10**12 - 7}, {"image_ids": ids.repeat_interleave(2)[::2]}):
        found = loss_and_gradients(images, texts, 10.0, **options, backend=backend)
        assert all(x.equal(y) for x, y in zip(found, expected, strict=True))
    distinct = torch.arange(5, device=DEVICE)
    assert_same(loss_and_gradients(images, texts, 10.0, image_ids=distinct, backend=backend), plain)
    alike = loss_and_gradients(images, texts, 10.0, image_ids=ids * 0, backend=backend)
    assert all(x.abs().max() < ROUNDING for x in alike)  # no wrong answer is left


@EVERY
def test_ids_and_an_offset(backend):
    """Text 1 is image 0's, and text 2 another caption of it; text 0 is a stranger."""
    images, texts = features(2, 4, N=4)
    ids = torch.tensor([5, 6, 6, 8], device=DEVICE)
    loss = clip_loss(images, texts, 10.0, label_offset=1, direction="rows", image_ids=ids[[1, 3]],
                     text_ids=ids, backend=backend)
    S = 10 * images @ texts.T  # row 0 counts columns 0, 1, 3; row 1 all of them, pair in 2
    expected = (S[0, [0, 1, 3]].logsumexp(0) - S[0, 1] + S[1].logsumexp(0) - S[1, 2]) / 2
    assert_same([loss], [expected])


# ------------------------------------------------------------------------------ within PyTorch


AUTOCAST = torch.bfloat16 if DEVICE == "cuda" else torch.float16  # what the interpreter multiplies


@BUT_NUMPY
def test_under_autocast_features_have_its_type(backend):
    """As in every matrix product there: the tensor cores are for 16 bits. Gradients come back in
    the type of what was given."""
    images, texts = features(40, 16)
    expected = loss_and_gradients(images.to(AUTOCAST), texts.to(AUTOCAST), 50.0, backend=backend)
    scale = torch.tensor(50.0, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, AUTOCAST):
        loss = clip_loss(images, texts, scale, backend=backend)
    found = [loss, *torch.autograd.grad(loss, [images, texts, scale])]
    assert all(x.dtype == torch.float32 and x.equal(y.float())
               for x, y in zip(found, expected, strict=True))


@BUT_NUMPY
def test_under_autocast_it_is_as_exact_as_plain_pytorch(backend):
    """The parity rule, with open_clip's formula under the same autocast in place of "dense"."""
    given = pairs(90, 90, 16, scale=20.0)

    def eager(images, texts, scale, **_):
        truth = torch.arange(90, device=DEVICE)
        return (F.cross_entropy(scale * images @ texts.T, truth)
                + F.cross_entropy(scale * texts @ images.T, truth)) / 2

    def under_autocast(loss):
        def called(*arguments, **options):
            with torch.autocast(DEVICE, AUTOCAST):
                return loss(*arguments, **options)
        return called

    true = truth(given)
    ours, plain = ({name: np.abs(x - true[name]).max() for name, x in run(
        given, backend, under_autocast(loss)).items()} for loss in (clip_loss, eager))
    assert all(ours[name] <= 2 * plain[name] + 1e-6 for name in true), (ours, plain)


@pytest.mark.parametrize("backend", ["tiled", "chunked", TRITON, BLOCKS])
def test_autocast_around_the_backward_pass_too(backend):
    images, texts = features(40, 16)
    scale = torch.tensor(50.0, device=DEVICE, requires_grad=True)
    with torch.autocast(DEVICE, AUTOCAST):
        loss = clip_loss(images, texts, scale, backend=backend)
        found = torch.autograd.grad(loss, [images, texts, scale], retain_graph=True)
    expected = torch.autograd.grad(loss, [images, texts, scale])
    assert all(x.equal(y) for x, y in zip(found, expected, strict=True))


@BUT_NUMPY
def test_under_autocast_types_may_differ(backend):
    """Towers give bfloat16, and what is normalised float32: autocast makes them alike."""
    images, texts = features(20, 8)
    with torch.autocast(DEVICE, AUTOCAST):
        expected = clip_loss(images, texts, 10.0, backend=backend)
        assert clip_loss(images.to(AUTOCAST), texts, 10.0, backend=backend).equal(expected)
        assert clip_loss(images, texts.to(AUTOCAST), 10.0, backend=backend).equal(expected)
    with pytest.raises(ValueError, match="not alike"):
        clip_loss(images.to(AUTOCAST), texts, 10.0, backend=backend)


@pytest.mark.parametrize("backend", ["tiled", "dense"])
def test_autocast_leaves_float64_alone(backend):
    images, texts = features(20, 8, dtype=torch.float64)
    with torch.autocast(DEVICE, torch.bfloat16):
        found = clip_loss(images, texts, 10.0, backend=backend)
    assert found.equal(clip_loss(images, texts, 10.0, backend=backend))


def test_without_autocast_float32_stays_float32():
    """bfloat16 can't tell 0.99 from 0.993."""
    images, texts = features(40, 16)
    assert clip_loss(images, texts, 50.0).equal(
        clip_loss(images, texts, 50.0, backend=choose("auto", images, 40)))
    assert not clip_loss(images, texts, 50.0).equal(
        clip_loss(images.bfloat16(), texts.bfloat16(), 50.0))


@pytest.mark.parametrize("backend", ["auto", "tiled", "chunked", "dense"])
def test_tensors_without_data_have_a_loss_without_data(backend):
    """For whoever only asks for shapes."""
    images, texts = (torch.empty(9, 4, device="meta", requires_grad=True) for _ in range(2))
    loss = clip_loss(images, texts, 10.0, backend=backend)
    loss.backward()
    assert loss.shape == () and loss.is_meta and images.grad.shape == (9, 4)


COMPILED = pytest.mark.parametrize("backend", ["auto", "dense", "tiled", TRITON, BLOCKS])


@COMPILED
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("twice", ["features", "ids", "both", "image ids for texts too"])
def test_compiled_with_one_tensor_for_both_sides(twice, grad, backend):
    """torch.compile must not mix up two arguments that are one tensor."""
    torch.compiler.reset()
    images, texts = features(9, 5)
    texts = images if twice in ("features", "both") else texts
    ids = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, 6], device=DEVICE)
    image_ids, text_ids = {"features": (None, None), "image ids for texts too": (ids, None)}.get(
        twice, (ids, ids))

    def whole(images, texts, image_ids, text_ids):
        return clip_loss(images, texts, 9.0, backend=backend, image_ids=image_ids,
                         text_ids=text_ids)

    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        losses = [loss(images, texts, image_ids, text_ids) for loss in (compiled, whole)]
    assert_same(losses[:1], losses[1:])
    if grad:
        assert_same(*(torch.autograd.grad(loss, [images]) for loss in losses))


@COMPILED
def test_compiled_for_any_number_as_scale(backend):
    """A second value is a second graph, and the last: plain PyTorch has as many."""
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda *given: clip_loss(*given, backend=backend), backend=counter)
    given = features(9, 5)
    for scale in (1.0, 2.5, 10.0, 14.3, 99.0, 100.0):
        assert_same([compiled(*given, scale)], [clip_loss(*given, scale, backend=backend)])
    assert counter.frame_count <= 2


@COMPILED
@pytest.mark.parametrize("wanted", range(1, 8))
def test_compiled_gradients_are_those_that_are_wanted(wanted, backend):
    torch.compiler.reset()
    leaves = [*features(9, 5), torch.tensor(10.0, device=DEVICE)]
    leaves = [x.detach().requires_grad_(bool(wanted >> bit & 1)) for bit, x in enumerate(leaves)]
    asked = [x for x in leaves if x.requires_grad]

    def whole(*given):
        return clip_loss(*given, backend=backend)

    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    assert_same(*(torch.autograd.grad(loss(*leaves), asked) for loss in (compiled, whole)))


@pytest.mark.parametrize("backend", ["auto", "dense", "tiled"])
def test_compiled_under_autocast(backend):
    torch.compiler.reset()
    images, texts = features(9, 5)

    def whole(images, texts):
        with torch.autocast(DEVICE, torch.bfloat16):
            return clip_loss(images, texts, 9.0, backend=backend)

    compiled = torch.compile(whole, backend="aot_eager", fullgraph=True)
    assert_same(*([loss, *torch.autograd.grad(loss, [images, texts])]
                  for loss in (f(images, texts) for f in (compiled, whole))))


@COMPILED
def test_compiled_in_one_graph(backend):
    """As part of a model whose scale is a parameter."""
    torch.compiler.reset()
    images, texts = features(9, 5)
    log_scale = torch.nn.Parameter(torch.tensor(2.5, device=DEVICE))

    def whole(images, texts):
        return clip_loss(F.normalize(images + texts), texts, log_scale.exp(), backend=backend) * 2

    found, expected = (
        [loss, *torch.autograd.grad(loss, [images, texts, log_scale])] for loss in (
            f(images, texts) for f in (
                torch.compile(whole, backend="aot_eager", fullgraph=True), whole)))
    assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["auto", "dense", "tiled", TRITON, BLOCKS])
def test_compiled_once_for_every_batch_size(backend):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda images, texts: clip_loss(images, texts, 9.0, backend=backend),
                             backend=counter, fullgraph=True, dynamic=True)
    for M in range(5, 9):
        given = features(M, 4)
        found, expected = ([loss, *torch.autograd.grad(loss, given)] for loss in (
            compiled(*given), clip_loss(*given, 9.0, backend=backend)))
        assert_same(found, expected)
    assert counter.frame_count == 1


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tiled", TRITON, BLOCKS, "numpy"])
@pytest.mark.parametrize("both", [True, False])
def test_the_operators_are_what_they_say(both, backend):
    """PyTorch's own test of custom operators: no aliases, no mutation, and true shapes."""
    images, texts = features(5, 3, N=5 if both else 7)
    scale = torch.tensor(3.0, device=DEVICE, requires_grad=True)
    ids = [torch.tensor([0, 0, 1, 2, 3], device=DEVICE), torch.arange(len(texts), device=DEVICE)]
    settings = (ids, 0, both, backend)
    given = [x.detach() for x in (images, texts, scale)]
    torch.library.opcheck(autograd.forward_operator, (*given, *settings))
    _, r, c = autograd.forward(*given, *settings)
    for needs in ([True, True, True], [False, True, True], [True, False, False]):
        torch.library.opcheck(autograd.backward_operator,
                              (scale.detach(), [*given, r, c], *settings, needs))


@BUT_NUMPY
def test_what_is_kept_for_the_backward_pass(backend):
    """Plain PyTorch keeps M × N numbers. The purpose of the others is not to."""
    images, texts = features(120, 3, N=130)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x,
                                                  lambda x: x):
        clip_loss(images, texts, torch.tensor(9.0, requires_grad=True), direction="rows",
                  backend=backend)
    if backend == "dense":
        assert max(kept) >= 120 * 130
    else:
        assert 0 < sum(kept) <= (120 + 130) * (3 + 1) + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiled_makes_nothing_as_large_as_the_features_but_the_gradients(dtype):
    images, texts = features(700, 600, dtype=dtype)
    loss = clip_loss(images, texts, 9.0, backend="tiled")
    made = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            found = function(*arguments, **keywords or {})
            if isinstance(found, torch.Tensor) and found.numel() >= images.numel():
                made.append(function.name())
            return found

    with Watch():
        loss.backward()
    fresh = [name for name in made if not name.split(".")[0].endswith("_")]
    casts = [] if dtype == torch.float32 else ["aten::_to_copy"] * 2
    assert [name.split(".")[0] for name in fresh if "detach" not in name] == [
        "aten::zeros_like"] * 2 + casts


# ------------------------------------------------------------------------------ on a GPU

ON_CUDA = pytest.mark.skipif(DEVICE == "cpu", reason="needs CUDA")
KINDS = pytest.mark.parametrize("backend", ["auto", "triton", "blocks", "chunked"])
LOSSES = pytest.mark.parametrize("sigmoid", [False, True], ids=["softmax", "sigmoid"])


def step(sigmoid, backend, images, texts, scale, ids):
    """Loss and gradients of one call, with gradients of the scale."""
    if sigmoid:
        loss = sigmoid_loss(images, texts, scale, -10.0, image_ids=ids, backend=backend)
    else:
        loss = clip_loss(images, texts, scale, image_ids=ids, backend=backend)
    return [loss, *torch.autograd.grad(loss, [images, texts, scale])]


@ON_CUDA
@LOSSES
@KINDS
def test_no_call_waits_for_the_gpu(backend, sigmoid):
    """Loss and gradients, with ids, in 16 bits; PyTorch raises where something would wait."""
    images, texts = features(1000, 64, dtype=torch.bfloat16)
    scale, ids = torch.tensor(10.0, device=DEVICE, requires_grad=True), torch.arange(1000) // 2
    ids = ids.to(DEVICE)
    step(sigmoid, backend, images, texts, scale, ids)  # compiles, and asks what works
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(sigmoid, backend, images, texts, scale, ids)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@ON_CUDA
@LOSSES
@KINDS
def test_a_whole_step_is_captured_in_a_cuda_graph(backend, sigmoid):
    """Replayed with other features it gives their loss and gradients."""
    images, texts = features(1000, 64, dtype=torch.bfloat16)
    others = features(1000, 64, seed=1, dtype=torch.bfloat16)
    scale, ids = torch.tensor(10.0, device=DEVICE, requires_grad=True), torch.arange(1000) // 2
    given = [backend, images, texts, scale, ids.to(DEVICE)]
    expected = step(sigmoid, backend, *others, scale, given[-1])
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(sigmoid, *given)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = step(sigmoid, *given)
    with torch.no_grad():
        images.copy_(others[0])
        texts.copy_(others[1])
    graph.replay()
    assert all(x.equal(y) for x, y in zip(found, expected, strict=True))


# ------------------------------------------------------------------------------ the choice


@pytest.mark.parametrize("cuda, dtype, N, D, expected", [
    (False, torch.float32, 9000, 512, "tiled"), (True, torch.float32, 90000, 64, "triton"),
    (True, torch.bfloat16, 9000, 65, "hopper"), (True, torch.bfloat16, 9000, 513, "blocks"),
    (True, torch.float32, 9000, 512, "blocks"), (True, torch.float16, 725, 512, "hopper"),
    (True, torch.bfloat16, 724, 512, "triton"), (True, torch.float64, 9000, 512, "chunked"),
    (True, torch.bfloat16, 8, 2049, "chunked")])
def test_auto_is_triton_where_it_runs(cuda, dtype, N, D, expected, monkeypatch):
    pytest.importorskip("triton")
    device = torch.device("cuda:0" if cuda else "cpu")
    given = SimpleNamespace(is_cuda=cuda, dtype=dtype, shape=(N, D), device=device,
                            itemsize=dtype.itemsize)
    monkeypatch.setattr(backends, "HAS_TRITON", True)
    monkeypatch.setattr("miniclip_kernels.triton_tiles.INTERPRETED", False)
    monkeypatch.setattr(backends, "works", lambda *_: True)
    older = expected.replace("hopper", "blocks")  # or newer
    without = "chunked" if cuda else "tiled"
    for capability, found in (((8, 0), older), ((9, 0), expected), ((10, 0), older),
                              ((7, 5), without)):
        monkeypatch.setattr("miniclip_kernels.triton_tiles.architecture",
                            {device: capability}.get)
        assert choose("auto", given, N) == found
    monkeypatch.setattr("miniclip_kernels.triton_tiles.INTERPRETED", True)
    assert choose("auto", given, N) == without
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    assert choose("auto", given, N) == without


@pytest.mark.parametrize("device", ["mps", "xpu", "meta", "hpu"])
def test_auto_on_other_accelerators_has_tiles_for_them(device):
    given = SimpleNamespace(is_cuda=False, dtype=torch.float32, shape=(9000, 512),
                            device=torch.device(device), itemsize=4)
    assert choose("auto", given, 9000) == "chunked"


def test_auto_gives_the_bits_of_the_backend_it_stands_for():
    images, texts = features(20, 8)
    chosen = choose("auto", images, 20)
    assert clip_loss(images, texts, 10.0).equal(clip_loss(images, texts, 10.0, backend=chosen))


@pytest.fixture
def fresh_checks():
    """What works is asked again, in this test and in the next."""
    backends.works.cache_clear()
    yield
    backends.works.cache_clear()


def pretend_gpu(monkeypatch, capability=(9, 0), hip=None):
    """Features on a GPU that is not here."""
    pytest.importorskip("triton")
    monkeypatch.setattr("miniclip_kernels.triton_tiles.INTERPRETED", False)
    monkeypatch.setattr("miniclip_kernels.triton_tiles.architecture", lambda device: capability)
    monkeypatch.setattr(backends, "HAS_TRITON", True)
    monkeypatch.setattr(torch.version, "hip", hip)
    return SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, shape=(9000, 512),
                           device=torch.device("cuda"), itemsize=2)


@pytest.mark.parametrize("error", [ImportError("cannot import name 'tma'"),
                                   RuntimeError("PassManager::run failed")])
def test_a_triton_that_does_not_take_hopper_is_told_once(error, monkeypatch, fresh_checks):
    """Gluon is experimental: "auto" takes the next backend, and says why."""
    given, asked = pretend_gpu(monkeypatch), []

    def broken(backend, *_):
        asked.append(backend)
        raise error

    monkeypatch.setattr(backends, "difference", broken)
    with pytest.warns(RuntimeWarning, match=r"'hopper' does not work with triton \d.*"
                      rf"\({type(error).__name__}: .*\); 'blocks' is used instead") as told:
        assert [choose("auto", given, 9000) for _ in range(3)] == ["blocks"] * 3
    assert len(told) == 1 and asked == ["hopper"]


@pytest.mark.parametrize("worst, expected", [(0.5, "blocks"), (3.0, "chunked")])
def test_auto_asks_before_it_uses_a_kernel_on_amds_gpus(worst, expected, monkeypatch, fresh_checks):
    """Nothing here was ever run on one."""
    given, asked = pretend_gpu(monkeypatch, (8, 0), hip="6.4"), []
    monkeypatch.setattr(backends, "difference", lambda *of: asked.append(of) or worst)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert [choose("auto", given, 9000) for _ in range(3)] == [expected] * 3
    assert asked == [("blocks", given.device, torch.bfloat16)]
    assert ["3 times as far from plain PyTorch's as is allowed); 'chunked' is used" in
            str(warning.message) for warning in told] == [True] * (expected == "chunked")


@pytest.mark.parametrize("backend", ["tiled", "chunked", TRITON, BLOCKS])
def test_the_check_that_auto_makes_passes_here(backend):
    assert backends.difference(backend, torch.device(DEVICE), torch.float32) < 0.1
    assert backends.difference(backend, torch.device(DEVICE), AUTOCAST) < 1


def test_the_check_that_auto_makes_is_the_same_in_a_validation():
    """Or with other defaults: the first call decides for the whole process."""
    expected = backends.difference("tiled", torch.device(DEVICE), torch.float32)
    with torch.inference_mode():
        assert backends.difference("tiled", torch.device(DEVICE), torch.float32) == expected
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert backends.difference("tiled", torch.device(DEVICE), torch.float32) == expected
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("backend", ["tiled", TRITON])
@pytest.mark.parametrize("wrong", ["loss", "dI", "dT", "ds", "nan"])
def test_the_check_that_auto_makes_finds_mistakes(wrong, backend, monkeypatch):
    """Each of the four results, 3 % off; or NaN."""
    right = backends.module(backend)
    names = ("loss", "dI", "dT", "ds")

    def changed(results, names):
        return [x * (torch.nan if wrong == "nan" else 1.03) if name == wrong or wrong == "nan"
                else x for x, name in zip(results, names)]

    monkeypatch.setattr(backends, "module", lambda backend: SimpleNamespace(
        forward=lambda *given: changed(right.forward(*given), ("loss", "r", "c")),
        backward=lambda *given: changed(right.backward(*given), names[1:])))
    assert backends.difference(backend, torch.device(DEVICE), AUTOCAST) > 1


@pytest.mark.parametrize("backend", ["triton", "blocks"])
def test_a_missing_triton_is_told(backend, monkeypatch):
    monkeypatch.setattr(backends, "HAS_TRITON", False)
    with pytest.raises(ValueError) as error:
        clip_loss(*features(3, 4), 10.0, backend=backend)
    assert str(error.value) == f"backend '{backend}' needs the package triton: not installed"
    assert clip_loss(*features(3, 4), 10.0).isfinite()


@pytest.mark.parametrize("backend", [TRITON, BLOCKS])
def test_triton_tells_what_it_does_not_take(backend):
    for given, message in [
            (torch.eye(3).double(),
             f"backend '{backend}' takes no float64 here; tiled, dense and numpy do"),
            (torch.ones(1, 2049), f"backend '{backend}' takes D up to 2048, not 2049")]:
        with pytest.raises(ValueError) as error:
            clip_loss(given.to(DEVICE), given.to(DEVICE), 10.0, backend=backend)
        assert str(error.value) == message


@pytest.mark.skipif(DEVICE == "cuda", reason="a GPU multiplies bfloat16 rightly")
@pytest.mark.parametrize("backend", [TRITON, BLOCKS])
def test_the_interpreter_is_not_asked_for_what_it_gets_wrong(backend):
    with pytest.raises(ValueError, match=f"backend '{backend}' takes no bfloat16 here; tiled"):
        clip_loss(*features(3, 4, dtype=torch.bfloat16), 10.0, backend=backend)
    assert clip_loss(*features(3, 4, dtype=torch.bfloat16), 10.0).isfinite()


@pytest.mark.slow
@pytest.mark.parametrize("backend", [TRITON, BLOCKS])
def test_triton_needs_cuda_or_its_interpreter(backend):
    code = ("import torch; from miniclip_kernels import clip_loss; "
            f"clip_loss(torch.eye(2), torch.eye(2), 1.0, backend='{backend}')")
    environment = {key: x for key, x in os.environ.items() if key != "TRITON_INTERPRET"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                         text=True)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1] == (
        f"ValueError: backend '{backend}' needs CUDA tensors, not cpu; on a CPU set "
        "TRITON_INTERPRET=1 before triton is first imported")


# ------------------------------------------------------------------------------ bad input


X = torch.eye(4)
DIRECTION = " (direction 'rows' may do)"
SCALE = "logit_scale is the multiplier: finite and positive; got "
ONE_NUMBER = "logit_scale must be a float or a tensor of one floating-point number; got "
NO_NUMBER = "logit_scale must be a float or a tensor, not "
DTYPES = "; they must be float32, bfloat16, float16 or float64"
SHAPES = "image_features must be (M, D) and text_features (N, D); got "
OFFSET = "label_offset must be an int, 0 to N − M = 2; got "
IDS = " must be a tensor (4,) of int64 or int32 on cpu"
EMPTY = "nothing to compare: M, N and D must be at least 1; got "


@pytest.mark.parametrize("arguments, options, message", [
    ((X, X, 1.0), {"backend": "cuda"},
     "backend 'cuda' is not one of auto, triton, blocks, hopper, chunked, tiled, dense, numpy"),
    ((X, X, 1.0), {"backend": None},
     "backend None is not one of auto, triton, blocks, hopper, chunked, tiled, dense, numpy"),
    ((X, X, 1.0), {"direction": "columns"}, "direction 'columns' is not one of both, rows"),
    (([[1.0]], X, 1.0), {}, "image_features must be a tensor, not list"),
    ((X, np.eye(4), 1.0), {}, "text_features must be a tensor, not ndarray"),
    ((X.long(), X.long(), 1.0), {}, "image_features are torch.int64" + DTYPES),
    ((X, X.bool(), 1.0), {}, "text_features are torch.bool" + DTYPES),
    ((X.to(torch.complex64), X, 1.0), {}, "image_features are torch.complex64" + DTYPES),
    ((X[0], X[0], 1.0), {}, SHAPES + "(4,) and (4,)"),
    ((X[None], X[None], 1.0), {}, SHAPES + "(1, 4, 4) and (1, 4, 4)"),
    ((X, X[:, :3], 1.0), {}, SHAPES + "(4, 4) and (4, 3)"),
    ((X[:0], X[:0], 1.0), {}, EMPTY + "0, 0, 4"),
    ((X[:, :0], X[:, :0], 1.0), {}, EMPTY + "4, 4, 0"),
    ((X[:0], X, 1.0), {"direction": "rows"}, EMPTY + "0, 4, 4"),
    ((X, X[:3], 1.0), {}, "direction 'both' needs as many texts as images and label_offset 0; "
     "got 4 images, 3 texts, offset 0" + DIRECTION),
    ((X, X, 1.0), {"label_offset": 1}, "direction 'both' needs as many texts as images and "
     "label_offset 0; got 4 images, 4 texts, offset 1" + DIRECTION),
    ((X, X[:3], 1.0), {"direction": "rows"},
     "4 images need 4 texts at least; got 3"),
    ((X[:2], X, 1.0), {"direction": "rows", "label_offset": 3}, OFFSET + "3"),
    ((X[:2], X, 1.0), {"direction": "rows", "label_offset": -1}, OFFSET + "-1"),
    ((X[:2], X, 1.0), {"direction": "rows", "label_offset": 1.5}, OFFSET + "1.5"),
    ((X, X.double(), 1.0), {},
     "image_features are torch.float32, text_features torch.float64: not alike"),
    ((X, X.to("meta"), 1.0), {}, "image_features are on cpu, text_features on meta"),
    ((X, X, torch.ones(2)), {}, ONE_NUMBER + "(2,), torch.float32"),
    ((X, X, torch.ones(0)), {}, ONE_NUMBER + "(0,), torch.float32"),
    ((X, X, torch.tensor(3)), {}, ONE_NUMBER + "(), torch.int64"),
    ((X, X, "10"), {}, NO_NUMBER + "'10'"),
    ((X, X, None), {}, NO_NUMBER + "None"),
    ((X, X, True), {}, NO_NUMBER + "True"),
    ((X, X, 10**400), {}, SCALE + "10000000000000000000"),
    ((X, X, 0), {}, SCALE + "0"),
    ((X, X, -1.5), {}, SCALE + "-1.5"),
    ((X, X, math.inf), {}, SCALE + "inf"),
    ((X, X, torch.tensor(-2.0)), {}, SCALE + "-2.0"),
    ((X, X, torch.tensor([math.inf])), {}, SCALE + "inf"),
    ((X, X, 1.0), {"image_ids": [1, 2, 3, 4]}, "image_ids" + IDS),
    ((X, X, 1.0), {"text_ids": torch.ones(4)}, "image_ids" + IDS),
    ((X, X, 1.0), {"image_ids": torch.arange(4), "text_ids": torch.ones(4)}, "text_ids" + IDS),
    ((X, X, 1.0), {"image_ids": torch.arange(3)}, "image_ids" + IDS),
    ((X, X, 1.0), {"image_ids": torch.arange(4), "text_ids": torch.ones(4, 1, dtype=torch.int64)},
     "text_ids" + IDS),
    ((X, X, 1.0), {"image_ids": torch.arange(4, device="meta")}, "image_ids" + IDS),
    ((X[:2], X, 1.0), {"direction": "rows", "image_ids": torch.arange(2)},
     "image_ids and text_ids go together where M and N differ"),
])
def test_bad_input_is_one_clear_line(arguments, options, message):
    with pytest.raises(ValueError) as error:
        clip_loss(*arguments, **options)
    assert str(error.value) == message and "\n" not in message


# ------------------------------------------------------------------------------ ClipLoss


@EVERY
def test_the_module_is_open_clips(backend):
    """open_clip's formula, written out; the module is called as in open_clip."""
    images, texts = features(11, 6)
    scale = torch.tensor(12.5, device=DEVICE, requires_grad=True)
    logits_per_image = scale * images @ texts.T
    logits_per_text = scale * texts @ images.T
    labels = torch.arange(11, device=DEVICE)
    total = (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels))
    expected = [total / 2, *torch.autograd.grad(total / 2, [images, texts, scale])]
    ours = ClipLoss(backend=backend)
    for loss in (ours(images, texts, scale), ours(images, texts, scale, logit_bias=-10.0),
                 ours(images, texts, scale, None, True)["contrastive_loss"],
                 ours(image_features=images, text_features=texts, logit_scale=scale,
                      output_dict=True)["contrastive_loss"]):
        assert_same([loss, *torch.autograd.grad(loss, [images, texts, scale])], expected)
    bias = torch.tensor(-10.0, device=DEVICE, requires_grad=True)
    loss = ours(images, texts, scale, bias)
    found = [loss, *torch.autograd.grad(loss, [images, texts, scale, bias])]
    assert_same(found, [*expected, 0 * bias])
    assert list(ours(images, texts, scale, output_dict=True)) == ["contrastive_loss"]
    assert not list(ours.parameters()) and not ours.state_dict()
