"""Tests of miniclip/model.py: sizes of the published models, and every part against plain maths."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from miniclip_kernels import clip_loss
from small_weights import NARROW, inputs

from miniclip.config import MODELS, TINY, ModelConfig
from miniclip.model import (
    CLIP,
    MAX_SCALE,
    Attention,
    Block,
    QuickGELU,
    TextTransformer,
    VisionTransformer,
)

SMALL = replace(TINY, image_size=32, patch_size=8, stem=(6, 10), vision_width=24, vision_heads=3,
                text_width=20, text_heads=2, text_layers=2, embed_dim=16, vocab_size=50,
                context_length=12)
STEMLESS = replace(SMALL, stem=())
CLASSIC = replace(STEMLESS, pool="cls", pre_norm=True, quick_gelu=True)  # OpenAI's kind, small
END = SMALL.vocab_size - 1


def build(config=SMALL, seed=0) -> CLIP:
    """A model in which no gain is 1, no bias 0 and no two weights alike: nothing can hide."""
    generator = torch.Generator().manual_seed(seed)
    model = CLIP(config).init_weights(generator).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(0, 0.1, generator=generator))
    return model


def random_pixels(count=3, size=SMALL.image_size):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def row(*inner, length=SMALL.context_length, behind=0):
    """Start, inner tokens, end, then `behind` to fill up → (1, length)."""
    tokens = [END - 1, *inner, END]
    return torch.tensor([tokens + [behind] * (length - len(tokens))])


# ------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name, count", [
    ("ViT-B/32", 151_277_313), ("ViT-B/16", 149_620_737), ("ViT-L/14", 427_616_513),
    ("ViT-L/14@336px", 427_944_193)])
def test_the_published_models_have_the_published_size(name, count):
    with torch.device("meta"):  # shapes without numbers: half a second, no memory
        model = CLIP(MODELS[name])
    assert sum(p.numel() for p in model.parameters()) == count
    assert not list(model.buffers())


def test_the_tiny_model_is_tiny():
    model = CLIP(MODELS["tiny"])
    assert 1e6 <= sum(p.numel() for p in model.parameters()) <= 3e6


@pytest.mark.parametrize("config", [
    SMALL, STEMLESS, CLASSIC, replace(SMALL, pool="cls"), replace(SMALL, stem=(4,)),
    replace(SMALL, stem=(4, 5, 6)), replace(SMALL, vision_layers=0, text_layers=0)])
def test_every_shape_gives_features_and_trains_every_parameter(config):
    model = build(config)
    tokens = torch.cat([row(1, 2), row(3), row(4, 5, 6)])
    image_features, text_features, scale = model(random_pixels(), tokens)
    assert image_features.shape == text_features.shape == (3, config.embed_dim)
    ((image_features * text_features).sum() * scale).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("change, words", [
    ({"pool": "max"}, "pool is 'max'; it must be 'cls' or 'mean'"),
    ({"embed_dim": 0}, "embed_dim is 0"),
    ({"image_size": -32}, "image_size is -32"),
    ({"patch_size": 0}, "patch_size is 0"),
    ({"vision_heads": 0}, "vision_heads is 0"),
    ({"text_width": 0}, "text_width is 0"),
    ({"vision_heads": 5}, "vision_width 24 is .* multiple of vision_heads 5"),
    ({"text_heads": 3}, "text_width 20 is .* multiple of text_heads 3"),
    ({"text_layers": -1}, "text_layers is .*from 0 to 1,000"),
    ({"image_size": 36}, "patch_size 8 must divide image_size 36"),
    ({"patch_size": 2, "image_size": 32}, "multiple of 4, the stride of 2 stem convolutions"),
    ({"context_length": 2}, "context_length is 2"),
])
def test_a_shape_that_cannot_be_is_one_clear_line(change, words):
    with pytest.raises(ValueError, match=words) as error:
        replace(SMALL, **change)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- the parts


def naive_attention(attention, x):
    """Softmax(Q Kᵀ / √D) V, one image, one head, one token at a time."""
    T, C = x.shape[1:]
    D = C // attention.heads
    weight, bias = attention.qkv.weight, attention.qkv.bias
    q, k, v = (x @ weight[i * C:(i + 1) * C].T + bias[i * C:(i + 1) * C] for i in range(3))
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for h in range(attention.heads):
            part = slice(h * D, (h + 1) * D)
            for t in range(T):
                seen = t + 1 if attention.causal else T
                scores = torch.stack([q[b, t, part] @ k[b, s, part] for s in range(seen)])
                shares = (scores / math.sqrt(D)).exp()
                shares = shares / shares.sum()
                out[b, t, part] = sum(shares[s] * v[b, s, part] for s in range(seen))
    return out @ attention.out.weight.T + attention.out.bias


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 3])
def test_attention_is_what_the_paper_says(causal, heads):
    torch.manual_seed(0)
    attention = Attention(12, heads, causal=causal).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(attention(x), naive_attention(attention, x))


@pytest.mark.parametrize("quick", [False, True])
def test_a_block_normalises_first_and_adds(quick):
    torch.manual_seed(0)
    block = Block(12, 3, causal=True, quick_gelu=quick).double()
    for norm in (block.norm1, block.norm2):  # so that one can't stand for the other
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 5, 12, dtype=torch.float64)

    def normed(x, norm):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * norm.weight + norm.bias

    def gelu(x):
        return x * (torch.sigmoid(1.702 * x) if quick else 0.5 * (1 + torch.erf(x / 2**0.5)))

    middle = x + naive_attention(block.attention, normed(x, block.norm1))
    wide = normed(middle, block.norm2) @ block.mlp[0].weight.T + block.mlp[0].bias
    expected = middle + gelu(wide) @ block.mlp[2].weight.T + block.mlp[2].bias
    torch.testing.assert_close(block(x), expected)
    assert block.mlp[0].out_features == 48


def test_quick_gelu():
    x = torch.tensor([-2.0, 0.0, 1.0])
    expected = [-2 / (1 + math.exp(3.404)), 0, 1 / (1 + math.exp(-1.702))]
    torch.testing.assert_close(QuickGELU()(x), torch.tensor(expected))


# ------------------------------------------------------------------------------- the image tower


def cut(pixels, patch):
    """(B, 3, S, S) → (B, T, 3·P·P): patches row by row, written with reshapes alone."""
    B, C, S, _ = pixels.shape
    n = S // patch
    return pixels.reshape(B, C, n, patch, n, patch).permute(0, 2, 4, 1, 3, 5).reshape(B, n * n, -1)


def test_without_a_stem_the_patches_are_one_matrix_product():
    tower, pixels = build(STEMLESS).vision, random_pixels()
    expected = cut(pixels, 8) @ tower.patches.weight.flatten(1).T
    torch.testing.assert_close(tower.patches(pixels).flatten(2).transpose(1, 2), expected)
    assert tower.patches.bias is None and len(tower.stem) == 0


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("pool", ["mean", "cls"])
@pytest.mark.parametrize("layers", [0, 2])
def test_the_image_tower_around_its_blocks_by_hand(layers, pool, pre_norm):
    """Where positions are added, what is normalised and what is pooled."""
    tower = build(replace(STEMLESS, vision_layers=layers, pool=pool, pre_norm=pre_norm)).vision
    pixels = random_pixels()
    x = cut(pixels, 8) @ tower.patches.weight.flatten(1).T
    if pool == "cls":
        x = torch.cat([tower.class_token.expand(3, 1, 24), x], 1)
    x = x + tower.positions
    if pre_norm:
        x = F.layer_norm(x, (24,), tower.norm_pre.weight, tower.norm_pre.bias)
    for block in tower.blocks:  # what a block does: see above
        x = block(x)
    x = x.mean(1) if pool == "mean" else x[:, 0]
    x = F.layer_norm(x, (24,), tower.norm_post.weight, tower.norm_post.bias)
    torch.testing.assert_close(tower(pixels), x @ tower.projection)


def test_cls_and_mean_pool_differ_by_a_token():
    mean, cls = VisionTransformer(STEMLESS), VisionTransformer(replace(STEMLESS, pool="cls"))
    assert mean.class_token is None and mean.positions.shape == (16, 24)
    assert cls.class_token.shape == (24,) and cls.positions.shape == (17, 24)


@pytest.mark.parametrize("config", [SMALL, CLASSIC])
def test_every_patch_counts_and_images_do_not_mix(config):
    tower, pixels = build(config).vision, random_pixels(2)
    with torch.no_grad():
        before = tower(pixels)
        for i in range(4):
            changed = pixels.clone()
            changed[0, :, 8 * i:8 * i + 8, 8 * i:8 * i + 8] += 1
            after = tower(changed)
            assert not torch.allclose(after[0], before[0], atol=1e-4)
            torch.testing.assert_close(after[1], before[1])


def test_a_stem_halves_and_convolves():
    tower = build().vision
    x = random_pixels()
    for layer in (tower.stem[0], tower.stem[2]):
        x = F.gelu(F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1))
    assert x.shape == (3, 10, 8, 8)
    torch.testing.assert_close(tower.stem(random_pixels()), x)
    assert tower.patches.kernel_size == (2, 2)  # 8 pixels of the image are 2 of what is left


# ------------------------------------------------------------------------------- the text tower


@torch.no_grad()
def test_nothing_behind_the_end_token_matters():
    tower = build().text
    expected = tower(row(5, 6, 7))
    torch.testing.assert_close(tower(row(5, 6, 7, behind=9)), expected)
    torch.testing.assert_close(tower(row(5, 6, 7, behind=END)), expected)  # the first end is it
    torch.testing.assert_close(tower(row(5, 6, 7, length=5)), expected)
    torch.testing.assert_close(tower(row(5, 6, 7, length=8)), expected)


@torch.no_grad()
def test_everything_before_the_end_token_matters():
    tower = build().text
    expected = tower(row(5, 6, 7))
    for other in ((4, 6, 7), (5, 4, 7), (5, 6, 4), (6, 5, 7), (5, 6), (5, 6, 7, 0)):
        assert not torch.allclose(tower(row(*other)), expected, atol=1e-4)


@torch.no_grad()
def test_texts_of_a_batch_do_not_mix():
    tower = build().text
    rows = [row(5), row(5, 6, 7), row(*range(10)), row()]
    torch.testing.assert_close(tower(torch.cat(rows)), torch.cat([tower(r) for r in rows]))


@torch.no_grad()
def test_earlier_tokens_do_not_see_later_ones():
    tower = build().text
    states = []
    tower.blocks.register_forward_hook(lambda module, given, out: states.append(out))
    tower(row(5, 6, 7, 8))
    tower(row(5, 6, 9, 8))  # differs at place 3
    before, after = states
    torch.testing.assert_close(before[:, :3], after[:, :3])
    assert ((before[0, 3:] - after[0, 3:]).abs().amax(1) > 1e-3).all()  # and later ones see it


@torch.no_grad()
def test_the_text_tower_without_blocks_by_hand():
    tower = build(replace(SMALL, text_layers=0)).text
    x = tower.tokens.weight[END] + tower.positions[3]
    x = F.layer_norm(x, (20,), tower.norm_final.weight, tower.norm_final.bias) @ tower.projection
    torch.testing.assert_close(tower(row(5, 6)), x[None])


def test_a_text_longer_than_the_context_is_refused():
    with pytest.raises(RuntimeError):
        TextTransformer(SMALL)(torch.zeros(1, SMALL.context_length + 1, dtype=torch.long))


# ------------------------------------------------------------------------------- the whole


@torch.no_grad()
def test_features_are_of_unit_length_if_asked():
    model, tokens = build(), torch.cat([row(1), row(2, 3)])
    for encode, given in ((model.encode_image, random_pixels(2)), (model.encode_text, tokens)):
        plain, unit = encode(given), encode(given, normalize=True)
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(2))
        torch.testing.assert_close(unit, plain / plain.norm(dim=1, keepdim=True))
        assert ((plain.norm(dim=1) - 1).abs() > 0.01).all()


@torch.no_grad()
def test_forward_returns_features_and_the_multiplier():
    model, pixels, tokens = build(), random_pixels(2), torch.cat([row(1), row(2, 3)])
    model.logit_scale.fill_(math.log(37))
    image_features, text_features, scale = model(pixels, tokens)
    torch.testing.assert_close(image_features, model.encode_image(pixels, normalize=True))
    torch.testing.assert_close(text_features, model.encode_text(tokens, normalize=True))
    assert scale.shape == () and scale.item() == pytest.approx(37)


def test_the_scale_starts_at_1_over_007_and_stays_below_100():
    model = CLIP(SMALL).init_weights(torch.Generator())
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    assert model.logit_scale.requires_grad and MAX_SCALE == 100
    for multiplier, clamped in ((1e6, 100), (100.1, 100), (99.0, 99), (0.5, 0.5)):
        model.logit_scale.data.fill_(math.log(multiplier))
        model.clamp_scale_()
        assert model.logit_scale.exp().item() == pytest.approx(clamped)


def test_projections_have_no_bias():
    names = [name for name, _ in CLIP(SMALL).named_parameters() if "proj" in name]
    assert names == ["vision.projection", "text.projection"]


@pytest.mark.parametrize("config", [SMALL, CLASSIC])
def test_init_draws_everything_from_its_generator(config):
    def drawn(seed, around):
        torch.manual_seed(around)  # the global generator must not matter
        model = CLIP(config)
        with torch.no_grad():  # what memory holds before, in a model built on the meta device
            for parameter in model.parameters():
                parameter.fill_(math.nan)
        return model.init_weights(torch.Generator().manual_seed(seed)).state_dict()

    first, again, other = drawn(7, 0), drawn(7, 1), drawn(8, 0)
    for name, tensor in first.items():
        assert tensor.isfinite().all(), f"{name} was never set"
        assert torch.equal(tensor, again[name]), name
        if tensor.ndim and not name.endswith("bias") and "norm" not in name:
            assert not torch.equal(tensor, other[name]), name


def test_init_has_the_deviations_of_openai():
    """openai/CLIP, `initialize_parameters`: here for 12 blocks of width 64."""
    config = replace(STEMLESS, vision_width=64, vision_heads=4, vision_layers=12, text_width=64,
                     text_heads=4, text_layers=12, vocab_size=500, context_length=77,
                     embed_dim=64, pool="cls")
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0))
    for tower in (model.vision, model.text):
        block = tower.blocks[5]
        for tensor, std in ((block.attention.qkv.weight, 64**-0.5), (tower.positions, 0.01),
                            (block.attention.out.weight, 64**-0.5 * 24**-0.5),
                            (block.mlp[0].weight, 128**-0.5), (tower.projection, 64**-0.5),
                            (block.mlp[2].weight, 64**-0.5 * 24**-0.5)):
            assert tensor.std().item() == pytest.approx(std, rel=0.1)
        assert not block.mlp[0].bias.any() and not block.attention.qkv.bias.any()
        assert (block.norm1.weight == 1).all()
    assert model.text.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_init_keeps_texts_and_images_apart():
    """A fresh model must not map everything to one point: there would be nothing to learn from."""
    model = CLIP(TINY).init_weights(torch.Generator().manual_seed(0))
    tokens = torch.zeros(8, 32, dtype=torch.long)
    for i in range(8):
        tokens[i, :6] = torch.tensor([4094, 10 * i + 1, 10 * i + 2, 10 * i + 3, i + 500, 4095])
    with torch.no_grad():
        images, texts, _ = model(random_pixels(8, 64), tokens)
    for features in (images, texts):
        assert torch.pdist(features).min() > 0.05


def test_the_default_config_is_vit_b_32():
    assert ModelConfig() == MODELS["ViT-B/32"]
    assert ModelConfig().image_tokens == 49 and TINY.image_tokens == 16
    assert ModelConfig(stem=[8, 8]).stem == (8, 8)  # JSON has only lists


# ------------------------------------------------------------------------------- dense


def test_the_value_path_is_attention_in_which_every_token_sees_itself_alone():
    block = Block(32, 4, causal=False, quick_gelu=False)
    x = torch.randn(3, 7, 32)
    alone = block(x.reshape(21, 1, 32)).reshape(3, 7, 32)  # sequences of one token each
    assert torch.allclose(block.value_path(x), alone, atol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_dense_embeddings(pool):
    config = replace(TINY, pool=pool, vision_layers=2, image_size=32, patch_size=8, stem=())
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        dense = model.vision.dense(pixels)
        assert dense.shape == (2, 4, 4, config.embed_dim)
        features = model.vision.features(pixels)
        assert torch.allclose(features @ model.vision.projection, model.encode_image(pixels))
        tokens = model.vision.embed(pixels)
        for block in model.vision.blocks[:-1]:
            tokens = block(tokens)
        if pool == "cls":  # the class token is no patch
            tokens = model.vision.blocks[-1].value_path(tokens)[:, 1:]
        else:
            tokens = model.vision.blocks[-1](tokens)
        own = model.vision.norm_post(tokens) @ model.vision.projection
        assert torch.allclose(dense.flatten(1, 2), own, atol=1e-5)


def test_lora_through_peft():
    """README's recipe: a hundredth of the weights is trained, and merged into a plain model."""
    peft = pytest.importorskip("peft")
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    recipe = re.search(r"LoraConfig\(.*?\)", readme, re.DOTALL)[0]
    model = CLIP(NARROW).init_weights(torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    lora = peft.get_peft_model(model, eval(recipe, {"LoraConfig": peft.LoraConfig}))
    trained = [p for p in lora.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-2)
    pixels, tokens = inputs(NARROW)
    losses = []
    for _ in range(30):
        loss = clip_loss(*lora(pixels, tokens))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    merged = lora.merge_and_unload()
    assert isinstance(merged, CLIP) and merged.state_dict().keys() == before.keys()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(
        tensor, before[name])}
    assert changed and all(name.endswith(".weight") for name in changed)
