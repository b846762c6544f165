"""Small CLIPs with random weights, in the namings of Hugging Face and of OpenAI."""

from dataclasses import replace
from pathlib import Path

import torch

from miniclip.config import ModelConfig, save_config
from miniclip.model import CLIP
from miniclip.tokenizer import BYTE_CHARS, BYTE_SYMBOLS, Tokenizer
from miniclip.weights import checkpoint

ODD = ModelConfig(  # nothing is a power of two, no two numbers are the same
    embed_dim=20, image_size=35, patch_size=7, vision_width=96, vision_layers=2, vision_heads=3,
    vocab_size=600, context_length=13, text_width=40, text_layers=3, text_heads=5)


NARROW = ModelConfig(
    embed_dim=9, image_size=10, patch_size=5, vision_width=12, vision_layers=1, vision_heads=1,
    vocab_size=550, context_length=5, text_width=6, text_layers=1, text_heads=3)


CLIPS = replace(  # heads of 64, as every file without settings has them
    ODD, vision_width=128, vision_heads=2, text_width=64, text_heads=1)


TOLERANCE = 1e-5


def hf_tensors(c: ModelConfig, seed=0) -> dict[str, torch.Tensor]:
    """A state dict as transformers' CLIPModel has it, every number random, and exact in float16."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape, around=0.0, spread=0.1):
        return torch.empty(shape).normal_(around, spread, generator=generator).half().float()

    patches = (c.image_size // c.patch_size) ** 2
    tensors = {
        "logit_scale": random(around=2.0),
        "vision_model.embeddings.class_embedding": random(c.vision_width),
        "vision_model.embeddings.patch_embedding.weight": random(
            c.vision_width, 3, c.patch_size, c.patch_size),
        "vision_model.embeddings.position_embedding.weight": random(patches + 1, c.vision_width),
        "text_model.embeddings.token_embedding.weight": random(c.vocab_size, c.text_width),
        "text_model.embeddings.position_embedding.weight": random(c.context_length, c.text_width),
        "visual_projection.weight": random(c.embed_dim, c.vision_width),
        "text_projection.weight": random(c.embed_dim, c.text_width)}

    def norm(name, width):
        tensors[f"{name}.weight"] = random(width, around=1.0)
        tensors[f"{name}.bias"] = random(width)

    def linear(name, c_in, c_out):
        tensors[f"{name}.weight"] = random(c_out, c_in, spread=c_in ** -0.5)
        tensors[f"{name}.bias"] = random(c_out)

    for name, width in (("vision_model.pre_layrnorm", c.vision_width),
                        ("vision_model.post_layernorm", c.vision_width),
                        ("text_model.final_layer_norm", c.text_width)):
        norm(name, width)
    for tower, width, layers in (("vision", c.vision_width, c.vision_layers),
                                 ("text", c.text_width, c.text_layers)):
        for i in range(layers):
            block = f"{tower}_model.encoder.layers.{i}."
            norm(block + "layer_norm1", width)
            norm(block + "layer_norm2", width)
            for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
                linear(f"{block}self_attn.{part}", width, width)
            linear(block + "mlp.fc1", width, 4 * width)
            linear(block + "mlp.fc2", 4 * width, width)
    return tensors


def openai_tensors(hf: dict) -> dict[str, torch.Tensor]:
    """The same in OpenAI's naming, which is that of open_clip's CLIP."""
    out = {"logit_scale": hf["logit_scale"],
           "visual.class_embedding": hf["vision_model.embeddings.class_embedding"],
           "visual.conv1.weight": hf["vision_model.embeddings.patch_embedding.weight"],
           "visual.positional_embedding": hf["vision_model.embeddings.position_embedding.weight"],
           "visual.proj": hf["visual_projection.weight"].T.contiguous(),
           "token_embedding.weight": hf["text_model.embeddings.token_embedding.weight"],
           "positional_embedding": hf["text_model.embeddings.position_embedding.weight"],
           "text_projection": hf["text_projection.weight"].T.contiguous()}
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = hf[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = hf[f"vision_model.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = hf[f"text_model.final_layer_norm.{kind}"]
        for theirs, ours in (("vision_model", "visual."), ("text_model", "")):
            for i in range(100):
                old, new = f"{theirs}.encoder.layers.{i}.", f"{ours}transformer.resblocks.{i}."
                if f"{old}mlp.fc1.bias" not in hf:
                    break
                out[f"{new}attn.in_proj_{kind}"] = torch.cat([
                    hf[f"{old}self_attn.{x}_proj.{kind}"] for x in "qkv"])
                out[f"{new}attn.out_proj.{kind}"] = hf[f"{old}self_attn.out_proj.{kind}"]
                out[f"{new}ln_1.{kind}"] = hf[f"{old}layer_norm1.{kind}"]
                out[f"{new}ln_2.{kind}"] = hf[f"{old}layer_norm2.{kind}"]
                out[f"{new}mlp.c_fc.{kind}"] = hf[f"{old}mlp.fc1.{kind}"]
                out[f"{new}mlp.c_proj.{kind}"] = hf[f"{old}mlp.fc2.{kind}"]
    return out


def inputs(c: ModelConfig, n=3) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels, and texts of every length."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randn(n, 3, c.image_size, c.image_size, generator=generator)
    tokens = torch.zeros(n, c.context_length, dtype=torch.int64)
    for row, length in zip(tokens, torch.linspace(3, c.context_length, n).long().tolist()):
        row[:length] = torch.randint(1, c.vocab_size - 2, (length,), generator=generator)
        row[0], row[length - 1] = c.vocab_size - 2, c.vocab_size - 1
    return pixels, tokens


@torch.no_grad()
def outputs(model: CLIP, pixels, tokens) -> dict[str, torch.Tensor]:
    images, texts, scale = model(pixels, tokens)
    return {"image": model.encode_image(pixels), "text": model.encode_text(tokens),
            "logits": scale * images @ texts.T}


def check_same(found: dict, expected: dict, tolerance=TOLERANCE):
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype == torch.float32
        error = ((found[name] - value).abs().max() / value.abs().max()).item()
        assert error <= tolerance, f"{name}: {error:.2e}"


def write_run(folder: Path, c: ModelConfig) -> Path:
    """A run as training leaves it."""
    folder.mkdir()
    write_merges(folder, c.vocab_size - 514)
    lines = (folder / "merges.txt").read_text("utf-8").splitlines()[1:]
    (folder / "merges.txt").unlink()
    Tokenizer(lines, c.context_length).save(folder / "tokenizer.json")
    model = CLIP(c).init_weights(torch.Generator().manual_seed(3))
    with torch.no_grad():  # gains of 1 and biases of 0 would hide what is mixed up
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    checkpoint.save_weights(model, folder)
    save_config(c, folder / "config.json")
    return folder


def write_merges(folder: Path, count: int):
    """Merges of single characters: a vocabulary of 514 + count."""
    pairs = (f"{a} {b}" for a in BYTE_CHARS for b in BYTE_SYMBOLS)
    lines = [next(pairs) for _ in range(count)]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), "utf-8")
