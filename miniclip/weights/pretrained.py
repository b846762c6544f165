"""Other projects' weights → this model.

    a run's folder | a weights file, or its folder | a Hub id
        ──load──▶ (model, tokenizer, transform)
"""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from miniclip.config import ModelConfig
from miniclip.data.hub import HUB_ID, HubUnreachable
from miniclip.data.images import MEAN, STD, Transform
from miniclip.model import CLIP
from miniclip.notices import one_line
from miniclip.tokenizer import BAD_GZIP
from miniclip.weights import checkpoint
from miniclip.weights.merges import find_tokenizer
from miniclip.weights.names import (
    HF,
    MERGES,
    OPENAI,
    SETTINGS,
    TOKENIZER,
    WEIGHTS,
    theirs,
    translate,
)
from miniclip.weights.tensors import read_tensors, shards_of

TELLING = ("vision.class_token", "vision.patches.weight", "vision.positions", "vision.projection",
           "text.tokens.weight", "text.positions")  # their shapes give the model's shape
QUICK_GELU = {  # for well-known models on the Hub; other models' settings say it
    "openai/clip-vit-base-patch32": True, "openai/clip-vit-base-patch16": True,
    "openai/clip-vit-large-patch14": True, "openai/clip-vit-large-patch14-336": True,
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": False}
OPEN_CLIP_KNOWN = {"image_size", "patch_size", "layers", "width", "heads", "head_width",
                   "context_length", "vocab_size", "patch_dropout", "hf_tokenizer_name"}
PIXELS = {"image_mean": list(MEAN), "image_std": list(STD), "mean": list(MEAN), "std": list(STD),
          "resample": 3, "interpolation": "bicubic", "resize_mode": "shortest",  # 3 is bicubic
          "do_resize": True, "do_center_crop": True, "do_rescale": True, "do_normalize": True}


def load(source, device: str | torch.device | None = None, quick_gelu: bool | None = None,
         image_size: int | None = None):
    """A run's folder, a weights file or its folder, or a Hub id → (model, tokenizer, transform).

    Files are .safetensors, .pt or .bin in OpenAI's, open_clip's or Hugging Face's naming, in any
    floating-point type; the model is float32, in eval mode, on `device` (default CPU). Its shape is
    read from the tensors. The head width (default 64) and the GELU (default exact, with a notice)
    are read from the settings beside them: config.json (Hugging Face) or open_clip_config.json.
    `quick_gelu` overrides the settings. CLIP's merges are looked for beside the file, then in
    $MINICLIP_CLIP_MERGES, an installed open_clip, and on the Hub. image_size: of another size than
    the weights', by interpolating the positions. The rest is as in `checkpoint.load`.

    ValueError, in one line, for weights that are not CLIP's, damaged or incomplete; HubUnreachable
    if the Hub does not answer and nothing was fetched before.
    """
    path, name = Path(source).expanduser(), str(source)
    if path.is_dir() and is_run(path):
        return load_run(source, device, quick_gelu, image_size)
    if path.is_dir():
        file = path / choose_weights(name, {p.name for p in path.iterdir()})
    elif path.is_file():
        file = path
    elif re.fullmatch(rf"{HUB_ID}(?<!\.pt)(?<!\.bin)(?<!\.safetensors)", name):
        file = fetch(name)
        if is_run(file.parent) and (file.parent / TOKENIZER).is_file():
            return load_run(file.parent, device, quick_gelu, image_size)
    else:
        raise ValueError(f"{name}: no such run folder or weights file, and no Hub id")
    try:
        tensors, known = read_tensors(file), read_settings(file.parent)
        for told in (QUICK_GELU.get(name), quick_gelu):
            known |= {} if told is None else {"quick_gelu": told}
        if "quick_gelu" not in known:
            print(f"{name}: nothing says which GELU; using the exact one. OpenAI's weights need "
                  "load(…, quick_gelu=True)", file=sys.stderr)
        model = build(tensors, known)
        model = at_size(model, model.config.image_size if image_size is None else image_size)
        tokenizer = find_tokenizer(file.parent, model.config)
    except (ValueError, *BAD_GZIP) as error:
        raise ValueError(f"{name}: {error}") from error
    return model.to(device or "cpu").eval(), tokenizer, Transform(model.config.image_size)


def is_run(folder: Path) -> bool:
    """Other projects' folders have settings or merges.txt; a run has neither."""
    return not read_settings(folder) and not any((folder / name).is_file() for name in MERGES)


def load_run(folder, device, quick_gelu: bool | None, image_size: int | None):
    """A run's folder, here or fetched → as `load`."""
    if quick_gelu is not None:
        raise ValueError(f"{folder}: a run says itself which GELU it has; leave out quick_gelu")
    model, tokenizer, transform = checkpoint.load(folder, device)
    size = transform.size if image_size is None else image_size
    return at_size(model, size), tokenizer, Transform(size)


def choose_weights(where: str, names: set[str]) -> str:
    """The first weights file that is there."""
    if not names & set(WEIGHTS):
        raise ValueError(f"{where} holds none of {', '.join(WEIGHTS)}; found: "
                         f"{', '.join(sorted(names)[:12])}")
    return next(name for name in WEIGHTS if name in names)


def fetch(repository: str) -> Path:
    """A Hub id → its weights in the Hub's own cache, with settings and merges beside them.

    Only what is missing is downloaded, with a progress bar; what was fetched before is not asked
    for again.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    def cached(names):
        paths = (try_to_load_from_cache(repository, name) for name in names)
        return next((Path(path) for path in paths if isinstance(path, str)), None)

    def whole(file: Path) -> bool:  # an index comes before the files that it names
        return not file.name.endswith(".index.json") or all(
            cached([name]) for name in shards_of(file))

    if (file := cached(WEIGHTS)) and cached((*MERGES, TOKENIZER)) and whole(file):
        return file
    nowhere = f"{repository}: no such run folder or weights file here, and"
    try:
        found = {file.rfilename for file in HfApi().model_info(repository, timeout=10).siblings}
    except Exception as error:  # of any network library; the message gives the reason
        if file and whole(file):
            return file
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            raise ValueError(f"{nowhere} no public model of that name on the Hub "
                             f"(HTTP {error.response.status_code})") from error
        raise HubUnreachable(f"{nowhere} the Hub does not answer: {one_line(error)}") from error
    def fetched(name: str) -> Path:
        try:
            return Path(hf_hub_download(repository, name))
        except Exception as error:  # the Hub answered, but its files are refused or broke off
            reason = one_line(error.__cause__ or error)
            raise HubUnreachable(f"{repository} on the Hub: {reason}") from error

    chosen = choose_weights(f"{repository} on the Hub", found)
    files = [name for name in (*SETTINGS, *MERGES, TOKENIZER) if name in found]
    if chosen.endswith(".index.json"):
        files += shards_of(fetched(chosen))
    return [fetched(name) for name in (*files, chosen)][-1]


def read_settings(folder: Path) -> dict:
    """The settings in the files beside the weights: each tower's head width, and the GELU.

    ValueError for unsupported settings: another activation, or another pixel normalisation.
    """
    try:
        hf, open_clip, pixels, v5 = (json.loads(path.read_text()) if path.is_file() else {}
                                 for path in (folder / name for name in SETTINGS))
        pixels |= v5.get("image_processor", {}) | open_clip.get("preprocess_cfg", {})
        wrong = [name for name in PIXELS if pixels.get(name, PIXELS[name]) != PIXELS[name]]
        known, kinds = {}, set()
        if "vision_config" in hf:
            for tower, width, heads in (("vision", 768, 12), ("text", 512, 8)):  # the defaults
                values = hf.get(f"{tower}_config_dict") or hf[f"{tower}_config"] or {}
                known[tower] = (values.get("hidden_size", width)
                                // values.get("num_attention_heads", heads))
                kinds.add((values.get("hidden_act", "quick_gelu"),
                           values.get("layer_norm_eps", 1e-5)))
            known["quick_gelu"] = kinds == {("quick_gelu", 1e-5)}
            if not known["quick_gelu"] and kinds != {("gelu", 1e-5)}:
                wrong.append(f"(hidden_act, layer_norm_eps) {sorted(kinds)}")
        elif open_clip:
            model = open_clip["model_cfg"]
            vision, text = model["vision_cfg"], model["text_cfg"]
            known = {"vision": vision.get("head_width", 64), "quick_gelu": model.get("quick_gelu"),
                     "text": text.get("width", 512) // text.get("heads", 8)}
            wrong += sorted({*vision, *text} - OPEN_CLIP_KNOWN)
        if wrong:
            raise ValueError(f"unknown here: {', '.join(wrong)}")
        return known
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError,
            RecursionError) as error:
        raise ValueError(f"{folder}: {' or '.join(SETTINGS)} is not of a model supported "
                         f"here: {type(error).__name__}, {one_line(error)}") from error


def read_shape(tensors: dict, column: int, known: dict) -> ModelConfig:
    """The model's shape, from the shapes of six tensors and the number of blocks."""
    names = {name: translate(name, column) for name in TELLING}
    shape = {name: (*tensors[n].shape,) or (0,) for name, n in names.items() if n in tensors}
    if not shape:
        raise ValueError("no CLIP in OpenAI's, open_clip's or Hugging Face's naming (of a run, "
                         f"name the folder); found: {', '.join(sorted(tensors)[:6]) or 'nothing'}")
    check_names([names[name] for name in TELLING if name not in shape], [], [])
    rows, patch = shape["vision.positions"][0], shape["vision.patches.weight"][-1]
    grid = math.isqrt(max(0, rows - 1))  # one row is the class token's
    settings = {"quick_gelu": bool(known.get("quick_gelu")),
                "loss": "sigmoid" if "logit_bias" in tensors else "softmax"}
    for tower, width in (("vision", shape["vision.class_token"][0]),
                         ("text", shape["text.tokens.weight"][-1])):
        head = known.get(tower, 64)
        if not isinstance(head, int) or head < 1 or width % head:
            raise ValueError(f"the {tower} tower is {width} wide, no multiple of {head}, a head's "
                             f"width; put the model's {' or '.join(SETTINGS[:2])} beside it")
        prefix = translate(f"{tower}.blocks.", column)
        blocks = {n[len(prefix):].split(".")[0] for n in tensors if n.startswith(prefix)}
        settings |= {f"{tower}_width": width, f"{tower}_heads": width // head,
                     f"{tower}_layers": len(blocks)}
    return ModelConfig(
        embed_dim=shape["vision.projection"][0 if column == HF else -1], image_size=grid * patch,
        patch_size=patch, vocab_size=shape["text.tokens.weight"][0],
        context_length=shape["text.positions"][0], **settings)


def check_names(missing: list[str], left: list[str], wrong: list[str]):
    """ValueError that names the first few of each kind, if there are any."""
    told = []
    for kind, names in (("missing", missing), ("left over", left), ("wrong shape", wrong)):
        if names:
            more = f" and {len(names) - 4} more" if len(names) > 4 else ""
            told.append(f"{kind}: {', '.join(names[:4])}{more}")
    if told:
        raise ValueError(f"not one whole CLIP; {'; '.join(told)}")


@torch.no_grad()
def build(tensors: dict, known: dict) -> CLIP:
    """The model, float32, in which every tensor is used once."""
    column = HF if any(name.startswith("text_model.") for name in tensors) else OPENAI
    with torch.device("meta"):
        model = CLIP(read_shape(tensors, column, known))
    parts = [part for item in model.state_dict().items() for part in theirs(*item, column).items()]
    check_names([name for name, _ in parts if name not in tensors],
                sorted(tensors.keys() - dict(parts)),
                [f"{name} {tuple(tensors[name].shape)}, not {tuple(part.shape)}"
                 for name, part in parts if name in tensors and tensors[name].shape != part.shape
                 and not part.numel() == tensors[name].numel() == 1])  # a scale of shape (1,)
    model = model.to_empty(device="cpu")
    for name, ours in model.state_dict().items():
        for other, part in theirs(name, ours, column).items():
            part.copy_(tensors[other].view(part.shape))
    return model


@torch.no_grad()
def at_size(model: CLIP, image_size: int) -> CLIP:
    """The model for images of another size: its positions are interpolated (bicubic, antialiased,
    as open_clip's `resize_pos_embed`); the class token's stays as it is."""
    if image_size == model.config.image_size:
        return model
    config = replace(model.config, image_size=image_size)
    positions = model.vision.positions
    first = len(positions) - model.config.image_tokens  # 1 with a class token
    old, new = (size // config.patch_size for size in (model.config.image_size, image_size))
    grid = positions[first:].T.view(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    grid = grid.view(-1, new * new).T
    model.vision.positions = nn.Parameter(torch.cat([positions[:first], grid]))
    model.config = config
    return model
