"""The loop of the experiments: it learns, it is `train`'s own, and it looks when it should."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_models import SMALL

from miniclip.config import TrainConfig
from miniclip.data.pairs import Examples, Pairs
from miniclip.experiments.fit import (
    accuracy_at,
    fit,
    looks_of,
    recipe,
    right,
    tokenizer_of,
    with_interval,
)
from miniclip.experiments.objectives import BagOfWords, Contrast, Labels, WordByWord
from miniclip.train import Diverged

NAMES = ("red", "green", "blue")
CONFIG = TrainConfig(steps=30, batch_size=8, warmup=3, crop=1.0, flip=False, jitter=0.0,
                     learning_rate=3e-3)


def coloured(n, seed=0) -> Examples:
    labels = np.random.default_rng(seed).integers(3, size=n)
    images = np.zeros((n, 32, 32, 3), np.uint8)
    images[np.arange(n), :, :, labels] = 255
    return Examples(images, [[f"a {NAMES[k]} square", NAMES[k]] for k in labels], labels, NAMES)


def learner(kind, shape, tokenizer, examples):
    if kind is Labels:
        return Labels(shape, NAMES, 0)
    if kind is Contrast:
        return Contrast(shape, tokenizer, 0)
    return kind(shape, tokenizer, 0, examples.images)


@pytest.mark.parametrize("kind", [Labels, Contrast, BagOfWords, WordByWord])
def test_each_objective_learns_three_colours(kind):
    examples = coloured(48)
    tokenizer, shape = tokenizer_of(examples, SMALL)
    objective = learner(kind, shape, tokenizer, examples)
    seen = fit(objective, examples, tokenizer, 32, replace(CONFIG, steps=60), (1, 30, 60),
               lambda step: (step, objective.training))
    assert seen == [(1, False), (30, False), (60, False)]
    fresh = coloured(30, seed=1)
    right = objective.scores(fresh.images, NAMES).argmax(1).numpy() == fresh.labels
    assert right.mean() > 0.9


def test_it_is_the_loop_of_train(tmp_path, monkeypatch):
    """The same pairs, seed and settings give the same weights as `miniclip train`, bit for bit.

    In float32, as the experiments' losses always are, and of captions that all differ.
    """
    from miniclip import train as module
    from miniclip.weights import checkpoint

    monkeypatch.setattr("miniclip.device.bf16_is_fast", lambda device: False)
    examples = coloured(48)
    examples = replace(examples, captions=[
        [f"{text}, {i}" for text in texts] for i, texts in enumerate(examples.captions)])
    tokenizer, shape = tokenizer_of(examples, SMALL)
    objective = Contrast(shape, tokenizer, CONFIG.seed)
    fit(objective, examples, tokenizer, 32, CONFIG)

    pairs = Pairs(examples.images, examples.captions, "colours", "")
    config = replace(CONFIG, data="shapes", eval_every=30)
    monkeypatch.setattr(module, "prepare_data", lambda *_: (pairs, pairs, config))
    monkeypatch.setattr(module, "report", lambda *_: {})
    monkeypatch.setattr(module.plots, "draw_run", lambda *_: None)
    module.train(config, SMALL, tmp_path / "run", "cpu")
    trained = checkpoint.load_state(tmp_path / "run")["model"]
    for name, value in objective.clip.state_dict().items():
        assert torch.equal(value, trained[name]), name


def test_too_few_examples_are_told():
    examples = coloured(4)
    tokenizer, shape = tokenizer_of(examples, SMALL)
    with pytest.raises(ValueError, match="batch_size 8 is larger than the 4 images"):
        fit(Labels(shape, NAMES, 0), examples, tokenizer, 32, CONFIG)


def test_a_diverged_model_is_told():
    examples = coloured(16)
    tokenizer, shape = tokenizer_of(examples, SMALL)
    objective = Labels(shape, NAMES, 0)
    with torch.no_grad():
        objective.head.bias[0] = torch.nan
    with pytest.raises(Diverged, match="colours, step 2: the loss is no longer finite"):
        fit(objective, examples, tokenizer, 32, CONFIG, (2,), print, "colours")
    with pytest.raises(Diverged, match="step 30"):  # without any look: at the end
        fit(objective, examples, tokenizer, 32, CONFIG)
    assert accuracy_at(objective, examples, examples, tokenizer, 32, CONFIG, "") is None
    with pytest.raises(Diverged, match="scores hold NaN"):
        right(objective, examples)


def test_a_point_of_a_sweep_is_the_accuracy():
    examples = coloured(48)
    tokenizer, shape = tokenizer_of(examples, SMALL)
    found = accuracy_at(Labels(shape, NAMES, 0), examples, coloured(30, seed=1), tokenizer, 32,
                        replace(CONFIG, steps=60), "")
    assert found > 90


class Answers:
    """Says, of the image whose first pixel is k, the k-th of its answers."""

    def __init__(self, answers):
        self.answers = answers

    def scores(self, images, names):
        found = torch.full((len(images), len(names)), -torch.inf)
        for row, image in zip(found, images):
            row[list(names).index(self.answers[image[0, 0, 0]])] = 0
        return found


def test_right_is_the_largest_score():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(4)
    asked = Examples(images, [[""]] * 4, np.array([0, 1, 1, 0]), ("a", "b"))
    assert right(Answers(["a", "b", "a", "b"]), asked).tolist() == [True, True, False, False]


def test_a_recipe_scales_both_rates_and_warms_up_in_a_quarter_at_most():
    base = TrainConfig(learning_rate=1e-3, muon_learning_rate=0.02, warmup=100)
    found = recipe(base, 2.0, 200, 5)
    assert (found.learning_rate, found.muon_learning_rate) == (2e-3, 0.04)
    assert (found.warmup, found.steps, found.seed) == (50, 200, 5)
    assert recipe(base, 1.0, 4000, 0).warmup == 100


def test_looks_keep_their_proportions():
    assert looks_of((20, 100, 400), 400, 400) == (20, 100, 400)
    assert looks_of((20, 100, 400), 400, 40) == (2, 10, 40)
    assert looks_of((20, 100), 400, 3) == (1, 3)


def test_an_accuracy_has_its_interval_within_0_and_100():
    found = with_interval([np.array([True] * 19 + [False]), np.array([True] * 20)])
    assert found["accuracy"] == 97.5
    assert 60 < found["interval"][0] < 95 and found["interval"][1] == 100
