"""Speed of use beside transformers: ViT-B/32's features, and what makes pixels of an image.

    python tests/benchmarks/bench_pretrained.py        (or: make bench)

Both sides have the same random weights and get the same inputs; rounds are interleaved, so that
whatever else the machine does meets both. Features: in float32, and under bfloat16 autocast where
that is fast, on both sides; texts are full, 77 tokens. Pixels: transformers' CLIP image processor
on Pillow, handed a list, and `Transform`: of images that are decoded already, where both give the
same pixels; and of JPEG files, which ours (`data.decode`) decodes at a half, a quarter or an eighth
of their size as long as that is twice what is needed. Theirs takes one image after the other, ours
is timed so too, and with a thread for each core, as building a cache and `eval --zero-shot` do it.
"""

import io
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch
from PIL import Image

from miniclip.config import MODELS
from miniclip.data.images import Transform, decode, normalize
from miniclip.device import bf16_is_fast
from miniclip.model import CLIP
from miniclip.weights.export import hf_settings
from miniclip.weights.names import HF, theirs

BATCH, ROUNDS = 32, 10
PHOTOGRAPHS = ((500, 375), (375, 500), (1024, 768), (4032, 3024))


def compare(what: str, count: int, unit: str, ours, peer) -> tuple[float, float]:
    """Print how many a second each makes, and the ratio: medians over the rounds → seconds."""
    times = {ours: [], peer: []}
    for number in range(ROUNDS + 1):
        for function in (ours, peer) if number % 2 else (peer, ours):
            begin = time.perf_counter()
            function()
            if number:  # the first round warms up
                times[function].append(time.perf_counter() - begin)
    a, b = (statistics.median(times[function]) for function in (ours, peer))
    ratio = statistics.median(y / x for x, y in zip(times[ours], times[peer]))
    print(f"  {what}: miniclip {count / a:,.1f} {unit}/s, transformers {count / b:,.1f}: "
          f"{ratio:.2f} x")
    return a, b


@torch.no_grad()
def encoding():
    """Images and texts a second."""
    from transformers import CLIPConfig, CLIPModel

    config, cpu = MODELS["ViT-B/32"], torch.device("cpu")
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0)).eval()
    peer = CLIPModel(CLIPConfig(**hf_settings(config)["config.json"])).eval()
    peer.load_state_dict({n: part for name, tensor in model.state_dict().items()
                          for n, part in theirs(name, tensor, HF).items()})
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(BATCH, 3, 224, 224, generator=generator)
    tokens = torch.randint(1, 49406, (BATCH, 77), generator=generator)
    tokens[:, 0], tokens[:, -1] = 49406, 49407
    modes = {"float32": nullcontext}
    if bf16_is_fast(cpu):
        modes["bf16"] = lambda: torch.autocast("cpu", torch.bfloat16)
    plain = {}
    for mode, precision in modes.items():
        def timed(function, inputs, precision=precision):
            with precision():
                return function(inputs)

        for unit, ours, other, inputs in (
                ("images", model.encode_image, peer.get_image_features, pixels),
                ("texts", model.encode_text, peer.get_text_features, tokens)):
            a, b = compare(f"ViT-B/32, {mode}", BATCH, unit,
                           partial(timed, ours, inputs), partial(timed, other, inputs))
            if mode == "float32":
                plain[unit] = b
            else:
                print(f"    against transformers in float32: {plain[unit] / a:.2f} x")


def photograph(width: int, height: int) -> Image.Image:
    """Soft colours and some grain, so that its JPEG file is as large as a photograph's."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
    soft = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 6, soft.shape)
    return Image.fromarray((soft + grain).clip(0, 255).astype(np.uint8))


def preprocessing(size=224):
    """Images a second: decoded, and from files; on one core, and as eval --zero-shot does it."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor, transform = CLIPImageProcessorPil(), Transform(size)
    pool = ThreadPoolExecutor()
    torch.set_num_threads(1)
    for width, height in PHOTOGRAPHS:
        image, file = photograph(width, height), io.BytesIO()
        image.save(file, "JPEG", quality=90)
        data, count = file.getvalue(), max(4, 4_000_000 // (width * height))

        def ours(many, pool, image=image, count=count):
            return torch.stack(list(many(pool, transform, [image] * count)))

        def theirs(image=image, count=count):
            return processor([image] * count, return_tensors="pt")["pixel_values"]

        def ours_files(many, pool, data=data, count=count):
            decoded = many(pool, partial(decode, size=size), [data] * count)
            return normalize(np.stack([pixels for pixels, _ in decoded]))

        def theirs_files(data=data, count=count):
            images = [Image.open(io.BytesIO(data)) for _ in range(count)]
            return processor(images, return_tensors="pt")["pixel_values"]

        for ways in ((ours, theirs, "decoded before"), (ours_files, theirs_files, "JPEG files")):
            for many, cores in ((one_by_one, 1), (ThreadPoolExecutor.map, os.cpu_count())):
                compare(f"{width} x {height}, {ways[2]}, ours on {cores} core(s)", count, "images",
                        partial(ways[0], many, pool), ways[1])


def one_by_one(_, function, items):
    return [function(item) for item in items]


def main():
    try:
        import transformers
    except ImportError:
        sys.exit("bench_pretrained needs its peer: pip install transformers")
    print(f"use of ViT-B/32 (median of {ROUNDS} rounds), torch {torch.__version__}, "
          f"{torch.get_num_threads()} threads, {platform.machine()}, "
          f"transformers {transformers.__version__}")
    encoding()
    preprocessing()


if __name__ == "__main__":
    main()
