"""Classifiers of ImageNet: opened as their library opens them, and what is none."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from miniclip.weights.supervised import Classifier, Pixels, load_classifier

transformers = pytest.importorskip("transformers")


PROCESSOR = {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "resample": 2,
             "size": {"shortest_edge": 224}, "image_mean": [0.5, 0.4, 0.3],
             "image_std": [0.2, 0.3, 0.25]}  # as in microsoft/resnet-101, with other colours


def write_resnet(folder, outputs=1000):
    """A ResNet of transformers with random weights and so many outputs."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                                       layer_type="basic", num_labels=outputs)
    torch.manual_seed(0)
    transformers.ResNetForImageClassification(config).eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return str(folder)


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    return write_resnet(tmp_path_factory.mktemp("resnet") / "net")


def test_a_classifier_of_transformers(resnet):
    found = load_classifier(resnet, torch.device("cpu"))
    assert (found.size, found.name, found.pixels.resample) == (224, resnet, 2)
    images = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
    logits = found.logits(images)
    assert logits.shape == (2, 1000) and logits.dtype == torch.float32
    model = transformers.ResNetForImageClassification.from_pretrained(resnet).eval()
    pixels = torch.tensor(images).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (PROCESSOR["image_mean"],
                                                          PROCESSOR["image_std"]))
    with torch.no_grad():
        assert torch.allclose(model((pixels - mean) / std).logits, logits, atol=1e-5)


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (224, 224)])
def test_images_are_resized_to_256_and_cropped_to_224(size):
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))
    found = Classifier("x", None, Pixels(), torch.device("cpu")).resize(image, 224)
    assert found.shape == (224, 224, 3)
    scale = 256 / min(size)
    whole = image.resize((max(256, round(size[0] * scale)), max(256, round(size[1] * scale))),
                         Image.Resampling.BICUBIC)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    assert (found == np.asarray(whole)[top:top + 224, left:left + 224]).all()


def test_other_outputs_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has 10 outputs; ImageNet has 1,000 classes"):
        load_classifier(write_resnet(tmp_path / "ten", 10), torch.device("cpu"))


@pytest.mark.parametrize("name, message", [
    ("timm/resnet101.tv_in1k", r"needs timm: pip install 'miniclip\[supervised\]'"),
    ("no/such-model", "no such folder here, and the Hub does not answer"),
    ("not a name", "no such folder, and no Hub id"),
    ("empty", "no classifier that can be opened here"),
])
def test_what_can_not_be_opened(monkeypatch, folder, name, message):
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir()
    with pytest.raises((ValueError, ConnectionError), match=message) as error:
        load_classifier(name, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_a_classifier_of_timm(monkeypatch):
    """timm needs torchvision, which has no build here: its two functions, as they are called."""
    class Net(torch.nn.Linear):
        num_classes = 1000

        def forward(self, pixels):
            return super().forward(pixels.mean((2, 3)))

    net = Net(3, 1000)
    data = type("data", (), {"resolve_model_data_config": staticmethod(
        lambda model: {"input_size": (3, 160, 160), "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1),
                       "crop_pct": 0.95, "interpolation": "bilinear"})})
    timm = type("timm", (), {"data": data, "create_model": staticmethod(
        lambda name, pretrained: net if (name, pretrained) == ("resnet.x", True) else None)})
    monkeypatch.setitem(sys.modules, "timm", timm)
    found = load_classifier("timm/resnet.x", torch.device("cpu"))
    assert found.pixels == Pixels(160, (0.1, 0.2, 0.3), (1, 1, 1), 0.95, 2)
    assert found.logits(np.zeros((1, 160, 160, 3), np.uint8)).shape == (
        1, 1000)
