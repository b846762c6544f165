"""miniclip: CLIP from scratch, small enough to read in an afternoon.

    import miniclip
    model, tokenizer, transform = miniclip.load("runs/tiny")
"""

from miniclip_kernels.clip_loss import clip_loss

from miniclip.model import CLIP
from miniclip.pretrained import load
from miniclip.tokenizer import Tokenizer

__all__ = ["CLIP", "Tokenizer", "clip_loss", "load"]
