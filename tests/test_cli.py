"""What a person types: settings reach the run; bad input gets one clear line and exit code 2."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from PIL import Image
from small_data import write_images

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
from miniclip.data import sources
from miniclip.model import CLIP
from miniclip.tasks import search
from miniclip.tokenizer import Tokenizer
from miniclip.weights import checkpoint

SMALL = replace(TINY, vision_width=32, text_width=32, embed_dim=16, vision_heads=2, text_heads=2,
                vision_layers=1, stem=(32,), vocab_size=600, context_length=16)


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
    """The one line that a refused command prints, after what is said of the data."""
    assert main([str(a) for a in arguments]) == 2
    out, err = capsys.readouterr()
    told, last = [*err.splitlines()[:-1]], err.splitlines()[-1]
    assert out == "" and last.startswith(f"miniclip {arguments[0]}: ")
    assert all(re.match("shapes, |shapes:validation has fewer|[0-9,]+ of [0-9,]+ images are never",
                        line) for line in told)
    return last


def test_eval_prints_the_promised_json(run, capsys):
    assert main(["eval", str(run), "--data", "shapes", "--split", "validation", "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert set(metrics) == {"image_to_text", "text_to_image", "images", "captions",
                            "different_captions"}
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
    (["--data", "some/set"], "some/set on the Hub is out of reach (ConnectError: [Errno 111] "),
    (["--data", "shapes", "--limit", "-1"], "limit is -1; it must be 0 (all) or a number of im"),
    (["--data", "shapes", "--limit", "9" * 23], "it must be 0 (all) or a number of images"),
])
def test_eval_refuses_bad_data(run, capsys, arguments, message):
    assert message in refused(capsys, "eval", run, *arguments)


@pytest.mark.parametrize("arguments, message", [
    (["--steps", "0"], "at least 1"),
    (["--batch-size", "1"], "at least 2"),
    (["--batch-size", "4096"], "set --batch-size 40 or less"),
    (["--crop", "0"], "(0, 1]"),
    (["--learning-rate", "nan"], "learning_rate is nan; it must be from 0 to 1"),
    (["--learning-rate", "inf"], "learning_rate is inf; it must be from 0 to 1"),
    (["--weight-decay", "1e300"], "it must be from 0 to 100"),
    (["--seed", "9" * 23], "it must be at least 0, below 2**63"),
    (["--context-length", "9" * 23], "it must be from 3 to 16384"),
    (["--vision-layers", "9" * 19], "it must be from 0 to 1,000"),
    (["--image-size", "100000"], "it must be from 1 to 16384"),
    (["--stem", "8,100000"], "channels are from 1 to 16384"),
    (["--clip-norm", "0"], "clip_norm is 0.0; it must be positive"),
    (["--clip-norm", "nan"], "clip_norm is nan; it must be positive"),
    (["--seed", "-1"], "seed is -1; it must be at least 0, below 2**63"),
    (["--stem", "8,0"], "stem is (8, 0); channels are from 1 to 16384"),
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


def test_a_run_that_can_not_begin_moves_no_older_one(run, capsys):
    save_config(TrainConfig(), run / "train.json")
    refused(capsys, "train", "--run", run, "--data", "/no/such/folder")
    refused(capsys, "train", "--run", run, "--data", "shapes", "--batch-size", "4096")
    assert (run / "model.safetensors").is_file() and not run.with_name("run.1").exists()


@pytest.mark.parametrize("name", ["photographs", "script.py", "."])
def test_what_is_no_run_is_left_where_it_is(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs/1.jpg").write_text("mine")
    (tmp_path / "script.py").write_text("mine")
    error = refused(capsys, "train", "--run", name, "--data", "shapes", "--batch-size", "16")
    assert "is there already, and is no run; name another --run" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photographs", "script.py"]
    assert (tmp_path / "photographs/1.jpg").read_text() == "mine"


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


def test_an_older_run_is_set_aside(tmp_path, capsys):
    folder = tmp_path / "run"
    for number in (1, 2):
        checkpoint.make_folder(folder)
        (folder / "train.json").write_text(str(number))
        checkpoint.make_folder(folder)
        assert not any(folder.iterdir())
        assert (tmp_path / f"run.{number}/train.json").read_text() == str(number)
        assert f"run was there already; it is now {folder}.{number}\n" in capsys.readouterr().err


@pytest.mark.slow
def test_loading_a_model_loads_no_compiler(run):
    """torch._dynamo takes half a second, and came with the way PyTorch fills an embedding."""
    code = ("import sys, miniclip.cli; miniclip.load(sys.argv[1]); "
            "sys.exit('torch._dynamo' in sys.modules)")
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error(run, tmp_path):
    """`| head` closes the pipe; a terminal without █ shows another sign."""
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    command = [sys.executable, "-m", "miniclip.cli", "classify", str(tmp_path / "a.png"),
               "--model", str(run), "--labels", "dog,cat"]
    nobody, end = os.pipe()
    os.close(nobody)
    done = subprocess.run(command, stdout=end, stderr=subprocess.PIPE, text=True)
    os.close(end)
    assert (done.returncode, done.stderr) == (141, "")
    done = subprocess.run(command, capture_output=True, text=True,
                          env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and "???" in done.stdout and "dog" in done.stdout


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


# ------------------------------------------------------------------------------- one's own images


@pytest.fixture
def photographs(folder, cache):
    """Five photographs, each of a colour; a cache of its own."""
    write_images(folder, range(5))
    return folder


def printed(capsys, *arguments) -> str:
    """What a command prints that must succeed."""
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def test_classify_prints_a_table(run, photographs, capsys, tmp_path):
    Image.new("RGB", (1, 1)).save(photographs / "pixel.png")
    out = printed(capsys, "classify", photographs / "0.jpg", photographs / "pixel.png", "--model",
                  run, "--labels", "dog, cat,French bulldog,,dog", "--plot", tmp_path / "c.png")
    lines = out.splitlines()
    assert len(lines) == 8 and lines[0].endswith("0.jpg") and lines[4].endswith("pixel.png")
    shares = [float(line.split(" %")[0]) for line in lines[1:4]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.2)
    assert {line.rsplit("  ")[-1] for line in lines[1:4]} == {"dog", "cat", "French bulldog"}
    assert Image.open(tmp_path / "c.png").width > 300


def test_classify_prints_json(run, photographs, capsys, tmp_path):
    (tmp_path / "labels.txt").write_text("".join(f"thing {i}\n" for i in range(10_000)))
    ask = ("classify", photographs / "0.jpg", "--model", run, "--template", "a {}", "--labels")
    (told,) = json.loads(printed(capsys, *ask, f"@{tmp_path}/labels.txt", "--json"))
    assert told["image"] == str(photographs / "0.jpg") and len(told["probabilities"]) == 10_000
    assert sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert len(printed(capsys, *ask, f"@{tmp_path}/labels.txt").splitlines()) == 11  # the best ten
    one = printed(capsys, *ask, "dog,cat", "--template", "{}!", "--json")
    assert one != printed(capsys, *ask, "dog,cat", "--json")  # a template can be given again


@pytest.mark.parametrize("arguments, message", [
    (["none.jpg", "--labels", "dog"], "none.jpg is no image that can be opened: no such file"),
    (["0.jpg", "text.jpg", "--labels", "dog"], "text.jpg is no image that can be opened"),
    (["0.jpg", "--labels", " , "], "give at least one label"),
    (["0.jpg", "--labels", "@none.txt"], "No such file or directory: 'none.txt'"),
    (["0.jpg", "--labels", "@text.jpg"], "give at least one label"),
    (["0.jpg", "--labels", "dog", "--template", "a photo"], "has no {}, where the label goes"),
    (["0.jpg", "--labels", "dog", "--quick-gelu", "true"], "leave out quick_gelu"),
])
def test_classify_refuses(run, photographs, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(photographs)
    (photographs / "text.jpg").write_text("")
    before = sorted(photographs.iterdir())
    assert message in refused(capsys, "classify", *arguments, "--model", run)
    assert sorted(photographs.iterdir()) == before


def test_index_and_search(run, photographs, capsys, monkeypatch):
    (photographs / "text.jpg").write_text("no picture")
    out = printed(capsys, "index", photographs, "--model", run)
    index = photographs.resolve() / ".miniclip"
    assert out.splitlines() == [
        f"5 photographs in {index}: 5 embedded now, 0 moved, 0 removed",
        "  left out, unreadable: text.jpg"]
    assert json.loads(printed(capsys, "index", photographs, "--json")) == {
        "index": str(index), "photographs": 5, "embedded": 0, "moved": 0, "removed": 0,
        "unreadable": [["text.jpg", "unreadable"]]}
    found = json.loads(printed(capsys, "search", "a red dog", "-k", 3, "--json"))
    assert len(found) == 3 and not (index / "search.png").exists()
    assert found == [{"score": score, "path": path} for score, path in search.search(
        "a red dog", k=3)]
    assert main(["search", "a red dog", "-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"  {row['score']:.3f}  {row['path']}" for row in found]
    assert err.splitlines() == [f"contact sheet: {index / 'search.png'}"]
    assert Image.open(index / "search.png").width > 300
    monkeypatch.chdir(photographs)
    out = printed(capsys, "search", "--image", "3.jpg", "-k", 1, "--json", "--sheet", "my.png")
    (row,) = json.loads(out)
    assert row["path"] == str(photographs.resolve() / "3.jpg") and row["score"] > 0.99
    assert (photographs / "my.png").is_file()


def test_a_name_that_is_no_text_is_printed(run, folder, cache, capsys):
    path = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    try:
        Image.new("RGB", (9, 9)).save(path)
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    printed(capsys, "index", folder, "--model", run)
    assert "caf\N{REPLACEMENT CHARACTER}.png" in printed(capsys, "search", "a dog")
    (row,) = json.loads(printed(capsys, "search", "a dog", "--json"))
    assert row["path"] == str(folder.resolve() / os.fsdecode(b"caf\xe9.png"))


@pytest.mark.parametrize("arguments, message", [
    (["index", "none"], "none: no such folder"),
    (["index", "0.jpg"], "0.jpg: no such folder"),
    (["index", "empty"], "empty holds no images"),
    (["index", "."], "the Hub does not answer"),  # of the default model
    (["index", ".", "--model", "none"], "none: no such run folder"),
    (["index", ".", "--model", "cut"], "damaged"),
    (["index", ".", "--model", "RUN", "--out", "0.jpg"], "File exists"),
    (["index", ".", "--model", "RUN", "--out", "0.jpg/x"], "Not a directory"),
    (["search", "a dog"], "holds no index; `miniclip index FOLDER` makes one"),
    (["search", "a dog", "--index", "none"], "none holds no index"),
    (["search"], "give a sentence or an image"),
    (["search", "a dog", "-k", "0"], "k is 0; it must be at least 1"),
])
def test_index_and_search_refuse(run, photographs, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(photographs)
    (photographs / "empty").mkdir()
    cut = run.parent / "cut"
    cut.mkdir()
    for file in run.iterdir():
        (cut / file.name).write_bytes(file.read_bytes()[:-100 * (file.suffix == ".safetensors")
                                                        or None])
    paths = {"RUN": str(run), "cut": str(cut)}
    before = sorted(photographs.rglob("*"))
    assert message in refused(capsys, *[paths.get(a, a) for a in arguments])
    assert sorted(photographs.rglob("*")) == before  # nothing half-made is left


def test_a_folder_that_can_not_be_written_to(run, photographs, capsys, monkeypatch):
    """Also for root, who may write everywhere: the system call itself refuses."""
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    error = refused(capsys, "index", photographs, "--model", run)
    assert "Permission denied" in error and ".miniclip" in error
    assert len(list(photographs.iterdir())) == 5


def test_a_sheet_that_can_not_be_written_costs_no_answer(run, photographs, capsys, monkeypatch):
    main(["index", str(photographs), "--model", str(run)])
    capsys.readouterr()

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("miniclip.plots.contact_sheet", refuse)
    ask = ["search", "a dog", "--index", str(photographs)]
    assert main(ask) == 0
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 5 and "No space left on device" in told.err
    assert main([*ask, "--sheet", "s.png"]) == 2  # that one was asked for


def test_a_plot_that_can_not_be_written_costs_no_figures(run, photographs, capsys, folder):
    ask = ["classify", f"{photographs}/0.jpg", "--labels", "dog", "--model", str(run)]
    assert main([*ask, "--plot", f"{folder}/none/c.png"]) == 2
    told = capsys.readouterr()
    assert "100.0 %" in told.out and told.err == (
        f"miniclip classify: {folder}/none is no folder: nothing can be written there\n")


def test_errors_of_the_libraries_below_are_one_line(monkeypatch, capsys, run, tmp_path):
    """A full disk, a loop of links, a home that is not there: they are no ValueError or OSError."""
    from safetensors import SafetensorError
    for error in (RuntimeError("enforce fail\nat line 3"), SafetensorError("os error 28")):
        def fail(*arguments, error=error):
            raise error
        monkeypatch.setattr("miniclip.cli.export", fail)
        assert refused(capsys, "export", run, "--format", "hf")
    (tmp_path / "loop").symlink_to("loop")
    assert "loop" in refused(capsys, "index", tmp_path / "loop")
    assert "home" in refused(capsys, "index", "~nobody-of-that-name/photographs").lower()


def test_ctrl_c_elsewhere(monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("miniclip.cli.search", stop)
    assert main(["search", "a dog"]) == 130
    assert capsys.readouterr().err.strip() == "stopped"


def test_labels_with_a_byte_order_mark(run, photographs, capsys, tmp_path):
    ask = ["classify", photographs / "0.jpg", "--model", run, "--labels", f"@{tmp_path}/l.txt"]
    (tmp_path / "l.txt").write_text("dog\ncat\n", "utf-8-sig")
    assert {line.split()[-1] for line in printed(capsys, *ask).splitlines()[1:]} == {"dog", "cat"}
    (tmp_path / "l.txt").write_text("dog\ncat\n", "utf-16")
    assert "l.txt is not UTF-8 text" in refused(capsys, *ask)


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys, folder):
    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("miniclip.cli.index", stop)
    assert main(["index", str(folder)]) == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_eval_zero_shot(run, folder, capsys, tmp_path):
    for name, numbers in (("dog", range(3)), ("snow_leopard", range(3, 8)), ("cat", [9])):
        write_images(folder / name, numbers)
    (folder / "cat/text.jpg").write_text("no picture")
    (tmp_path / "names.json").write_text('{"dog": "hound"}')
    ask = ("eval", run, "--zero-shot", "--data", folder, "--names", tmp_path / "names.json")
    told = json.loads(printed(capsys, *ask, "--json", "--plot", tmp_path / "confusion.png"))
    assert set(told) == {"top1", "top5", "images", "unreadable", "classes"}
    assert {row["name"]: row["images"] for row in told["classes"]} == {
        "cat": 1, "hound": 3, "snow leopard": 5}
    assert (told["images"], told["unreadable"], told["top5"]) == (9, 1, 100)
    assert Image.open(tmp_path / "confusion.png").width > 300
    out = printed(capsys, *ask)
    assert "snow leopard" in out and "all 3 classes" in out and "1 images can't be opened" in out
    assert f"{told['top1']:.1f}" in out and "33.3" in out  # and chance
    few = json.loads(printed(capsys, *ask, "--json", "--limit", 4, "--template", "a {}"))
    assert few["images"] + few["unreadable"] == 4


@pytest.mark.parametrize("arguments, message", [
    (["--zero-shot", "--data", "."], "needs one folder of images for each class; found none"),
    (["--zero-shot", "--data", "no/such"], "no/such on the Hub is out of reach (ConnectError"),
    (["--zero-shot", "--data", "no such"], "no such folder"),
    (["--zero-shot", "--data", "shapes", "--names", "none.json"], "No such file"),
    (["--zero-shot", "--data", "shapes", "--names", "list.json"], 'the form {"folder": "class'),
    (["--zero-shot", "--data", "shapes", "--names", "text.json"], "text.json must be JSON of"),
    (["--zero-shot", "--data", "shapes", "--limit", "-1"], "must be 0 (all) or a number of images"),
    (["--zero-shot", "--data", "shapes", "--template", "a"], "has no {}"),
    (["--data", "shapes", "--plot", "c.png"], "--plot and --template belong to --zero-shot"),
    (["--data", "shapes", "--template", "a {}"], "--template belong to --zero-shot"),
    (["--zero-shot", "--data", "shapes", "--split", "x"], "have no splits"),
])
def test_eval_zero_shot_refuses(run, folder, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "list.json").write_text('{"dog": 3}')
    (folder / "text.json").write_text("dog: hound")
    assert message in refused(capsys, "eval", run, *arguments)


def test_export_is_called(monkeypatch, capsys, run):
    asked = []
    monkeypatch.setattr("miniclip.cli.export", lambda *arguments: asked.append(
        arguments) or arguments[1])
    assert printed(capsys, "export", f"{run}/", "--format", "openai") == f"{run}-openai.pt\n"
    assert printed(capsys, "export", run, "--format", "hf") == f"{run}-hf\n"
    assert printed(capsys, "export", run, "--format", "open_clip", "--out", "there") == "there\n"
    assert asked == [(f"{run}/", f"{run}-openai.pt", "openai"), (str(run), f"{run}-hf", "hf"),
                     (str(run), "there", "open_clip")]


def test_export_refuses_what_others_can_not_express(capsys, run, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert "unlike models of hf" in refused(capsys, "export", run, "--format", "hf")
    assert "no such run folder" in refused(capsys, "export", tmp_path / "none", "--format", "hf")
    assert sorted(tmp_path.iterdir()) == before
