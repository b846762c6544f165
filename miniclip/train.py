"""The training loop, from top to bottom (Radford et al. 2021, sections 2.3 to 2.5).

    batch of pairs ─▶ two towers ─▶ clip_loss ─▶ gradient ─▶ Muon and AdamW ─▶ scale ≤ 100

Everything random is a function of the seed and the step, so a run that was stopped, or killed,
goes on as if nothing had happened: bit for bit on a CPU.
"""

import json
import math
import platform
import resource
import signal
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote

import torch
from miniclip_kernels.clip_loss import clip_loss
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from miniclip import checkpoint, plots
from miniclip.config import MODELS, ModelConfig, TrainConfig, save_config
from miniclip.data import Batches, Pairs, load_pairs
from miniclip.evaluate import embed_images, embed_texts, retrieval, shapes_report
from miniclip.model import CLIP
from miniclip.sources import HubUnreachable, Source
from miniclip.tokenizer import Tokenizer

LOG_EVERY = 10  # steps
SHOWN = 24  # pairs of the similarity matrix that is kept for the pictures


class Diverged(ArithmeticError):
    """The loss is no longer a number; the message says when, and what to try."""


# ------------------------------------------------------------------------------- the pieces


def pick_device(name: str = "auto") -> torch.device:
    """auto | cpu | cuda | mps → a device that is there; ValueError for one that is not."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(),
             "cpu": True}
    there = [device for device, here in found.items() if here]
    if name not in ("auto", *there):
        raise ValueError(f"device {name!r} is not here; found: {', '.join(there)}")
    return torch.device(there[0] if name == "auto" else name)


def bf16_is_fast(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware (for a CPU: AMX, AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and (
        torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@contextmanager
def fast_math(device: torch.device):
    """The forward pass in bfloat16 where that is fast, and attention as the device likes it."""
    bf16 = bf16_is_fast(device)
    # On sequences this short, PyTorch's flash attention for CPUs takes four times as long in
    # bfloat16 as plain matrix products: half of a training step. In float32 it takes half as long.
    plain = sdpa_kernel(SDPBackend.MATH) if bf16 and device.type == "cpu" else nullcontext()
    with torch.autocast(device.type, torch.bfloat16, enabled=bf16), plain:
        yield


class Muon(torch.optim.Muon):
    """Muon (Jordan et al. 2024) that takes convolutions too.

    It replaces a matrix's momentum by nearly the nearest orthogonal matrix, so that every direction
    of the update has about the same length, the rare ones too. A kernel (out, in, k, k) is a matrix
    as well: (out, in · k · k), which multiplies patches. Hence a second parameter for each kernel,
    over the same numbers in memory, with a matrix's shape and a gradient of its own.
    """

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float):
        self.kernels = [p for p in parameters if p.ndim == 4]
        self.matrices = [nn.Parameter(p.data.view(len(p), -1)) for p in self.kernels]
        plain = [p for p in parameters if p.ndim == 2]
        super().__init__([*plain, *self.matrices], lr=lr, weight_decay=weight_decay)

    def step(self):
        for kernel, matrix in zip(self.kernels, self.matrices):
            matrix.grad, kernel.grad = kernel.grad.flatten(1), None
        super().step()


def build_optimizers(model: CLIP, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for every matrix that features pass through, AdamW for the rest.

    Only those matrices decay: not gains, biases, embeddings and the scale.
    """
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        plain = parameter.ndim < 2 or name.endswith(("positions", "tokens.weight"))
        (rest if plain else matrices).append(parameter)
    groups = [{"params": rest, "weight_decay": 0.0}]
    if not config.muon_learning_rate:
        groups.append({"params": matrices, "weight_decay": config.weight_decay})
    optimizers = [torch.optim.AdamW(
        groups, config.learning_rate, betas=(0.9, 0.98), eps=1e-6, fused=True)]
    if config.muon_learning_rate:
        optimizers.append(Muon(matrices, config.muon_learning_rate, config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def schedule(step: int, config: TrainConfig) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def prepare_data(config: TrainConfig, model_config: ModelConfig, resume: bool):
    """Both splits, and the configuration as it is after a Hub that can't be reached.

    What nobody asked for by name may be replaced, with a clear word; never in the middle of a run.
    """
    source, size = Source.find(config.data or None), model_config.image_size
    try:
        pairs = load_pairs(source, "train", size, config.limit)
        held_out = load_pairs(source, "validation", size)
    except HubUnreachable as error:
        if source.explicit or resume:
            raise
        print(NO_HUB.format(error=error), file=sys.stderr)
        config = replace(config, data="shapes", crop=1.0, jitter=0.0)
        return prepare_data(config, model_config, resume)
    flip = config.flip and source.kind != "shapes"  # captions of scenes say left and right
    # Where the data are, to resume from wherever, whatever is set then.
    return pairs, held_out, replace(config, data=source.where, flip=flip)


NO_HUB = """
Flickr8k can't be had: {error}.
Training goes on with `shapes`, the built-in generated scenes, neither cropped, mirrored nor tinted:
their captions name places and colours. Figures for photographs need photographs. To get Flickr8k:
come back with a network and run the same command, or put its parquet files, or its images with
captions.txt, in a folder and set MINICLIP_DATA=/path/to/folder.
"""


class StopSignal:
    """Ctrl-C and SIGTERM ask for a stop after the current step; a second Ctrl-C stops at once."""

    def __enter__(self):
        self.asked, self.before = False, {}
        with suppress(ValueError):  # only the main thread hears signals
            self.before = {s: signal.signal(s, self.ask) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, number, frame):
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------- the run


def train(config: TrainConfig, model_config: ModelConfig | None = None, folder="runs/default",
          device: str = "auto", resume: bool = False) -> dict:
    """Train a CLIP into `folder` → the figures of its best checkpoint, as in metrics.json.

    model_config: the model's shape (default: the one that config.model names). resume: go on from
    `folder`'s last saved step; config and model_config must then be those of the folder.
    An older run in `folder` is moved aside. Stopped by Ctrl-C, it saves and raises
    KeyboardInterrupt. Raises ValueError for input that cannot be trained on and for a folder that
    holds anything but a run, HubUnreachable for named data that the Hub does not give, Diverged
    when the loss is no longer finite.
    """
    folder, device = Path(folder).resolve(), pick_device(device)
    if device.type == "cpu":  # not only CUDA's: attention as fast_math has it stays in bfloat16
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    model_config = model_config or MODELS[config.model]
    pairs, held_out, config = prepare_data(config, model_config, resume)
    generator = torch.Generator().manual_seed(config.seed)
    tokenizer = Tokenizer.load(folder / "tokenizer.json") if resume else Tokenizer.train(
        pairs.flat_captions()[0], model_config.vocab_size, model_config.context_length)
    model_config = replace(model_config, vocab_size=tokenizer.vocab_size)  # few texts, few tokens
    batches = Batches(pairs, tokenizer, model_config.image_size, config, device)
    model = CLIP(model_config).init_weights(generator).to(device)
    optimizers = build_optimizers(model, config)
    progress = {"step": 0, "best": -1.0, "best_step": 0, "seconds": 0.0,
                "data": [pairs.summary, held_out.summary]}
    if not resume:
        checkpoint.make_folder(folder)
    with checkpoint.one_writer(folder, "train"):
        if resume:
            state = checkpoint.load_state(folder)
            model.load_state_dict(state["model"])
            for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            if progress["data"] != (before := state["progress"].get("data", progress["data"])):
                raise ValueError(f"{folder} was trained on {' and '.join(before)}; {config.data} "
                                 f"has {' and '.join(progress['data'])} now: start a new --run")
            progress = state["progress"]
            save_config(config, folder / "train.json")  # the data may have moved
            for name in ("metrics.jsonl", "similarity.jsonl"):
                checkpoint.rewind_rows(folder / name, progress["step"])
        else:
            save_config(config, folder / "train.json")  # first: by it a folder is known as a run
            save_config(model_config, folder / "config.json")
            tokenizer.save(folder / "tokenizer.json")
        run = Run(folder, config, model, tokenizer, held_out, optimizers, progress)
        run.loop(batches, device)
        return run.finish(pairs, device)


class Run:
    """What belongs together while a model trains; `loop` is the training loop itself."""

    def __init__(self, folder, config, model, tokenizer, held_out, optimizers, progress):
        self.folder, self.config, self.model, self.tokenizer = folder, config, model, tokenizer
        self.held_out, self.optimizers, self.progress = held_out, optimizers, progress

    def loop(self, batches: Batches, device: torch.device):
        """From progress["step"] to config.steps."""
        config, model, progress = self.config, self.model, self.progress
        if progress["step"] == 0:
            self.evaluate()
        begin, before = time.perf_counter(), progress["seconds"]
        bar = tqdm(total=config.steps, initial=progress["step"], unit="step", dynamic_ncols=True)
        with StopSignal() as stop, bar:
            for step in range(progress["step"], config.steps):
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = group["peak"] * schedule(step, config)
                pixels, tokens = batches[step]
                with fast_math(device):
                    image_features, text_features, scale = model(pixels, tokens)
                loss = clip_loss(image_features.float(), text_features.float(), scale)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                if not torch.isfinite(loss + norm):
                    raise Diverged(self.diagnosis(step, loss, norm, scale))
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                model.clamp_scale_()

                progress["step"] = step + 1
                bar.update()
                if (step + 1) % LOG_EVERY == 0:
                    rate = (bar.n - bar.initial) * len(pixels) / (time.perf_counter() - begin)
                    told = self.log(image_features.detach(), text_features.detach(), loss, scale)
                    bar.set_postfix_str(f"{told}, {rate:.0f} pairs/s")
                last = step + 1 == config.steps
                due = last or (step + 1) % config.eval_every == 0
                if due:
                    self.evaluate()
                progress["seconds"] = before + time.perf_counter() - begin
                if due or stop.asked:
                    self.save()
                if stop.asked and not last:
                    raise KeyboardInterrupt(
                        f"; go on with: miniclip train --run {quote(str(self.folder))} --resume")

    def log(self, image_features, text_features, loss, scale) -> str:
        """One line of metrics.jsonl, and the same for the eye."""
        nearest = (image_features @ text_features.T).argmax(1).cpu()  # (B,) texts, one per image
        accuracy = (nearest == torch.arange(len(nearest))).double().mean().item()
        step = self.progress["step"]
        checkpoint.append_row(self.folder / "metrics.jsonl", {
            "step": step, "loss": loss.item(), "scale": scale.item(), "accuracy": accuracy,
            "learning_rate": self.config.learning_rate * schedule(step - 1, self.config)})
        return f"loss {loss.item():.3f}, scale {scale.item():.1f}, right {accuracy:.0%}"

    def save(self):
        checkpoint.save_state(self.folder, {
            "model": self.model.state_dict(), "progress": self.progress,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers]})

    def evaluate(self):
        """Recall on the held-out split; the weights are kept if they are the best so far."""
        self.model.eval()
        metrics = retrieval(self.model, self.tokenizer, self.held_out)
        mean = (metrics["image_to_text"]["R@10"] + metrics["text_to_image"]["R@10"]) / 2
        step = self.progress["step"]
        checkpoint.append_row(self.folder / "metrics.jsonl", {"step": step, **metrics})
        matrix = embed_images(self.model, self.held_out.images[:SHOWN]) @ embed_texts(
            self.model, self.tokenizer, [c[0] for c in self.held_out.captions[:SHOWN]]).T
        checkpoint.append_row(self.folder / "similarity.jsonl", {
            "step": step, "cosines": [[round(x, 4) for x in row] for row in matrix.tolist()]})
        if mean >= self.progress["best"]:  # of equals the last: few images are soon all found
            self.progress.update(best=mean, best_step=step)
            checkpoint.save_weights(self.model, self.folder)
        self.model.train()

    def diagnosis(self, step, loss, norm, scale) -> str:
        return (f"step {step + 1}: loss {loss.item():.4g}, gradient norm {norm.item():.4g}, scale "
                f"{scale.item():.4g}: no longer finite. Start again with a lower "
                "--learning-rate or --muon-learning-rate, or a longer --warmup")

    def finish(self, pairs: Pairs, device: torch.device) -> dict:
        """Evaluate the best checkpoint, from disk; write metrics.json and draw the pictures."""
        model, tokenizer, _ = checkpoint.load(self.folder, device)
        metrics = retrieval(model, tokenizer, self.held_out)
        if self.config.data == "shapes":
            metrics["shapes"] = shapes_report(model, tokenizer)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        metrics["training"] = {
            "data": pairs.name, "summary": pairs.summary, "best_step": self.progress["best_step"],
            "steps": self.config.steps, "batch_size": self.config.batch_size,
            "seconds": round(self.progress["seconds"], 1),
            "peak_memory_mb": round(peak / (1 if sys.platform == "linux" else 1024) / 1024),
            "parameters": sum(p.numel() for p in model.parameters()),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else
                      f"{device.type}, {platform.machine()}", "threads": torch.get_num_threads(),
            "bf16": bf16_is_fast(device), "torch": torch.__version__}
        checkpoint.write_text(self.folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        plots.draw_run(self.folder, model, tokenizer, self.held_out, self.config.batch_size)
        return metrics
