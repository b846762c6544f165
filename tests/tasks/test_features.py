"""Unit vectors of images and texts, in batches and in any precision."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import gray_images, stub, stub_tokenizer

from miniclip.config import MODELS
from miniclip.model import CLIP
from miniclip.tasks.features import embed_images, embed_texts


def test_embedding_keeps_the_order_and_the_batch_size():
    model = stub()
    levels = list(range(40))[::-1]
    found = embed_images(model, gray_images(levels), batch_size=16)
    torch.testing.assert_close(found, F.normalize(model.images, dim=1)[levels])
    assert model.sizes == [16, 16, 8] and not found.requires_grad
    model.sizes.clear()
    found = embed_texts(model, stub_tokenizer, [str(i) for i in range(33)], batch_size=16)
    torch.testing.assert_close(found, F.normalize(model.texts, dim=1)[:33])
    assert model.sizes == [16, 16, 1] and found.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, "autocast"])
def test_features_have_length_1_in_any_precision(dtype):
    """Norms are taken in float32, whatever the model computes in."""
    config = replace(MODELS["tiny"], image_size=16, vision_width=48, text_width=48, embed_dim=16)
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0)).eval()
    tokens = torch.randint(1, 500, (9, 12), generator=torch.Generator().manual_seed(1))
    images = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), np.uint8)
    exact = embed_images(model, images), embed_texts(model, lambda texts: tokens, ["a"] * 9)
    model = model if dtype == "autocast" else model.to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "autocast"):
        found = embed_images(model, images), embed_texts(model, lambda texts: tokens, ["a"] * 9)
    for features, expected in zip(found, exact):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(9))
        torch.testing.assert_close(features, expected, rtol=0, atol=0.03)
        assert not features.equal(expected)


def test_texts_are_encoded_no_longer_than_they_are(loaded):
    """Without what stands behind the end; the vectors are those of whole rows."""
    model, tokenizer, _ = loaded
    texts = ["dog", "a red dog and a blue cat", "", "cat " * 99]
    lengths = []
    hook = model.text.blocks[0].register_forward_hook(
        lambda block, given, out: lengths.append(out.shape[1]))
    found = embed_texts(model, tokenizer, texts, batch_size=3)
    hook.remove()
    used = (tokenizer(texts).argmax(1) + 1).tolist()
    assert lengths == [max(used[:3]), used[3]] and lengths[0] < model.config.context_length
    with torch.no_grad():
        whole = model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_image_vectors_have_length_one_in_bfloat16_too(loaded):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        found = embed_images(loaded[0], images)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(20), rtol=0, atol=1e-6)
