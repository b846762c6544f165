"""The connection to autograd and to torch.compile.

The forward pass saves I, T, the scale, and one number for each row and each column: nothing of
size M × N. Under torch.compile both passes are custom operators, which the compiler takes as they
are. Otherwise they are plain functions: PyTorch's overhead for an operator is a tenth of a
millisecond, as long as the loss of some thousand pairs takes on a GPU. The passes choose the
backend themselves, because a compiler can't ask which GPU is present.
"""

from contextlib import nullcontext

import torch
from torch import Tensor

from . import backends
from .backends import Labels, Needs


def autocast_is_on(device: str) -> bool:
    """For this kind of device; there is none for "meta"."""
    return device != "meta" and torch.is_autocast_enabled(device)


def without_autocast(device: str):
    """A context that turns autocast off; an empty one if it is off, as that saves microseconds."""
    if autocast_is_on(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def forward(I: Tensor, T: Tensor, scale: Tensor, ids: list[Tensor], label_offset: int,  # noqa: E741
            both: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """→ loss (), and what the backward pass needs: one number for each row and each column.

    ids: image_ids (M,) and text_ids (N,), or an empty list.
    """
    with without_autocast(I.device.type):
        run = backends.module(backends.choose(backend, I, len(T)))
        return run.forward(I, T, scale, Labels(label_offset, both, *ids))


def backward(upstream: Tensor, saved: list[Tensor], ids: list[Tensor], label_offset: int,
             both: bool, backend: str, needs: list[bool]) -> list[Tensor | None]:
    """saved: I, T, the scale, r and c → the gradients of I (M, D), T (N, D) and the scale ().

    needs: which of the three are wanted; the others are None.
    """
    I, T, scale, r, c = saved  # noqa: E741
    with without_autocast(I.device.type):
        run = backends.module(backends.choose(backend, I, len(T)))
        labels = Labels(label_offset, both, *ids)
        return run.backward(upstream, I, T, scale, r, c, labels, Needs(*needs))


def backward_for_operator(upstream: Tensor, saved: list[Tensor], ids: list[Tensor],
                          label_offset: int, both: bool, backend: str,
                          needs: list[bool]) -> list[Tensor]:
    """`backward` with only the gradients that are wanted: an operator can't give None."""
    found = backward(upstream, saved, ids, label_offset, both, backend, needs)
    return [gradient for gradient, wanted in zip(found, needs) if wanted]


NAMESPACE = __package__.replace(".", "_")  # a vendored copy has operators of its own
forward_operator = torch.library.custom_op(
    f"{NAMESPACE}::clip_loss_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op(
    f"{NAMESPACE}::clip_loss_backward", backward_for_operator, mutates_args=())


@forward_operator.register_fake
def _(I, T, scale, ids, label_offset, both, backend):  # noqa: E741
    # Not len(I), which would turn a dynamic size into a constant.
    return (scale.new_empty(()), scale.new_empty(I.shape[:1]),
            scale.new_empty(T.shape[:1] if both else 0))


@backward_operator.register_fake
def _(upstream, saved, ids, label_offset, both, backend, needs):
    return [given.new_empty(given.shape) for given, wanted in zip(saved, needs) if wanted]


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
        # Grad mode is on only for gradients of gradients. The operator refuses those.
        compiled = torch.compiler.is_compiling() or torch.is_grad_enabled()
        needs = list(ctx.needs_input_grad[:3])
        if compiled:
            made = iter(backward_operator(upstream, [I, T, scale, r, c], ids, *ctx.settings, needs))
            dI, dT, ds = (next(made) if wanted else None for wanted in needs)
        else:
            dI, dT, ds = backward(upstream, [I, T, scale, r, c], ids, *ctx.settings, needs)
        return dI, dT, ds, None, None, None
