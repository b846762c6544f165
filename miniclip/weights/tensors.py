"""Files of weights → tensors by name, whatever a training script put around them.

Nothing from a file is executed: pickles load with weights_only=True.
"""

import json
import warnings
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors.torch import load_file

from miniclip.notices import one_line

# What training scripts put around the tensors, and before their names.
WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "state_dict_ema", "model_ema")
PREFIXES = ("_orig_mod.", "module.", "model.", "clipmodel.", "clip_model.", "clip.", "net.")
COUNTS = (torch.int64, torch.int32, torch.uint8, torch.bool)  # of steps and the like, if alone
IGNORED = {  # numbers and buffers that follow from the shape, in older files
    "input_resolution", "context_length", "vocab_size", "attn_mask",
    "text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}


def shards_of(index: Path) -> list[str]:
    """The names of the files that an index names, each once."""
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise ValueError("names must be those of files beside it")
        return sorted(names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index.name} is no index of weights in several files: {error!r}"
                         ) from error


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Names → tensors, without what training scripts put around them and before their names.

    An index names several files, which are put together.
    """
    if file.name.endswith(".index.json"):
        tensors = {}
        for name in shards_of(file):
            tensors |= read_file(file.parent / name)
    else:
        tensors = read_file(file)
    while isinstance(tensors, dict) and (key := next(
            (key for key in WRAPPERS if isinstance(tensors.get(key), dict)), None)):
        tensors = tensors[key]
    if not isinstance(tensors, dict):
        raise ValueError(f"a {type(tensors).__name__} in place of tensors and their names")
    if not any(map(torch.is_tensor, tensors.values())):
        raise ValueError("no tensors; found: " + (", ".join(map(str, [*tensors][:8])) or "nothing"))
    named = {without_prefixes(str(name)): t for name, t in tensors.items()}
    if "token_embedding.weight" not in named:
        named = {name.removeprefix("text."): t for name, t in named.items()}
    if len(named) < len(tensors):
        raise ValueError("two tensors of one name, apart from prefixes such as module. or text.")
    named = {n: t for n, t in named.items() if isinstance(t, torch.Tensor) and n not in IGNORED
             and not (t.dtype in COUNTS and t.numel() == 1)}
    if odd := [f"{name} ({t.dtype}, {t.layout}, {t.device})" for name, t in named.items() if
               not t.is_floating_point() or t.layout != torch.strided or t.is_meta]:
        raise ValueError(f"weights are plain floating-point tensors, but not {', '.join(odd[:4])}")
    return named


def without_prefixes(name: str) -> str:
    """"module._orig_mod.model.visual.proj" → "visual.proj"."""
    while prefix := next((prefix for prefix in PREFIXES if name.startswith(prefix)), ""):
        name = name.removeprefix(prefix)
    return name


def read_file(file: Path):
    """What a file of weights holds, wrappers and all."""
    open(file, "rb").close()  # an OSError says itself what is wrong
    try:
        with warnings.catch_warnings(action="ignore"):  # errors are reported once, below
            return load_file(file) if file.suffix == ".safetensors" else torch.load(
                file, map_location="cpu", weights_only=True)
    except Exception as error:  # readers raise many kinds for broken or hostile files
        if "TorchScript" in str(error):
            raise ValueError("a TorchScript archive holds code; if you trust it, convert it: torch."
                             f"save(torch.jit.load({file.name!r}, 'cpu').state_dict(), 'new.pt')"
                             ) from error
        reason = "" if isinstance(error, UnpicklingError) else f": {one_line(error)[:200]}"
        raise ValueError("damaged, or more than tensors, which is not loaded: "
                         f"{type(error).__name__}{reason}") from error
