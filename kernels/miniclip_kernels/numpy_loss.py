"""`reference` as a backend: float64 NumPy, for comparison."""

import torch

from . import reference
from .backends import EVERY_GRADIENT


def forward(I, T, scale, labels):  # noqa: E741
    """→ loss (), and zeros for r (M,) and c (N,), which `backward` does not need."""
    loss, *_ = run(I, T, scale, labels)
    return loss.to(scale), scale.new_zeros(len(I)), scale.new_zeros(len(T) if labels.both else 0)


def backward(upstream, I, T, scale, r, c, labels, needs=EVERY_GRADIENT):  # noqa: E741
    """upstream (): the gradient with respect to the loss → dI (M, D), dT (N, D), ds ().

    All three are computed; what `needs` leaves out is None.
    """
    _, *gradients = run(I, T, scale, labels)
    return tuple((upstream * found.to(upstream)).to(given) if wanted else None
                 for found, given, wanted in zip(gradients, (I, T, scale), needs))


def sigmoid(I, T, scale, bias, labels, needs):  # noqa: E741
    """As `tiled.sigmoid`, all of it computed."""
    features = [x.detach().double().cpu().numpy() for x in (I, T, scale, bias)]
    ids = [None if x is None else x.cpu().numpy() for x in (labels.image_ids, labels.text_ids)]
    loss, dI, dT, _, db = reference.sigmoid_loss_and_gradients(*features, labels.label_offset, *ids)
    M, s = len(I), features[2]
    found = [torch.as_tensor(M * x).to(scale) for x in (loss, db, dI / s, dT / s)]
    return *found[:2], found[2] if needs.images else None, found[3] if needs.texts else None


def run(I, T, scale, labels):  # noqa: E741
    """Loss and gradients as float64 tensors on the CPU."""
    features = [x.detach().double().cpu().numpy() for x in (I, T, scale)]
    ids = [None if x is None else x.cpu().numpy() for x in (labels.image_ids, labels.text_ids)]
    direction = "both" if labels.both else "rows"
    found = reference.loss_and_gradients(*features, labels.label_offset, direction, *ids)
    return [torch.as_tensor(x) for x in found]
