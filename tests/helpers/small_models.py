"""Stub models that look features up, run folders without training, and figures as drawn."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from PIL import Image

from miniclip import plots
from miniclip.config import TINY, save_config
from miniclip.data.images import MEAN, STD
from miniclip.model import CLIP
from miniclip.tokenizer import Tokenizer
from miniclip.weights import checkpoint

SMALL = replace(TINY, image_size=32, vision_width=32, text_width=32, embed_dim=16, vision_heads=2,
                text_heads=2, vision_layers=1, stem=(), vocab_size=600, context_length=16)


def write_run(folder: Path, seed=0) -> Path:
    """A run folder as training leaves it, with untrained weights."""
    folder.mkdir()
    tokenizer = Tokenizer.train(["a red dog", "a blue cat"], SMALL.vocab_size, SMALL.context_length)
    config = replace(SMALL, vocab_size=tokenizer.vocab_size)
    checkpoint.save_weights(
        CLIP(config).init_weights(torch.Generator().manual_seed(seed)), folder)
    save_config(config, folder / "config.json")
    tokenizer.save(folder / "tokenizer.json")
    return folder


def write_photograph(path: Path, number: int):
    """Coarse noise, so that no two look alike even to an untrained model."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    Image.fromarray(blocks).resize((40, 30), Image.Resampling.NEAREST).save(path)


def drawn(monkeypatch, draw) -> plt.Figure:
    """The one figure that a call draws; it is written to disk as usual."""
    figures, save = [], plots.save
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure) or save(
        figure, path))
    draw()
    assert not plt.get_fignums()
    return figures[0]


class Stub(torch.nn.Module):
    """A model that looks features up: an image of gray level i is row i, a text "i" row i."""

    def __init__(self, images, texts):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.zeros(()))
        self.images, self.texts, self.sizes = images, texts, []

    def look_up(self, table, index, normalize):
        self.sizes.append(len(index))
        return F.normalize(table[index], dim=1) if normalize else table[index]

    def encode_image(self, pixels, normalize=False):
        gray = (pixels[:, 0, 0, 0] * STD[0] + MEAN[0]) * 255
        return self.look_up(self.images, gray.round().long(), normalize)

    def encode_text(self, tokens, normalize=False):
        return self.look_up(self.texts, tokens[:, 0], normalize)


def stub_tokenizer(texts):
    """ "a photo of 7" → [[7]]"""
    return torch.tensor([[int("".join(filter(str.isdigit, text)))] for text in texts])


def gray_images(levels, size=4):
    levels = np.asarray(levels, np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (len(levels), size, size, 3))


def stub(n=40, m=200, d=8):
    generator = torch.Generator().manual_seed(3)
    return Stub(torch.randn(n, d, generator=generator), torch.randn(m, d, generator=generator))
