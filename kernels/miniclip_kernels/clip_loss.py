"""The symmetric contrastive loss of CLIP: `clip_loss`, and `ClipLoss`, the same as a module.

Notation, here and in every file of this package: image features I (M, D), text features T (N, D),
multiplier s, similarities S = s · I Tᵀ (M, N). Row i of S asks "which text belongs to image i?",
column j asks "which image belongs to text j?". The loss is the mean of the two cross-entropies
towards the diagonal (Radford et al. 2021, arXiv 2103.00020, Figure 3):

    L = ½ (mean_i [logsumexp_j S_ij − S_ii] + mean_j [logsumexp_i S_ij − S_jj])

The computation is in `reference` (the equations), `tiled` (PyTorch), `triton_loss` (the kernels),
`triton_blocks` (another backward pass) and `triton_hopper` (both passes for one kind of GPU).
`backends` chooses among them, `checks` refuses bad input, `autograd` connects them to PyTorch.
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
        text_ids: int64 (N,), which image a column comes from. An entry whose two ids are equal is
            left out of both denominators, unless it is the labelled pair: another caption of the
            same image is not a wrong answer. If M = N, one of the two arguments is enough.
        backend: one of

            | name     | runs on                                      | products | M × N storage  |
            | -------- | -------------------------------------------- | -------- | -------------- |
            | "triton" | CUDA; CPU with TRITON_INTERPRET=1; D ≤ 2048  | 5 or more | nothing       |
            | "blocks" | the same                                     | 4        | up to 128 MiB  |
            | "hopper" | compute capability 9, 16 bits, D ≤ 512       | 4        | up to 128 MiB  |
            | "tiled"  | any device                                   | 4        | a tile         |
            | "dense"  | any device: plain PyTorch                    | 3        | all of it      |
            | "numpy"  | CPU, float64: the reference                  | 3        | all of it      |

            or "auto". On CUDA with compute capability 8.0 or higher, "auto" is "triton" if D ≤ 64
            or M·N·D ≤ 2²⁸ (724 pairs of 512 features). Above, it is "hopper", or "blocks" where
            "hopper" can't run. Elsewhere it is "tiled". A named backend that can't run raises.

    Returns:
        The loss, a scalar in float32 (float64 for float64 features), under autocast too.

    Raises:
        ValueError: for invalid input, with a message of one line.

    Only first-order gradients of one loss at a time are supported; for torch.func and more use
    "dense". The same input on the same device gives the same bits. For features far from unit
    length (|S| above about 10⁴) gradients of "triton" have few correct digits; use "blocks" or
    "tiled".

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
    """The loss as a module, with the call signature of open_clip's class of the same name.

    With world_size > 1, torch.distributed must be initialised. Every process holds M pairs,
    numbered from rank · M; M is the same in all. Each process compares its own images with all
    texts, and its own texts with all images. The gradient flows back to the process that a column
    came from. The mean over the processes is the loss of the whole batch. (This is open_clip's
    local_loss with gather_with_grad, the only mode here.)
    """

    def __init__(self, *, rank: int = 0, world_size: int = 1, backend: str = "auto"):
        super().__init__()
        self.rank, self.world_size, self.backend = rank, world_size, backend

    def forward(self, image_features, text_features, logit_scale, logit_bias=None,
                output_dict=False):
        """(M, D), (M, D), multiplier → scalar, or {"contrastive_loss": scalar}.

        logit_bias, a number added to every similarity, has no effect: softmax cancels it. It gets a
        gradient of zero, since DistributedDataParallel waits for one.
        """
        logit_scale = logit_scale if logit_bias is None else logit_scale + 0 * logit_bias
        if self.world_size == 1:
            loss = clip_loss(image_features, text_features, logit_scale, backend=self.backend)
        else:
            from torch.distributed.nn.functional import all_gather

            # Before any collective: a process that fails later leaves the others waiting.
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
