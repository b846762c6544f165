"""The symmetric contrastive loss of CLIP: `clip_loss`, and `ClipLoss`, the same as a module.

Notation, here and in every file of this package: image features I (M, D), text features T (N, D),
multiplier s, similarities S = s · I Tᵀ (M, N). Row i of S asks "which text belongs to image i?",
column j asks "which image belongs to text j?". The loss is the mean of the two cross-entropies
towards the diagonal (Radford et al. 2021, arXiv 2103.00020, Figure 3):

    L = ½ (mean_i [logsumexp_j S_ij − S_ii] + mean_j [logsumexp_i S_ij − S_jj])

What is computed stands in `reference` (the equations), `tiled` (PyTorch), `triton_loss` (the
kernels), `triton_blocks` (another backward pass) and `triton_hopper` (both passes for one kind of
GPU). `backends` chooses among them, `checks` refuses bad input, `autograd` is the way into PyTorch.
"""

import torch
from torch import Tensor, nn

from .autograd import Loss
from .backends import Labels, check_name
from .checks import check_ids, check_input
from .dense import dense_loss


def clip_loss(image_features, text_features, logit_scale, *, label_offset=0, direction="both",
              image_ids=None, text_ids=None, backend="auto"):
    """Cross-entropy of every image among all texts, and of every text among all images → scalar.

    Args:
        image_features: (M, D), float32, bfloat16, float16 or float64; any strides.
        text_features: (N, D), same dtype and device.
        logit_scale: the multiplier itself, not its logarithm: a positive float or a scalar tensor,
            which receives its gradient.
        label_offset: column i + label_offset belongs to row i.
        direction: "both" (M = N, offset 0); or "rows", images among texts only (M ≤ N), as for a
            GPU's own rows against the columns gathered from all GPUs.
        image_ids: int64 (M,), which image a row comes from. See text_ids.
        text_ids: int64 (N,), which image a column comes from. Where both are equal, and it is not
            the labelled pair, the entry is left out of both denominators: another caption of the
            same image is no wrong answer. One of them stands for both if M = N.
        backend: one of

            | name     | runs on                                      | products | keeps of M × N |
            | -------- | -------------------------------------------- | -------- | -------------- |
            | "triton" | CUDA; CPU with TRITON_INTERPRET=1; D ≤ 2048  | 5 or more | nothing       |
            | "blocks" | the same                                     | 4        | up to 128 MiB  |
            | "hopper" | compute capability 9, 16 bits, D ≤ 512       | 4        | up to 128 MiB  |
            | "tiled"  | any device                                   | 4        | a tile         |
            | "dense"  | any device: plain PyTorch                    | 3        | all of it      |
            | "numpy"  | CPU, float64: the reference                  | 3        | all of it      |

            or "auto": on CUDA from compute capability 8.0 on "triton" if D ≤ 64 or M·N·D ≤ 2²⁸
            (724 pairs of 512 features), else "hopper" or, where that can't run, "blocks";
            elsewhere "tiled". A backend that is named and can't run raises.

    Returns:
        The loss, a scalar in float32 (float64 for float64), computed so under autocast too.

    Raises:
        ValueError: in one line, for what does not fit.

    Gradients are of first order and of one loss at a time (for torch.func and more: "dense"). The
    same input on the same device gives the same bits. For features far from unit length, |S| above
    some 10⁴, the gradients of "triton" have few correct digits; take "blocks" or "tiled".

    Source: Radford et al. 2021, arXiv 2103.00020, section 2.3 and Figure 3.
    """
    check_name(backend)
    check_input(image_features, text_features, logit_scale, label_offset, direction)
    ids = check_ids(image_features, text_features, image_ids, text_ids)
    wide = torch.promote_types(image_features.dtype, torch.float32)
    if isinstance(logit_scale, Tensor):
        scale = logit_scale.to(image_features.device, wide).reshape(())
    else:
        scale = torch.full((), float(logit_scale), dtype=wide, device=image_features.device)
    both = direction == "both"
    if backend == "dense":
        return dense_loss(image_features, text_features, scale, Labels(label_offset, both, *ids))
    settings = label_offset, both, backend
    return Loss.apply(image_features, text_features, scale, settings, *ids)


class ClipLoss(nn.Module):
    """The loss as a module, called as open_clip's class of the same name is.

    With world_size > 1 every process holds M pairs, numbered rank · M onwards, and
    torch.distributed is initialised: each compares its own rows with the columns of all, both ways
    round, and the gradient flows back to the process that a column came from. The mean over the
    processes is the loss of the whole batch (open_clip's local_loss with gather_with_grad, the only
    way here; M is the same everywhere).
    """

    def __init__(self, *, rank: int = 0, world_size: int = 1, backend: str = "auto"):
        super().__init__()
        self.rank, self.world_size, self.backend = rank, world_size, backend

    def forward(self, image_features, text_features, logit_scale, logit_bias=None,
                output_dict=False):
        """(M, D), (M, D), multiplier → scalar, or {"contrastive_loss": scalar}.

        logit_bias, a number added to every similarity, is what softmax does not see: no effect, and
        a gradient of zero, which DistributedDataParallel waits for.
        """
        logit_scale = logit_scale if logit_bias is None else logit_scale + 0 * logit_bias
        if self.world_size == 1:
            loss = clip_loss(image_features, text_features, logit_scale, backend=self.backend)
        else:
            from torch.distributed.nn.functional import all_gather

            # Before anything travels: whoever fails later leaves the others waiting.
            check_name(self.backend)
            check_input(image_features, text_features, logit_scale, 0, "both")
            offset = self.rank * len(image_features)
            every_image, every_text = (
                torch.cat(all_gather(x.contiguous())) for x in (image_features, text_features))
            loss = sum(
                clip_loss(own, all_, logit_scale, label_offset=offset, direction="rows",
                          backend=self.backend)
                for own, all_ in ((image_features, every_text), (text_features, every_image))) / 2
        return {"contrastive_loss": loss} if output_dict else loss
