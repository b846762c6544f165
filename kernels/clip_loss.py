"""`clip_loss`: the symmetric contrastive loss, the one public function of this folder.

Notation, here and in every file of kernels/: image features I (M, D), text features T (N, D),
multiplier s, similarities S = s · I Tᵀ (M, N). Row i of S asks "which text belongs to image i?",
column j asks "which image belongs to text j?". The loss is the mean of the two cross-entropies
towards the diagonal (Radford et al. 2021, arXiv 2103.00020, Figure 3):

    L = ½ (mean_i [logsumexp_j S_ij − S_ii] + mean_j [logsumexp_i S_ij − S_jj])
"""

import torch
import torch.nn.functional as F

BACKENDS = ("auto", "dense")


def clip_loss(image_features, text_features, logit_scale, *, backend="auto"):
    """Symmetric cross-entropy over all pairs of a batch → scalar tensor, float32 or wider.

    image_features, text_features: (N, D), floating point, same dtype and device; row i of one
    belongs to row i of the other. logit_scale: the multiplier itself, a positive float or a
    scalar tensor, which receives its gradient. backend: "dense" computes in plain PyTorch and
    keeps the N × N matrix; "auto" takes the best that there is.
    Raises ValueError, in one line, for shapes, dtypes, devices or a backend that do not fit.
    """
    check(image_features, text_features, logit_scale, backend)
    return dense_loss(image_features, text_features, logit_scale)


def dense_loss(image_features, text_features, logit_scale):
    """Two N × N matrices kept for the backward pass: clear, and fast for small N."""
    similarities = image_features @ text_features.T  # (N, N)
    if similarities.dtype in (torch.bfloat16, torch.float16):
        similarities = similarities.float()  # sums of exponentials need float32
    similarities = logit_scale * similarities
    labels = torch.arange(len(similarities), device=similarities.device)
    rows = F.cross_entropy(similarities, labels)
    columns = F.cross_entropy(similarities.T, labels)
    return (rows + columns) / 2


def check(image_features, text_features, logit_scale, backend):
    """One clear line for every input that can't give a loss."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if image_features.ndim != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "image_features and text_features must both be (N, D); got "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}")
    if not len(image_features):
        raise ValueError("an empty batch has no loss; N must be at least 1")
    for name, features in (("image", image_features), ("text", text_features)):
        if not features.is_floating_point():
            raise ValueError(f"{name}_features are {features.dtype}; they must be floating point")
    if image_features.dtype != text_features.dtype:
        raise ValueError("image_features and text_features differ in dtype: "
                         f"{image_features.dtype} and {text_features.dtype}")
    if image_features.device != text_features.device:
        raise ValueError("image_features and text_features are on different devices: "
                         f"{image_features.device} and {text_features.device}")
    if isinstance(logit_scale, torch.Tensor) and logit_scale.numel() != 1:
        raise ValueError(f"logit_scale must be a scalar; got shape {tuple(logit_scale.shape)}")
    if not (isinstance(logit_scale, torch.Tensor) and logit_scale.is_cuda) and logit_scale <= 0:
        raise ValueError(f"logit_scale is the multiplier and must be positive; got {logit_scale}")
