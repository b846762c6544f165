"""Runs in other projects' formats: opened by them, and back again without a loss."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hard_texts import HARD_TEXTS
from safetensors.torch import load_file
from small_data import smooth
from small_weights import CLIPS, NARROW, ODD, check_same, inputs, openai_tensors, outputs, write_run

import miniclip
from miniclip.config import TINY, ModelConfig
from miniclip.data.images import Transform
from miniclip.tokenizer import clean
from miniclip.weights import export


@pytest.mark.parametrize("quick_gelu", [True, False])
@pytest.mark.parametrize("format", ["open_clip", "hf"])
@pytest.mark.parametrize("shape", [ODD, NARROW], ids=["odd", "narrow"])
def test_there_and_back(tmp_path, shape, format, quick_gelu):
    """Every number, the shape, the GELU and the vocabulary come back as they were."""
    run = write_run(tmp_path / "run", replace(shape, quick_gelu=quick_gelu))
    path = export.export(str(run), str(tmp_path / "to"), format)
    assert path == tmp_path / "to" and sorted(p.name for p in path.iterdir()) == sorted([
        "README.md", "merges.txt", "vocab.json", *(
            ["config.json", "preprocessor_config.json", "tokenizer_config.json",
             "model.safetensors"] if format == "hf" else
            ["open_clip_config.json", "open_clip_model.safetensors", "tokenizer_config.json"])])
    (model, tokenizer, transform), (back, tokens, pixels) = miniclip.load(run), miniclip.load(path)
    assert back.config == model.config and pixels == transform
    for a, b in zip(model.state_dict().items(), back.state_dict().items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    assert torch.equal(tokenizer(["! a dog", "'é"]), tokens(["! a dog", "'é"]))
    vocabulary = json.loads((path / "vocab.json").read_text())
    assert [*vocabulary] == tokenizer.symbols
    assert [*vocabulary.values()] == [*range(len(vocabulary))]


def test_openais_format(tmp_path):
    """A pickle of tensors, by OpenAI's names."""
    run = write_run(tmp_path / "run", CLIPS)
    path = export.export(run, tmp_path / "weights.pt", "openai")
    hf = load_file(export.export(run, tmp_path / "hf", "hf") / "model.safetensors")
    found, expected = torch.load(path, weights_only=True), openai_tensors(hf)
    assert set(found) == set(expected)
    assert all(torch.equal(found[n], t) and found[n].is_contiguous() for n, t in expected.items())
    (tmp_path / "merges.txt").write_bytes((tmp_path / "hf/merges.txt").read_bytes())
    pixels, tokens = inputs(CLIPS)
    check_same(outputs(miniclip.load(path, quick_gelu=True)[0], pixels, tokens),
               outputs(miniclip.load(run)[0], pixels, tokens), 0)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_transformers_opens_what_is_exported(tmp_path, quick_gelu):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    run = write_run(tmp_path / "run", replace(ODD, quick_gelu=quick_gelu))
    path = export.export(str(run), str(tmp_path / "hf"), "hf")
    theirs = transformers.CLIPModel.from_pretrained(path).eval()
    model, tokenizer, _ = miniclip.load(run)
    pixels, _ = inputs(ODD)
    texts = ["! !", "a dog in the snow, far away, and another", "It's"]
    tokens = tokenizer(texts)
    with torch.no_grad():
        expected = {
            "image": theirs.visual_projection(
                theirs.vision_model(pixel_values=pixels).pooler_output),
            "text": theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output),
            "logits": theirs(input_ids=tokens, pixel_values=pixels).logits_per_image}
    check_same(outputs(model, pixels, tokens), expected)
    ids = transformers.CLIPTokenizer.from_pretrained(path)(texts, truncation=True)
    for row, found in zip(tokens, ids["input_ids"], strict=True):
        assert row.tolist()[:len(found)] == found and not row[len(found):].any()
    processor = transformers.models.clip.image_processing_pil_clip.CLIPImageProcessorPil
    image = smooth(50, 41)
    found = processor.from_pretrained(path)(image, return_tensors="pt")["pixel_values"][0]
    torch.testing.assert_close(Transform(ODD.image_size)(image), found, atol=1e-5, rtol=0)


@pytest.mark.parametrize("format", ["openai", "open_clip", "hf"])
def test_the_sigmoids_bias_goes_where_there_is_a_place_for_it(tmp_path, format):
    """open_clip's models have a logit_bias; openai's and transformers' have none."""
    run = write_run(tmp_path / "run", replace(CLIPS, loss="sigmoid"))
    path = export.export(run, tmp_path / "to", format)
    if format == "openai":
        tensors = torch.load(path, weights_only=True)
    else:
        tensors = load_file(next(path.glob("*.safetensors")))
    assert ("logit_bias" in tensors) == (format == "open_clip")
    if format == "open_clip":
        config = json.loads((path / "open_clip_config.json").read_text())
        assert config["model_cfg"]["init_logit_bias"] == -10


