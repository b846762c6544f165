"""Input checks of `clip_loss`: an error of one clear line for everything that can't give a loss."""

from numbers import Real

import torch
from torch import Tensor

from .backends import DTYPES

DIRECTIONS = ("both", "rows")


def check_input(image_features, text_features, logit_scale, label_offset, direction):
    """ValueError for anything that `clip_loss` can't take; ids have a check of their own."""
    if direction not in DIRECTIONS:
        raise ValueError(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
    check_features("image_features", image_features)
    check_features("text_features", text_features)
    check_shapes(image_features, text_features, label_offset, direction)
    if image_features.dtype != text_features.dtype:
        raise ValueError(f"image_features are {image_features.dtype}, text_features "
                         f"{text_features.dtype}: not alike")
    if image_features.device != text_features.device:
        raise ValueError(f"image_features are on {image_features.device}, text_features on "
                         f"{text_features.device}")
    check_scale(logit_scale)


def check_features(name, features):
    if not isinstance(features, Tensor):
        raise ValueError(f"{name} must be a tensor, not {type(features).__name__}")
    if features.dtype not in DTYPES:
        raise ValueError(f"{name} are {features.dtype}; they must be float32, bfloat16, float16 "
                         "or float64")


def check_shapes(I, T, label_offset, direction):  # noqa: E741
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


def check_scale(logit_scale):
    """A float or a tensor of one number; positive, as far as can be seen without waiting."""
    check_number("logit_scale", logit_scale)
    if isinstance(logit_scale, Tensor):
        if logit_scale.device.type != "cpu" or torch.compiler.is_compiling():
            return  # reading it would wait for the GPU, or break the graph
        logit_scale = logit_scale.item()
    # About the largest float32. A named constant would make torch.compile trace twice.
    if logit_scale <= 0 or logit_scale > 3e38:  # NaN may pass: NaN in gives NaN out
        raise ValueError("logit_scale is the multiplier: finite and positive; got "
                         f"{str(logit_scale)[:20]}")


def check_number(name, value):
    """A float, or a tensor of one number."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or not value.is_floating_point():
            raise ValueError(f"{name} must be a float or a tensor of one floating-point number; "
                             f"got {tuple(value.shape)}, {value.dtype}")
    elif not isinstance(value, Real) or isinstance(value, bool):
        raise ValueError(f"{name} must be a float or a tensor, not {value!r}")


def check_group(group, direction, backend):
    """ValueError for what several processes can't do together."""
    if not hasattr(group, "group_name"):
        raise ValueError("group must be a torch.distributed.ProcessGroup, such as "
                         f"torch.distributed.group.WORLD; got {group!r}")
    if direction != "both":
        raise ValueError(f"direction {direction!r} has no group: each process can do it alone")
    if backend in ("dense", "numpy"):
        raise ValueError(f"backend {backend!r} is for one process; auto, chunked, tiled and "
                         "Triton's take a group")


def process_group(group, rank, world_size):
    """The group, or that of all processes; None for one process.

    ValueError if it isn't as large as somebody believes.
    """
    if world_size == 1:
        return None
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        raise ValueError(f"world_size {world_size} needs torch.distributed.init_process_group()")
    group = dist.group.WORLD if group is None else group
    found = dist.get_rank(group), dist.get_world_size(group)
    if found != (rank, world_size):
        raise ValueError(f"rank {rank} of {world_size} was said, but this is rank {found[0]} of "
                         f"{found[1]} in torch.distributed")
    return group


def check_ids(image_features, text_features, image_ids, text_ids):
    """→ (image_ids, text_ids) as contiguous int64, or (None, None).

    If only one is given, it is used for both.
    """
    if image_ids is None and text_ids is None:
        return None, None
    if image_ids is None or text_ids is None:
        if len(image_features) != len(text_features):
            raise ValueError("image_ids and text_ids go together where M and N differ")
        image_ids = text_ids = text_ids if image_ids is None else image_ids
    for name, ids, features in (("image_ids", image_ids, image_features),
                                ("text_ids", text_ids, text_features)):
        integers = isinstance(ids, Tensor) and ids.dtype in (torch.int32, torch.int64)
        if not integers or ids.shape != features.shape[:1] or ids.device != features.device:
            raise ValueError(f"{name} must be a tensor ({len(features)},) of int64 or int32 on "
                             f"{features.device}")
    return image_ids.long().contiguous(), text_ids.long().contiguous()
