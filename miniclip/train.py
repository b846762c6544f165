"""The training loop, from top to bottom (Radford et al. 2021, sections 2.3 to 2.5).

    batch of pairs ─▶ two towers ─▶ clip_loss ─▶ gradient ─▶ Muon and AdamW ─▶ scale ≤ 100

Read `train` from top to bottom; the functions below it hold the details. Everything random is a
function of the seed and the step. So a run that was stopped or killed can be resumed, and on a CPU
it ends with the same weights, bit for bit. With several processes each runs this same file on its
own part of every batch (parallel.py).
"""

import json
import math
import resource
import signal
import sys
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from shlex import quote

import numpy as np
import torch
from miniclip_kernels import clip_loss, sigmoid_loss
from tqdm import tqdm

from miniclip import plots
from miniclip.config import MODELS, ModelConfig, TrainConfig, save_config
from miniclip.data.batches import Batches, prefetch
from miniclip.data.captions import sentence_numbers
from miniclip.data.pairs import Pairs, load_pairs
from miniclip.data.sources import Source
from miniclip.device import described, fast_math, pick_device, uses_bf16
from miniclip.files import append_row, one_writer, write_text
from miniclip.model import CLIP
from miniclip.notices import notice
from miniclip.optim import build_optimizers, schedule
from miniclip.parallel import ALONE, Workers, cached
from miniclip.tasks.features import embed_images, embed_texts
from miniclip.tasks.retrieval import retrieval
from miniclip.tasks.zero_shot import shapes_report
from miniclip.tokenizer import Tokenizer
from miniclip.tracking import Journal, find_tracker
from miniclip.weights import checkpoint
from miniclip.weights.pretrained import load

LOG_EVERY = 10  # steps
SLOW = 0.5  # seconds: of slower steps, several processes ask at each whether they shall stop
SHOWN = 24  # pairs of the similarity matrix that is kept for the pictures
COLLAPSED = 0.1  # a scale below it: all similarities, and so all answers, are the same


class Diverged(ArithmeticError):
    """Training has failed; the message says when, how, and what to try."""


