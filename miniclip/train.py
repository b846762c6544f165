"""The training loop, from top to bottom (Radford et al. 2021, sections 2.3 to 2.5).

    batch of pairs ─▶ two towers ─▶ clip_loss ─▶ gradient ─▶ Muon and AdamW ─▶ scale ≤ 100

Read `train` from top to bottom; the functions below it hold the details. Everything random is a
function of the seed and the step. So a run that was stopped or killed can be resumed, and on a CPU
it ends with the same weights, bit for bit.
"""

import json
import math
import resource
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from shlex import quote

import torch
from miniclip_kernels import clip_loss, sigmoid_loss
from tqdm import tqdm

from miniclip import plots
from miniclip.config import MODELS, ModelConfig, TrainConfig, save_config
from miniclip.data.batches import Batches, prefetch
from miniclip.data.pairs import Pairs, load_pairs
from miniclip.data.sources import HubUnreachable, Source
from miniclip.device import described, fast_math, pick_device
from miniclip.files import append_row, one_writer, write_text
from miniclip.model import CLIP
from miniclip.optim import build_optimizers, schedule
from miniclip.tasks.features import embed_images, embed_texts
from miniclip.tasks.retrieval import retrieval
from miniclip.tasks.zero_shot import shapes_report
from miniclip.tokenizer import Tokenizer
from miniclip.weights import checkpoint

LOG_EVERY = 10  # steps
SHOWN = 24  # pairs of the similarity matrix that is kept for the pictures


class Diverged(ArithmeticError):
    """The loss is no longer finite; the message says when, and what to try."""


def train(config: TrainConfig, model_config: ModelConfig | None = None, folder="runs/default",
          device: str = "auto", resume: bool = False) -> dict:
    """Train a CLIP into a run folder → the figures of its best checkpoint, as in metrics.json.

    Args:
        config: the settings of the run.
        model_config: the model's shape (default: the one that config.model names).
        folder: the run's folder. An older run of that name is moved aside.
        device: auto, cpu, cuda or mps.
        resume: go on from the folder's last saved step; config and model_config must then be those
            of the folder.

    Raises:
        ValueError: input that cannot be trained on, or a folder that holds anything but a run.
        HubUnreachable: the Hub does not give data that were asked for by name.
        Diverged: the loss is no longer finite. What was saved before is kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is saved first.
    """
    folder, device = Path(folder).resolve(), pick_device(device)

    # The data, and a tokenizer that learns from the training captions.
    model_config = model_config or MODELS[config.model]
    pairs, held_out, config = prepare_data(config, model_config, resume)
    if resume:
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    else:
        texts, _ = pairs.flat_captions()
        tokenizer = Tokenizer.train(texts, model_config.vocab_size, model_config.context_length)
    model_config = replace(model_config, vocab_size=tokenizer.vocab_size)  # few texts, few tokens
    batches = Batches(pairs, tokenizer, model_config.image_size, config, device)

    # The model, and what will change it.
    generator = torch.Generator().manual_seed(config.seed)
    model = CLIP(model_config).init_weights(generator).to(device)
    optimizers = build_optimizers(model, config)
    progress = {"step": 0, "best": -1.0, "best_step": 0, "seconds": 0.0,
                "data": [pairs.summary, held_out.summary]}

    if not resume:
        checkpoint.make_folder(folder)
    with one_writer(folder, "train"):
        if resume:
            progress = restore(folder, config, model, optimizers, progress)
        else:
            save_config(config, folder / "train.json")  # first: this file marks a folder as a run
            save_config(model_config, folder / "config.json")
            tokenizer.save(folder / "tokenizer.json")
        if progress["step"] == 0:
            evaluate(folder, model, tokenizer, held_out, progress)

        steps = range(progress["step"], config.steps)
        begin = time.perf_counter() - progress["seconds"]
        recent = Recent()
        with StopSignal() as stop, progress_bar(steps) as bar:
            for step, pixels, tokens, waited in prefetch(batches, steps):
                share = schedule(step, config)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = group["peak"] * share

                with fast_math(device):
                    image_features, text_features, scale = model(pixels, tokens)  # (B, D) twice, ()
                loss = contrast(model, image_features.float(), text_features.float(), scale)
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                model.clamp_scale_()

                done = progress["step"] = step + 1
                bar.update()
                recent.add(loss, norm, scale, waited)
                log_now = done % LOG_EVERY == 0
                evaluate_now = done % config.eval_every == 0 or done == config.steps
                stopping = stop.asked  # looked at once: what stops has been saved
                save_now = evaluate_now or stopping
                if not (log_now or save_now):
                    continue  # without a wait for the device

                recent.check_finite(done)
                if log_now:
                    row = recent.figures(done, len(pixels))
                    row["accuracy"] = accuracy(image_features, text_features)
                    row["learning_rate"] = config.learning_rate * share
                    append_row(folder / "metrics.jsonl", row)
                    bar.set_postfix_str(in_short(row))
                if evaluate_now:
                    evaluate(folder, model, tokenizer, held_out, progress)
                progress["seconds"] = time.perf_counter() - begin
                if save_now:
                    checkpoint.save_state(folder, model, optimizers, progress)
                if stopping and done < config.steps:
                    raise KeyboardInterrupt(
                        f"; go on with: miniclip train --run {quote(str(folder))} --resume")
                recent = Recent()

        # The best weights, from the disk: what is measured and drawn is what a user will load.
        model, tokenizer, _ = checkpoint.load(folder, device)
        metrics = report(model, tokenizer, pairs, held_out, config, progress, device)
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        plots.draw_run(folder, model, tokenizer, held_out, config.batch_size)
        return metrics


