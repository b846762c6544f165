"""`clip_loss`: the symmetric contrastive loss, the one public function of this folder.

Notation, here and in every file of kernels/: image features I (M, D), text features T (N, D),
multiplier s, similarities S = s · I Tᵀ (M, N). Row i of S asks "which text belongs to image i?",
column j asks "which image belongs to text j?". The loss is the mean of the two cross-entropies
towards the diagonal (Radford et al. 2021, arXiv 2103.00020, Figure 3):

    L = ½ (mean_i [logsumexp_j S_ij − S_ii] + mean_j [logsumexp_i S_ij − S_jj])

This file holds what the backends share: the checks, the choice, and the way into autograd. What is
computed stands in `reference` (the equations), `tiled` (PyTorch), `triton_loss` (the kernels),
`triton_blocks` (another backward pass) and `triton_hopper` (both passes for one kind of GPU).
"""

import importlib.util
from contextlib import nullcontext
from numbers import Real
from typing import NamedTuple

import torch
import torch.nn.functional as F
from miniclip_kernels import reference, tiled
from torch import Tensor, nn

HAS_TRITON = importlib.util.find_spec("triton") is not None  # once, for torch.compile can't look
TRITON = {"triton": "triton_loss", "blocks": "triton_blocks", "hopper": "triton_hopper"}  # files
BACKENDS = ("auto", *TRITON, "tiled", "dense", "numpy")
DIRECTIONS = ("both", "rows")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def clip_loss(image_features, text_features, logit_scale, *, label_offset=0, direction="both",
              image_ids=None, text_ids=None, backend="auto"):
    """Cross-entropy of every image among all texts, and of every text among all images → scalar.

    image_features (M, D), text_features (N, D): float32, bfloat16, float16 (or float64, not for
    "triton", "blocks" and "hopper"), same dtype and device; any strides. Column i + label_offset
    belongs to row i.
    logit_scale: the multiplier itself, a positive float or a scalar tensor, which receives its
    gradient. The scalar is float32 (float64 for float64), computed so under autocast too.
    direction: "both" (M = N, offset 0), or "rows": images among texts only, M ≤ N, as for a GPU's
    own rows against the columns gathered from all.
    image_ids (M,), text_ids (N,): integers that say which image a row and a column come from.
    Where they are equal, and it is not the labelled pair, the entry is left out of both
    denominators: another caption of the same image is no wrong answer. One of them stands for both
    if M = N.
    backend: "triton" and "blocks" (CUDA, or a CPU with TRITON_INTERPRET=1, which gets bfloat16
    wrong and is not given any) and "tiled" (any device) never hold the M × N matrix whole; "dense"
    is plain PyTorch, "numpy" the float64 reference, and both do. "triton" keeps nothing of it at
    all, "blocks" at most 128 MiB at a time in the backward pass, which needs fewer products.
    "hopper" is "blocks" written for GPUs of compute capability 9 (16 bits, D ≤ 512). "auto": on
    CUDA from compute capability 8.0 on triton if D ≤ 64 or M·N·D ≤ 2²⁸ (724 pairs of 512
    features), else hopper or, where that can't, blocks; elsewhere tiled. A backend that is named
    and can't run raises.
    Gradients of first order, of one loss at a time (torch.func and more: "dense"); the same bits
    for the same input on the same device. For features that are far from unit length, |S| above
    some 10⁴, "triton" has gradients of few digits; take "blocks" or "tiled".
    Raises ValueError, in one line, for what does not fit.
    """
    check(image_features, text_features, logit_scale, label_offset, direction, backend)
    ids = check_ids(image_features, text_features, image_ids, text_ids)
    wide = torch.promote_types(image_features.dtype, torch.float32)
    if isinstance(logit_scale, Tensor):
        scale = logit_scale.to(image_features.device, wide).reshape(())
    else:
        scale = torch.full((), float(logit_scale), dtype=wide, device=image_features.device)
    both = direction == "both"
    if backend == "dense":
        return dense_loss(image_features, text_features, scale, Labels(label_offset, both, *ids))
    return Loss.apply(image_features, text_features, scale, (label_offset, both, backend), *ids)


class Labels(NamedTuple):
    """Which pairs are true, and which count: what every backend is told beside I, T and s."""

    label_offset: int
    both: bool
    image_ids: Tensor | None = None
    text_ids: Tensor | None = None


