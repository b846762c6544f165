"""The symmetric contrastive loss of CLIP: `clip_loss`, and `ClipLoss`, the same as a module.

Notation, here and in every file of this package: image features I (M, D), text features T (N, D),
multiplier s, similarities S = s · I Tᵀ (M, N). Row i of S asks "which text belongs to image i?",
column j asks "which image belongs to text j?". The loss is the mean of the two cross-entropies
towards the diagonal (Radford et al. 2021, arXiv 2103.00020, Figure 3):

    L = ½ (mean_i [logsumexp_j S_ij − S_ii] + mean_j [logsumexp_i S_ij − S_jj])

The computation is in `reference` (the equations), `tiled` (PyTorch), `triton_loss` (the kernels),
`triton_blocks` (another backward pass) and `triton_hopper` (both passes for one kind of GPU).
`backends` chooses among them, `checks` refuses bad input, `autograd` connects them to PyTorch.
`distributed` is for several processes.
"""

import torch
from torch import Tensor, nn

from . import backends
from .autograd import Loss, autocast_is_on
from .backends import Labels, check_name
from .checks import check_group, check_ids, check_input, check_number, process_group
from .dense import dense_loss


def clip_loss(image_features, text_features, logit_scale, *, label_offset=0, direction="both",
              image_ids=None, text_ids=None, backend="auto", group=None, ring=False):
    """Cross-entropy of every image among all texts, and of every text among all images → scalar.

    Args:
        image_features: (M, D), float32, bfloat16, float16 or float64; any strides. Under autocast
            they are cast to its type, as for every matrix product there (float64 is not).
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
        group: of torch.distributed, such as `torch.distributed.group.WORLD`. Every process of it
            brings M pairs (direction "both", M = N), and gets its share of the loss of all: the
            mean over the processes is that loss, and so are the means of the gradients. If the
            processes multiply it by different factors, gradients are NaN. Not for "dense", "numpy".
        ring: with a group, send texts round instead of gathering them: less memory, more traffic.
        backend: one of

            | name     | runs on                                      | products | M × N storage  |
            | -------- | -------------------------------------------- | -------- | -------------- |
            | "triton" | CUDA; CPU with TRITON_INTERPRET=1; D ≤ 2048  | 5 or more | nothing       |
            | "blocks" | the same                                     | 4        | up to 128 MiB  |
            | "hopper" | compute capability 9, 16 bits, D ≤ 2048      | 4        | up to 128 MiB  |
            | "chunked" | any device, made for accelerators           | 4        | up to 400 MiB  |
            | "tiled"  | any device, made for CPUs                    | 4        | a tile         |
            | "dense"  | any device: plain PyTorch                    | 3        | all of it      |
            | "numpy"  | CPU, float64: the reference                  | 3        | all of it      |

            or "auto". On CUDA with compute capability 8.0 or higher, "auto" is "triton" if D ≤ 64
            or M·N·D ≤ 2²⁸ (724 pairs of 512 features). Above, it is "hopper", or "blocks" where
            "hopper" can't run or D > 512. On other accelerators, and for float64 or D > 2048, it is
            "chunked", on a CPU "tiled". A named backend that can't run raises.

    Returns:
        The loss, a scalar in float32 (float64 for float64 features), under autocast too.

    Raises:
        ValueError: for invalid input, with a message of one line.

    Only first-order gradients of one loss at a time are supported; for torch.func and more use
    "dense". The same input on the same device gives the same bits, with the same versions and
    float32 switch. For features far from unit length (|S| above about 10⁴) gradients of "triton"
    have few correct digits; use "blocks" or "tiled".

    Source: Radford et al. 2021, arXiv 2103.00020, section 2.3 and Figure 3.
    """
    I, T, image_ids, text_ids = checked_by_everyone(  # noqa: E741
        image_features, text_features, logit_scale, label_offset, direction, (image_ids, text_ids),
        backend, group)
    if group is not None:
        from .distributed import DistributedLoss  # not in every build of PyTorch

        learns = torch.is_grad_enabled() and T.requires_grad
        loss, settings = DistributedLoss, (backend, group.group_name, ring, learns)
    else:
        loss, settings = Loss, (label_offset, direction == "both", backend)
    scale = scale_tensor(logit_scale, I)
    if backend == "dense":
        labels = Labels(label_offset, direction == "both", image_ids, text_ids)
        return dense_loss(I, T, scale, labels)
    return loss.apply(I, apart(T, I), scale, settings, image_ids, apart(text_ids, image_ids))


