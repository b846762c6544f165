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
             both: bool, backend: str, needs: list[bool]) -> list[Tensor]:
    """saved: I, T, the scale, r and c → the gradients of I (M, D), T (N, D) and the scale ().

    needs: which of the three are wanted; the others are left out, as an operator can't give None.
    """
    I, T, scale, r, c = saved  # noqa: E741
    with without_autocast(I.device.type):
        run = backends.module(backends.choose(backend, I, len(T)))
        labels = Labels(label_offset, both, *ids)
        return only(needs, run.backward(upstream, I, T, scale, r, c, labels, Needs(*needs)))


def only(needs, gradients) -> list[Tensor]:
    """Those that are wanted."""
    return [gradient for gradient, wanted in zip(gradients, needs) if wanted]


def in_places(needs, gradients) -> list[Tensor | None]:
    """What `only` left, with None for the others again."""
    left = iter(gradients)
    return [next(left) if wanted else None for wanted in needs]


NAMESPACE = __package__.replace(".", "_")  # a vendored copy has operators of its own
forward_operator = torch.library.custom_op(
    f"{NAMESPACE}::clip_loss_forward", forward, mutates_args=())
backward_operator = torch.library.custom_op(
    f"{NAMESPACE}::clip_loss_backward", backward, mutates_args=())


@forward_operator.register_fake
def _(I, T, scale, ids, label_offset, both, backend):  # noqa: E741
    # Not len(I), which would turn a dynamic size into a constant.
    return (scale.new_empty(()), scale.new_empty(I.shape[:1]),
            scale.new_empty(T.shape[:1] if both else 0))


@backward_operator.register_fake
def _(upstream, saved, ids, label_offset, both, backend, needs):
    return only(needs, [given.new_empty(given.shape) for given in saved])


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
        run, needs = backward_operator if compiled else backward, list(ctx.needs_input_grad[:3])
        found = run(upstream, [I, T, scale, r, c], ids, *ctx.settings, needs)
        return *in_places(needs, found), None, None, None
