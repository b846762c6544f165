"""A run's weights in another project's format.

    a run's folder ──export──▶ openai | open_clip | hf | onnx
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from miniclip.config import ModelConfig
from miniclip.data.images import MEAN, STD
from miniclip.files import read_text, write_atomically
from miniclip.model import CLIP
from miniclip.weights import checkpoint
from miniclip.weights.names import (
    HF,
    HF_CONFIG,
    HF_PIXELS,
    HF_WEIGHTS,
    MERGES,
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    OPENAI,
    theirs,
)

FORMATS = ("openai", "open_clip", "hf", "onnx")
CARD = """# {name}

A CLIP that was trained with miniclip, in the format {format}.

{how}
"""
TEXTS = """

**Texts.** miniclip mends a text before it splits it into tokens: it replaces HTML entities, curly
quotes and full-width letters, as openai/CLIP does. transformers mends less, so such texts get other
tokens there. To get the same, mend them first:

```python
from miniclip.tokenizer import clean

texts = [clean(text) for text in texts]
```

(What remains is a long s, `ſ`, after an apostrophe; and `<|startoftext|>` or `<|endoftext|>` in a
text, which transformers takes for the tokens of that name.)"""
HOW = {
    "hf": "`transformers.CLIPModel.from_pretrained(FOLDER)`, and `CLIPTokenizer` and "
          "`CLIPImageProcessor` likewise." + TEXTS,
    "open_clip": '`open_clip.create_model_and_transforms("local-dir:FOLDER")`, and '
                 '`open_clip.get_tokenizer("local-dir:FOLDER")`.' + TEXTS,
    "onnx": "`image.onnx` takes `pixels` (batch, 3, {size}, {size}), float32, as CLIP normalises "
            "them, and gives `image_features`. `text.onnx` takes `tokens` (batch, {length}), "
            "int64, and gives `text_features`. Both are (batch, {width}), of length 1, so that a "
            "similarity is a dot product. For probabilities, multiply it by {scale:.4f}{bias}. "
            "`tokenizer.json` is read by `miniclip.Tokenizer.load`."}


def export(run: str, path: str, format: str) -> Path:
    """A run's folder → its weights in another project's format.

    Args:
        run: a run's folder.
        path: what is written, and must be new.
        format: "openai", a .pt of tensors for openai/CLIP's `clip.load` (its `clip.tokenize` knows
            no vocabulary but CLIP's, so texts go through the run's tokenizer); "open_clip", a
            folder for `create_model` and `get_tokenizer("local-dir:PATH")`; or "hf", a folder for
            transformers' `CLIPModel.from_pretrained`; or "onnx", a folder with both towers, which
            any model can be (needs the packages onnx and onnxscript). Folders hold the vocabulary
            too, and a card. The bias of a model that learnt by the sigmoid loss goes to open_clip
            only, and into the card of onnx: the others have none.

    Raises:
        ValueError: the format can't express the model, or the path exists. Nothing half-written is
            left behind.
    """
    path = Path(path).expanduser()
    if format not in FORMATS:
        raise ValueError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    model, tokenizer, _ = checkpoint.load(run)
    if path.exists():
        raise ValueError(f"{path} is there already; name a new one")
    if not path.parent.is_dir():
        raise ValueError(f"{path.parent}: no such folder to write to")
    if format == "onnx":
        return write_folder(path, format, model, lambda folder: write_onnx(model, run, folder))
    check_expressible(model.config, run, format)
    column = HF if format == "hf" else OPENAI
    weights = model.state_dict()
    if format != "open_clip":  # the others' models have none; cosines are the same without
        weights.pop("logit_bias", None)
    tensors = {other: part.clone(memory_format=torch.contiguous_format)
               for name, tensor in weights.items()
               for other, part in theirs(name, tensor, column).items()}
    if format == "openai":
        write_atomically(path, lambda temporary: torch.save(tensors, temporary))
        return path
    merges = json.loads(read_text(Path(run).expanduser() / "tokenizer.json"))["merges"]
    if format == "hf":
        weights, settings = HF_WEIGHTS, hf_settings(model.config)
    else:
        weights, settings = OPEN_CLIP_WEIGHTS, open_clip_settings(model.config)
    vocabulary = {symbol: i for i, symbol in enumerate(tokenizer.symbols)}

    def write(folder: Path):
        for name, values in settings.items():
            (folder / name).write_text(json.dumps(values, indent=2))
        (folder / "vocab.json").write_text(json.dumps(vocabulary))
        (folder / MERGES[0]).write_text("\n".join(["#version: 0.2", *merges, ""]), "utf-8")
        save_file(tensors, folder / weights, {"format": "pt"})

    return write_folder(path, format, model, write)


def write_folder(path: Path, format: str, model: CLIP, write) -> Path:
    """Let `write` fill a new folder, add the card, and give it its name: all of it or nothing."""
    config = model.config
    bias = "" if model.logit_bias is None else f" and add {model.logit_bias.item():.4f}"
    how = HOW[format].format(
        size=config.image_size, length=config.context_length, width=config.embed_dim,
        scale=model.logit_scale.exp().item(), bias=bias)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        building = Path(folder) / path.name
        building.mkdir()
        write(building)
        (building / "README.md").write_text(CARD.format(name=path.name, format=format, how=how))
        building.rename(path)
    return path


class UnitVectors(nn.Module):
    """A tower whose embeddings (B, D) are of length 1."""

    def __init__(self, tower: nn.Module):
        super().__init__()
        self.tower = tower

    def forward(self, x):
        return nn.functional.normalize(self.tower(x), dim=-1)


def write_onnx(model: CLIP, run: str, folder: Path):
    """Both towers → image.onnx and text.onnx, for any number of images or texts; the tokenizer."""
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        raise ValueError("the format onnx needs two more packages: pip install onnx onnxscript")
    config = model.config
    pixels = torch.zeros(2, 3, config.image_size, config.image_size)
    tokens = torch.ones(2, config.context_length, dtype=torch.int64)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    for side, tower, name, example in (("image", model.vision, "pixels", pixels),
                                       ("text", model.text, "tokens", tokens)):
        with warnings.catch_warnings(action="ignore"):
            torch.onnx.export(
                UnitVectors(tower), (example,), folder / f"{side}.onnx", dynamo=True,
                input_names=[name], output_names=[f"{side}_features"], external_data=False,
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},), verbose=False)
    tokenizer = Path(run).expanduser() / "tokenizer.json"
    (folder / tokenizer.name).write_bytes(tokenizer.read_bytes())
    (folder / HF_PIXELS).write_text(json.dumps(hf_settings(config)[HF_PIXELS], indent=2))


def check_expressible(config: ModelConfig, run: str, format: str):
    """ValueError for a model that the format can't express; it says which format or shape can."""
    if config.stem or config.pool != "cls" or not config.pre_norm:
        raise ValueError(f"{run} has a stem, mean pooling or no first LayerNorm, unlike models of "
                         f"{format}: onnx can express it; or train with --stem , --pool cls "
                         "--pre-norm true")
    heads = {config.vision_width / config.vision_heads, config.text_width / config.text_heads}
    if format == "openai" and not (config.quick_gelu and heads == {64}):
        raise ValueError(f"{run}: openai/CLIP always has QuickGELU and heads of 64, but "
                         "this model does not; open_clip and hf can express it")


