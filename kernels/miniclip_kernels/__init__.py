"""CLIP's contrastive loss, SigLIP's, and their gradients, without the N × N matrix in memory.

    from miniclip_kernels import clip_loss, ClipLoss, sigmoid_loss, SigLipLoss
"""

from .clip_loss import ClipLoss, clip_loss
from .sigmoid_loss import SigLipLoss, sigmoid_loss

__all__ = ["ClipLoss", "SigLipLoss", "clip_loss", "sigmoid_loss"]
__version__ = "0.1.0"
