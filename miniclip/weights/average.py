"""Two models of one shape → one between them (WiSE-FT).

Fine-tuning gains on its own data and forgets elsewhere. The average of the weights before and after
keeps most of both, and often beats either (Wortsman et al. 2022, arXiv 2109.01903, section 3).
"""

from pathlib import Path

import torch

from miniclip.config import save_config
from miniclip.model import CLIP
from miniclip.tokenizer import Tokenizer
from miniclip.weights.checkpoint import save_weights


def check_alike(a: tuple, b: tuple, names: tuple[str, str]):
    """ValueError unless both (model, tokenizer, transform) have one shape and one vocabulary."""
    told = " and ".join(names)
    if a[0].config != b[0].config:
        mine, other = vars(a[0].config), vars(b[0].config)
        odd = next(name for name in mine if mine[name] != other[name])
        raise ValueError(f"{told} are not of one shape: {odd} is {mine[odd]!r} and {other[odd]!r}")
    if a[1].symbols != b[1].symbols:
        raise ValueError(f"{told} have different vocabularies: the second must have been trained "
                         "--from the first")


@torch.no_grad()
def average(a: CLIP, b: CLIP, alpha: float) -> CLIP:
    """(1 − α) · a + α · b, parameter by parameter: 0 gives a, 1 gives b. Both stay as they are.

    ValueError for an alpha outside 0 to 1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; it must be from 0 (the first model) to 1 (the second)")
    model = CLIP(a.config).to(a.logit_scale)
    ours, theirs = a.state_dict(), b.state_dict()
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.lerp(ours[name], theirs[name].to(ours[name]), alpha))
    return model.eval()


def write_model(model: CLIP, tokenizer: Tokenizer, folder: Path):
    """A folder that `miniclip.load` reads. ValueError if it is there already."""
    if folder.exists():
        raise ValueError(f"{folder} is there already; name a new one")
    folder.mkdir(parents=True)
    save_config(model.config, folder / "config.json")
    tokenizer.save(folder / "tokenizer.json")
    save_weights(model, folder)
