"""What gives way first as training grows: a model of one step, from two cores to 1,024 GPUs.

Seconds of one process in one step of N pairs on K processes, each with M = N / K of them:

    towers      M · 3 · forward operations / (the rate that towers reach)
    loss        8 M N D / (the rate of a fused loss): one slab, 4 products
    gradients   2 (K − 1) / K · 4 bytes · parameters / network, less what hides behind the
                backward pass, two thirds of the towers' time (Li et al. 2020, arXiv 2006.15704)
    features    texts gathered (2 bytes) and their gradients sent home (2 bytes): 4 N D / network
    images      M / (pairs that the machine's cores decode in a second), less the rest of the step:
                decoding runs beside it

and bytes of its memory: 16 for each parameter (weight, gradient, two moments); activations, 34 for
each token and channel of each block (Korthikanti et al. 2022, arXiv 2205.05198, section 4.1,
with attention that keeps no matrix); the features of all texts.

The operations are counted from the model's shape. Everything else is an assumption, named in
`Machine`. `measure` times this machine in their place.
"""

import io
import os
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
from PIL import Image

from miniclip.config import MODELS, ModelConfig
from miniclip.data.images import decode
from miniclip.device import described, fast_math
from miniclip.model import CLIP
from miniclip.parallel import ALONE
from miniclip.train import contrast

PARTS = ("towers", "loss", "gradients", "features", "images")


@dataclass(frozen=True)
class Machine:
    """One processor (a GPU, or all cores) and its share of the network. Rates are per second."""

    name: str
    peak: float  # operations of dense 16-bit products, by the datasheet
    towers: float  # share of it that a training step of the towers reaches
    loss: float  # share of it that the fused loss reaches
    network: float  # bytes to the other processors, in each direction
    decoded: float  # images that its share of the cores decodes
    memory: float  # bytes


# Shares: towers 35 %, as well-kept ViT training reaches; loss 63 %, measured on an H200 (kernels).
# Network: 200 and 400 Gbit/s for each GPU. Sixteen cores for each GPU, 240 images a second each.
MACHINES = {
    "A100": Machine("A100", 312e12, 0.35, 0.63, 25e9, 16 * 240, 80e9),
    "H100": Machine("H100", 989e12, 0.35, 0.63, 50e9, 16 * 240, 80e9)}


def operations(config: ModelConfig) -> float:
    """Floating-point operations of both towers for one pair, forward."""
    def blocks(tokens, width, layers):
        return layers * (24 * width**2 * tokens + 4 * tokens**2 * width)

    tokens = config.image_tokens + (config.pool == "cls")
    patches = 2 * 3 * config.patch_size**2 * config.vision_width * config.image_tokens
    return (patches + blocks(tokens, config.vision_width, config.vision_layers)
            + blocks(config.context_length, config.text_width, config.text_layers))


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in CLIP(config).parameters())


def step(config: ModelConfig, machine: Machine, N: int, K: int) -> dict:
    """→ seconds of each part that the step waits for, their sum, pairs a second, bytes."""
    M, D, P = N / K, config.embed_dim, parameters(config)
    towers = 3 * M * operations(config) / (machine.peak * machine.towers)
    loss = 8 * M * N * D / (machine.peak * machine.loss)
    gradients = 2 * (K - 1) / K * 4 * P / machine.network
    features = 4 * N * D / machine.network if K > 1 else 0.0
    found = {"towers": towers, "loss": loss, "gradients": max(0.0, gradients - towers * 2 / 3),
             "features": features}
    found["images"] = max(0.0, M / machine.decoded - sum(found.values()))
    seconds = sum(found.values())
    tokens = config.image_tokens + (config.pool == "cls")
    kept = 34 * (tokens * config.vision_width * config.vision_layers
                 + config.context_length * config.text_width * config.text_layers)
    needed = 16 * P + M * kept + 4 * N * D
    return {"N": N, "K": K, "machine": machine.name, "seconds": seconds,
            "pairs_per_second": N / seconds, "gigabytes": needed / 1e9,
            "fits": needed < machine.memory, "parts": found}


def published(config: ModelConfig) -> dict:
    """open_clip's ViT-B/32 on LAION-400M: 32 epochs in about 36 hours on 128 A100, batches of
    32,768 (its README). → what that is for a GPU, and what the model says of it.
    """
    pairs = 32 * 400e6 / (36 * 3600)
    modelled = step(config, MACHINES["A100"], 32768, 128)
    return {"pairs_per_second": pairs, "modelled": modelled["pairs_per_second"],
            "share_of_peak": 3 * operations(config) * pairs / 128 / MACHINES["A100"].peak}


def measure(config: ModelConfig, device: torch.device, batch: int = 16) -> Machine:
    """This machine: a training step of the towers, and one core's decoder times its cores."""
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0)).to(device)
    pixels = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
    tokens = torch.randint(1, config.vocab_size - 2, (batch, config.context_length), device=device)
    tokens[:, -1] = config.vocab_size - 1
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        with fast_math(device):
            loss = contrast(model, ALONE, None, *model(pixels, tokens))
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begin)
    reached = 3 * batch * operations(config) / min(seconds)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine("this machine", reached, 1.0, 1.0, 1e9, decoding_rate(config.image_size), memory)


def decoding_rate(size: int, count: int = 50) -> float:
    """JPEGs of 500 × 375 pixels that all cores decode in a second."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG")
    begin = time.perf_counter()
    for _ in range(count):
        decode(file.getvalue(), size)
    return count / (time.perf_counter() - begin) * torch.get_num_threads()


def scaling_report(device: torch.device | None = None, name: str = "ViT-B/32") -> dict:
    """Every row of lessons/scaling.md. device: measure this machine as well."""
    config = MODELS[name]
    gpu = MACHINES["H100"]
    figures = {
        "model": name, "operations": 3 * operations(config), "parameters": parameters(config),
        "assumptions": {key: asdict(machine) for key, machine in MACHINES.items()},
        "published": published(config),
        "strong": [step(config, gpu, 32768, K) for K in (8, 32, 128, 512, 1024)],
        "weak": [step(config, gpu, 256 * K, K) for K in (8, 128, 1024, 4096, 16384)]}
    if device is not None:
        here = measure(config, device)
        figures |= {"measured": asdict(here) | described(device),
                    "here": step(config, here, 256, 1)}
    return figures
