"""Inputs and expectations of other projects' tests, tried on ours. (Their code is not here.)

open_clip's own class is in test_recipes.py, xformers' odd lengths are among the sizes of
test_parity.py.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kernel_truth import BLOCKS, DEVICE, TRITON, Case, run, skip_where_wrong, truth
from miniclip_kernels import clip_loss

EACH = pytest.mark.parametrize("backend", [TRITON, BLOCKS, "tiled", "chunked"])


def on_a_circle(degrees):
    """Unit vectors (N, 2) at these angles."""
    return torch.tensor([[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in degrees],
                        device=DEVICE)


@EACH
def test_ntxent_of_pytorch_metric_learning(backend):
    """Its anchors at six angles with labels 0 0 0 1 1 2: other positives of an anchor are left out
    of its denominator. That is what ids do. (Ours counts one positive for each anchor, its own.)"""
    images = on_a_circle([0, 10, 20, 50, 60, 80])
    texts = on_a_circle([5, 12, 26, 47, 66, 81])
    labels, temperature = [0, 0, 0, 1, 1, 2], 0.1
    expected = 0.0
    for i in range(6):
        own = math.exp(images[i].dot(texts[i]).item() / temperature)
        wrong = sum(math.exp(images[i].dot(texts[j]).item() / temperature)
                    for j in range(6) if labels[j] != labels[i])
        expected -= math.log(own / (own + wrong)) / 6
    found = clip_loss(images, texts, 1 / temperature, direction="rows",
                      image_ids=torch.tensor(labels, device=DEVICE),
                      text_ids=torch.tensor(labels, device=DEVICE), backend=backend)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@EACH
@pytest.mark.parametrize("labels", [[0], [0, 0, 0]])
def test_ntxent_without_a_wrong_answer(labels, backend):
    """Nothing to tell apart: the loss is 0, and so are the gradients."""
    images, texts = (on_a_circle([0, 40, 60][:len(labels)]).requires_grad_() for _ in range(2))
    loss = clip_loss(images, texts, 10.0, backend=backend,
                     image_ids=torch.tensor(labels, device=DEVICE))
    loss.backward()
    assert abs(loss.item()) < 1e-5 and images.grad.abs().max() < 1e-4


@pytest.mark.slow
@EACH
@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 1e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("M, N, D", [(256, 512, 128), (252, 507, 128), (252, 507, 123)])
def test_cut_cross_entropy(M, N, D, dtype, tolerance, backend):
    """Columns of length √D, half of which are their rows: S far from what unit vectors give. No
    entry of the gradients is further from float32's than plain PyTorch's in 16 bits, and a bit."""
    skip_where_wrong(backend, dtype)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(M, D, generator=generator) / D**0.5
    columns = torch.randn(N, D, generator=generator)
    columns[:M // 2] = rows[:M // 2]
    case = Case(rows.to(DEVICE, dtype), columns.to(DEVICE, dtype), 1.0,
                {"direction": "rows", "label_offset": 0})
    true, ours, plain = truth(case), run(case, backend), run(case, "dense")
    for name, x in true.items():
        allowed = np.abs(plain[name] - x) + tolerance
        assert (np.abs(ours[name] - x) <= allowed).all(), name


@EACH
@pytest.mark.parametrize("N, D", [(141, 31), (123, 47)])
def test_ligers_odd_shapes_with_and_without_gradients(N, D, backend):
    """3 · 47 rows of 31 numbers; the loss is the same under no_grad, and a factor of the loss, even
    as an expanded tensor, reaches the gradients."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (F.normalize(torch.randn(N, D, generator=generator)).to(DEVICE)
                     .requires_grad_() for _ in range(2))
    with torch.no_grad():
        alone = clip_loss(images, texts, 14.3, backend=backend)
    loss = clip_loss(images, texts, 14.3, backend=backend)
    assert alone.equal(loss.detach()) and not alone.requires_grad
    once, = torch.autograd.grad(loss, images, retain_graph=True)
    loss.expand(3).backward(torch.full((1,), 2.0, device=DEVICE).expand(3))
    torch.testing.assert_close(images.grad, 6 * once)