def train(config: TrainConfig, model_config: ModelConfig | None = None, folder="runs/default",
          device: str = "auto", resume: bool = False, fit_context: bool = True,
          start: tuple | None = None, workers: Workers = ALONE) -> dict:
    """Train a CLIP into a run folder → the figures of its best checkpoint, as in metrics.json.

    Args:
        config: the settings of the run.
        model_config: the model's shape (default: the one that config.model names). With a start it
            is that of its weights.
        folder: the run's folder. An older run of that name is moved aside.
        device: auto, cpu, cuda or mps.
        resume: go on from the folder's last saved step; config and model_config must then be those
            of the folder.
        fit_context: make the model's context longer if too many captions are longer than it.
        start: (model, tokenizer, transform) to begin with, as `miniclip.load` gives them; the model
            is trained in place. Default: what config.start_from names, or noise.
        workers: the processes that train together, from `parallel.joined`. Rank 0 returns the
            figures, the others {}.

    Raises:
        ValueError: input that cannot be trained on, or a folder that holds anything but a run.
        HubUnreachable: the Hub does not answer.
        Diverged: the loss is no longer finite, or all pairs look alike. What was saved is kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the state is saved first.
    """
    folder, device = Path(folder).resolve(), pick_device(device)
    if device.type == "cuda":  # with its number: to another thread "cuda" is the first GPU
        device = torch.device("cuda", torch.cuda.current_device())

    # The data, and a tokenizer that learns from the training captions.
    start, model_config = starting_point(config, model_config, start, resume)
    part = workers.part(config.batch_size)
    with workers.first_then_others():
        pairs, held_out, config = prepare_data(config, model_config, resume)
    workers.check_alike("data", repr((pairs.summary, held_out.summary, pairs.captions[0],
                                      pairs.captions[-1], model_config, replace(config, data=""))))
    if resume:
        tokenizer = Tokenizer.load(folder / "tokenizer.json")
    elif start:
        tokenizer = start[1]
    else:
        tokenizer = make_tokenizer(pairs, model_config, fit_context)
        model_config = replace(model_config, vocab_size=tokenizer.vocab_size,  # few texts, few ids
                               context_length=tokenizer.context_length)
    batches = Batches(pairs, tokenizer, model_config.image_size, config, device, part=part)
    tell_about(batches, held_out, config)

    # The model, and what will change it.
    generator = torch.Generator().manual_seed(config.seed)
    model = start[0] if start else CLIP(model_config).init_weights(generator)
    model = model.to(device).train()
    if config.lock:
        model.lock(config.lock, config.unlock_last)
    if config.grad_checkpointing:
        model.recompute_blocks()
    optimizers = build_optimizers(model, config)
    progress = {"step": 0, "best": -1.0, "best_step": 0, "seconds": 0.0,
                "data": [pairs.summary, held_out.summary]}

    if workers.first and not resume:
        checkpoint.make_folder(folder)
    with one_writer(folder, "train") if workers.first else nullcontext():
        if resume:
            progress = restore(folder, config, model, optimizers, progress)
            workers.wait()  # all have read what rank 0 is going to change
        if workers.first:
            begin_folder(folder, config, model_config, tokenizer, progress["step"])
        journal = Journal(folder, config) if workers.first else None
        if workers.first and progress["step"] == 0:
            evaluate(folder, journal, model, tokenizer, held_out, progress)
        if config.lock and not config.unlock_last and not pairs.streamed:
            use_locked_features(batches, model, tokenizer, pairs, config.lock)
        towers = workers.wrapped(torch.compile(model) if config.compile else model)
        loss_of = partial(contrast, model, workers)
        beside = [] if model.logit_bias is None else [model.logit_bias]  # used by the loss alone

        steps = range(progress["step"], config.steps)
        begin = time.perf_counter() - progress["seconds"]
        recent, ask = Recent(), False  # ask: at every step whether one of the processes shall stop
        with (closing(journal) if journal else nullcontext(), StopSignal() as stop,
              progress_bar(steps, workers.first) as bar):
            for step, pixels, tokens, ids, waited in prefetch(batches, steps):
                share = schedule(step, config)
                for optimizer in optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = group["peak"] * share

                if config.micro_batch:  # forward and backward, some pairs at a time
                    with fast_math(device, config.precision):
                        loss, *features = cached(towers, pixels, tokens, config.micro_batch,
                                                 partial(loss_of, ids), beside)
                else:
                    with fast_math(device, config.precision):
                        features = towers(pixels, tokens)  # (B, D) of images, of texts; scale ()
                        loss = loss_of(ids, *features)
                    loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
                model.clamp_scale_()

                done = progress["step"] = step + 1
                bar.update()
                recent.add(loss, norm, features[2], waited)
                log_now = done % LOG_EVERY == 0
                evaluate_now = done % config.eval_every == 0 or done == config.steps
                if not (log_now or evaluate_now or ask or stop.asked and workers.count == 1):
                    continue  # without a wait for the device, or for other processes

                stopping = workers.any(stop.asked)  # asked once: what stops has been saved
                recent.check(done, workers)
                if log_now:
                    ask = workers.count > 1 and workers.any(recent.seconds_a_step() > SLOW)
                    row = recent.figures(done, config.batch_size)
                    row["loss"] = workers.mean(loss.detach()).item()
                    row["accuracy"] = accuracy(*features[:2], ids, workers)
                    row["learning_rate"] = config.learning_rate * share
                    if workers.first:
                        journal.row(row)
                    bar.set_postfix_str(in_short(row))
                if workers.first and evaluate_now:
                    evaluate(folder, journal, model, tokenizer, held_out, progress)
                progress["seconds"] = time.perf_counter() - begin
                if workers.first and (evaluate_now or stopping):
                    checkpoint.save_state(folder, model, optimizers, progress)
                if stopping and done < config.steps:
                    workers.wait()  # until rank 0 has saved: a launcher ends whoever is left
                    raise KeyboardInterrupt(
                        f"; go on with: miniclip train --run {quote(str(folder))} --resume")
                if log_now or evaluate_now:
                    recent = Recent()
        if not workers.first:
            return {}

        # The best weights, from the disk: what is measured and drawn is what a user will load.
        model, tokenizer, _ = checkpoint.load(folder, device)
        metrics = report(model, tokenizer, pairs, held_out, config, progress, device)
        write_text(folder / "metrics.json", json.dumps(metrics, indent=2) + "\n")
        plots.draw_run(folder, model, tokenizer, held_out, config.batch_size)
        return metrics


# ------------------------------------------------------------------------------- before the loop


LONGEST_FIT = 77  # tokens, CLIP's own context
ENOUGH_TEXTS = 1_000_000  # to train a tokenizer on
ENOUGH = 50  # held-out images, and different captions: of fewer, ten guesses find one by chance


def check_warmup(config: TrainConfig):
    """ValueError for a warm-up that the run would never leave."""
    if config.warmup_steps >= config.steps:
        raise ValueError(
            f"warmup is {config.warmup}, and the run has {config.steps} steps: the learning rate "
            f"would never reach its peak; set --warmup {config.steps // 10}, or more --steps")


