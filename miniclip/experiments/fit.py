"""What all experiments share: one loop, one way to ask, one way to choose a learning rate.

`fit` is `train.train` without files: nothing is saved, resumed or stopped. Optimisers, schedule,
batches and the towers' precision are the same. Losses are in float32, and to the contrastive one
every other caption of the batch is a wrong answer, an equal one too, as in the paper.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from miniclip.config import ModelConfig, TrainConfig
from miniclip.data.batches import Batches, prefetch
from miniclip.data.pairs import Examples, Pairs
from miniclip.device import fast_math
from miniclip.optim import build_optimizers, schedule
from miniclip.tasks.intervals import bootstrap, runs_and_images
from miniclip.tokenizer import Tokenizer
from miniclip.train import Diverged

FEWEST = 20  # steps of a model that is worth a look


def recipe(base: TrainConfig, rate: float, steps: int, seed: int) -> TrainConfig:
    """A preset with both learning rates times `rate`, and other steps; few steps warm up faster."""
    return replace(base, steps=steps, seed=seed, warmup=min(base.warmup_steps, steps // 4),
                   learning_rate=base.learning_rate * rate,
                   muon_learning_rate=base.muon_learning_rate * rate)


def looks_of(base_looks, base_steps: int, steps: int) -> tuple[int, ...]:
    """Numbers of steps in proportion, each once; the last is the end."""
    return tuple(sorted({max(1, look * steps // base_steps) for look in base_looks} | {steps}))


def tokenizer_of(examples: Examples, shape: ModelConfig) -> tuple[Tokenizer, ModelConfig]:
    """A tokenizer learnt from the captions, and the shape of a model with its vocabulary."""
    texts = [text for captions in examples.captions for text in captions]
    tokenizer = Tokenizer.train(texts, shape.vocab_size, shape.context_length)
    return tokenizer, replace(shape, vocab_size=tokenizer.vocab_size)


def fit(objective: nn.Module, examples: Examples, tokenizer: Tokenizer, size: int,
        config: TrainConfig, looks: tuple[int, ...] = (), look: Callable = None,
        title: str = "training") -> list:
    """Train an objective → what `look(step)` gave after each step of `looks`.

    Args:
        objective: one of objectives.py; it is trained in place, on its own device.
        examples: images, captions and labels; which of them it reads is the objective's affair.
        size: of the model's pixels.
        config: steps, batch size, rates, augmentation, seed; as of a training run.
        looks: numbers of steps after which `look` is called, with the objective in eval mode.
        title: what the progress bar and errors call it.

    Raises:
        ValueError: fewer examples than a batch holds.
        Diverged: the loss is no longer finite at a look or at the end.
    """
    device = next(objective.parameters()).device
    pairs = Pairs(examples.images, examples.captions, "the examples", "")
    batches = Batches(pairs, tokenizer, size, config, device)
    labels = torch.from_numpy(examples.labels)
    optimizers = build_optimizers(objective, config)
    found = []
    objective.train()
    steps = tqdm(prefetch(batches, range(config.steps)), title, config.steps, leave=False)
    for step, pixels, tokens, _, _ in steps:
        share = schedule(step, config)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
        numbers, _ = batches.numbers(step)
        with fast_math(device):
            loss = objective.loss(pixels, tokens, labels[numbers].to(device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(objective.parameters(), config.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        objective.after_step()
        done = step + 1
        if (done in looks or done == config.steps) and not torch.isfinite(loss + norm):
            raise Diverged(f"{title}, step {done}: the loss is no longer finite")
        if done in looks:
            objective.eval()
            found.append(look(done))
            objective.train()
    objective.eval()
    return found


def right(objective, examples: Examples, names=None) -> np.ndarray:
    """Is the best score that of the label? (N,) bool. Diverged for NaN."""
    scores = objective.scores(examples.images, names or examples.names)
    if not torch.isfinite(scores.amax(1)).all():
        raise Diverged("scores hold NaN: the model has diverged")
    return (scores.argmax(1) == torch.from_numpy(examples.labels)).numpy()


def with_interval(values: list) -> dict:
    """Right or wrong, of R runs on the same N images → accuracy and interval, in percent."""
    values = 100 * np.array(values, float)  # (R, N)
    value = float(values.mean())
    low, high = runs_and_images(values.mean(1), bootstrap(values.mean(0)), value)
    return {"accuracy": round(value, 2),
            "interval": [round(max(0.0, low), 2), round(min(100.0, high), 2)]}


def swept(build: Callable, names, rates, train: Examples, fresh: Examples, tokenizer: Tokenizer,
          size: int, base: TrainConfig) -> list[dict]:
    """Each model at each rate → {"name", "rate", "accuracy"}. build: from a name, an objective.

    base: the recipe, with the steps and the seed of the sweep.
    """
    return [{"name": name, "rate": rate, "accuracy": accuracy_at(
                build(name), train, fresh, tokenizer, size,
                recipe(base, rate, base.steps, base.seed), f"{name}, × {rate:g}")}
            for name in names for rate in rates]


def accuracy_at(objective, examples: Examples, fresh: Examples, tokenizer: Tokenizer, size: int,
                config: TrainConfig, title: str) -> float | None:
    """Train, then ask → accuracy in percent; None if it diverged: one point of a sweep."""
    try:
        fit(objective, examples, tokenizer, size, config, title=title)
        return round(100 * float(right(objective, fresh).mean()), 2)
    except Diverged:
        return None
