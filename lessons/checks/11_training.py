"""Checks of exercise 11."""

import math

import numpy as np
import torch

from miniclip import CLIP, Tokenizer, clip_loss
from miniclip.config import ModelConfig
from miniclip.data import scenes
from miniclip.data.images import normalize

COUNTS = np.array([5, 1, 3, 5, 2, 4, 5, 5, 1, 2, 3])  # of captions; 11 images, 36 rows
OWNER = np.repeat(np.arange(11), COUNTS)


def epoch(answer, seed, batch_size=4, counts=COUNTS):
    batches = answer.one_epoch(counts, batch_size, np.random.default_rng(seed))
    batches = list(batches)
    assert all(len(batch) == 2 for batch in batches), "each batch is a pair (images, rows)"
    return [tuple(np.asarray(part) for part in batch) for batch in batches]


def check_no_image_twice(answer):
    """one_epoch: no image twice, neither in a batch nor in the whole epoch"""
    for seed in range(20):
        batches = epoch(answer, seed)
        for images, _ in batches:
            assert len(set(images.tolist())) == len(images), (
                f"{images} holds an image twice: a second true pair would count as a wrong answer. "
                "Draw a permutation, not numbers one by one")
        every = np.concatenate([images for images, _ in batches]).tolist()
        assert len(set(every)) == len(every), (
            "an image came in two batches of one epoch: cut one permutation into pieces")


def check_whole_batches(answer):
    """one_epoch: only whole batches, as many as there can be"""
    for size, number in ((4, 2), (11, 1), (3, 3), (2, 5)):
        sizes = [len(images) for images, _ in epoch(answer, 0, size)]
        assert sizes == [size] * number, (
            f"11 images in batches of {size} should give {number} batches; sizes were {sizes}")


def check_rows_belong_to_their_images(answer):
    """one_epoch: every row is a caption of the image beside it"""
    for seed in range(20):
        for images, rows in epoch(answer, seed):
            assert not (len(rows) and rows.max() < 5 and images.max() > 3), (
                f"rows {rows} look like the number of a caption within its image; its place in the "
                "long list is asked for: add the captions of all images before it")
            assert rows.min() >= 0 and rows.max() < len(OWNER), (
                f"there are only {len(OWNER)} captions, but rows are {rows}")
            assert (OWNER[rows] == images).all(), (
                f"images {images} got captions of images {OWNER[rows]}: was only one of the two "
                "arrays shuffled, or do you count on five captions each?")


def check_every_caption_has_its_chance(answer):
    """one_epoch: every caption of an image comes equally often, and the order changes"""
    drawn, first = np.zeros(len(OWNER)), set()
    for seed in range(600):
        batches = epoch(answer, seed, 11)
        first.add(int(batches[0][0][0]))
        np.add.at(drawn, batches[0][1], 1)
    assert len(first) == 11, f"only the images {sorted(first)} ever come first: shuffle them"
    expected = 600 / COUNTS[OWNER]
    assert (drawn > 0).all(), (
        f"the captions {np.flatnonzero(drawn == 0)} of the long list never came: is it always the "
        "first one, or does the upper end of rng.integers, which is left out, cut one off?")
    assert (np.abs(drawn - expected) < 6 * np.sqrt(expected)).all(), (
        "some captions come far more often than others of the same image")


def check_the_order_is_the_generators(answer):
    """one_epoch: the order is a shuffle, and the generator that was given decides it"""
    orders = [np.concatenate([images for images, _ in epoch(answer, seed, 11)])
              for seed in range(20)]
    assert not all((np.diff(order) % 11 == np.diff(order)[0] % 11).all() for order in orders), (
        f"the images come as {orders[0].tolist()}: only the first of them is random. "
        "rng.permutation shuffles them all")
    again = epoch(answer, 0, 11), epoch(answer, 0, 11)
    assert all((a == b).all() for a, b in zip(again[0][0], again[1][0])), (
        "with the same seed the epoch was another: draw from the `rng` that was given, or no run "
        "can be repeated")


# ------------------------------------------------------------------------------- overfit