def dense_loss(I, T, scale, labels):  # noqa: E741
    """Plain PyTorch, M × N matrices kept for the backward pass: what most people run.

    Call backward() outside autocast, as PyTorch asks: inside, its own products would be rounded.
    """
    label_offset, both, image_ids, text_ids = labels
    with torch.autocast(I.device.type, enabled=False):
        S = scale * (I @ T.T).to(scale.dtype)  # (M, N); sums of exponentials need float32
        truth = torch.arange(len(I), device=I.device) + label_offset  # (M,)
        if image_ids is not None:
            same = image_ids[:, None] == text_ids[None, :]
            S = S.masked_fill(same.scatter(1, truth[:, None], False), -torch.inf)
        rows = F.cross_entropy(S, truth)
        return (rows + F.cross_entropy(S.T, truth)) / 2 if both else rows


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
            check(image_features, text_features, logit_scale, 0, "both", self.backend)
            offset = self.rank * len(image_features)
            every_image, every_text = (
                torch.cat(all_gather(x.contiguous())) for x in (image_features, text_features))
            loss = sum(
                clip_loss(own, all_, logit_scale, label_offset=offset, direction="rows",
                          backend=self.backend)
                for own, all_ in ((image_features, every_text), (text_features, every_image))) / 2
        return {"contrastive_loss": loss} if output_dict else loss


# ------------------------------------------------------------------------------ into autograd

# What passes from the first pass to the second is I, T, the scale and one number for each row and
# column: no M × N. For torch.compile both are operators, which it takes as they are. Called without
# it they are functions: what PyTorch does around an operator would take a tenth of a millisecond,
# as long as the loss of some thousand pairs on a GPU. They choose the backend: a compiler can't ask
# what GPU there is.


def as_asked(device):
    """Without autocast; entered only where there is some, which takes microseconds."""
    there = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if there else nullcontext()


