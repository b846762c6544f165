"""The optimisers: Muon beside PyTorch's own, which parameters each takes, the schedule."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from miniclip.config import TINY, TrainConfig
from miniclip.model import CLIP
from miniclip.optim import Muon, build_optimizers, orthogonalized, schedule

MODEL = replace(TINY, vision_width=48, text_width=48, embed_dim=32, vision_heads=2, text_heads=2,
                vision_layers=1, stem=(8, 8), vocab_size=700, context_length=24)
CONFIG = TrainConfig()


def test_the_schedule():
    config = TrainConfig(steps=100, warmup=10)
    values = [schedule(step, config) for step in range(100)]
    assert values[0] == 0.1 and values[9] == 1 and values[10] == 1
    assert np.all(np.diff(values[10:]) < 0) and 0 < values[-1] < 0.001
    assert abs(schedule(55, config) - 0.5) < 1e-9


def test_who_trains_what():
    model = CLIP(MODEL).init_weights(torch.Generator().manual_seed(0))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    adamw, muon = build_optimizers(model, CONFIG)
    plain = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    matrices = {names[id(p)] for p in muon.kernels} | {
        names[id(p)] for p in muon.param_groups[0]["params"] if id(p) in names}
    assert plain | matrices == set(names.values()) and not plain & matrices
    assert {"logit_scale", "text.tokens.weight", "vision.positions", "text.positions",
            "vision.norm_post.weight", "vision.stem.0.bias"} <= plain
    assert {"vision.stem.0.weight", "vision.patches.weight", "vision.projection",
            "text.blocks.0.attention.qkv.weight"} <= matrices
    assert [group["weight_decay"] for group in adamw.param_groups] == [0]
    assert muon.param_groups[0]["weight_decay"] == CONFIG.weight_decay
    (only,) = build_optimizers(model, replace(CONFIG, muon_learning_rate=0.0))
    assert [group["weight_decay"] for group in only.param_groups] == [0, CONFIG.weight_decay]
    assert {names[id(p)] for p in only.param_groups[1]["params"]} == matrices


def muon_steps(kind, gradients, **settings):
    """A matrix after three steps of an optimizer of that kind."""
    matrix = torch.nn.Parameter(torch.ones_like(gradients[0]))
    optimizer = kind([matrix], lr=0.1, weight_decay=0.01, **settings)
    for gradient in gradients:
        matrix.grad = gradient.clone()
        optimizer.step()
    return matrix.detach()


@pytest.mark.parametrize("shape", [(6, 36), (36, 6), (8, 8)])
def test_muon_is_pytorchs(shape, monkeypatch):
    """Bit for bit where bfloat16 is fast; in float32, where it is not, as far as bfloat16 goes."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(3, *shape, generator=generator)
    expected = muon_steps(torch.optim.Muon, gradients)
    monkeypatch.setattr("miniclip.optim.bf16_is_fast", lambda device: True)
    assert torch.equal(muon_steps(Muon, gradients), expected)
    monkeypatch.setattr("miniclip.optim.bf16_is_fast", lambda device: False)
    found = muon_steps(Muon, gradients)
    torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)
    assert not torch.equal(found, expected)


def test_orthogonalized_matrices_have_singular_values_near_1(monkeypatch):
    monkeypatch.setattr("miniclip.optim.bf16_is_fast", lambda device: False)
    values = torch.logspace(-2, 0, 20)
    U, V = (torch.linalg.qr(torch.randn(n, 20, generator=torch.Generator().manual_seed(n)))[0]
            for n in (30, 20))
    found = orthogonalized(U * values @ V.T)
    assert found.dtype == torch.float32 and found.shape == (30, 20)
    assert torch.linalg.svdvals(found).min() > 0.5 and torch.linalg.svdvals(found).max() < 1.5


def test_muon_moves_kernels_as_the_matrices_they_are():
    """The same gradient moves a convolution and a matrix of the same numbers alike."""
    generator = torch.Generator().manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3, generator=generator))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    optimizers = [Muon([p], 0.1, 0.01) for p in (kernel, matrix)]
    for _ in range(3):
        gradient = torch.randn(6, 36, generator=generator)
        matrix.grad, kernel.grad = gradient, gradient.view(6, 4, 3, 3)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(kernel.flatten(1), matrix) and kernel.grad is None


@pytest.mark.parametrize("side", ["image", "text"])
def test_what_is_locked_is_left_out(side):
    model = CLIP(MODEL).init_weights(torch.Generator().manual_seed(0)).lock(side)
    taken = {id(p) for optimizer in build_optimizers(model, CONFIG)
             for group in optimizer.param_groups for p in group["params"]}
    taken |= {id(p) for p in build_optimizers(model, CONFIG)[1].kernels}
    locked = {"image": model.vision, "text": model.text}[side]
    assert not taken & {id(p) for p in locked.parameters()}
    assert id(model.logit_scale) in taken


def test_a_model_without_a_free_matrix_has_no_muon():
    model = CLIP(MODEL).init_weights(torch.Generator().manual_seed(0)).lock("image").lock("text")
    (adamw,) = build_optimizers(model, CONFIG)
    assert [len(group["params"]) for group in adamw.param_groups] == [1]  # the scale


def test_muon_takes_a_closure_and_parameters_without_a_gradient():
    """A matrix, a convolution and the same twice that never get a gradient."""
    shapes = ((4, 3), (4, 3, 2, 2)) * 2
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = Muon(parameters, lr=0.1, weight_decay=0.5)

    def closure():
        assert torch.is_grad_enabled()
        loss = sum((p ** 2).sum() for p in parameters[:2])
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4 * 3 + 4 * 3 * 4
    assert all((p != 1).any() for p in parameters[:2])
    assert all((p == 1).all() for p in parameters[2:])
    assert optimizer.step() is None  # the gradients of convolutions are used up
