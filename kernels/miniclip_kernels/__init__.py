"""The contrastive loss of CLIP and its gradients, without the N × N matrix in memory.

    from miniclip_kernels import clip_loss, ClipLoss
"""

from .clip_loss import ClipLoss, clip_loss

__all__ = ["ClipLoss", "clip_loss"]
__version__ = "0.1.0"
