"""Weights of others: three namings, every shape, both GELUs, the Hub; what is wrong; and back.

The tensors are random. They are named and converted here by hand, not by pretrained.py's table;
transformers and open_clip, where they are installed, say what features such weights give.
"""

import gzip
import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from local_hub import serve
from safetensors.torch import load_file, save_file
from small_weights import (
    CLIPS,
    NARROW,
    ODD,
    TOLERANCE,
    check_same,
    hf_tensors,
    inputs,
    openai_tensors,
    outputs,
    write_merges,
    write_run,
)

import miniclip
from miniclip.config import MODELS, ModelConfig
from miniclip.data.hub import HubUnreachable
from miniclip.data.images import MEAN, STD, Transform
from miniclip.model import CLIP
from miniclip.tokenizer import CLIP_MERGES
from miniclip.weights import export, names, pretrained

REAL_MERGES = os.environ.get("MINICLIP_CLIP_MERGES", "")  # before the fixture hides it


@pytest.fixture(autouse=True)
def no_merges_by_chance(monkeypatch):
    monkeypatch.delenv("MINICLIP_CLIP_MERGES", raising=False)


# ------------------------------------------------------------------------------- weights by hand


def half(tensors: dict) -> dict:
    return {name: tensor.half() for name, tensor in tensors.items()}


def write_openai(file: Path, hf: dict):
    """As OpenAI's archives give it: half precision, three numbers besides."""
    numbers = {name: torch.tensor(7) for name in (
        "input_resolution", "context_length", "vocab_size")}
    torch.save(half(openai_tensors(hf)) | numbers, file)


def write_open_clip(file: Path, hf: dict):
    """As open_clip's CLIP."""
    save_file(openai_tensors(hf), file)


def write_open_clip_training(file: Path, hf: dict):
    """A checkpoint of open_clip's training, on several GPUs, of a CustomTextCLIP."""
    tensors = openai_tensors(hf)
    tensors = {name if name.startswith("visual.") or name == "logit_scale" else f"text.{name}":
               torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    tensors["text.attn_mask"] = torch.full((3, 3), -torch.inf)
    torch.save({"epoch": 3, "name": "run", "optimizer": {"state": {0: torch.ones(2)}},
                "state_dict": {f"module.{name}": t for name, t in tensors.items()}}, file)


def write_hf(file: Path, hf: dict):
    save_file(hf, file, {"format": "pt"})


def write_old_hf(file: Path, hf: dict):
    """As transformers wrote it for years: a pickle, with two counters."""
    torch.save(hf | {f"{tower}_model.embeddings.position_ids": torch.arange(5)[None]
                     for tower in ("vision", "text")}, file)


WRITERS = {"weights.pt": write_openai, "open_clip_model.safetensors": write_open_clip,
           "epoch_3.pt": write_open_clip_training, "model.safetensors": write_hf,
           "pytorch_model.bin": write_old_hf}


def hf_config(c: ModelConfig) -> dict:
    """What transformers saves as config.json; of its defaults some are left out, as it does."""
    act = {"hidden_act": "quick_gelu" if c.quick_gelu else "gelu"}
    return {
        "model_type": "clip", "projection_dim": c.embed_dim,
        "vision_config": act | {
            "hidden_size": c.vision_width, "intermediate_size": 4 * c.vision_width,
            "num_hidden_layers": c.vision_layers, "num_attention_heads": c.vision_heads,
            "image_size": c.image_size, "patch_size": c.patch_size},
        "text_config": act | {
            "hidden_size": c.text_width, "intermediate_size": 4 * c.text_width,
            "num_hidden_layers": c.text_layers, "num_attention_heads": c.text_heads,
            "vocab_size": c.vocab_size, "max_position_embeddings": c.context_length,
            "bos_token_id": c.vocab_size - 2, "eos_token_id": c.vocab_size - 1,
            "pad_token_id": 0}}




def write_folder(folder: Path, c: ModelConfig, file="model.safetensors", config=True, tensors=None):
    """Weights, settings and merges → the weights file."""
    folder.mkdir(exist_ok=True)
    WRITERS[file](folder / file, tensors or hf_tensors(c))
    if config:
        (folder / "config.json").write_text(json.dumps(hf_config(c)))
    write_merges(folder, c.vocab_size - 514)
    return folder / file


@torch.no_grad()
def theirs(c: ModelConfig, tensors: dict, pixels, tokens) -> dict[str, torch.Tensor]:
    """What transformers makes of the same weights."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    with torch.device("meta"):  # its own random numbers would take longest of all
        model = transformers.CLIPModel(transformers.CLIPConfig(**hf_config(c))).eval()
    model.load_state_dict(tensors, strict=True, assign=True)
    for tower in (model.vision_model, model.text_model):
        places = tower.embeddings.position_ids
        tower.embeddings.position_ids = torch.arange(places.shape[1])[None]
    return {
        "image": model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output),
        "text": model.text_projection(model.text_model(input_ids=tokens).pooler_output),
        "logits": model(input_ids=tokens, pixel_values=pixels).logits_per_image}


# ------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("shape", [ODD, NARROW, CLIPS], ids=["odd", "narrow", "clips"])
def test_every_naming_gives_transformers_features(tmp_path, shape, file, quick_gelu):
    shape = replace(shape, quick_gelu=quick_gelu)
    model, tokenizer, transform = miniclip.load(write_folder(tmp_path, shape, file))
    assert model.config == shape and not model.training and transform == Transform(shape.image_size)
    assert tokenizer(["a"]).shape == (1, shape.context_length)
    assert all(p.dtype == torch.float32 and p.is_contiguous() for p in model.parameters())
    pixels, tokens = inputs(shape)
    expected = theirs(shape, hf_tensors(shape), pixels, tokens)
    check_same(outputs(model, pixels, tokens), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name, layers, file", [
    ("ViT-B/32", 12, "weights.pt"), ("ViT-B/16", 2, "model.safetensors"),
    ("ViT-L/14", 2, "epoch_3.pt"), ("ViT-L/14@336px", 2, "pytorch_model.bin")])
def test_the_published_shapes(tmp_path, name, layers, file):
    """Without settings: size, depth and heads come from the tensors."""
    shape = replace(MODELS[name], vision_layers=layers, text_layers=layers)
    tensors = hf_tensors(shape)
    path = write_folder(tmp_path, shape, file, config=False, tensors=tensors)
    model, tokenizer, transform = miniclip.load(path, quick_gelu=True)
    path.unlink()
    assert model.config == shape and transform.size == MODELS[name].image_size
    assert tokenizer.vocab_size == 49408 and tokenizer(["a dog"]).shape == (1, 77)
    pixels, tokens = inputs(shape, 2)
    check_same(outputs(model, pixels, tokens), theirs(shape, tensors, pixels, tokens))


def test_the_tolerance_tells_the_two_gelus_apart(tmp_path):
    """A test of the tests: the wrong GELU, or wrong heads, are far beyond it."""
    pixels, tokens = inputs(CLIPS)
    file = write_folder(tmp_path, CLIPS, config=False)
    right, wrong = (outputs(miniclip.load(file, quick_gelu=quick)[0], pixels, tokens)
                    for quick in (True, False))
    (tmp_path / "config.json").write_text(json.dumps(hf_config(replace(CLIPS, text_heads=2))))
    heads = outputs(miniclip.load(file)[0], pixels, tokens)
    for name in right:
        assert (right[name] - wrong[name]).abs().max() > 100 * TOLERANCE * right[name].abs().max()
    assert (right["text"] - heads["text"]).abs().max() > 0.01 and (
        right["image"] == heads["image"]).all()


def test_the_namings_side_by_side():
    """The table reaches every tensor, and is the namings of transformers and open_clip."""
    with torch.device("meta"):
        ours = CLIP(ODD).state_dict()
    for column, expected in ((names.HF, hf_tensors(ODD)),
                             (names.OPENAI, openai_tensors(hf_tensors(ODD)))):
        found = [part for name, t in ours.items() for part in (
            names.theirs(name, t, column).items())]
        assert len(found) == len(expected)
        assert {n: t.shape for n, t in found} == {n: t.shape for n, t in expected.items()}


OPEN_CLIP = """
import sys
from unittest.mock import MagicMock
import torch
sys.modules["transformers"] = None  # not needed either
for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms",
             "torchvision.transforms.functional", "torchvision.datasets"):  # imported, not needed
    sys.modules[name] = MagicMock(__path__=[])
sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.Identity
import open_clip
from open_clip import factory, model as models
from open_clip.factory import load_checkpoint

def features(model, pixels, tokens):
    model.eval()
    with torch.no_grad():
        images, texts = model.encode_image(pixels, True), model.encode_text(tokens, True)
        return {"image": model.encode_image(pixels), "text": model.encode_text(tokens),
                "logits": model.logit_scale.exp() * images @ texts.T}

given = torch.load(sys.argv[1])
done = {}
for name, cls in (("CLIP", models.CLIP), ("CustomTextCLIP", models.CustomTextCLIP)):
    torch.manual_seed(1)
    model = cls(given["embed_dim"], given["vision"], given["text"], given["quick_gelu"])
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    done[name] = features(model, given["pixels"], given["tokens"])
    torch.save(model.state_dict(), f"{sys.argv[1]}.{name}.pt")
exported = open_clip.create_model("local-dir:" + given["exported"])
done["exported"] = features(exported, given["pixels"], given["tokens"])
torch.save(done, sys.argv[1] + ".done")
"""


@pytest.mark.skipif(not importlib.util.find_spec("open_clip"),
                    reason="open_clip is not installed here")
@pytest.mark.parametrize("quick_gelu", [True, False])
def test_open_clips_own_modules(tmp_path, quick_gelu):
    """Weights that open_clip made, and ours that open_clip loads; in a process of its own."""
    shape = replace(ODD, quick_gelu=quick_gelu)
    pixels, tokens = inputs(shape)
    run = write_run(tmp_path / "run", shape)
    torch.save({
        "embed_dim": shape.embed_dim, "quick_gelu": quick_gelu, "pixels": pixels, "tokens": tokens,
        "exported": str(export.export(str(run), str(tmp_path / "to"), "open_clip")),
        "vision": {"image_size": 35, "patch_size": 7, "width": 96, "layers": 2, "head_width": 32},
        "text": {"context_length": 13, "vocab_size": 600, "width": 40, "layers": 3, "heads": 5},
    }, tmp_path / "given")
    done = subprocess.run([sys.executable, "-c", OPEN_CLIP, str(tmp_path / "given")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    done = torch.load(tmp_path / "given.done")
    check_same(outputs(miniclip.load(run)[0], pixels, tokens), done["exported"])
    write_merges(tmp_path, shape.vocab_size - 514)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(shape)))
    for name in ("CLIP", "CustomTextCLIP"):
        model = miniclip.load(tmp_path / f"given.{name}.pt")[0]
        check_same(outputs(model, pixels, tokens), done[name])


OPEN_CLIPS_TOKENIZER = """
import sys
from unittest.mock import MagicMock
import torch
from transformers import AutoModel, AutoTokenizer, CLIPModel  # before torchvision is one in name
for name in ("torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.transforms",
             "torchvision.transforms.functional", "torchvision.datasets"):
    sys.modules[name] = MagicMock(__path__=[])
sys.modules["torchvision.ops.misc"].FrozenBatchNorm2d = torch.nn.Identity
import open_clip
import miniclip
run, exported = sys.argv[1:]
texts = ["! a dog", "'é", "a dog in the snow, a dog"]
ids = open_clip.get_tokenizer("local-dir:" + exported)(texts)
model, tokenizer, _ = miniclip.load(run)
theirs = open_clip.create_model("local-dir:" + exported).eval()
with torch.no_grad():
    torch.testing.assert_close(theirs.encode_text(ids), model.encode_text(tokenizer(texts)))
