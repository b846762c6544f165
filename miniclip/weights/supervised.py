"""Other people's ImageNet classifiers: what CLIP is compared with, trained on labels alone.

    a name of timm's | a Hub id or folder of transformers' ──load_classifier──▶ Classifier

Both libraries are an optional extra.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from miniclip.data.sources import HubUnreachable, one_line

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROPPED = 0.875  # of the resized image's side, what is left: 224 of 256
CLASSES = 1000


@dataclass(frozen=True)
class Classifier:
    """A network with one output for each of ImageNet's 1,000 classes, in their usual order."""

    name: str
    network: Callable  # float32 (B, 3, S, S) → logits (B, 1000)
    size: int
    device: torch.device

    def resize(self, image: Image.Image, size: int) -> np.ndarray:
        """Shorter side to 8/7 of `size` (bicubic), centre crop → (S, S, 3) uint8."""
        side = round(size / CROPPED)
        width, height = (max(side, round(side * n / min(image.size))) for n in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - size) // 2, (height - size) // 2
        return np.asarray(image.crop((left, top, left + size, top + size)))

    @torch.no_grad()
    def logits(self, images: np.ndarray) -> torch.Tensor:
        """uint8 (B, S, S, 3) → (B, 1000) float32, on the CPU."""
        pixels = torch.tensor(images, device=self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values, device=self.device)[:, None, None]
                     for values in (IMAGENET_MEAN, IMAGENET_STD))
        return self.network((pixels - mean) / std).float().cpu()


def load_classifier(name: str, device: torch.device) -> Classifier:
    """`timm/NAME` with timm, any other Hub id or a folder with transformers → Classifier.

    ValueError, in one line, if the library is missing, the weights can't be had, or they have not
    1,000 outputs; HubUnreachable if the Hub does not answer.
    """
    if not name.startswith("timm/") and not Path(name).is_dir():
        check_model(name)
    try:
        network, size, outputs = from_timm(name) if name.startswith("timm/") else (
            from_transformers(name))
    except ImportError as error:
        raise ValueError(f"{name} needs {error.name}: pip install 'miniclip[supervised]'; or leave "
                         "it out: --supervised none") from error
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{name}: no classifier that can be opened here: {one_line(error)[:200]}"
                         ) from error
    if outputs != CLASSES:
        raise ValueError(f"{name} has {outputs} outputs; ImageNet has {CLASSES:,} classes")
    return Classifier(name, network.to(device).eval(), size, device)


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
    return network, timm.data.resolve_model_data_config(network)["input_size"][-1], (
        network.num_classes)


def from_transformers(name: str):
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(name)
    size = getattr(model.config, "image_size", None) or 224

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, pixels):
            return self.model(pixel_values=pixels).logits

    return Logits(), size, model.config.num_labels
