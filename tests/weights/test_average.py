"""Between two models: the ends are the models, and unlike ones are told."""

from dataclasses import replace

import pytest
import torch
from small_weights import NARROW, ODD

import miniclip
from miniclip.data.images import Transform
from miniclip.model import CLIP
from miniclip.tokenizer import BYTE_CHARS, Tokenizer
from miniclip.weights.average import average, check_alike, write_model


def model_of(seed, config=NARROW):
    return CLIP(config).init_weights(torch.Generator().manual_seed(seed))


def test_the_ends_and_the_middle():
    a, b = model_of(0), model_of(1)
    before = {name: tensor.clone() for name, tensor in a.state_dict().items()}
    for alpha in (0.0, 0.25, 1.0):
        found = average(a, b, alpha).state_dict()
        for name, tensor in found.items():
            expected = (1 - alpha) * a.state_dict()[name] + alpha * b.state_dict()[name]
            assert torch.allclose(tensor, expected, atol=1e-6), name
    assert all(torch.equal(before[name], tensor) for name, tensor in a.state_dict().items())


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_a_share_is_from_0_to_1(alpha):
    with pytest.raises(ValueError, match="alpha is .*; it must be from 0"):
        average(model_of(0), model_of(1), alpha)


def test_unlike_models_are_told():
    merges = [f"{BYTE_CHARS[i]} {BYTE_CHARS[i]}" for i in range(36)]
    tokenizer = Tokenizer(merges)
    a = model_of(0), tokenizer, Transform(10)
    check_alike(a, (model_of(1), Tokenizer(merges), Transform(10)), ("a", "b"))
    with pytest.raises(ValueError, match="a and b are not of one shape: embed_dim is 9 and 20"):
        check_alike(a, (model_of(1, ODD), tokenizer, Transform(35)), ("a", "b"))
    other = Tokenizer([*merges[:-1], f"{BYTE_CHARS[0]} {BYTE_CHARS[1]}"])
    with pytest.raises(ValueError, match="different vocabularies: the second must have been train"):
        check_alike(a, (model_of(1), other, Transform(10)), ("a", "b"))


def test_what_is_written_can_be_loaded(tmp_path):
    tokenizer = Tokenizer([f"{BYTE_CHARS[i]} {BYTE_CHARS[i]}" for i in range(36)], 5)
    model = model_of(3, replace(NARROW, vocab_size=tokenizer.vocab_size))
    write_model(model, tokenizer, tmp_path / "new/average")
    found, again, transform = miniclip.load(tmp_path / "new/average")
    assert found.config == model.config and again.symbols == tokenizer.symbols
    assert transform.size == 10
    with pytest.raises(ValueError, match="average is there already; name a new one"):
        write_model(model, tokenizer, tmp_path / "new/average")