def listing(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("changes, format, words", [
    ({"stem": (8,), "patch_size": 14, "image_size": 28}, "hf", "has a stem, mean pooling or no fi"),
    ({"pool": "mean"}, "open_clip", "models of open_clip: onnx can express it; or train with"),
    ({"pre_norm": False}, "openai", "has a stem, mean pooling or no first LayerNorm"),
    ({"quick_gelu": False}, "openai", "QuickGELU and heads of 64.*open_clip and hf can express it"),
    ({"vision_heads": 4}, "openai", "QuickGELU and heads of 64"),
    ({"text_heads": 2}, "openai", "QuickGELU and heads of 64"),
    ({}, "tf", "no format 'tf'; there are openai, open_clip, hf, onnx"),
])
def test_what_a_format_has_no_words_for(tmp_path, changes, format, words):
    run = write_run(tmp_path / "run", replace(CLIPS, **changes))
    before = listing(tmp_path)
    with pytest.raises(ValueError, match=words) as error:
        export.export(str(run), str(tmp_path / "to"), format)
    assert "\n" not in str(error.value) and listing(tmp_path) == before


def test_the_options_that_are_named_make_a_model_that_can_be_exported(tmp_path):
    """`--stem ,` is the empty list of channels."""
    from miniclip.cli import build_parser
    from miniclip.commands.training import chosen

    given = build_parser().parse_args(
        ["train", "--stem", ",", "--pool", "cls", "--pre-norm", "true", "--vocab-size", "600"])
    run = write_run(tmp_path / "run", replace(TINY, **chosen(given, ModelConfig)))
    assert export.export(str(run), str(tmp_path / "to"), "hf").is_dir()


@pytest.mark.parametrize("format", ["openai", "open_clip", "hf"])
def test_nothing_is_overwritten_or_half_written(tmp_path, monkeypatch, format):
    run = write_run(tmp_path / "run", CLIPS)
    for taken in ("file", "folder"):
        (tmp_path / taken).mkdir() if taken == "folder" else (tmp_path / taken).touch()
        with pytest.raises(ValueError, match=f"{taken} is there already; name a new one"):
            export.export(str(run), str(tmp_path / taken), format)
    with pytest.raises(ValueError, match="gone: no such folder to write to"):
        export.export(str(run), str(tmp_path / "gone/to"), format)
    with pytest.raises(ValueError, match="no such run folder"):
        export.export(str(tmp_path / "none"), str(tmp_path / "to"), format)
    before = listing(tmp_path)

    def full(*arguments, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr("miniclip.weights.export.save_file", full)
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="no space left"):
        export.export(str(run), str(tmp_path / "to"), format)
    assert listing(tmp_path) == before


SMALL_TINY = replace(TINY, vision_width=48, text_width=48, embed_dim=32, vision_heads=2,
                     text_heads=2, vision_layers=1, stem=(8, 8), vocab_size=600, context_length=9)


@pytest.mark.parametrize("shape", [CLIPS, replace(SMALL_TINY, loss="sigmoid")],
                         ids=["class token", "stem and mean"])
def test_onnxruntime_gives_the_same(tmp_path, shape):
    """Both towers, any number of images or texts, models that no other format can express."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run = write_run(tmp_path / "run", shape)
    path = export.export(str(run), str(tmp_path / "onnx"), "onnx")
    assert listing(path) == ["README.md", "image.onnx", "preprocessor_config.json", "text.onnx",
                             "tokenizer.json"]
    model, tokenizer, _ = miniclip.load(run)
    pixels, tokens = inputs(shape)
    sessions = {side: runtime.InferenceSession(path / f"{side}.onnx", providers=[
        "CPUExecutionProvider"]) for side in ("image", "text")}
    assert torch.equal(tokenizer("! a dog"), miniclip.Tokenizer.load(path / "tokenizer.json")(
        "! a dog"))
    for count in (1, 4, 7):
        for side, name, x, encode in (("image", "pixels", pixels, model.encode_image),
                                      ("text", "tokens", tokens, model.encode_text)):
            asked = x[:1].repeat(count, *[1] * (x.ndim - 1)) + (
                torch.arange(count).view(-1, *[1] * (x.ndim - 1)) / 7 if side == "image" else 0)
            found, = sessions[side].run([f"{side}_features"], {name: asked.numpy()})
            with torch.no_grad():
                expected = encode(asked, normalize=True)
            assert found.shape == (count, shape.embed_dim)
            assert (torch.from_numpy(found) - expected).abs().max() < 1e-4
    card = (path / "README.md").read_text()
    assert f"multiply it by {model.logit_scale.exp():.4f}" in card
    assert ("and add" in card) == (shape.loss == "sigmoid")


def test_onnx_without_its_packages_is_told(tmp_path, monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    run = write_run(tmp_path / "run", CLIPS)
    with pytest.raises(ValueError, match="two more packages: pip install onnx onnxscript"):
        export.export(str(run), str(tmp_path / "onnx"), "onnx")
    assert not (tmp_path / "onnx").exists()


def test_what_the_card_says_of_texts(tmp_path):
    """transformers mends less than openai/CLIP; mended first, all hard texts get our tokens."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed here")
    run = write_run(tmp_path / "run", replace(ODD, context_length=77))
    path = export.export(str(run), str(tmp_path / "hf"), "hf")
    assert "texts = [clean(text) for text in texts]" in (path / "README.md").read_text()
    tokenizer = miniclip.load(run)[1]
    theirs = transformers.CLIPTokenizer.from_pretrained(path)

    def differ(texts):
        return [text for ours, found, text in zip(
            tokenizer(texts), theirs(texts, truncation=True)["input_ids"], texts, strict=True)
            if ours.tolist()[:len(found)] != found]

    assert differ(HARD_TEXTS), "if none does, the card says too much"
    assert not differ([clean(text) for text in HARD_TEXTS if "<|" not in text and "ſ" not in text])