def batch():
    """Eight scenes, and the smallest CLIP that can tell them apart."""
    images, captions, _ = scenes.generate(8, seed=5)
    texts = [texts[0] for texts in captions]
    tokenizer = Tokenizer.train(texts, 1000, 32)
    config = ModelConfig(
        embed_dim=32, image_size=64, patch_size=16, stem=(8, 16), vision_width=32, vision_layers=1,
        vision_heads=2, pool="mean", pre_norm=False, vocab_size=tokenizer.vocab_size,
        context_length=32, text_width=32, text_layers=1, text_heads=2, quick_gelu=False)
    model = CLIP(config).init_weights(torch.Generator().manual_seed(0))
    return model, normalize(images), tokenizer(texts)


def check_the_first_loss(answer):
    """overfit: one loss for every step, the first of them before anything was learnt"""
    model, pixels, tokens = batch()
    with torch.no_grad():
        I, T, s = model(pixels, tokens)  # noqa: E741
        untrained, logarithm = clip_loss(I, T, s).item(), clip_loss(I, T, s.log()).item()
    losses = answer.overfit(model, pixels, tokens, 3)
    assert len(losses) == 3, f"3 steps should give 3 losses, not {len(losses)}"
    assert all(isinstance(loss, float) for loss in losses), (
        "the losses should be plain numbers: loss.item(); a tensor keeps its whole graph alive")
    assert not math.isclose(losses[0], logarithm, abs_tol=1e-3), (
        "clip_loss wants the multiplier s that the model gives, not its logarithm")
    assert math.isclose(losses[0], untrained, abs_tol=1e-3), (
        f"losses[0] should be the untrained model's {untrained:.3f} (about ln 8 = "
        f"{math.log(8):.3f}), not {losses[0]:.3f}: note the loss before the step is taken")


def check_forgetting(answer):
    """overfit: each step uses its own gradient, not the sum of all before it"""
    model, pixels, tokens = batch()
    own, left = {}, []

    def note(parameter):
        if not torch.allclose(parameter.grad, own[id(parameter)], rtol=1e-3, atol=1e-7):
            left.append(parameter)

    weight = model.vision.projection
    weight.register_hook(lambda gradient: own.update({id(weight): gradient.clone()}))
    weight.register_post_accumulate_grad_hook(note)
    answer.overfit(model, pixels, tokens, 4)
    assert own, "no gradient arrived: is loss.backward() called, outside of torch.no_grad()?"
    assert not left, (
        "backward() adds to the gradients that are there, and those of the step before still "
        "are: call optimizer.zero_grad() once in every step")


def check_one_optimizer(answer):
    """overfit: one AdamW for all steps, with the learning rate given, for all parameters"""
    model, pixels, tokens = batch()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    answer.overfit(model, pixels, tokens, 1, 3e-3)
    moved = {name: (parameter - before[name]).abs().max().item()
             for name, parameter in model.named_parameters()}
    still = [name for name, way in moved.items() if way == 0]
    assert not still, f"{still[0]} never changes: give AdamW all of model.parameters()"
    way = float(np.median([*moved.values()]))
    assert 0.7 < way / 3e-3 < 1.3, (
        "AdamW's first step moves a parameter by about the learning rate: with 0.003 it should be "
        f"0.003, and is {way:.4f}. Is learning_rate handed on?")
    made, original = [], torch.optim.AdamW.__init__

    def counted(self, *arguments, **options):
        made.append(self)
        original(self, *arguments, **options)

    torch.optim.AdamW.__init__ = counted
    try:
        answer.overfit(batch()[0], pixels, tokens, 3)
    finally:
        torch.optim.AdamW.__init__ = original
    assert len(made) == 1, (
        f"{len(made)} optimizers were made in 3 steps; one is made before the loop, and remembers: "
        "AdamW lives on the averages of the steps before")


def check_it_learns_by_heart(answer):
    """overfit: 60 steps bring the loss of eight pairs from ln 8 to nearly 0"""
    model, pixels, tokens = batch()
    torch.manual_seed(0)
    losses = answer.overfit(model, pixels, tokens, 60, 3e-3)
    assert losses[-1] < losses[0], (
        f"the loss went from {losses[0]:.2f} to {losses[-1]:.2f}: is optimizer.step() called, "
        "and after backward()?")
    assert losses[-1] < 0.1, (
        f"it should be below 0.1 after 60 steps, and is {losses[-1]:.2f}")


class NearlyRight(torch.nn.Module):
    """Every pair is right by a little, so that nothing but a larger multiplier is to be learnt."""

    clamp_scale_ = CLIP.clamp_scale_

    def __init__(self):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(99.9)))

    def forward(self, pixels, tokens):
        vectors = torch.nn.functional.normalize(torch.eye(8) + 2, dim=1)
        return vectors, vectors, self.logit_scale.exp()


