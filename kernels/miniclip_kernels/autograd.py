"""The way into autograd, and into torch.compile.

From the forward pass to the backward pass go I, T, the scale, and one number for each row and each
column: no M × N. For torch.compile both passes are operators, which it takes as they are. Called
without it they are functions: what PyTorch does around an operator would take a tenth of a
millisecond, as long as the loss of some thousand pairs on a GPU. The backend is chosen within them:
a compiler can't ask what GPU there is.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from . import backends
from .backends import Labels


def without_autocast(device: str):
    """Entered only where autocast is on, for that takes microseconds."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def forward(I: Tensor, T: Tensor, scale: Tensor, ids: list[Tensor], label_offset: int,  # noqa: E741
            both: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """→ loss (), and what the backward pass wants: one number for each row and each column.

    ids: image_ids (M,) and text_ids (N,), or nothing.
    """
    with without_autocast(I.device.type):
        run = backends.module(backends.choose(backend, I, len(T)))
        return run.forward(I, T, scale, Labels(label_offset, both, *ids))


def backward(upstream: Tensor, saved: list[Tensor], ids: list[Tensor], label_offset: int,
             both: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """saved: I, T, the scale, r and c → the gradients of I (M, D), T (N, D) and the scale ()."""
    I, T, scale, r, c = saved  # noqa: E741
    with without_autocast(I.device.type):
        run = backends.module(backends.choose(backend, I, len(T)))
        return run.backward(upstream, I, T, scale, r, c, Labels(label_offset, both, *ids))


NAMESPACE = __package__.replace(".", "_")  # a vendored copy has operators of its own
forward_operator = torch.library.custom_op(
    f"{NAMESPACE}::clip_loss_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op(
    f"{NAMESPACE}::clip_loss_backward", backward, mutates_args=())


@forward_operator.register_fake
def _(I, T, scale, ids, label_offset, both, backend):  # noqa: E741
    # Not len(I), which would make a number of a size that may change.
    return (scale.new_empty(()), scale.new_empty(I.shape[:1]),
            scale.new_empty(T.shape[:1] if both else 0))


@backward_operator.register_fake
def _(upstream, saved, ids, label_offset, both, backend):
    I, T, scale, *_ = saved  # noqa: E741
    return I.new_empty(I.shape), T.new_empty(T.shape), scale.new_empty(scale.shape)


class Loss(torch.autograd.Function):
    """I, T, scale, settings (label_offset, both, backend), image_ids, text_ids → loss ()."""

    @staticmethod
    def forward(ctx, I, T, scale, settings, image_ids, text_ids):  # noqa: E741
        ids = [] if image_ids is None else [image_ids, text_ids]
        run = forward_operator if torch.compiler.is_compiling() else forward
        loss, r, c = run(I, T, scale, ids, *settings)
        ctx.save_for_backward(I, T, scale, r, c, *ids)
        ctx.settings = settings
        return loss

    @staticmethod
    def backward(ctx, upstream):
        I, T, scale, r, c, *ids = ctx.saved_tensors  # noqa: E741
        # With gradients on, somebody wants gradients of gradients: the operator refuses those.
        compiled = torch.compiler.is_compiling() or torch.is_grad_enabled()
        run = backward_operator if compiled else backward
        dI, dT, ds = run(upstream, [I, T, scale, r, c], ids, *ctx.settings)
        return dI, dT, ds, None, None, None
