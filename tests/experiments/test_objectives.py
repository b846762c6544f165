"""Four objectives: what each loss is, counted by hand, and what each score means."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import SMALL

from miniclip import clip_loss
from miniclip.data.images import normalize
from miniclip.experiments.objectives import (
    BagOfWords,
    Contrast,
    Labels,
    WordByWord,
    ended,
    inner,
)
from miniclip.tokenizer import Tokenizer

TEXTS = ["a red dog", "a blue cat", "a photo of a dog", "a photo of a red cat"]
TOKENIZER = Tokenizer.train(TEXTS, SMALL.vocab_size, SMALL.context_length)
SHAPE = replace(SMALL, vocab_size=TOKENIZER.vocab_size)
NAMES = ("dog", "cat", "orange dog")
NOISE = np.random.default_rng(1).integers(0, 256, (7, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def batch(images):
    return normalize(images[:4]), TOKENIZER(TEXTS), torch.tensor([0, 1, 0, 1])


def test_all_begin_with_the_same_image_tower():
    towers = [Contrast(SHAPE, TOKENIZER, 3).clip.vision, Labels(SHAPE, NAMES, 3).vision,
              BagOfWords(SHAPE, TOKENIZER, 3, NOISE).vision,
              WordByWord(SHAPE, TOKENIZER, 3, NOISE).vision]
    for tower in towers[1:]:
        for ours, first in zip(tower.parameters(), towers[0].parameters(), strict=True):
            assert torch.equal(ours, first)
    other = Labels(SHAPE, NAMES, 4)
    assert not torch.equal(other.vision.projection, towers[0].projection)
    assert torch.equal(Labels(SHAPE, NAMES, 3).head.weight, Labels(SHAPE, NAMES, 3).head.weight)


def test_contrast_is_clips_loss(batch):
    objective = Contrast(SHAPE, TOKENIZER, 0)
    assert torch.equal(objective.loss(*batch), clip_loss(*objective.clip(*batch[:2])))


def test_contrast_around_a_trained_model(images):
    objective = Contrast(SHAPE, TOKENIZER, 0)
    same = Contrast.of(objective.clip, TOKENIZER)
    assert torch.equal(same.scores(images, NAMES), objective.scores(images, NAMES))


def test_labels_are_a_linear_layer(batch, images):
    objective = Labels(SHAPE, NAMES, 0)
    pixels, tokens, labels = batch
    logits = objective.vision(pixels) @ objective.head.weight.T + objective.head.bias
    assert torch.allclose(objective.loss(*batch), F.cross_entropy(logits, labels))
    scores = objective.scores(images[:4], ("cat", "dog", "orange dog"))
    assert torch.allclose(scores, logits[:, [1, 0, 2]], atol=1e-5)


def test_a_name_that_was_no_label_can_not_win(images):
    scores = Labels(SHAPE, NAMES, 0).scores(images, ("robot dog", "dog"))
    assert (scores[:, 0] == -torch.inf).all() and (scores.argmax(1) == 1).all()


def test_a_bag_of_words_is_the_mean_over_its_words(batch):
    objective = BagOfWords(SHAPE, TOKENIZER, 0, NOISE)
    pixels, tokens, _ = batch
    chances = objective.head(objective.vision(pixels)).log_softmax(1)
    by_hand = [-np.mean([row[word].item() for word in TOKENIZER.encode(text)])
               for row, text in zip(chances, TEXTS)]
    assert objective.loss(*batch).item() == pytest.approx(np.mean(by_hand), rel=1e-5)


def test_word_by_word_is_the_mean_over_all_tokens(batch):
    """One text at a time, one token at a time, as a language model would go on."""
    objective = WordByWord(SHAPE, TOKENIZER, 0, NOISE)
    pixels, _, _ = batch
    vectors, chances, count = objective.from_image(objective.vision(pixels)), 0.0, 0
    for vector, text in zip(vectors, TEXTS):
        words = [*TOKENIZER.encode(text), TOKENIZER.vocab_size - 1]
        for k, word in enumerate(words):
            x = torch.cat([vector[None], objective.tokens(torch.tensor(words[:k], dtype=int))])
            x = objective.norm_final(objective.blocks((x + objective.positions[:k + 1])[None]))
            chances += (x[0, -1] @ objective.tokens.weight.T).log_softmax(0)[word].item()
            count += 1
    assert objective.loss(*batch).item() == pytest.approx(-chances / count, rel=1e-4)


def test_word_by_word_asks_with_the_right_article(images):
    objective = WordByWord(SHAPE, TOKENIZER, 0, NOISE)
    with torch.no_grad():
        vectors = objective.seen(images)
        sentences = ["a photo of a dog", "a photo of a cat", "a photo of an orange dog"]
        chances = torch.stack([objective.log_chances(vectors, TOKENIZER([text] * len(images)))
                               for text in sentences], 1)
        assert torch.allclose(objective.log_likely(vectors, NAMES), chances, atol=1e-4)


@pytest.mark.parametrize("kind", [BagOfWords, WordByWord])
def test_a_name_scores_by_what_it_gains_over_typical_images(kind, images):
    """log P(text | image) less the log of its mean over the typical ones, none of them scored."""
    objective = kind(SHAPE, TOKENIZER, 0, NOISE)
    with torch.no_grad():
        usual = objective.log_likely(objective.seen(NOISE), NAMES).exp().mean(0).log()
        expected = objective.log_likely(objective.seen(images), NAMES) - usual
    assert torch.allclose(objective.scores(images, NAMES), expected, atol=1e-4)
    alone = objective.scores(images[:1], NAMES)
    assert torch.allclose(alone, objective.scores(images, NAMES)[:1], atol=1e-4), (
        "an image's score is its own affair")


def test_which_tokens_are_words():
    tokens = torch.tensor([[7, 3, 4, 9, 0], [7, 9, 0, 0, 0]])  # 7 begins, 9 ends
    assert inner(tokens).tolist() == [[False, True, True, False, False], [False] * 5]
    assert ended(tokens).int().tolist() == [[0, 0, 0, 1, 0], [0, 1, 0, 0, 0]]
