"""What a person types: settings reach the run; bad input gets one clear line and exit code 2."""

import json
from dataclasses import fields, replace

import pytest
import torch

from miniclip import checkpoint, sources
from miniclip.cli import build_parser, main
from miniclip.config import (
    MODELS,
    PRESETS,
    TINY,
    ModelConfig,
    TrainConfig,
    load_config,
    save_config,
)
from miniclip.model import CLIP
from miniclip.tokenizer import Tokenizer

SMALL = replace(TINY, vision_width=32, text_width=32, embed_dim=16, vision_heads=2, text_heads=2,
                vision_layers=1, stem=(8,), vocab_size=600, context_length=16)


@pytest.fixture(autouse=True)
def few_scenes(monkeypatch):
    monkeypatch.setattr(sources, "SHAPES_SPLITS", {"train": (40, 1), "validation": (20, 2)})


@pytest.fixture
def run(tmp_path):
    """A run folder as training leaves it, with untrained weights."""
    folder = tmp_path / "run"
    folder.mkdir()
    texts = [f"a {a} {b}" for a in ("red", "green", "blue") for b in ("circle", "square", "dog")]
    tokenizer = Tokenizer.train(texts, SMALL.vocab_size, SMALL.context_length)
    config = replace(SMALL, vocab_size=tokenizer.vocab_size)
    checkpoint.save_weights(
        CLIP(config).init_weights(torch.Generator().manual_seed(0)), folder)
    save_config(config, folder / "config.json")
    tokenizer.save(folder / "tokenizer.json")
    return folder


def refused(capsys, *arguments) -> str:
    """The one line that a refused command prints, after what the cache says of new data."""
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    told, last = [*err.splitlines()[:-1]], err.splitlines()[-1]
    assert out == "" and last.startswith(f"miniclip {arguments[0]}: ")
    assert all(line.startswith("shapes, ") for line in told)
    return last


def test_eval_prints_the_promised_json(run, capsys):
    assert main(["eval", str(run), "--data", "shapes", "--split", "validation", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert set(metrics) == {"image_to_text", "text_to_image", "images", "captions"}
    for way in ("image_to_text", "text_to_image"):
        assert set(metrics[way]) == {"R@1", "R@5", "R@10", "median_rank"}
        assert 0 <= metrics[way]["R@1"] <= metrics[way]["R@5"] <= metrics[way]["R@10"] <= 100
    assert metrics["images"] == 20 and metrics["captions"] == 100


def test_eval_prints_a_table(run, capsys):
    assert main(["eval", str(run), "--data", "shapes"]) == 0
    out = capsys.readouterr().out
    assert "image → text" in out and "chance" in out and "20 images, 100 captions" in out


def test_load_gives_what_the_readme_shows(run):
    from PIL import Image

    import miniclip

    model, tokenizer, transform = miniclip.load(run)
    pixels = transform(Image.new("L", (100, 30)))[None]
    image, text = model.encode_image(pixels), model.encode_text(tokenizer(["a red circle"]))
    assert image.shape == text.shape == (1, 16) and not model.training


@pytest.mark.parametrize("breakage, message", [
    (lambda run: run.rename(run.with_name("gone")), "no such run folder"),
    (lambda run: (run / "config.json").unlink(), "lacks config.json"),
    (lambda run: (run / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    (lambda run: (run / "model.safetensors").unlink(), "lacks model.safetensors"),
    (lambda run: (run / "model.safetensors").write_bytes(b"no weights"), "damaged"),
    (lambda run: (run / "model.safetensors").write_bytes(
        (run / "model.safetensors").read_bytes()[:-100]), "damaged"),
    (lambda run: save_config(MODELS["tiny"], run / "config.json"), "does not fit"),
    (lambda run: (run / "config.json").write_text("{"), "config.json"),
    (lambda run: (run / "config.json").write_text('{"witdh": 3}'), "unknown settings witdh"),
    (lambda run: (run / "config.json").write_text('{"patch_size": "x"}'), "config.json"),
    (lambda run: (run / "tokenizer.json").write_text("[]"), "tokenizer.json"),
])
def test_a_broken_run_is_named(run, capsys, breakage, message):
    breakage(run)
    assert message in refused(capsys, "eval", run, "--data", "shapes")


@pytest.mark.parametrize("arguments, message", [
    (["--data", "/no/such/folder"], "no such folder"),
    (["--data", "no such"], "no such folder"),
    (["--data", "shapes", "--split", "tset"], "found: "),
    (["--data", "shapes", "--limit", "-1"], "limit is -1; it must not be negative"),
])
def test_eval_refuses_bad_data(run, capsys, arguments, message):
    assert message in refused(capsys, "eval", run, *arguments)


@pytest.mark.parametrize("arguments, message", [
    (["--steps", "0"], "at least 1"),
    (["--batch-size", "1"], "at least 2"),
    (["--batch-size", "4096"], "set --batch-size 40 or less"),
    (["--crop", "0"], "(0, 1]"),
    (["--model", "ViT-Q"], "ViT-B/32"),
    (["--image-size", "60"], "patch_size"),
    (["--vision-heads", "7"], "multiple"),
    (["--vocab-size", "100"], "vocab_size"),
    (["--context-length", "2"], "context_length"),
    (["--data", "/no/such/folder"], "no such folder"),
    (["--learning-rate", "-1"], "learning_rate"),
    (["--resume"], "leave out"),
])
def test_train_refuses_bad_settings(tmp_path, capsys, arguments, message):
    error = refused(capsys, "train", "--run", tmp_path / "new", "--data", "shapes", *arguments)
    assert message in error
    assert not (tmp_path / "new").exists()  # nothing half-made is left


def test_resume_needs_a_run(tmp_path, capsys):
    assert "nothing to resume" in refused(
        capsys, "train", "--resume", "--run", tmp_path / "none")


def test_a_number_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as exit:
        main(["train", "--steps", "many"])
    assert exit.value.code == 2 and "--steps" in capsys.readouterr().err


def test_every_setting_has_an_option_and_none_is_written_twice():
    parser = build_parser()
    values = vars(parser.parse_args(["train"]))
    names = [field.name for kind in (TrainConfig, ModelConfig) for field in fields(kind)]
    assert len(names) == len(set(names)) and set(names) <= set(values)
    assert all(values[name] is None for name in names)  # so that the preset decides
    stem = parser.parse_args(["train", "--stem", "8,16", "--pre-norm", "false"])
    assert stem.stem == (8, 16) and stem.pre_norm is False


def test_an_older_run_is_set_aside(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("miniclip.cli.train", lambda *arguments: {"seen": arguments[0].steps})
    folder = tmp_path / "run"
    for number in (1, 2):
        folder.mkdir()
        (folder / "precious").write_text(str(number))
        assert main(["train", "--run", str(folder), "--steps", "7", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {"seen": 7}
        assert (tmp_path / f"run.{number}/precious").read_text() == str(number)


def test_presets_are_whole(tmp_path):
    assert next(iter(PRESETS)) == "flickr8k-5min"
    for config in PRESETS.values():
        save_config(config, tmp_path / "train.json")
        assert load_config(TrainConfig, tmp_path / "train.json") == config
        assert 1e6 < sum(p.numel() for p in meta(config).parameters()) < 2e7
    for config in MODELS.values():
        save_config(config, tmp_path / "config.json")
        assert load_config(ModelConfig, tmp_path / "config.json") == config


def meta(config: TrainConfig) -> CLIP:
    with torch.device("meta"):
        return CLIP(MODELS[config.model])
