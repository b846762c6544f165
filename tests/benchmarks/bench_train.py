"""Training speed: pairs a second, ours beside transformers.CLIPModel of the same shape.

    python tests/benchmarks/bench_train.py        (or: make bench)

Both towers, both losses, AdamW on both sides; rounds are interleaved, so that whatever else the
machine does meets both. Ours runs as train.py runs it. Theirs runs as a careful user would: under
the same bfloat16 autocast where that is fast; and both once more in plain float32.
"""

import platform
import statistics
import sys
import time
from contextlib import nullcontext
from dataclasses import replace

import torch
from miniclip_kernels import clip_loss

from miniclip.config import TINY, TrainConfig
from miniclip.device import bf16_is_fast, fast_math
from miniclip.model import CLIP
from miniclip.optim import build_optimizers

BATCH, TEXT, ROUNDS, STEPS = 128, 20, 5, 6
SHAPES = {  # a plain ViT, which transformers can build too: class token, pre-norm, no stem
    "2+1 layers, width 192, 16 patches": replace(
        TINY, stem=(), pool="cls", pre_norm=True, quick_gelu=True),
    "4+2 layers, width 256, 64 patches": replace(
        TINY, stem=(), pool="cls", pre_norm=True, quick_gelu=True, patch_size=8, embed_dim=256,
        vision_width=256, vision_layers=4, vision_heads=4, text_width=256, text_layers=2,
        text_heads=4),
}


def ours(config, precision):
    """→ a function that takes one training step."""
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0))
    optimizers = build_optimizers(model, TrainConfig(muon_learning_rate=0.0))

    def step(pixels, tokens):
        with precision():
            loss = clip_loss(*model(pixels, tokens))
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        model.clamp_scale_()

    return model, step


def theirs(config, precision):
    """The same of transformers."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_act": "quick_gelu", "projection_dim": config.embed_dim}
    model = CLIPModel(CLIPConfig(
        projection_dim=config.embed_dim,
        vision_config=shared | {
            "hidden_size": config.vision_width, "intermediate_size": 4 * config.vision_width,
            "num_hidden_layers": config.vision_layers, "num_attention_heads": config.vision_heads,
            "image_size": config.image_size, "patch_size": config.patch_size},
        text_config=shared | {
            "hidden_size": config.text_width, "intermediate_size": 4 * config.text_width,
            "num_hidden_layers": config.text_layers, "num_attention_heads": config.text_heads,
            "vocab_size": config.vocab_size, "bos_token_id": config.vocab_size - 2,
            "eos_token_id": config.vocab_size - 1, "pad_token_id": 0,
            "max_position_embeddings": config.context_length}))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, betas=(0.9, 0.98), eps=1e-6)

    def step(pixels, tokens):
        with precision():
            loss = model(input_ids=tokens, pixel_values=pixels, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, step


def measure(steps, batch) -> list[list[float]]:
    """Pairs a second of each step function, round by round, interleaved."""
    for step in steps:
        step(*batch)
        step(*batch)
    rates = [[] for _ in steps]
    for _ in range(ROUNDS):
        for step, found in zip(steps, rates):
            begin = time.perf_counter()
            for _ in range(STEPS):
                step(*batch)
            found.append(STEPS * BATCH / (time.perf_counter() - begin))
    return rates


def main():
    try:
        import transformers
    except ImportError:
        sys.exit("bench_train needs its peer: pip install transformers")
    cpu = torch.device("cpu")
    modes = {"float32": (nullcontext, nullcontext)}
    if bf16_is_fast(cpu):
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # as train.py does
        modes["bf16 autocast"] = (
            lambda: fast_math(cpu), lambda: torch.autocast("cpu", torch.bfloat16))
    print(f"training, pairs/s at batch {BATCH} (median of {ROUNDS} rounds), torch "
          f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}, "
          f"transformers {transformers.__version__}")
    for name, config in SHAPES.items():
        generator = torch.Generator().manual_seed(1)
        size = config.image_size
        pixels = torch.randn(BATCH, 3, size, size, generator=generator)
        tokens = torch.randint(1, config.vocab_size - 2, (BATCH, TEXT), generator=generator)
        tokens[:, 0], tokens[:, -1] = config.vocab_size - 2, config.vocab_size - 1
        for mode, (our_precision, their_precision) in modes.items():
            (model, our_step), (peer, their_step) = (
                ours(config, our_precision), theirs(config, their_precision))
            counts = [sum(p.numel() for p in m.parameters()) for m in (model, peer)]
            assert counts[0] == counts[1], f"the shapes differ: {counts} parameters"
            a, b = (statistics.median(r) for r in measure([our_step, their_step], (pixels, tokens)))
            print(f"  {name}, {mode}: miniclip {a:,.0f}, transformers {b:,.0f}: {a / b:.2f} x")


if __name__ == "__main__":
    main()