# ------------------------------------------------------------------------------- before the loop


NO_HUB = """
Flickr8k is out of reach: {error}.
Training goes on with `shapes`, the built-in generated scenes, neither cropped, mirrored nor tinted:
their captions name places and colours. Figures for photographs need photographs. To get Flickr8k,
run the same command again with a network. Or put its parquet files, or its images with
captions.txt, into a folder and set MINICLIP_DATA=/path/to/folder.
"""


def contrast(model: CLIP, image_features, text_features, scale) -> torch.Tensor:
    """Features (B, D) twice, () → the loss that the model learns by, (): softmax or sigmoid."""
    if model.logit_bias is None:
        return clip_loss(image_features, text_features, scale)
    return sigmoid_loss(image_features, text_features, scale, model.logit_bias)


def prepare_data(config: TrainConfig, model_config: ModelConfig, resume: bool):
    """→ (training pairs, validation pairs, the configuration with the data's place filled in).

    If the Hub does not answer, the default data set is replaced by `shapes`, with a notice. A data
    set that was asked for by name, or that of a resumed run, is never replaced.
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
    # The data's place is saved, so a run can be resumed from any directory.
    return pairs, held_out, replace(config, data=source.where, flip=flip)


def restore(folder: Path, config: TrainConfig, model: CLIP, optimizers: list,
            progress: dict) -> dict:
    """Put a run's last saved step into model and optimizers → its progress.

    Metrics that were written after that step are removed: those steps are run again.
    ValueError if the data are not those that the run was trained on.
    """
    state = checkpoint.load_state(folder)
    model.load_state_dict(state["model"])
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    before = state["progress"].get("data", progress["data"])
    if progress["data"] != before:
        raise ValueError(f"{folder} was trained on {' and '.join(before)}; {config.data} "
                         f"has {' and '.join(progress['data'])} now: start a new --run")
    save_config(config, folder / "train.json")  # the data may have moved
    for name in ("metrics.jsonl", "similarity.jsonl"):
        checkpoint.rewind_rows(folder / name, state["progress"]["step"])
    return state["progress"]


# ------------------------------------------------------------------------------- within the loop


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


class Recent:
    """The steps since the last report. Their figures stay on the device until the next one."""

    def __init__(self):
        self.began = time.perf_counter()
        self.values = []  # of each step: loss, gradient norm, scale, (3,)
        self.waited = 0.0  # seconds, for data

    def add(self, loss, norm, scale, waited: float):
        self.values.append(torch.stack([loss.detach(), norm, scale.detach()]))
        self.waited += waited

    def check_finite(self, done: int):
        """Raise Diverged if a loss or gradient was not finite. `done`: the last of these steps."""
        rows = torch.stack(self.values).tolist()
        for step, (loss, norm, scale) in enumerate(rows, start=done - len(rows) + 1):
            if not math.isfinite(loss + norm):
                raise Diverged(
                    f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}, scale {scale:.4g}: "
                    "no longer finite. Start again with a lower --learning-rate or "
                    "--muon-learning-rate, or a longer --warmup")

    def figures(self, done: int, batch_size: int) -> dict:
        """A line of metrics.jsonl: figures of the last step, speed of them all."""
        loss, norm, scale = self.values[-1].tolist()
        seconds = time.perf_counter() - self.began
        return {"step": done, "loss": loss, "scale": scale, "gradient_norm": norm,
                "pairs_per_second": round(len(self.values) * batch_size / seconds, 1),
                "waiting_share": round(self.waited / seconds, 4)}


def progress_bar(steps: range) -> tqdm:
    return tqdm(total=steps.stop, initial=steps.start, unit="step", dynamic_ncols=True)


def in_short(row: dict) -> str:
    """The text beside the progress bar, from a line of metrics.jsonl."""
    return (f"loss {row['loss']:.3f}, scale {row['scale']:.1f}, right {row['accuracy']:.0%}, "
            f"{row['pairs_per_second']:.0f} pairs/s")


@torch.no_grad()
def accuracy(image_features, text_features) -> float:
    """Share of a batch's images (B, D) whose nearest text (B, D) is their own."""
    nearest = (image_features @ text_features.T).argmax(1).cpu()  # (B,) texts, one per image
    return (nearest == torch.arange(len(nearest))).double().mean().item()


