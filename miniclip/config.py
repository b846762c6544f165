"""Every setting of a model and of a training run, in two dataclasses.

`ModelConfig` describes any CLIP, from a tiny one that trains in minutes on a laptop to OpenAI's
four published Vision Transformers (Radford et al. 2021, arXiv 2103.00020, Table 20).
`TrainConfig` describes one training run. `MODELS` and `PRESETS` name the ones we use.
"""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from miniclip.files import write_text


def setting(default, help, *aliases):
    """A dataclass field that carries its own line of help, and other names of its option.

    `commands/training.py` turns it into an option of the command line.
    """
    return field(default=default, metadata={"help": help, "aliases": aliases})


def check(config, *rules):
    """ValueError for a setting that breaks a rule. A rule: (names, test of a value, message)."""
    for names, fits, rule in rules:
        for name in names.split():
            if not fits(value := getattr(config, name)):
                raise ValueError(f"{name} is {value!r}; {rule}")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a CLIP. The defaults are OpenAI's ViT-B/32.

    Raises ValueError, in one line, for a shape that cannot be built.
    """

    embed_dim: int = setting(512, "width of the shared latent space, D")
    image_size: int = setting(224, "height and width of the pixels that go in")
    patch_size: int = setting(32, "height and width, in pixels, of what becomes one token")
    stem: tuple[int, ...] = setting((), "channels of 3x3 stride-2 convolutions before the patches")
    vision_width: int = setting(768, "width of the image tower")
    vision_layers: int = setting(12, "blocks of the image tower")
    vision_heads: int = setting(12, "attention heads of the image tower")
    pool: str = setting("cls", "how image tokens become one vector: 'cls' token or 'mean'")
    pre_norm: bool = setting(True, "a LayerNorm before the image tower's first block, as CLIP has")
    vocab_size: int = setting(49408, "number of tokens, start and end included")
    context_length: int = setting(77, "longest text in tokens, start and end included")
    text_width: int = setting(512, "width of the text tower")
    text_layers: int = setting(12, "blocks of the text tower")
    text_heads: int = setting(8, "attention heads of the text tower")
    quick_gelu: bool = setting(True, "OpenAI's x * sigmoid(1.702 x) in place of the exact GELU")
    loss: str = setting("softmax", "what it learns by: 'softmax' (CLIP) or 'sigmoid' (SigLIP)")

    def __post_init__(self):
        object.__setattr__(self, "stem", tuple(self.stem))  # JSON has only lists
        check(
            self, ("pool", lambda x: x in ("cls", "mean"), "it must be 'cls' or 'mean'"),
            ("loss", lambda x: x in ("softmax", "sigmoid"), "it must be 'softmax' or 'sigmoid'"),
            ("embed_dim image_size patch_size vision_width vision_heads text_width text_heads",
             lambda x: 1 <= x <= 16384, "it must be from 1 to 16384"),
            ("stem", lambda x: all(1 <= c <= 16384 for c in x), "channels are from 1 to 16384"),
            ("vision_layers text_layers", lambda x: 0 <= x <= 1000, "it must be from 0 to 1,000"),
            ("context_length", lambda x: 3 <= x <= 16384, "it must be from 3 to 16384"))
        for tower in ("vision", "text"):
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            if width % heads:
                raise ValueError(f"{tower}_width {width} is no multiple of {tower}_heads {heads}")
        if self.image_size % self.patch_size or self.patch_size % self.stride:
            raise ValueError(
                f"patch_size {self.patch_size} must divide image_size {self.image_size} and be a "
                f"multiple of {self.stride}, the stride of {len(self.stem)} stem convolutions")

    @property
    def stride(self) -> int:
        """Pixels per step of the stem's output: each stem convolution halves the picture."""
        return 2 ** len(self.stem)

    @property
    def image_tokens(self) -> int:
        """Number of patches of one image."""
        return (self.image_size // self.patch_size) ** 2


PRECISIONS = ("auto", "bf16", "float32")
TRACKERS = ("", "tensorboard", "wandb", "trackio")


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Lengths are in steps, never in minutes, so that a run can be repeated."""

    model: str = setting("tiny", "micro, tiny, small, ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14@336px")
    data: str = setting("", "shapes, a folder or a Hub id (empty: $MINICLIP_DATA, else Flickr8k)")
    image_key: str = setting("", "the data's column of images, if its name is unusual")
    caption_key: str = setting("", "its column of captions, or several with commas between them")
    limit: int = setting(0, "train on the first so many images of the split (0: all)")
    start_from: str = setting("", "begin with these weights: a run, a file or a Hub id", "--from")
    lock: str = setting("", "the tower that stays as it is: 'image' or 'text' (empty: none)")
    unlock_last: int = setting(0, "last blocks of the locked tower that are trained all the same")
    steps: int = setting(1000, "optimiser steps; the learning-rate schedule depends on them")
    epochs: int = setting(0, "rounds through the images, in place of steps (0: steps)")
    batch_size: int = setting(128, "pairs in a batch, N: each sees N-1 negatives")
    learning_rate: float = setting(1e-3, "AdamW's peak rate: gains, biases, embeddings, scale")
    muon_learning_rate: float = setting(0.02, "Muon's peak rate, for every matrix; 0: AdamW's")
    weight_decay: float = setting(0.1, "on matrices; never on gains, biases, embeddings, scale")
    warmup: int = setting(-1, "steps of linear warm-up, then a cosine to zero (-1: 100, or a tenth "
                              "of the steps if that is less)")
    clip_norm: float = setting(1.0, "largest gradient norm, over all parameters")
    crop: float = setting(0.6, "smallest share of the area in a random crop, about; 1: no crop")
    flip: bool = setting(True, "mirror half of the images; never those whose captions name a side")
    jitter: float = setting(0.2, "largest change of contrast, saturation, and brightness (in std)")
    word_dropout: float = setting(0.0, "chance of each caption token to be left out")
    eval_every: int = setting(200, "steps between two evaluations on the validation split")
    seed: int = setting(0, "seed of all randomness: weights, order, captions, augmentation")
    precision: str = setting("auto", "of the towers' products: 'bf16', 'float32', or 'auto': bf16 "
                                     "where the device is fast at it")
    micro_batch: int = setting(0, "pairs of a process whose activations are in memory at a time, "
                                  "for batches that don't fit: gradient caching (0: all)")
    grad_checkpointing: bool = setting(False, "recompute each block in the backward pass: less "
                                              "memory, a third more time")
    compile: bool = setting(False, "torch.compile the model: minutes at the start, then faster")
    tracker: str = setting("", "log to 'tensorboard', 'wandb' or 'trackio' as well (empty: none)")

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"no model {self.model!r}; there are {', '.join(MODELS)}")
        if self.unlock_last and not self.lock:
            raise ValueError("unlock_last needs a tower that is locked: set --lock image or text")
        check(
            self, ("steps eval_every", lambda x: x >= 1, "it must be at least 1"),
            ("batch_size", lambda x: x >= 2, "contrast needs at least 2 pairs"),
            ("learning_rate muon_learning_rate", lambda x: 0 <= x <= 1,
             "it must be from 0 to 1; usual are 0.001 (AdamW) and 0.02 (Muon)"),
            ("weight_decay", lambda x: 0 <= x <= 100, "it must be from 0 to 100"),
            ("limit seed epochs unlock_last micro_batch", lambda x: 0 <= x < 2**63,
             "it must be at least 0, below 2**63"),
            ("warmup", lambda x: -1 <= x < 2**63, "it must be at least 0, or -1"),
            ("lock", lambda x: x in ("", "image", "text"), "it must be 'image' or 'text'"),
            ("precision", lambda x: x in PRECISIONS, f"it must be one of {', '.join(PRECISIONS)}"),
            ("tracker", lambda x: x in TRACKERS, f"it must be one of {', '.join(TRACKERS[1:])}"),
            ("clip_norm", lambda x: x > 0, "it must be positive"),
            ("crop", lambda x: 0 < x <= 1, "it is a share of the area, in (0, 1]"),
            ("jitter word_dropout", lambda x: 0 <= x < 1, "it must be in [0, 1)"))

    @property
    def warmup_steps(self) -> int:
        """`warmup`, or what -1 stands for."""
        return min(100, self.steps // 10) if self.warmup == -1 else self.warmup


TINY = ModelConfig(  # 16 image tokens: small enough for a laptop
    embed_dim=192, image_size=64, patch_size=16, stem=(32, 64, 128),
    vision_width=192, vision_layers=2, vision_heads=3, pool="mean", pre_norm=False,
    vocab_size=4096, context_length=32, text_width=192, text_layers=1, text_heads=3,
    quick_gelu=False)
MICRO = replace(  # a fourth convolution: a token's receptive field is half the picture wide
    TINY, embed_dim=128, stem=(16, 32, 64, 128), vision_width=128, vision_heads=2, text_width=128,
    text_heads=2)
SMALL = replace(TINY, patch_size=8, stem=(64, 128, 256))  # 64 image tokens, wider convolutions

LARGE = ModelConfig(embed_dim=768, patch_size=14, vision_width=1024, vision_layers=24,
                    vision_heads=16, text_width=768, text_heads=12)

MODELS = {
    "micro": MICRO, "tiny": TINY, "small": SMALL, "ViT-B/32": ModelConfig(),
    "ViT-B/16": ModelConfig(patch_size=16), "ViT-L/14": LARGE,
    "ViT-L/14@336px": replace(LARGE, image_size=336)}

PRESETS = {  # the photographs' were swept on Flickr8k's validation split, on two cores with AMX
    # What helped most: Muon on every matrix, convolutions included (R@10 +3), 64 tokens instead of
    # 16, a third convolution, wider convolutions (+1 to 2 each), the random resized crop.
    "flickr8k-5min": TrainConfig(model="small", steps=1100),
    # Three times as long needs more augmentation: smaller crops, more colour, words left out.
    "flickr8k-20min": TrainConfig(
        model="small", steps=3700, crop=0.5, jitter=0.3, word_dropout=0.1, eval_every=500),
    # With a third of the images the model overfits even sooner.
    "tiny": TrainConfig(limit=2000, steps=1000, crop=0.5, jitter=0.3, word_dropout=0.1),
    # Captions say left and right and name colours: nothing may be mirrored, moved or tinted. The
    # narrow model with the deep stem takes 1,700 steps in the time of 1,000 of "tiny" (held-out
    # combinations 90 -> 94 %). With 70 % instead of 45 % single shapes: 94 -> 97 %.
    "shapes": TrainConfig(
        model="micro", data="shapes", steps=1600, learning_rate=2e-3, weight_decay=0.3, crop=1.0,
        flip=False, jitter=0.0, eval_every=400),
    # To go on from weights that are there: a third of the rates for training from noise. Swept on
    # Flickr8k, 200 steps from a run on scenes (results/experiments/sweep-finetune-shapes.json).
    # R@10 is 7.1; with a third of these rates 5.9, with three times 6.4, with AdamW alone 4.7 at
    # best. Without warm-up it is 8.2. It stays, for weights that AdamW has trained.
    "finetune": TrainConfig(
        model="small", steps=600, learning_rate=3e-4, muon_learning_rate=0.006, eval_every=100)}


def save_config(config, path: Path):
    """Write a ModelConfig or TrainConfig as JSON."""
    write_text(Path(path), json.dumps(asdict(config), indent=2) + "\n")


def load_config(kind, path: Path):
    """Read a ModelConfig or TrainConfig (`kind`) back; ValueError names what does not fit."""
    try:
        values = json.loads(Path(path).read_text())
        known = {f.name: type(f.default) for f in fields(kind)}
        if unknown := sorted(set(values) - set(known)):
            raise ValueError(f"unknown settings {', '.join(unknown)}")
        for name, value in values.items():
            fits = {float: (int, float), tuple: list}.get(known[name], known[name])
            if not isinstance(value, fits):
                raise ValueError(f"{name} is {value!r}, not of type {known[name].__name__}")
        return replace(kind(), **values)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no {kind.__name__}: {error}") from error
