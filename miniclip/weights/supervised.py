"""Other people's ImageNet classifiers: what CLIP is compared with, trained on labels alone.

    a name of timm's | a Hub id or folder of transformers' ──load_classifier──▶ Classifier

Both libraries are an optional extra.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from miniclip.data.hub import HubUnreachable
from miniclip.notices import one_line

CLASSES = 1000
RESAMPLE = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers


@dataclass(frozen=True)
class Pixels:
    """Images as a network was trained on: side, mean and standard deviation of the colours (0 to
    1), the part of the resized image that the crop leaves, and how it is resized."""

    size: int = 224
    mean: tuple = (0.485, 0.456, 0.406)  # of ImageNet
    std: tuple = (0.229, 0.224, 0.225)
    cropped: float = 0.875  # 224 of 256
    resample: int = Image.Resampling.BICUBIC


@dataclass(frozen=True)
class Classifier:
    """A network with one output for each of ImageNet's 1,000 classes, in their usual order.

    pixels: how it wants them, as its library says.
    """

    name: str
    network: Callable  # float32 (B, 3, S, S) → logits (B, 1000)
    pixels: "Pixels"
    device: torch.device

    @property
    def size(self) -> int:
        return self.pixels.size

    def resize(self, image: Image.Image, size: int) -> np.ndarray:
        """Shorter side to `size` / cropped, centre crop → (S, S, 3) uint8."""
        side = round(size / self.pixels.cropped)
        limit = 50 * min(image.size)
        if max(image.size) > limit:  # long and thin: only the middle would remain
            image = ImageOps.crop(image, tuple((n - min(n, limit)) // 2 for n in image.size * 2))
        width, height = (max(side, round(side * n / min(image.size))) for n in image.size)
        image = image.resize((width, height), self.pixels.resample)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> torch.Tensor:
        """uint8 (B, S, S, 3) → (B, 1000) float32, on the CPU."""
        pixels = torch.tensor(images, device=self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values, device=self.device)[:, None, None]
                     for values in (self.pixels.mean, self.pixels.std))
        return self.network((pixels - mean) / std).float().cpu()


def load_classifier(name: str, device: torch.device) -> Classifier:
    """`timm/NAME` with timm, any other Hub id or a folder with transformers → Classifier.

    ValueError, in one line, if the library is missing, the weights can't be had, or they have not
    1,000 outputs; HubUnreachable if the Hub does not answer.
    """
    if not Path(name).is_dir() and not name.startswith("timm/"):
        check_model(name)
    try:
        if name.startswith("timm/"):
            network, pixels, outputs = from_timm(name)
        else:
            network, pixels, outputs = from_transformers(name)
    except ImportError as error:
        raise ValueError(f"{name} needs {error.name}: pip install 'miniclip[supervised]'; or leave "
                         "it out: --supervised none") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: no classifier that can be opened here: {one_line(error)[:200]}"
                         ) from error
    if outputs != CLASSES:
        raise ValueError(f"{name} has {outputs} outputs; ImageNet has {CLASSES:,} classes")
    return Classifier(name, network.to(device).eval(), pixels, device)


def check_model(name: str):
    """Ask the Hub once, unless its answer is here already: transformers would try for long."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
        HfApi().model_info(name, timeout=10)
    except HFValidationError as error:
        raise ValueError(f"{name}: no such folder, and no Hub id") from error
    except Exception as error:  # of any network library; the message gives the reason
        if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403, 404):
            raise ValueError(f"{name}: the Hub has no public model of that name") from error
        raise HubUnreachable(f"{name}: no such folder here, and the Hub does not answer: "
                             f"{one_line(error)}") from error


def from_timm(name: str):
    import timm

    network = timm.create_model(name.removeprefix("timm/"), pretrained=True)
    told = timm.data.resolve_model_data_config(network)
    pixels = Pixels(told["input_size"][-1], tuple(told["mean"]), tuple(told["std"]),
                    told["crop_pct"], RESAMPLE[told["interpolation"]])
    return network, pixels, network.num_classes


def from_transformers(name: str):
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(name)
    told, _ = transformers.ImageProcessingMixin.get_image_processor_dict(name)
    sizes = told.get("size") or {}
    size = sizes if isinstance(sizes, int) else sizes.get("shortest_edge") or sizes.get("height")
    plain = Pixels()
    # A processor without crop_pct resizes to its size and crops nothing.
    pixels = Pixels(size or 224, tuple(told.get("image_mean") or plain.mean),
                    tuple(told.get("image_std") or plain.std), told.get("crop_pct") or 1.0,
                    told.get("resample", plain.resample))

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            return self.model(pixel_values=pixels).logits

    return Logits(), pixels, model.config.num_labels
