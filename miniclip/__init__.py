"""miniclip: CLIP from scratch, small enough to read in an afternoon.

    import miniclip
    model, tokenizer, transform = miniclip.load("runs/tiny")
"""

from miniclip_kernels import clip_loss

from miniclip.model import CLIP
from miniclip.tokenizer import Tokenizer
from miniclip.weights.pretrained import load

__all__ = ["CLIP", "Tokenizer", "clip_loss", "load"]
