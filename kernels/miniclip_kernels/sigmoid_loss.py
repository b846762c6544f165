"""The sigmoid loss of SigLIP: `sigmoid_loss`, and `SigLipLoss`, the same as a module.

Notation of `clip_loss`, and a bias b. Where the softmax asks each row and each column to choose,
here every entry of Z = S + b is a question of its own: do this image and this text belong together?

    L = 1/M Σ_ij log(1 + exp(∓Z_ij))        − for those that do, + for those that don't

(Zhai et al. 2023, arXiv 2303.15343, section 3.2.) No entry waits for a sum over a row, so a single
pass finds the loss and, where they are wanted, the gradients up to two factors: 3 products instead
of 4. They are kept until the backward pass, which only multiplies: (M + N) · D float32 numbers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import backends
from .autograd import NAMESPACE, without_autocast
from .backends import Labels, Needs
from .checks import process_group
from .clip_loss import apart, checked_by_everyone, scale_tensor
from .tiled import TILE, share_of_scale


def sigmoid_loss(image_features, text_features, logit_scale, logit_bias, *, image_ids=None,
                 text_ids=None, group=None, backend="auto"):
    """log(1 + exp(∓(s · cosine + b))) of every image with every text, per image → scalar.

    Args:
        image_features: (M, D), as of `clip_loss`; under autocast cast to its type.
        text_features: (M, D), same dtype and device; text i belongs to image i.
        logit_scale: the multiplier itself; a positive float or a scalar tensor, which receives its
            gradient. SigLIP begins with 10.
        logit_bias: b, a float or a scalar tensor, which receives its gradient. SigLIP begins with
            −10: nearly all entries are wrong, and the first loss would be large without it.
        image_ids: int64 (M,), which image a row comes from: every text with the same id belongs to
            it. None: only text i. One of the two arguments is enough.
        text_ids: int64 (M,), likewise of the texts.
        group: of torch.distributed: every process brings M pairs, and texts go round among them.
            The mean over the processes is the loss of all pairs, and so are the means of the
            gradients. All must multiply the loss by the same factor; gradients are NaN otherwise.
        backend: as of `clip_loss`; but "auto" is never "hopper", which was never measured here.

    Returns:
        The loss, a scalar in float32 (float64 for float64 features), under autocast too.

    Raises:
        ValueError: for invalid input, with a message of one line.

    Source: Zhai et al. 2023, arXiv 2303.15343, section 3.2, and 3.3 for several processes.
    """
    I, T, image_ids, text_ids = checked_by_everyone(  # noqa: E741
        image_features, text_features, logit_scale, 0, "both", (image_ids, text_ids), backend,
        group, (("logit_bias", logit_bias),))
    scale, bias = scale_tensor(logit_scale, I), scale_tensor(logit_bias, I)
    if backend == "dense":
        return dense(I, T, scale, bias, image_ids, text_ids)
    learns = torch.is_grad_enabled()
    needs = [learns and x.requires_grad for x in (I, T, scale)]
    # The scale's gradient comes from either side's; without one, from the images'.
    needs = [needs[0] or needs[2] and not needs[1], needs[1], needs[2]]
    settings = needs, backend, group and group.group_name
    return Sigmoid.apply(I, apart(T, I), scale, bias, settings, image_ids,
                         apart(text_ids, image_ids))


def dense(I, T, scale, bias, image_ids, text_ids):  # noqa: E741
    """Plain PyTorch, through its own autograd: it keeps M × M matrices."""
    with without_autocast(I.device.type):
        Z = scale * (I @ T.T).to(scale.dtype) + bias
        belong = torch.eye(len(I), dtype=torch.bool, device=I.device)
        if image_ids is not None:
            belong = belong | (image_ids[:, None] == text_ids[None, :])
        return F.softplus(torch.where(belong, -Z, Z)).sum() / len(I)


def forward(I: Tensor, T: Tensor, scale: Tensor, bias: Tensor, ids: list[Tensor],  # noqa: E741
            needs: list[bool], backend: str, group: str | None) -> list[Tensor]:
    """→ loss (), Σ G (), Σ G ∘ I Tᵀ (), G T (M, D), Gᵀ I (N, D): the last three if needed."""
    needs = Needs(*needs)
    with without_autocast(I.device.type):
        if group is not None:
            from .distributed import sigmoid_ring

            loss, total, sum_I, sum_T = sigmoid_ring(I, T, scale, bias, ids, backend, group, needs)
        else:
            run = backends.sigmoid(backend, I, len(T))
            loss, total, sum_I, sum_T = run(I, T, scale, bias, Labels(0, True, *ids), needs)
        found = [loss / len(I), total]
        if needs.scale:
            side = (sum_I, I) if needs.images else (sum_T, T)
            rows = TILE if I.device.type == "cpu" else 16 * TILE  # for a cache; for few launches
            found.append(share_of_scale(*side, rows))
        return found + [x for x in (sum_I, sum_T) if x is not None]


class Sigmoid(torch.autograd.Function):
    """I, T (M, D), scale, bias, settings (needs, backend, group's name), image and text ids → L."""

    @staticmethod
    def forward(ctx, I, T, scale, bias, settings, image_ids, text_ids):  # noqa: E741
        ids = [] if image_ids is None else [image_ids, text_ids]
        run = operator if torch.compiler.is_compiling() else forward
        loss, *found = run(I, T, scale, bias, ids, *settings)
        ctx.save_for_backward(scale, *found)
        ctx.settings, ctx.count, ctx.dtype = settings, len(I), I.dtype
        return loss

    @staticmethod
    def backward(ctx, upstream):
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("the sigmoid loss has no gradients of gradients, but for backend "
                               "'dense'")
        (scale, total, *rest), needs = ctx.saved_tensors, Needs(*ctx.settings[0])
        wanted, rest = ctx.needs_input_grad, iter(rest)
        if ctx.settings[2] is not None:
            from .distributed import alike_operator, alike_or_nan

            check = alike_operator if torch.compiler.is_compiling() else alike_or_nan
            upstream = check(upstream, ctx.settings[2])
        factor = upstream / ctx.count
        ds = factor * next(rest) if needs.scale else None
        dI = next(rest) if needs.images else None
        dT = next(rest) if needs.texts else None
        dI = (dI * (scale * factor)).to(ctx.dtype) if wanted[0] else None
        dT = (dT * (scale * factor)).to(ctx.dtype) if wanted[1] else None
        return dI, dT, ds, factor * total if wanted[3] else None, None, None, None


operator = torch.library.custom_op(f"{NAMESPACE}::sigmoid_forward", forward, mutates_args=())


@operator.register_fake
def _(I, T, scale, bias, ids, needs, backend, group):  # noqa: E741
    found = [scale.new_empty(()) for _ in range(2 + needs[2])]
    return found + [scale.new_empty(x.shape) for x, needed in zip((I, T), needs) if needed]


class SigLipLoss(nn.Module):
    """The loss as a module, with the signature of open_clip's class of the same name.

    Args:
        cache_labels: accepted, and without effect.
        rank, world_size: this process's number, and how many there are; with more than one,
            torch.distributed must be initialised.
        dist_impl: bidir, shift, reduce, gather or None: all find the same, and the way is always a
            ring in one direction.
        backend, group: as of `sigmoid_loss`; group None: that of all processes.
    """

    def __init__(self, cache_labels: bool = False, rank: int = 0, world_size: int = 1,
                 dist_impl: str | None = None, *, backend: str = "auto", group=None):
        super().__init__()
        if dist_impl not in (None, "bidir", "shift", "reduce", "gather"):
            raise ValueError(f"dist_impl {dist_impl!r} is not one of bidir, shift, reduce, gather")
        self.rank, self.world_size = rank, world_size
        self.backend, self.group = backend, group

    def forward(self, image_features, text_features, logit_scale, logit_bias, output_dict=False):
        """(M, D), (M, D), multiplier, bias → scalar, or {"contrastive_loss": scalar}."""
        group = process_group(self.group, self.rank, self.world_size)
        loss = sigmoid_loss(image_features, text_features, logit_scale, logit_bias,
                            backend=self.backend, group=group)
        return {"contrastive_loss": loss} if output_dict else loss
