"""Tests of kernels/clip_loss.py: value and gradients against NumPy in float64, and bad input."""

import math

import numpy as np
import pytest
import torch
from miniclip_kernels.clip_loss import clip_loss


def truth(images, texts, scale) -> float:
    """Radford et al. 2021, Figure 3, in float64 NumPy, written for the eye and not for speed."""
    logits = scale * images @ texts.T
    total = 0.0
    for matrix in (logits, logits.T):  # each image among the texts, each text among the images
        for i, row in enumerate(matrix):
            top = row.max()
            total += top + np.log(np.exp(row - top).sum()) - row[i]
    return total / (2 * len(logits))


def slopes(function, array, step=1e-6):
    """The gradient of a function of one array by central differences."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        up, down = array.copy(), array.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def features(n, d, seed=0, unit=True):
    """Two random (n, d) float64 arrays; the second is near the first, as pairs are."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, d))
    texts = images + rng.normal(size=(n, d))
    if unit:
        images, texts = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    return images, texts


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in arrays]


@pytest.mark.parametrize("backend", ["auto", "dense"])
@pytest.mark.parametrize("n, d, scale", [
    (1, 4, 14.0), (2, 3, 1.0), (7, 5, 1 / 0.07), (33, 16, 50.0), (64, 8, 100.0)])
def test_value(n, d, scale, backend):
    images, texts = features(n, d)
    loss = clip_loss(*tensors(images, texts), scale, backend=backend)
    assert loss.shape == () and loss.dtype == torch.float32
    assert loss.item() == pytest.approx(truth(images, texts, scale), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("scale", [2.5, 1 / 0.07, 100.0])
def test_gradients(scale, unit):
    """Of images, texts and the scale, each against differences of the formula above."""
    images, texts = features(5, 4, seed=1, unit=unit)
    scale = np.array(scale if unit else scale / 10)
    given = tensors(images, texts, scale)
    clip_loss(*given).backward()
    expected = [slopes(lambda x: truth(x, texts, scale), images),
                slopes(lambda x: truth(images, x, scale), texts),
                slopes(lambda x: truth(images, texts, x), scale)]
    for tensor, gradient in zip(given, expected, strict=True):
        assert tensor.grad.shape == tensor.shape
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-3, atol=1e-5)


def test_the_scale_is_a_float_or_a_tensor():
    images, texts = features(6, 4)
    as_float = clip_loss(*tensors(images, texts), 20.0)
    for scale in (torch.tensor(20.0), torch.tensor([20.0]), torch.nn.Parameter(torch.tensor(20.0))):
        assert clip_loss(*tensors(images, texts), scale).item() == as_float.item()


def test_features_that_say_nothing_cost_ln_n():
    """All alike, every answer is as good as any other: ln N, whatever the scale."""
    for n in (2, 17, 128):
        same = torch.ones(n, 8) / math.sqrt(8)
        for scale in (1.0, 100.0):
            assert clip_loss(same, same, scale).item() == pytest.approx(math.log(n), rel=1e-5)


def test_one_pair_has_no_wrong_answer():
    given = tensors(*features(1, 8))
    loss = clip_loss(*given, 100.0)
    loss.backward()
    assert loss.item() == 0 and all(not tensor.grad.any() for tensor in given)


def test_right_pairs_cost_nothing_and_wrong_ones_the_scale():
    eye = torch.eye(4)
    assert clip_loss(eye, eye, 100.0).item() == pytest.approx(0, abs=1e-6)
    assert clip_loss(eye, eye.roll(1, 0), 100.0).item() == pytest.approx(100, rel=1e-5)


def test_both_directions_count():
    """Texts that all lie near image 0: "which text?" is a guess, "which image?" is answered 0."""
    images, texts = np.eye(3), np.array([[1, 0, 0], [1, 0.1, 0], [1, 0, 0.1]])
    forth, back = (clip_loss(*tensors(a, b), 10.0).item()
                   for a, b in ((images, texts), (texts, images)))
    assert forth == pytest.approx(truth(images, texts, 10.0), rel=1e-5)
    assert forth == pytest.approx(back, rel=1e-5)  # the roles are interchangeable


def test_large_similarities_do_not_overflow():
    images, texts = (1000 * x for x in features(8, 4))
    given = tensors(images, texts)
    loss = clip_loss(*given, 100.0)
    loss.backward()
    assert math.isfinite(loss.item()) and all(t.grad.isfinite().all() for t in given)


@pytest.mark.parametrize("dtype, tolerance", [
    (torch.float64, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 1e-1)])
def test_other_floats_give_a_loss_of_at_least_float32(dtype, tolerance):
    images, texts = features(32, 16)
    images, texts = torch.tensor(images).to(dtype), torch.tensor(texts).to(dtype)
    loss = clip_loss(images, texts, 10.0)
    assert loss.dtype in (torch.float32, torch.float64)
    exact = truth(images.double().numpy(), texts.double().numpy(), 10.0)
    assert loss.item() == pytest.approx(exact, rel=tolerance)


X = torch.eye(4)


@pytest.mark.parametrize("arguments, options, words", [
    ((X, X, 10.0), {"backend": "cuda"}, "backend 'cuda' is not one of auto, dense"),
    ((X, X, 10.0), {"backend": ""}, "backend '' is not one of"),
    ((X[0], X[0], 10.0), {}, r"must both be \(N, D\); got \(4,\) and \(4,\)"),
    ((X[None], X[None], 10.0), {}, r"must both be \(N, D\); got \(1, 4, 4\)"),
    ((X, X[:3], 10.0), {}, r"got \(4, 4\) and \(3, 4\)"),
    ((X, X[:, :3], 10.0), {}, r"got \(4, 4\) and \(4, 3\)"),
    ((X[:0], X[:0], 10.0), {}, "an empty batch has no loss"),
    ((X.long(), X.long(), 10.0), {}, "image_features are torch.int64; they must be floating"),
    ((X, X.long(), 10.0), {}, "text_features are torch.int64"),
    ((X.bool(), X, 10.0), {}, "image_features are torch.bool"),
    ((X, X.double(), 10.0), {}, "differ in dtype: torch.float32 and torch.float64"),
    ((X, X.to("meta"), 10.0), {}, "different devices: cpu and meta"),
    ((X, X, torch.ones(2)), {}, r"must be a scalar; got shape \(2,\)"),
    ((X, X, torch.ones(0)), {}, r"must be a scalar; got shape \(0,\)"),
    ((X, X, 0.0), {}, "must be positive; got 0.0"),
    ((X, X, -1.0), {}, "must be positive; got -1.0"),
    ((X, X, torch.tensor(-2.0)), {}, "must be positive"),
])
def test_bad_input_is_one_clear_line(arguments, options, words):
    with pytest.raises(ValueError, match=words) as error:
        clip_loss(*arguments, **options)
    assert "\n" not in str(error.value)