def evaluate(folder: Path, model: CLIP, tokenizer: Tokenizer, held_out: Pairs, progress: dict):
    """Recall on the held-out split → a line of metrics.jsonl, one of similarity.jsonl, progress.

    The weights are saved if they are the best so far.
    """
    model.eval()
    step, metrics = progress["step"], retrieval(model, tokenizer, held_out)
    append_row(folder / "metrics.jsonl", {"step": step, **metrics})
    captions = [captions[0] for captions in held_out.captions[:SHOWN]]
    cosines = (embed_images(model, held_out.images[:SHOWN])
               @ embed_texts(model, tokenizer, captions).T)  # (SHOWN, SHOWN)
    rounded = [[round(x, 4) for x in row] for row in cosines.tolist()]
    append_row(folder / "similarity.jsonl", {"step": step, "cosines": rounded})
    mean = (metrics["image_to_text"]["R@10"] + metrics["text_to_image"]["R@10"]) / 2
    if mean >= progress["best"]:  # the last of equals: few images soon give 100 %
        progress.update(best=mean, best_step=step)
        checkpoint.save_weights(model, folder)
    model.train()


# ------------------------------------------------------------------------------- after the loop


def report(model: CLIP, tokenizer: Tokenizer, pairs: Pairs, held_out: Pairs, config: TrainConfig,
           progress: dict, device: torch.device) -> dict:
    """What metrics.json holds: recall, what `shapes` adds to it, and how the run went."""
    metrics = retrieval(model, tokenizer, held_out)
    if config.data == "shapes":
        metrics["shapes"] = shapes_report(model, tokenizer)
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":  # which counts in bytes
        kilobytes /= 1024
    metrics["training"] = {
        "data": pairs.name, "summary": pairs.summary, "best_step": progress["best_step"],
        "steps": config.steps, "batch_size": config.batch_size,
        "seconds": round(progress["seconds"], 1), "peak_memory_mb": round(kilobytes / 1024),
        "parameters": sum(p.numel() for p in model.parameters()), **described(device)}
    return metrics