def hf_settings(config: ModelConfig) -> dict[str, dict]:
    """What transformers reads beside the weights: {file: settings}."""
    towers = {f"{tower}_config": {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": heads, "hidden_act": "quick_gelu" if config.quick_gelu else "gelu"}
        for tower, width, layers, heads in (
            ("vision", config.vision_width, config.vision_layers, config.vision_heads),
            ("text", config.text_width, config.text_layers, config.text_heads))}
    towers["vision_config"] |= {"image_size": config.image_size, "patch_size": config.patch_size}
    towers["text_config"] |= {
        "vocab_size": config.vocab_size, "max_position_embeddings": config.context_length,
        "bos_token_id": config.vocab_size - 2, "eos_token_id": config.vocab_size - 1}
    size = config.image_size
    return {
        HF_CONFIG: {"model_type": "clip", "projection_dim": config.embed_dim, **towers},
        HF_PIXELS: {
            "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": size},
            "crop_size": {"height": size, "width": size}, "image_mean": MEAN, "image_std": STD},
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer",
                                  "model_max_length": config.context_length}}


def open_clip_settings(config: ModelConfig) -> dict[str, dict]:
    """The same for open_clip."""
    return {OPEN_CLIP_CONFIG: {"preprocess_cfg": {"mean": MEAN, "std": STD}, "model_cfg": {
        "embed_dim": config.embed_dim, "quick_gelu": config.quick_gelu,
        **({"init_logit_bias": -10} if config.loss == "sigmoid" else {}),
        "vision_cfg": {"image_size": config.image_size, "patch_size": config.patch_size,
                       "width": config.vision_width, "layers": config.vision_layers,
                       "head_width": config.vision_width // config.vision_heads},
        "text_cfg": {"context_length": config.context_length, "vocab_size": config.vocab_size,
                     "width": config.text_width, "layers": config.text_layers,
                     "heads": config.text_heads, "hf_tokenizer_name": "."}}},  # of this folder
        "tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer"}}