def starting_point(config: TrainConfig, model_config: ModelConfig | None, start: tuple | None,
                   resume: bool) -> tuple[tuple | None, ModelConfig]:
    """→ (model, tokenizer, transform) to begin with, or None for noise; and the model's shape.

    ValueError for what would only be found after hours: a tower of noise that is locked, a tracker
    that is not installed.
    """
    find_tracker(config.tracker)
    if resume:
        return None, model_config or MODELS[config.model]
    if config.start_from and start is None:
        start = load(config.start_from)
    if start is None:
        if config.lock:
            raise ValueError("lock keeps a tower as it is, and that of a new model is noise: name "
                             "weights with --from")
        return None, model_config or MODELS[config.model]
    if model_config not in (None, start[0].config):
        raise ValueError("with a start, the model's shape is that of its weights")
    return start, start[0].config


def prepare_data(config: TrainConfig, model_config: ModelConfig, resume: bool):
    """→ (training pairs, validation pairs, config with the data's place and steps filled in)."""
    source = Source.find(config.data or None, config.image_key, config.caption_key)
    size = model_config.image_size
    pairs = load_pairs(source, "train", size, config.limit)
    held_out = load_pairs(source, "validation", size)
    steps = config.steps
    if config.epochs:
        steps = max(1, config.epochs * (len(pairs) // config.batch_size))
    # The data's place is saved, so a run can be resumed from any directory.
    config = replace(config, data=source.where, steps=steps)
    if not resume:  # the steps of an older version's short run may be fewer than its warm-up
        check_warmup(config)
    return pairs, held_out, config


def make_tokenizer(pairs: Pairs, model_config: ModelConfig, fit_context: bool) -> Tokenizer:
    """A tokenizer that has learnt from the training captions.

    Its context is the model's, or what holds 99 % of the captions if that is more (LONGEST_FIT at
    most). Without fit_context it is the model's, and a notice says what would hold them.
    """
    texts, _ = pairs.flat_captions()
    texts = texts[:: -(-len(texts) // ENOUGH_TEXTS)]  # of millions, each second, third, …
    tokenizer = Tokenizer.train(texts, model_config.vocab_size, model_config.context_length)
    lengths = np.array([len(tokenizer.encode(text)) + 2 for text in texts])  # with start and end
    wanted = int(np.quantile(lengths, 0.99, method="higher"))
    if wanted > tokenizer.context_length:
        share = (lengths > tokenizer.context_length).mean()
        told = f"{share:.0%} of the captions are longer than {tokenizer.context_length} tokens"
        if fit_context and (fitted := min(wanted, LONGEST_FIT)) > tokenizer.context_length:
            notice(f"{told}: the model reads {fitted} tokens (--context-length sets another limit)")
            tokenizer.context_length = fitted
        else:
            notice(f"{told}: --context-length {wanted} would hold 99 % of them")
    return tokenizer


def recall_tells(held_out: Pairs) -> bool:
    """Whether recall on these pairs can tell better weights from worse ones."""
    texts, _ = held_out.flat_captions()
    return min(len(held_out), len(set(sentence_numbers(texts).tolist()))) >= ENOUGH


def tell_about(batches: Batches, held_out: Pairs, config: TrainConfig):
    """Say before the start what the data will do to the training."""
    if config.flip and (sided := int(batches.sided.sum())):
        notice(f"{sided:,} of {len(batches.sided):,} images are never mirrored: their captions "
               "name a side, such as left")
    if not recall_tells(held_out):
        notice(f"{held_out.name} has fewer than {ENOUGH} images or different captions, and recall "
               "on so few can't tell which weights are the best: the last are kept")


def use_locked_features(batches: Batches, model: CLIP, tokenizer: Tokenizer, pairs: Pairs,
                        side: str):
    """Compute a locked tower's features once, in place of every step: they are never augmented.

    Not for tar shards: of so many samples they would not fit into memory.
    """
    notice(f"the {side} tower is locked: its features are computed once, without augmentation")
    if side == "image":
        batches.image_features = embed_images(model, pairs.images).to(model.logit_scale.dtype)
    else:
        texts, _ = pairs.flat_captions()
        batches.text_features = embed_texts(model, tokenizer, texts).to(model.logit_scale.dtype)


def begin_folder(folder: Path, config: TrainConfig, model_config: ModelConfig,
                 tokenizer: Tokenizer, step: int):
    """Write what a run's folder begins with. If it is resumed from a step, remove later metrics."""
    save_config(config, folder / "train.json")  # first: it marks a folder as a run. Data may move
    if step == 0:
        save_config(model_config, folder / "config.json")
        tokenizer.save(folder / "tokenizer.json")
    for name in ("metrics.jsonl", "similarity.jsonl"):
        if step:
            checkpoint.rewind_rows(folder / name, step)


def contrast(model: CLIP, workers: Workers, ids, image_features, text_features,
             scale) -> torch.Tensor:
    """Features (B, D) twice, (), ids (B,) or None → the loss that the model learns by, ().

    Two pairs with equal captions are no wrong answers to each other: the softmax leaves them out,
    and to the sigmoid they are right ones. With several processes it is the part of this one's
    pairs in the loss of all: the mean over processes is the loss, and DDP takes that of gradients.
    """
    options = {"image_ids": ids, "group": workers.group}
    if model.logit_bias is None:
        return clip_loss(image_features, text_features, scale, **options)
    return sigmoid_loss(image_features, text_features, scale, model.logit_bias, **options)


def restore(folder: Path, config: TrainConfig, model: CLIP, optimizers: list,
            progress: dict) -> dict:
    """Put a run's last saved step into model and optimizers → its progress.

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

    def check(self, done: int, workers: Workers = ALONE):
        """Raise Diverged if one of these steps, of which `done` is the last, has gone wrong."""
        rows = workers.mean(torch.stack(self.values)).tolist()
        for step, (loss, norm, scale) in enumerate(rows, start=done - len(rows) + 1):
            why = "" if math.isfinite(loss + norm) else "no longer finite"
            if scale < COLLAPSED:
                why = "all pairs look alike, and nothing can be learnt any more"
            if why:
                raise Diverged(
                    f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}, scale {scale:.4g}: "
                    f"{why}. Start again with a lower --learning-rate or --muon-learning-rate, or "
                    "a longer --warmup")

    def seconds_a_step(self) -> float:
        return (time.perf_counter() - self.began) / len(self.values)

    def figures(self, done: int, batch_size: int) -> dict:
        """A line of metrics.jsonl: figures of the last step, speed of them all."""
        loss, norm, scale = self.values[-1].tolist()
        seconds = time.perf_counter() - self.began
        return {"step": done, "loss": loss, "scale": scale, "gradient_norm": norm,
                "pairs_per_second": round(len(self.values) * batch_size / seconds, 1),
                "waiting_share": round(self.waited / seconds, 4)}


def progress_bar(steps: range, shown: bool) -> tqdm:
    return tqdm(total=steps.stop, initial=steps.start, unit="step", dynamic_ncols=True,
                disable=not shown)


def in_short(row: dict) -> str:
    """The text beside the progress bar, from a line of metrics.jsonl."""
    return (f"loss {row['loss']:.3f}, scale {row['scale']:.1f}, right {row['accuracy']:.0%}, "
            f"{row['pairs_per_second']:.0f} pairs/s")


@torch.no_grad()
def accuracy(image_features, text_features, ids, workers: Workers = ALONE) -> float:
    """Share of a batch's images (B, D) whose nearest text is their own, or equal to it: among the
    texts (B, D) of all processes."""
    texts = workers.gathered(text_features.detach().float())
    nearest = torch.cat([(some @ texts.T).argmax(1)  # (B,) texts; never the whole matrix
                         for some in image_features.detach().float().split(1024)])
    every = torch.arange(len(texts), device=texts.device) if ids is None else workers.gathered(ids)
    own = every[workers.part(len(every))]
    return workers.mean((every[nearest] == own).float().mean()).item()


def evaluate(folder: Path, journal: Journal, model: CLIP, tokenizer: Tokenizer, held_out: Pairs,
             progress: dict):
    """Recall on the held-out split → a line of metrics.jsonl, one of similarity.jsonl, progress.

    The weights are saved if they are the best so far.
    """
    model.eval()
    step, metrics = progress["step"], retrieval(model, tokenizer, held_out)
    journal.row({"step": step, **metrics})
    captions = [captions[0] for captions in held_out.captions[:SHOWN]]
    cosines = (embed_images(model, held_out.images[:SHOWN])
               @ embed_texts(model, tokenizer, captions).T)  # (SHOWN, SHOWN)
    rounded = [[round(x, 4) for x in row] for row in cosines.tolist()]
    append_row(folder / "similarity.jsonl", {"step": step, "cosines": rounded})
    mean = (metrics["image_to_text"]["R@10"] + metrics["text_to_image"]["R@10"]) / 2
    if mean >= progress["best"] or not recall_tells(held_out):  # the last of equals
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
        "best_by": "recall" if recall_tells(held_out) else "the last step",
        "steps": config.steps, "batch_size": config.batch_size,
        "seconds": round(progress["seconds"], 1), "peak_memory_mb": round(kilobytes / 1024),
        "parameters": sum(p.numel() for p in model.parameters()), **described(device),
        "bf16": uses_bf16(device, config.precision)}
    return metrics