def forward(I: Tensor, T: Tensor, scale: Tensor, ids: list[Tensor], label_offset: int,  # noqa: E741
            both: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """→ loss (), and what the backward pass wants: one number for each row and each column.

    ids: image_ids (M,) and text_ids (N,), or nothing.
    """
    with as_asked(I.device.type):
        return passes(choose(backend, I, len(T)))[0](I, T, scale, Labels(label_offset, both, *ids))


def backward(upstream: Tensor, saved: list[Tensor], ids: list[Tensor], label_offset: int,
             both: bool, backend: str) -> tuple[Tensor, Tensor, Tensor]:
    """saved: I, T, the scale, r and c → the gradients of I (M, D), T (N, D) and the scale ()."""
    with as_asked(saved[0].device.type):
        _, run = passes(choose(backend, saved[0], len(saved[1])))
        return run(upstream, *saved, Labels(label_offset, both, *ids))


forward_operator, backward_operator = (
    torch.library.custom_op(f"miniclip::clip_loss_{pass_.__name__}", pass_, mutates_args=())
    for pass_ in (forward, backward))


@forward_operator.register_fake
def _(I, T, scale, ids, label_offset, both, backend):  # noqa: E741
    # Not len(I), which would make a number of a size that may change.
    return tuple(map(scale.new_empty, ((), I.shape[:1], T.shape[:1] if both else 0)))


@backward_operator.register_fake
def _(upstream, saved, ids, label_offset, both, backend):
    return tuple(x.new_empty(x.shape) for x in saved[:3])


class Loss(torch.autograd.Function):
    """I, T, scale, settings (label_offset, both, backend) and ids → loss ()."""

    @staticmethod
    def forward(ctx, I, T, scale, settings, *ids):  # noqa: E741
        run = forward_operator if torch.compiler.is_compiling() else forward
        loss, *rest = run(I, T, scale, list(ids), *settings)
        ctx.save_for_backward(I, T, scale, *rest, *ids)
        ctx.settings = settings
        return loss

    @staticmethod
    def backward(ctx, upstream):  # with gradients on, for theirs: the operator refuses those
        plain = not (torch.compiler.is_compiling() or torch.is_grad_enabled())
        run = backward if plain else backward_operator
        saved = list(ctx.saved_tensors)  # I, T, scale, r, c, and ids
        return *run(upstream, saved[:5], saved[5:], *ctx.settings), None, *[None] * len(saved[5:])


# ------------------------------------------------------------------------------ the backends


def numpy_forward(I, T, scale, labels):  # noqa: E741
    """`reference`, called as every other backend is; its r and c are never looked at."""
    loss, *_ = run_reference(I, T, scale, labels)
    return loss.to(scale), scale.new_zeros(len(I)), scale.new_zeros(len(T) if labels.both else 0)


def numpy_backward(upstream, I, T, scale, r, c, labels):  # noqa: E741
    _, *gradients = run_reference(I, T, scale, labels)
    return tuple((upstream * g.to(upstream)).to(x) for g, x in zip(gradients, (I, T, scale)))


def run_reference(I, T, scale, labels):  # noqa: E741
    label_offset, both, *ids = labels
    features = [x.detach().double().cpu().numpy() for x in (I, T, scale)]
    ids = [x if x is None else x.cpu().numpy() for x in ids]
    found = reference.loss_and_gradients(*features, label_offset, DIRECTIONS[not both], *ids)
    return [torch.as_tensor(x) for x in found]


def passes(backend):
    """Forward and backward of the backend; Triton is imported only where it is used."""
    if backend in TRITON:
        module = importlib.import_module(f"miniclip_kernels.{TRITON[backend]}")
        return module.forward, module.backward
    return {"tiled": (tiled.forward, tiled.backward),
            "numpy": (numpy_forward, numpy_backward)}[backend]


def choose(backend, features, N) -> str:
    """The backend that "auto" stands for; ValueError for a named one that can't run here."""
    if backend == "auto" and not (features.is_cuda and HAS_TRITON):
        return "tiled"
    if backend == "auto" or backend in TRITON:
        if not HAS_TRITON:
            raise ValueError(f"backend {backend!r} needs the package triton: not installed")
        from miniclip_kernels import triton_loss

        if backend == "auto":
            return triton_loss.best(features, N)
        triton_loss.check(backend, features)
    return backend


# ------------------------------------------------------------------------------ bad input


def check(I, T, logit_scale, label_offset, direction, backend):  # noqa: E741
    """One clear line for every input that can't give a loss."""
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {', '.join(BACKENDS)}")
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
    for name, features in (("image", I), ("text", T)):
        if not isinstance(features, Tensor):
            raise ValueError(f"{name}_features must be a tensor, not {type(features).__name__}")
        if features.dtype not in DTYPES:
            raise ValueError(f"{name}_features are {features.dtype}; they must be float32, "
                             "bfloat16, float16 or float64")
    if I.ndim != 2 or T.ndim != 2 or I.shape[1] != T.shape[1]:
        shapes = f"{tuple(I.shape)} and {tuple(T.shape)}"
        raise ValueError(f"image_features must be (M, D) and text_features (N, D); got {shapes}")
    (M, D), N = I.shape, len(T)
    if not (M and N and D):
        raise ValueError(f"nothing to compare: M, N and D must be at least 1; got {M}, {N}, {D}")
    if direction == "both" and (M != N or label_offset != 0):
        raise ValueError("direction 'both' needs as many texts as images and label_offset 0; got "
                         f"{M} images, {N} texts, offset {label_offset} (direction 'rows' may do)")
    if M > N:
        raise ValueError(f"{M} images need {M} texts at least; got {N}")
    if not isinstance(label_offset, int) or not 0 <= label_offset <= N - M:
        raise ValueError(f"label_offset must be an int, 0 to N − M = {N - M}; got {label_offset!r}")
    if I.dtype != T.dtype:
        raise ValueError(f"image_features are {I.dtype}, text_features {T.dtype}: not alike")
    if I.device != T.device:
        raise ValueError(f"image_features are on {I.device}, text_features on {T.device}")
    check_scale(logit_scale)


def check_scale(logit_scale):
    """A float or a tensor of one number; positive, as far as can be seen without waiting."""
    if isinstance(logit_scale, Tensor):
        if logit_scale.numel() != 1 or not logit_scale.is_floating_point():
            raise ValueError("logit_scale must be a float or a tensor of one floating-point "
                             f"number; got {tuple(logit_scale.shape)}, {logit_scale.dtype}")
        if logit_scale.device.type != "cpu" or torch.compiler.is_compiling():
            return  # to look would be to wait for the GPU, or to break the graph
        logit_scale = logit_scale.item()
    elif not isinstance(logit_scale, Real) or isinstance(logit_scale, bool):
        raise ValueError(f"logit_scale must be a float or a tensor, not {logit_scale!r}")
    if logit_scale <= 0 or logit_scale > 3e38:  # NaN may pass: NaN in gives NaN out
        raise ValueError("logit_scale is the multiplier: finite and positive; got "
                         f"{str(logit_scale)[:20]}")


def check_ids(I, T, image_ids, text_ids) -> list[Tensor]:  # noqa: E741
    """Both, checked, or nothing; where only one is given it stands for both."""
    if image_ids is None and text_ids is None:
        return []
    if image_ids is None or text_ids is None:
        if len(I) != len(T):
            raise ValueError("image_ids and text_ids go together where M and N differ")
        image_ids = text_ids = image_ids if text_ids is None else text_ids
    for name, ids, features in (("image_ids", image_ids, I), ("text_ids", text_ids, T)):
        fits = isinstance(ids, Tensor) and ids.dtype in (torch.int32, torch.int64)
        if not fits or ids.shape != features.shape[:1] or ids.device != features.device:
            raise ValueError(f"{name} must be a tensor ({len(features)},) of int64 or int32 on "
                             f"{features.device}")
    return [image_ids.long().contiguous(), text_ids.long().contiguous()]