def check_the_clamp(answer):
    """overfit: the multiplier never passes 100"""
    model = NearlyRight()
    answer.overfit(model, torch.zeros(8), torch.zeros(8), 15, 1e-2)
    s = model.logit_scale.exp().item()
    assert s < 100.01, (
        f"after 15 steps from 99.9 the multiplier is {s:.1f}: model.clamp_scale_() after every "
        "step keeps it at 100")


def loop(model, pixels, tokens, steps, learning_rate=1e-3, zero=True, clamp=True, log=False,
         late=False, forgetful=False, part=None):
    optimizer = torch.optim.AdamW((part(model) if part else model).parameters(), learning_rate)
    losses = []
    for _ in range(steps):
        if forgetful:
            optimizer = torch.optim.AdamW(model.parameters(), learning_rate)
        I, T, s = model(pixels, tokens)  # noqa: E741
        loss = clip_loss(I, T, s.log() if log else s)
        loss.backward()
        optimizer.step()
        if zero:
            optimizer.zero_grad()
        if clamp:
            model.clamp_scale_()
        losses.append((clip_loss(*model(pixels, tokens)) if late else loss).item())
    return losses


def draws(counts, batch_size, rng):
    first = np.cumsum(counts) - counts
    batches = [rng.integers(len(counts), size=batch_size) for _ in range(len(counts) // batch_size)]
    return [(images, first[images] + rng.integers(counts[images])) for images in batches]


def epoch_with(rows, keep_rest=False, order_of=None):
    """A right epoch but for `rows(counts, first, order, rng)`, the order, or the last batch."""
    def wrong(counts, batch_size, rng):
        order = order_of(len(counts), rng) if order_of else rng.permutation(len(counts))
        chosen = rows(counts, np.cumsum(counts) - counts, order, rng)
        end = len(counts) if keep_rest else len(counts) // batch_size * batch_size
        return [(order[i:i + batch_size], chosen[i:i + batch_size])
                for i in range(0, end, batch_size)]
    return wrong


WRONG = {
    "images drawn one by one": ({"one_epoch": draws}, "Draw a permutation"),
    "always the first caption": (
        {"one_epoch": epoch_with(lambda counts, first, order, rng: first[order])},
        "always the first"),
    "rows not shuffled with the images": (
        {"one_epoch": epoch_with(lambda counts, first, order, rng: first + rng.integers(counts))},
        "only one of the two"),
    "five captions taken for granted": (
        {"one_epoch": epoch_with(
            lambda counts, first, order, rng: 5 * order + rng.integers(5, size=len(order)))},
        "only 36 captions"),
    "the last, shorter batch is kept": (
        {"one_epoch": epoch_with(
            lambda counts, first, order, rng: (first + rng.integers(counts))[order], True)},
        "should give 2 batches"),
    "a rotation for a shuffle": (
        {"one_epoch": epoch_with(
            lambda counts, first, order, rng: (first + rng.integers(counts))[order],
            order_of=lambda n, rng: np.roll(np.arange(n), rng.integers(n)))},
        "only the first of them is random"),
    "a generator of its own": (
        {"one_epoch": lambda counts, batch_size, rng: epoch_with(
            lambda counts, first, order, rng: (first + rng.integers(counts))[order])(
                counts, batch_size, np.random.default_rng())}, "with the same seed"),
    "a new optimizer in every step": (
        {"overfit": lambda *a: loop(*a, forgetful=True)}, "optimizers were made"),
    "the learning rate ignored": (
        {"overfit": lambda model, pixels, tokens, steps, *_: loop(model, pixels, tokens, steps)},
        "Is learning_rate handed on"),
    "one tower": (
        {"overfit": lambda *a: loop(*a, part=lambda model: model.vision)}, "never changes"),
    "gradients add up": ({"overfit": lambda *a: loop(*a, zero=False)}, "zero_grad"),
    "no clamp": ({"overfit": lambda *a: loop(*a, clamp=False)}, "clamp_scale_"),
    "the logarithm of s": ({"overfit": lambda *a: loop(*a, log=True)}, "logarithm"),
    "the loss after the step": ({"overfit": lambda *a: loop(*a, late=True)}, "before the step"),
}