def checked_by_everyone(I, T, scale, label_offset, direction, ids, backend, group,  # noqa: E741
                        numbers=()):
    """→ features as autocast wants them, and ids; or a ValueError, on every rank of the group.

    numbers: (name, value) of what else must be a number. (A default 0.0 would make torch.compile
    trace twice.)
    """
    check_name(backend)

    def checked():
        images, texts = map(as_autocast_would, (I, T))
        check_input(images, texts, scale, label_offset, direction)
        for name, value in numbers:
            check_number(name, value)
        if group is not None and not torch.compiler.is_compiling():
            backends.check(backend, images)  # what can't run on one machine is told to all
        return images, texts, *check_ids(images, texts, *ids)

    if group is None:
        return checked()
    from .distributed import checked_by_all  # not in every build of PyTorch

    check_group(group, direction, backend)
    return checked_by_all(group, (I, T), checked)


def as_autocast_would(features):
    """Features as a matrix product would get them here: under autocast in its type."""
    castable = (isinstance(features, Tensor) and features.is_floating_point()
                and features.dtype != torch.float64)  # which autocast leaves alone
    if not castable or not autocast_is_on(features.device.type):
        return features
    return features.to(torch.get_autocast_dtype(features.device.type))


def scale_tensor(logit_scale, features):
    """The scale as a tensor (), on the features' device, float32 (float64 for float64)."""
    wide = torch.promote_types(features.dtype, torch.float32)
    if isinstance(logit_scale, Tensor):
        return logit_scale.to(features.device, wide).reshape(())
    if torch.compiler.is_compiling():  # a product, so that another number is no other graph
        return torch.ones((), dtype=wide, device=features.device) * logit_scale
    return torch.full((), float(logit_scale), dtype=wide, device=features.device)


def apart(tensor, other):
    """The tensor, or a view of it if it is `other`: torch.compile can't tell the two apart."""
    return tensor.view_as(tensor) if tensor is not None and tensor is other else tensor


class ClipLoss(nn.Module):
    """The loss as a module, with the signature of open_clip's class of the same name.

    With world_size > 1, torch.distributed must be initialised. Every process holds M pairs, and M
    is the same in all. Each compares its own images with all texts, and its own texts with all
    images. The mean over the processes is the loss of the whole batch, and the mean of the
    gradients that of its gradients: what open_clip gives with local_loss and gather_with_grad,
    which is the only mode here. (Its default, without them, has features' gradients that are
    world_size times smaller.)

    Args:
        local_loss, gather_with_grad, cache_labels: accepted, and without effect.
        rank, world_size: this process's number, and how many there are.
        use_horovod: must be False.
        backend, ring: as of `clip_loss`.
        group: torch.distributed's; None: that of all processes.
    """

    def __init__(self, local_loss: bool = False, gather_with_grad: bool = False,
                 cache_labels: bool = False, rank: int = 0, world_size: int = 1,
                 use_horovod: bool = False, *, backend: str = "auto", group=None,
                 ring: bool = False):
        super().__init__()
        if use_horovod:
            raise ValueError("use_horovod: Horovod is not supported; torch.distributed is")
        self.rank, self.world_size, self.backend = rank, world_size, backend
        self.group, self.ring = group, ring

    def forward(self, image_features, text_features, logit_scale, logit_bias=None,
                output_dict=False):
        """(M, D), (M, D), multiplier → scalar, or {"contrastive_loss": scalar}.

        logit_bias, a number added to every similarity, has no effect: softmax cancels it. It gets a
        gradient of zero, since DistributedDataParallel waits for one.
        """
        logit_scale = logit_scale if logit_bias is None else logit_scale + 0 * logit_bias
        group = process_group(self.group, self.rank, self.world_size)
        loss = clip_loss(image_features, text_features, logit_scale, backend=self.backend,
                         group=group, ring=self.ring)
        return {"contrastive_loss": loss} if output_dict else loss