"""


@pytest.mark.skipif(not (importlib.util.find_spec("open_clip")
                         and importlib.util.find_spec("transformers")),
                    reason="open_clip and transformers are not both installed here")
def test_open_clip_reads_the_exported_vocabulary(tmp_path):
    """Its own would give other ids, of which some are none of this model's."""
    run = write_run(tmp_path / "run", ODD)
    path = export.export(str(run), str(tmp_path / "to"), "open_clip")
    done = subprocess.run([sys.executable, "-c", OPEN_CLIPS_TOKENIZER, str(run), str(path)],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


# ------------------------------------------------------------------------------- what isn't tensors


def open_clip_config(c: ModelConfig, **others) -> dict:
    return {"model_cfg": {
        "embed_dim": c.embed_dim, "quick_gelu": c.quick_gelu,
        "vision_cfg": {"image_size": c.image_size, "patch_size": c.patch_size,
                       "width": c.vision_width, "layers": c.vision_layers,
                       "head_width": c.vision_width // c.vision_heads},
        "text_cfg": {"context_length": c.context_length, "vocab_size": c.vocab_size,
                     "width": c.text_width, "layers": c.text_layers,
                     "heads": c.text_heads} | others},
        "preprocess_cfg": {"mean": list(MEAN), "std": list(STD), "interpolation": "bicubic"}}


def test_who_says_which_gelu(tmp_path, capsys, monkeypatch):
    """The argument, before what is known of Hub ids, before the settings; else a notice."""
    file = write_folder(tmp_path / "me", replace(CLIPS, quick_gelu=False))

    def gelu(source=file, **options):
        return miniclip.load(source, **options)[0].config.quick_gelu

    assert gelu() is False and gelu(quick_gelu=True) is True
    (tmp_path / "me/config.json").write_text(json.dumps(hf_config(CLIPS)))
    assert gelu() is True and gelu(quick_gelu=False) is False
    (tmp_path / "me/open_clip_config.json").write_text(
        json.dumps(open_clip_config(replace(CLIPS, quick_gelu=False))))
    assert gelu() is True  # Hugging Face's are the settings of Hugging Face's naming
    (tmp_path / "me/config.json").unlink()
    assert gelu() is False
    (tmp_path / "me/open_clip_config.json").write_text(json.dumps(open_clip_config(CLIPS)))
    assert gelu() is True and capsys.readouterr().err == ""
    (tmp_path / "me/open_clip_config.json").unlink()
    assert gelu(quick_gelu=True) is True and capsys.readouterr().err == ""
    assert gelu() is False
    notice = capsys.readouterr().err
    assert notice.startswith(f"{file}: nothing says which GELU") and notice.count("\n") == 1
    for name, known in pretrained.QUICK_GELU.items():
        monkeypatch.setattr(pretrained, "fetch", lambda name: file)
        assert gelu(name) is known is name.startswith("openai/")
        assert gelu(name, quick_gelu=not known) is not known
    assert capsys.readouterr().err == ""


def test_settings_that_leave_defaults_out(tmp_path):
    """transformers writes only what differs from 12 heads of 768, 8 of 512, and quick_gelu."""
    shape = replace(ODD, vision_width=768, vision_heads=12, text_width=512, text_heads=8)
    file = write_folder(tmp_path, shape, config=False)
    for config in ({"vision_config": {}, "text_config": {}},
                   {"vision_config": None, "text_config": None},
                   {"vision_config": {"num_attention_heads": 3}, "text_config": {},
                    "vision_config_dict": {"num_attention_heads": 12}, "text_config_dict": {}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert miniclip.load(file)[0].config == shape
    (tmp_path / "config.json").unlink()
    (tmp_path / "open_clip_config.json").write_text(json.dumps(
        {"model_cfg": {"vision_cfg": {}, "text_cfg": {"hf_tokenizer_name": "x"}}}))
    assert miniclip.load(file)[0].config == replace(shape, quick_gelu=False)


def test_a_folder_of_others_is_no_run(tmp_path):
    write_folder(tmp_path, ODD)
    (tmp_path / "tokenizer.json").write_text("{}")  # which Hugging Face's folders hold too
    assert miniclip.load(tmp_path)[0].config == miniclip.load(str(tmp_path))[0].config == ODD
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json is no index of weights in several files"):
        miniclip.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match="holds none of model.safetensors, pytorch_model.bin, .*"
                       "; found: config.json, merges.txt, model-0000"):
        miniclip.load(tmp_path)


@pytest.mark.parametrize("file, settings, words", [
    ("config.json", {"vision_config": {"hidden_act": "gelu"}, "text_config": {}},
     r"\('gelu', 1e-05\), \('quick_gelu', 1e-05\)"),
    ("config.json", {"vision_config": {"hidden_act": "relu"}, "text_config": {"hidden_act":
     "relu"}}, "hidden_act, layer_norm_eps.*relu"),
    ("config.json", {"vision_config": {"layer_norm_eps": 1e-6}, "text_config": {}}, "1e-06"),
    ("config.json", {"vision_config": 7, "text_config": {}}, "AttributeError"),
    ("config.json", {"vision_config": {}}, "KeyError, 'text_config'"),
    ("config.json", {"vision_config": {"num_attention_heads": 0}, "text_config": {}}, "ZeroDiv"),
    ("config.json", {"vision_config": {"hidden_size": "wide"}, "text_config": {}}, "TypeError"),
    ("config.json", "{", "JSONDecodeError"),
    ("open_clip_config.json", open_clip_config(CLIPS, no_causal_mask=True), "no_causal_mask"),
    ("open_clip_config.json", {"model_cfg": {}}, "KeyError, 'vision_cfg'"),
    ("open_clip_config.json", open_clip_config(CLIPS) | {"preprocess_cfg": {
        "mean": [0.5] * 3, "resize_mode": "squash"}}, "unknown here: mean, resize_mode"),
    ("preprocessor_config.json", {"image_std": [0.5] * 3}, "unknown here: image_std"),
    ("preprocessor_config.json", {"resample": 2}, "unknown here: resample"),
    ("preprocessor_config.json", {"do_normalize": False}, "unknown here: do_normalize"),
    ("processor_config.json", {"image_processor": {"image_mean": [0.5] * 3, "do_resize": False}},
     "unknown here: image_mean, do_resize"),
])
def test_settings_of_what_this_model_is_not(tmp_path, file, settings, words):
    source = write_folder(tmp_path, CLIPS, config=False)
    (tmp_path / file).write_text(settings if isinstance(settings, str) else json.dumps(settings))
    with pytest.raises(ValueError, match=f"config.json or .* is not of a model .*{words}") as error:
        miniclip.load(source, quick_gelu=True)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------- wrong weights


def refusal(file: Path, **options) -> str:
    """The one line of a refusal, which begins with what was asked for."""
    with pytest.raises(ValueError) as error:
        miniclip.load(file, **({"quick_gelu": True} | options))
    text = str(error.value)
    assert text.startswith(f"{file}: ") and "\n" not in text and len(text) < 700
    return text


def changed(c, **changes) -> dict:
    """hf_tensors with some taken out (None) or others in their place."""
    tensors = hf_tensors(c) | {name.replace("__", "."): t for name, t in changes.items()}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


BLOCK = "vision_model__encoder__layers__1__"


@pytest.mark.parametrize("changes, words", [
    ({BLOCK + "mlp__fc1__bias": None}, "missing: vision_model.encoder.layers.1.mlp.fc1.bias"),
    ({BLOCK + "self_attn__k_proj__weight": None}, "missing: .*layers.1.self_attn.k_proj.weight$"),
    ({"logit_scale": None}, "missing: logit_scale"),
    ({"visual_projection__weight": None}, "missing: visual_projection.weight"),
    ({"vision_model__embeddings__class_embedding": None, "text_projection__weight": None},
     "missing: vision_model.embeddings.class_embedding"),
    ({"logit_bias": torch.ones(2)}, r"wrong shape: logit_bias \(2,\), not \(\)$"),
    ({f"extra{i}": torch.ones(1) for i in range(9)},
     "left over: extra0, extra1, extra2, extra3 and 5 more"),
    ({BLOCK + "ls1__gamma": torch.ones(3)}, "left over: vision_model.encoder.layers.1.ls1.gamma"),
    ({"vision_model__encoder__layers__3__mlp__fc1__bias": torch.ones(3)},
     "missing: .*layers.2.* and 12 more; left over: .*layers.3.mlp.fc1.bias"),
    ({BLOCK + "mlp__fc1__bias": torch.ones(99)}, r"shape: .*mlp.fc1.bias \(99,\), not \(512,\)"),
    ({BLOCK + "self_attn__q_proj__weight": torch.ones(256, 64)},
     r"wrong shape: .*q_proj.weight \(256, 64\), not \(128, 128\)"),
    ({"visual_projection__weight": torch.ones(20, 120)}, r"\(20, 120\), not \(20, 128\)"),
    ({"text_projection__weight": torch.ones(64, 20)}, r"\(64, 20\), not \(20, 64\)"),
    ({"logit_scale": torch.ones(2)}, r"logit_scale \(2,\), not \(\)$"),
    ({"vision_model__embeddings__position_embedding__weight": torch.ones(25, 128)},
     r"wrong shape: .*position_embedding.weight \(25, 128\), not \(17, 128\)"),
    ({"vision_model__embeddings__position_embedding__weight": torch.ones(1, 128)}, "image_size"),
    ({"vision_model__embeddings__patch_embedding__weight": torch.ones(128, 3, 7, 9)},
     r"\(128, 3, 7, 9\), not \(128, 3, 9, 9\)"),
    ({"vision_model__embeddings__patch_embedding__weight": torch.ones(())}, "image_size is 0"),
    ({"vision_model__embeddings__class_embedding": torch.ones(1, 1, 128)}, "is 1 wide"),
    ({"text_model__embeddings__position_embedding__weight": torch.ones(2, 64)},
     "context_length is 2"),
    ({"text_model__embeddings__token_embedding__weight": torch.ones(99, 64)},
     "merges.txt holds 86 merges, which make 600 tokens, but the weights have 99"),
    ({"logit_scale": torch.ones((), dtype=torch.int8)}, r"logit_scale \(torch.int8"),
    ({"logit_scale": torch.ones((), dtype=torch.int64)}, "not one whole CLIP; missing: logit_sc"),
    ({"logit_scale": torch.ones((), dtype=torch.complex64)}, r"logit_scale \(torch.complex64"),
    ({"module__logit_scale": torch.ones(())}, "two tensors of one name"),
])
def test_tensors_that_are_not_one_whole_clip(tmp_path, changes, words):
    file = write_folder(tmp_path, CLIPS, config=False, tensors=changed(CLIPS, **changes))
    text = refusal(file)
    assert re.search(words, text), text


@pytest.mark.parametrize("write, words", [
    (lambda file: save_file({"conv.weight": torch.ones(2)}, file), "no CLIP in .*: conv.weight"),
    (lambda file: save_file({}, file), "no tensors; found: nothing"),
    (lambda file: file.write_bytes(b""), "damaged"),
    (lambda file: file.write_bytes(b"a text file, no weights at all"), "damaged"),
    (lambda file: file.write_bytes(file.read_bytes()[:-100]), "damaged"),
    (lambda file: file.write_bytes(file.read_bytes()[:100]), "damaged"),
])
def test_files_that_are_no_weights(tmp_path, write, words):
    file = write_folder(tmp_path, CLIPS)
    write(file)
    assert re.search(words, refusal(file))


class Evil:
    """Unpickled without care, this makes a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("write, words", [
    (lambda file: file.write_bytes(b""), "damaged"),
    (lambda file: file.write_bytes(b"not weights"), "damaged"),
    (lambda file: file.write_bytes(file.read_bytes()[:5000]), "damaged"),
    (lambda file: file.write_bytes(file.read_bytes()[:-500]), "damaged"),
    (lambda file: torch.save({"a": Evil(file.with_name("ran"))}, file), "more than tensors"),
    (lambda file: file.write_bytes(pickle.dumps(Evil(file.with_name("ran")))), "damaged"),
    (lambda file: torch.save(torch.nn.Linear(2, 2), file), "more than tensors"),
    (lambda file: torch.save(torch.ones(3), file), "a Tensor in place of tensors and their names"),
    (lambda file: torch.save([torch.ones(3)], file), "a list in place of tensors"),
    (lambda file: torch.save({"epoch": 3}, file), "no tensors; found: epoch"),
    (lambda file: torch.save({3: torch.ones(3)}, file), "no CLIP in .*found: 3"),
])
def test_pickles_that_are_no_weights(tmp_path, write, words):
    file = write_folder(tmp_path, CLIPS, "weights.pt")
    write(file)
    text = refusal(file)
    assert re.search(words, text), text
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_torchscript_archive_is_refused_and_converted(tmp_path):
    """OpenAI publishes such archives; the line says how to take the weights out."""
    class Holder(torch.nn.Module):
        def forward(self, x):
            return x

    holder = Holder()
    for name, tensor in openai_tensors(hf_tensors(CLIPS)).items():
        *path, last = name.split(".")
        module = holder
        for part in path:
            if not hasattr(module, part):
                module.add_module(part, Holder())
            module = getattr(module, part)
        module.register_buffer(last, tensor)
    file = write_folder(tmp_path, CLIPS, "weights.pt", config=False)
    torch.jit.script(holder).save(str(file))
    text = refusal(file)
    assert "a TorchScript archive holds code; if you trust it, convert it: " in text
    command = text.split("convert it: ")[1]
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import torch; {command}"],
                   cwd=tmp_path, check=True)
    pixels, tokens = inputs(CLIPS)
    other = write_folder(tmp_path / "hf", CLIPS)
    check_same(outputs(miniclip.load(tmp_path / "new.pt", quick_gelu=True)[0], pixels, tokens),
               outputs(miniclip.load(other)[0], pixels, tokens))


def test_a_runs_weights_are_loaded_by_their_folder(tmp_path):
    run = write_run(tmp_path / "run", CLIPS)
    assert miniclip.load(run)[0].config == CLIPS
    assert "no CLIP in OpenAI's, open_clip's or Hugging Face's naming (of a run, name the " in (
        refusal(run / "model.safetensors"))
    with pytest.raises(ValueError, match="a run says itself which GELU it has; leave out quick_ge"):
        miniclip.load(run, quick_gelu=True)


def test_heads_that_cant_be_told(tmp_path):
    file = write_folder(tmp_path, ODD, config=False)
    assert "the vision tower is 96 wide, no multiple of 64, a head's width; put the model's " \
        "config.json or open_clip_config.json beside it" in refusal(file)
    for shape in (ODD, replace(ODD, vision_heads=6)):
        (tmp_path / "config.json").write_text(json.dumps(hf_config(shape)))
        assert miniclip.load(file)[0].config == shape
    (tmp_path / "config.json").write_text(json.dumps(hf_config(replace(ODD, text_width=60))))
    assert "the text tower is 40 wide, no multiple of 12" in refusal(file)
    config = hf_config(ODD)
    config["vision_config"]["num_attention_heads"] = 1000
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "96 wide, no multiple of 0" in refusal(file)


@pytest.mark.parametrize("source", [
    "/no/such/run", "no such", "./nothing.pt", "me/model.safetensors", "me/model.pt", "me/a.bin",
    "a/b/c", "https://a.b/c"])
def test_nothing_of_that_name(source):
    with pytest.raises(ValueError, match="no such run folder or weights file, and no Hub id") as e:
        miniclip.load(source)
    assert str(e.value).startswith(source)


# ------------------------------------------------------------------ as training scripts leave them


PIECES = ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model.", "model.",
          "clipmodel.", "model.clip.")


@pytest.mark.parametrize("prefix", PIECES)
@pytest.mark.parametrize("tensors", [hf_tensors(CLIPS), openai_tensors(hf_tensors(CLIPS))])
def test_prefixes_of_every_kind(tmp_path, prefix, tensors):
    file = write_folder(tmp_path, CLIPS)
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    check_same(outputs(miniclip.load(file)[0], *inputs(CLIPS)),
               outputs(miniclip.load(write_folder(tmp_path / "plain", CLIPS))[0], *inputs(CLIPS)),
               0)


@pytest.mark.parametrize("around", [
    ("state_dict",), ("model",), ("model_state_dict",), ("state_dict_ema",),
    ("model", "state_dict")])
def test_wrappers_of_every_kind(tmp_path, around):
    file = write_folder(tmp_path, CLIPS).with_name("pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    tensors = hf_tensors(CLIPS)
    for name in reversed(around):
        tensors = {"epoch": 3, "args": {"lr": 0.1}, "best": torch.tensor(0.7), name: tensors}
    torch.save(tensors, file)
    assert miniclip.load(file)[0].config == CLIPS


def test_small_things_that_scripts_add(tmp_path):
    """A scale of shape (1,), and counters of steps beside the weights."""
    tensors = hf_tensors(CLIPS)
    scale = tensors["logit_scale"]
    tensors |= {"logit_scale": scale.view(1), "num_batches_tracked": torch.tensor(7),
                "step": torch.tensor([8])}
    file = write_folder(tmp_path, CLIPS, tensors=tensors)
    assert miniclip.load(file)[0].logit_scale == scale


def test_a_bias_is_that_of_a_model_that_learnt_by_the_sigmoid(tmp_path):
    file = write_folder(tmp_path, CLIPS, tensors=hf_tensors(CLIPS) | {
        "logit_bias": torch.tensor(-9.5)})
    model = miniclip.load(file)[0]
    assert model.config.loss == "sigmoid" and model.logit_bias == -9.5


def write_shards(folder: Path):
    """Weights in two files, with an index."""
    write_folder(folder, CLIPS).unlink()
    names = sorted(tensors := hf_tensors(CLIPS))
    parts = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, folder / file)
    index = {"metadata": {}, "weight_map": {n: file for file, own in parts.items() for n in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_weights_in_several_files(tmp_path, hub_cache, monkeypatch):
    write_shards(tmp_path / "several")
    one = write_folder(tmp_path / "one", CLIPS)
    expected = outputs(miniclip.load(one)[0], *inputs(CLIPS))
    check_same(outputs(miniclip.load(tmp_path / "several")[0], *inputs(CLIPS)), expected, 0)
    with serve({p.name: p.read_bytes() for p in (tmp_path / "several").iterdir()}, monkeypatch):
        found = miniclip.load("me/clip")[0]
    check_same(outputs(found, *inputs(CLIPS)), expected, 0)
    check_same(outputs(miniclip.load("me/clip")[0], *inputs(CLIPS)), expected, 0)  # all is cached


def test_several_files_that_broke_off_are_fetched_again(tmp_path, hub_cache, monkeypatch):
    """The index is there before the weights that it names."""
    write_shards(tmp_path / "several")
    files = {p.name: p.read_bytes() for p in (tmp_path / "several").iterdir()}
    broken = "model-00001-of-00002.safetensors"
    with serve(files, monkeypatch, broken=(broken,)), pytest.raises(HubUnreachable):
        miniclip.load("me/clip")
    with serve(files, monkeypatch):
        assert miniclip.load("me/clip")[0].config == CLIPS


@pytest.mark.parametrize("index", ['{"weight_map": {"a": 3}}', '{"weight_map": {"a": "../x"}}'])
def test_an_index_names_files_beside_it(tmp_path, index):
    write_folder(tmp_path, CLIPS).unlink()
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert "names must be those of files beside it" in refusal(tmp_path)


def test_a_run_in_half_precision_is_loaded_in_float32(tmp_path):
    run = write_run(tmp_path / "run", ODD)
    weights = load_file(run / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, run / "model.safetensors")
    assert {p.dtype for p in miniclip.load(run)[0].parameters()} == {torch.float32}


def test_half_takes_float32_pixels(tmp_path):
    model = miniclip.load(write_folder(tmp_path, CLIPS))[0]
    pixels, tokens = inputs(CLIPS)
    expected = model.encode_image(pixels, normalize=True)
    for kind in (torch.float16, torch.bfloat16):
        found = model.to(kind).encode_image(pixels, normalize=True)
        assert found.dtype == kind and (found.float() - expected).abs().max() < 0.05


@pytest.mark.parametrize("image_size", [28, 70, 35])
def test_other_image_sizes_interpolate_the_positions(tmp_path, image_size):
    file = write_folder(tmp_path, CLIPS)
    plain = miniclip.load(file)[0]
    model, _, transform = miniclip.load(file, image_size=image_size)
    assert transform.size == model.config.image_size == image_size
    assert model.encode_image(torch.randn(2, 3, image_size, image_size)).shape == (2, 20)
    before, after = plain.vision.positions, model.vision.positions
    assert torch.equal(before[0], after[0]) and len(after) == 1 + (image_size // 7) ** 2
    if image_size == 35:
        assert torch.equal(before, after)
    # What varies evenly over the picture still does: a ramp stays a ramp, a constant a constant.
    with torch.no_grad():
        plain.vision.positions[1:] = torch.linspace(-2, 2, 5).repeat_interleave(5)[:, None]
        plain.vision.positions[1:, 5] = 3
    rows = pretrained.at_size(plain, image_size).vision.positions[1:].view(
        image_size // 7, image_size // 7, -1)
    assert (rows[..., 5] - 3).abs().max() < 1e-5
    assert (rows[..., 0] - rows[:, :1, 0]).abs().max() < 1e-5 and (rows[:, 0, 0].diff() > 0).all()


def test_an_image_size_that_the_patches_do_not_divide(tmp_path):
    assert "patch_size 7 must divide image_size 36" in refusal(
        write_folder(tmp_path, CLIPS), image_size=36)


def test_open_clips_positions_are_ours(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from open_clip.model import resize_pos_embed

    model = miniclip.load(write_folder(tmp_path, CLIPS))[0]
    state = {"visual.positional_embedding": model.vision.positions.detach().clone()}
    theirs = open_clip.model.CLIP(20, {"image_size": 70, "patch_size": 7, "width": 128,
                                       "layers": 1, "head_width": 64}, {"layers": 1})
    resize_pos_embed(state, theirs)
    ours = pretrained.at_size(model, 70).vision.positions
    assert (ours - state["visual.positional_embedding"]).abs().max() < 1e-6


def test_every_model_traces_and_exports_with_any_number_of_images(tmp_path):
    """The example's own number must not be in the graph."""
    model = miniclip.load(write_folder(tmp_path, CLIPS))[0]
    pixels, tokens = inputs(CLIPS)
    batch = torch.export.Dim("batch", min=1, max=64)
    for tower, example in ((model.vision, pixels), (model.text, tokens)):
        traced = torch.jit.trace(tower, example[:2])
        exported = torch.export.export(
            tower, (example[:2],), dynamic_shapes=({0: batch},), strict=False).module()
        for count in (1, 4, 7):
            asked = example[:1].repeat(count, *[1] * (example.ndim - 1))
            for found in (traced, exported):
                assert (found(asked) - tower(asked)).abs().max() < 1e-5


# ------------------------------------------------------------------------------- texts


def test_merges_beside_the_file_then_in_the_environment(tmp_path, monkeypatch):
    file = write_folder(tmp_path / "me", ODD)
    merges = tmp_path / "me/merges.txt"
    found = merges.read_text("utf-8")
    merges.unlink()
    assert "the tokenizer of these 600 tokens is not beside the weights: put its merges.txt or " \
        "tokenizer.json there, or name the merges in MINICLIP_CLIP_MERGES" in refusal(file)
    monkeypatch.setenv("MINICLIP_CLIP_MERGES", str(tmp_path / "gone"))
    assert "gone, which is no file" in refusal(file)
    (tmp_path / "named").write_text(found, "utf-8")
    monkeypatch.setenv("MINICLIP_CLIP_MERGES", str(tmp_path / "named"))
    assert miniclip.load(file)[1].vocab_size == ODD.vocab_size
    (tmp_path / "named").write_text("#version: 0.2\n! !\n")
    assert "named holds 1 merges, which make 515 tokens, but the weights have 600" in refusal(file)
    merges.write_text(found, "utf-8")  # what lies beside the file comes first
    assert miniclip.load(file)[1].vocab_size == ODD.vocab_size
    merges.write_text("#version: 0.2\nno merge at all\n")
    assert "merge 1 is 'no merge at all'" in refusal(file)


def test_merges_within_transformers_tokenizer(tmp_path):
    """transformers 5 writes no merges.txt; in tokenizer.json a merge is one text, or two."""
    file = write_folder(tmp_path, ODD)
    expected = miniclip.load(file)[1]
    merges = (tmp_path / "merges.txt").read_text("utf-8").splitlines()[1:]
    (tmp_path / "merges.txt").unlink()
    for form in (merges, [merge.split() for merge in merges]):
        (tmp_path / "tokenizer.json").write_text(json.dumps(
            {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": form}}))
        found = miniclip.load(file)[1]
        assert found.symbols == expected.symbols
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    assert "tokenizer.json holds no merges of a BPE tokenizer" in refusal(file)


def test_clips_merges_from_a_package_or_the_hub(tmp_path, hub_cache, monkeypatch, capsys):
    shape = replace(CLIPS, vocab_size=49408, context_length=77)
    file = write_folder(tmp_path / "me", shape)
    merges = (tmp_path / "me/merges.txt")
    content = merges.read_bytes()
    merges.unlink()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # nothing is installed
    monkeypatch.setattr("miniclip.weights.merges.CLIP_REPOSITORY", "me/clip")
    assert "needs CLIP's merges: put merges.txt, as the Hub has it in me/clip, beside it" in (
        message := refusal(file)) and "the Hub does not answer" in message
    with serve({"merges.txt": content}, monkeypatch):
        assert miniclip.load(file)[1].vocab_size == 49408
    assert "fetching CLIP's merges" in capsys.readouterr().err
    assert miniclip.load(file)[1].vocab_size == 49408  # now they are cached
    monkeypatch.undo()
    (tmp_path / "open_clip").mkdir()
    (tmp_path / "open_clip/__init__.py").write_text("raise AssertionError('imported')")
    (tmp_path / "open_clip/bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(content))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.delenv("MINICLIP_CLIP_MERGES", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert miniclip.load(file)[1].vocab_size == 49408


def test_clips_own_tokenizer(tmp_path, monkeypatch):
    """49,408 tokens, 77 to a text; from either file; shorter texts if the weights are of such."""
    shape = replace(CLIPS, vocab_size=49408, context_length=77)
    file = write_folder(tmp_path, shape)
    tokenizer = miniclip.load(file)[1]
    assert tokenizer.vocab_size == 514 + CLIP_MERGES and tokenizer.end_id == 49407
    tokens = tokenizer(["a", "word " * 100])
    assert tokens.shape == (2, 77) and tokens[1, -1] == 49407 and tokens[0, 0] == 49406
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    assert "merges.txt: expected a header line with '#version' and 48,894 merges" in refusal(file)
    short = write_folder(tmp_path / "short", replace(shape, context_length=9))
    assert miniclip.load(short)[1](["word " * 100]).shape == (1, 9)


def test_golden_ids_through_load(tmp_path, monkeypatch):
    """OpenAI's ids, from OpenAI's merges, beside a model of OpenAI's naming."""
    merges = Path(REAL_MERGES)
    golden = merges.parent / "golden.json"
    if not REAL_MERGES or not golden.is_file():
        pytest.skip("CLIP's merges are not here: set MINICLIP_CLIP_MERGES to openai/CLIP's .gz")
    file = write_folder(
        tmp_path, replace(CLIPS, vocab_size=49408, context_length=77), "weights.pt")
    (tmp_path / "merges.txt").unlink()
    monkeypatch.setenv("MINICLIP_CLIP_MERGES", REAL_MERGES)
    by_name = miniclip.load(file)[1]
    monkeypatch.delenv("MINICLIP_CLIP_MERGES")
    (tmp_path / "bpe_simple_vocab_16e6.txt.gz").write_bytes(merges.read_bytes())
    beside = miniclip.load(file)[1]
    golden = json.loads(golden.read_text("utf-8"))
    texts, ids = zip(*(golden.items() if isinstance(golden, dict) else (
        (row["text"], row["ids"]) for row in golden)))
    assert by_name(list(texts)).tolist() == beside(list(texts)).tolist() == list(map(list, ids))


def test_parameters_are_tensors_too(tmp_path):
    """torch.save(dict(model.named_parameters())), of which many a file is made."""
    tensors = hf_tensors(CLIPS)
    parameters = {name: torch.nn.Parameter(t) for name, t in tensors.items()}
    write_folder(tmp_path, CLIPS, config=False, tensors=tensors)
    torch.save(parameters, tmp_path / "pytorch_model.bin")
    models = [miniclip.load(tmp_path / name, quick_gelu=False)[0]
              for name in ("model.safetensors", "pytorch_model.bin")]
    check_same(*(outputs(model, *inputs(CLIPS)) for model in models), 0)


def test_tensors_of_odd_kinds(tmp_path):
    write_merges(tmp_path, 86)
    for odd in (torch.ones((), device="meta"), torch.ones(3).to_sparse()):
        torch.save(hf_tensors(CLIPS) | {"logit_scale": odd}, tmp_path / "a.pt")
        assert "plain floating-point tensors, but not logit_scale" in refusal(tmp_path / "a.pt")


def test_a_folder_of_weights_and_merges(tmp_path):
    """Without settings it is still no run."""
    write_folder(tmp_path, CLIPS, config=False)
    assert miniclip.load(tmp_path, quick_gelu=True)[0].config == replace(CLIPS, quick_gelu=True)


def test_merges_that_are_cut_off(tmp_path):
    write_folder(tmp_path, CLIPS, config=False)
    (tmp_path / "merges.txt").write_bytes(b"\x1f\x8b\x08\x00cut")
    assert "refused" not in refusal(tmp_path)


# ------------------------------------------------------------------------------- the Hub


@pytest.fixture
def hub_cache(tmp_path, monkeypatch) -> Path:
    """An empty cache of the Hub, for one test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def hub_files(folder: Path, file="model.safetensors", config=True) -> dict[str, bytes]:
    write_folder(folder, CLIPS, file, config)
    return {p.name: p.read_bytes() for p in folder.iterdir()} | {"README.md": b"# me"}


def test_a_model_of_the_hub(folder, hub_cache, monkeypatch):
    """Fetched once, with what lies beside it; asked for again, it is not fetched again."""
    files = hub_files(folder) | {"pytorch_model.bin": b"not asked for", "tf_model.h5": b""}
    with serve(files, monkeypatch) as asked:
        model, tokenizer, transform = miniclip.load("me/clip")
        assert model.config == CLIPS and transform.size == 35 and tokenizer.vocab_size == 600
        fetched = [path.rpartition("/")[2] for path in asked if path.startswith("GET /me")]
        assert sorted(fetched) == ["config.json", "merges.txt", "model.safetensors"]
        assert fetched[-1] == "model.safetensors"  # whose presence tells that all the rest is there
        asked.clear()
        again = miniclip.load("me/clip", quick_gelu=False)[0]
        assert again.config == replace(CLIPS, quick_gelu=False)
        assert not [path for path in asked if path.startswith("GET /me")]
    pixels, tokens = inputs(CLIPS)
    offline = miniclip.load("me/clip")[0]  # the endpoint is the closed port of conftest.py again
    check_same(outputs(offline, pixels, tokens), outputs(model, pixels, tokens), 0)


@pytest.mark.parametrize("names, chosen", [
    (["pytorch_model.bin", "open_clip_model.safetensors"], "pytorch_model.bin"),
    (["open_clip_pytorch_model.bin", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
    (["open_clip_pytorch_model.bin"], "open_clip_pytorch_model.bin")])
def test_which_file_of_the_hub(folder, hub_cache, monkeypatch, names, chosen):
    writers = WRITERS | {"open_clip_pytorch_model.bin": write_openai}
    monkeypatch.setattr(sys.modules[__name__], "WRITERS", writers)
    files = hub_files(folder, chosen)
    with serve(dict.fromkeys(names, b"") | files, monkeypatch) as asked:
        assert miniclip.load("me/clip")[0].config == CLIPS
        assert sum(path.startswith("GET /me") for path in asked) == 3


@pytest.mark.parametrize("files, broken, source, kind, words", [
    ({"a.txt": b""}, (), "me/clip", ValueError,
     "me/clip on the Hub holds none of model.safetensors, .*; found: a.txt"),
    ({"model.safetensors.index.json": b""}, (), "me/clip", ValueError, "is no index of weights in"),
    ({"model.safetensors": b"short"}, (), "me/clip", ValueError, "me/clip: damaged"),
    ({}, (), "me/other", ValueError, "me/other: no such run folder or weights file here, and no "
     "public model of that name on the Hub"),
    ({}, ("clip",), "me/clip", HubUnreachable, "me/clip: .*the Hub does not answer: .*503"),
    ({"model.safetensors": b""}, ("model.safetensors",), "me/clip", HubUnreachable,
     "me/clip on the Hub: .*403"),
])
def test_a_hub_that_has_it_not(hub_cache, monkeypatch, files, broken, source, kind, words):
    with serve(files, monkeypatch, broken), pytest.raises(kind, match=words) as error:
        miniclip.load(source)
    assert "\n" not in str(error.value)


def test_what_is_cached_is_not_asked_for(folder, hub_cache, monkeypatch):
    """So a Hub, or a proxy before it, that refuses costs nothing; nor does one that is slow."""
    files = hub_files(folder)
    with serve(files, monkeypatch):
        miniclip.load("me/clip")
    with serve(files, monkeypatch, broken=files) as asked:
        assert miniclip.load("me/clip")[0].config == CLIPS
        assert not asked


def test_a_hub_id_may_end_like_a_file(hub_cache):
    with pytest.raises(HubUnreachable, match="me/robin: .*the Hub does not answer"):
        miniclip.load("me/robin")
    with pytest.raises(ValueError, match=r"me/robin\.bin: no such run folder or weights file, and"):
        miniclip.load("me/robin.bin")


def test_a_refused_connection_is_one_line(hub_cache):
    """The endpoint of every test is a closed port of this machine; see conftest.py."""
    for source in ("openai/clip-vit-base-patch32", "runs/forgotten"):
        with pytest.raises(HubUnreachable, match=f"^{source}: no such run folder or weights file "
                           "here, and the Hub does not answer: .*refused") as error:
            miniclip.load(source)
        assert "\n" not in str(error.value)
