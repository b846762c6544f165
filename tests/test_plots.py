"""Tests of miniclip/plots.py: every picture twice, byte for byte, and runs with little to show."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from small_models import drawn, write_photograph

from miniclip import plots
from miniclip.config import TINY
from miniclip.data import sources
from miniclip.data.pairs import Pairs, load_pairs
from miniclip.data.sources import Source
from miniclip.model import CLIP
from miniclip.tokenizer import Tokenizer

SMALL = replace(TINY, image_size=32, vision_width=24, text_width=24, embed_dim=16, vision_heads=2,
                text_heads=2, vision_layers=1, stem=(8,), vocab_size=600, context_length=16)


@pytest.fixture(scope="module")
def pairs() -> Pairs:
    """Generated scenes; the name tells the zero-shot sheet what they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "SHAPES_SPLITS", {"validation": (20, 2)})
        return load_pairs(Source.find("shapes"), "validation", SMALL.image_size)


@pytest.fixture(scope="module")
def tokenizer(pairs) -> Tokenizer:
    return Tokenizer.train(pairs.flat_captions()[0], SMALL.vocab_size, SMALL.context_length)


@pytest.fixture(scope="module")
def model(tokenizer) -> CLIP:
    config = replace(SMALL, vocab_size=tokenizer.vocab_size)
    return CLIP(config).init_weights(torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def figures(monkeypatch):
    """Every figure drawn in the test, kept open so that it can be looked at."""
    drawn, save = [], plots.save

    def keep(figure, path):
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return drawn


def twice(tmp_path, draw) -> bytes:
    """Draw to two files; the same bytes each time, a picture inside, and no figure left open."""
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    first, second = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 600 and image.height > 250 and not image.info.get("Software")
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[:3] == 255).all(), "white paper"
    assert pixels.std() > 5, "an empty picture"
    assert not plt.get_fignums()
    return first


def row(step, *, loss=None, recall=None):
    if loss is not None:
        return {"step": step, "loss": loss, "scale": 14.3, "accuracy": 0.1, "learning_rate": 1e-3}
    ways = {way: {"R@1": recall / 4, "R@5": recall / 2, "R@10": recall, "median_rank": 40.0}
            for way in ("image_to_text", "text_to_image")}
    return {"step": step, **ways, "images": 100, "captions": 500}


def matrix(step, n=8, seed=0):
    cosines = np.random.default_rng((seed, step)).uniform(-0.2, 0.6, (n, n)).round(4)
    return {"step": step, "cosines": cosines.tolist()}


def lines(axis):
    return [list(map(list, line.get_data())) for line in axis.get_lines()]


def words(figure):
    """Everything written in a figure."""
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def test_curves_show_loss_recall_and_guessing(tmp_path, figures):
    rows = [row(0, recall=10.0), *(row(s, loss=5 - s / 10) for s in (10, 20)), row(20, recall=30.0)]
    first = twice(tmp_path, lambda path: plots.training_curves(rows, 64, 100, path))
    left, right = figures[0].axes
    loss, guess = lines(left)
    assert loss == [[10, 20], [4, 3]] and guess[1] == [math.log(64)] * 2
    assert any("ln 64" in text for text in words(figures[0]))
    image_to_text, text_to_image, chance = lines(right)
    assert image_to_text == text_to_image == [[0, 20], [10, 30]]
    assert chance[1] == [10, 10]  # of 100 images, 10 found by chance: 10 %
    other = twice(tmp_path, lambda path: plots.training_curves(rows[:-1], 64, 100, path))
    assert other != first


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["svg", "pdf", "jpg", "webp", "tiff"])
def test_other_kinds_of_files_have_the_same_bytes_twice(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    for name in "ab":
        plots.training_curves([row(0, recall=1.0)], 2, 5, tmp_path / f"{name}.{kind}")
        monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()


def test_chance_is_no_more_than_everything(tmp_path, figures):
    plots.training_curves([row(0, recall=90.0)], 2, 5, tmp_path / "curves.png")
    assert lines(figures[0].axes[1])[-1][1] == [100, 100]


@pytest.mark.slow
def test_a_notebook_keeps_its_pictures():
    """Whoever imports miniclip after choosing how figures are shown has chosen."""
    code = ("import matplotlib; matplotlib.use('svg'); import miniclip, miniclip.cli; "
            "print(matplotlib.get_backend())")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "svg"


@pytest.mark.parametrize("rows", [
    [], [row(0, recall=1.0)], [row(10, loss=4.0)], [row(0, recall=0.0), row(10, loss=0.0)]])
def test_curves_of_a_run_that_has_hardly_begun(tmp_path, rows):
    plots.training_curves(rows, 2, 1, tmp_path / "curves.png")
    assert not plt.get_fignums()


def test_similarity_before_during_and_after(tmp_path, figures):
    rows = [matrix(step) for step in (0, 50, 100, 150, 200)]
    rows[-1]["cosines"] = np.eye(8).tolist()
    twice(tmp_path, lambda path: plots.similarity_matrices(rows, path))
    axes = figures[0].axes[:3]
    for axis, step in zip(axes, (0, 100, 200), strict=True):
        assert f"step {step}" in axis.get_title()
        shown = axis.images[0].get_array()
        np.testing.assert_array_equal(shown, rows[step // 50]["cosines"])
    assert "own 1.00, others 0.00" in axes[2].get_title()
    first = np.array(rows[0]["cosines"])
    assert f"own {np.diag(first).mean():.2f}" in axes[0].get_title()
    assert f"others {first[~np.eye(8, dtype=bool)].mean():.2f}" in axes[0].get_title()


@pytest.mark.parametrize("steps", [[0], [0, 10]])
def test_similarity_of_few_evaluations(tmp_path, steps):
    twice(tmp_path, lambda path: plots.similarity_matrices([matrix(s, 2) for s in steps], path))


def framed(axis) -> bool:
    return any(spine.get_visible() and spine.get_edgecolor() == plt.matplotlib.colors.to_rgba(
        plots.GREEN) for spine in axis.spines.values())


@pytest.mark.slow
def test_the_retrieval_sheet_frames_what_is_right(tmp_path, figures, model, tokenizer, pairs):
    twice(tmp_path, lambda path: plots.retrieval_sheet(model, tokenizer, pairs, path))
    images = plots.embed_images(model, pairs.images)
    axes = np.array(figures[0].axes[:plots.QUERIES * (plots.FOUND + 1)]).reshape(plots.QUERIES, -1)
    seen = 0
    for k, (query, *thumbnails) in enumerate(axes):
        owner = k * len(pairs) // plots.QUERIES
        scores = (plots.embed_texts(model, tokenizer, [pairs.captions[owner][0]]) @ images.T)[0]
        best = scores.argsort(descending=True).tolist()
        written = query.texts[0].get_text()
        assert pairs.captions[owner][0] in " ".join(written.split())
        assert f"(rank {best.index(owner) + 1})" in written
        for axis, i in zip(thumbnails, best, strict=False):
            np.testing.assert_array_equal(axis.images[0].get_array(), pairs.images[i])
            assert framed(axis) == (i == owner)
            seen += i == owner
    assert seen > 0


def test_the_zero_shot_sheet_of_scenes(tmp_path, figures, model, tokenizer, pairs):
    """Six held-out combinations, each among all 100, the right one in green if it is shown."""
    twice(tmp_path, lambda path: plots.zero_shot_sheet(model, tokenizer, pairs, path))
    assert len(figures[0].axes) == 12 and any("100 classes" in text for text in words(figures[0]))
    for axis in figures[0].axes[1::2]:
        shares = [bar.get_width() for bar in axis.patches]
        assert len(shares) == 4 and shares == sorted(shares, reverse=True) and sum(shares) < 1
        assert len(axis.texts) == 4 and all("%" in text.get_text() for text in axis.texts)


def test_the_zero_shot_sheet_of_photographs(tmp_path, figures, model, tokenizer, pairs):
    """No label is known: everyday classes, and no green."""
    photographs = replace(pairs, name="photos:validation")
    plots.zero_shot_sheet(model, tokenizer, photographs, tmp_path / "sheet.png")
    assert any(f"{len(plots.EVERYDAY)} classes" in text for text in words(figures[0]))
    named = [text.get_text() for axis in figures[0].axes[1::2] for text in axis.texts]
    assert all(text.rsplit(" ", 1)[0] in plots.EVERYDAY for text in named)
    for axis, i in zip(figures[0].axes[::2], range(6), strict=True):
        image = pairs.images[i * len(pairs) // 6]
        np.testing.assert_array_equal(axis.images[0].get_array(), image)


def test_captions_that_look_like_formulas(tmp_path, figures, model, tokenizer, pairs):
    """Matplotlib would read $…$ as mathematics, and stop at what is none."""
    hard = ["$\\frac$", "a_b^{c $x$", "100 % & <b>", "x" * 200, "a dog", "…"]
    few = Pairs(pairs.images[:6], [[text] for text in hard], "photos:validation", "")
    plots.retrieval_sheet(model, tokenizer, few, tmp_path / "sheet.png")
    assert any("$\\frac$" in text for text in words(figures[0]))


@pytest.mark.slow
def test_fewer_images_than_the_sheets_have_room_for(tmp_path, model, tokenizer, pairs):
    few = Pairs(pairs.images[:1], pairs.captions[:1], "photos:validation", "")
    plots.retrieval_sheet(model, tokenizer, few, tmp_path / "retrieval.png")
    plots.zero_shot_sheet(model, tokenizer, few, tmp_path / "zero_shot.png")
    assert not plt.get_fignums()


def test_a_run_gets_its_four_pictures(tmp_path, monkeypatch, model, tokenizer, pairs):
    for name, rows in (("metrics", [row(0, recall=1.0), row(10, loss=2.0)]),
                       ("similarity", [matrix(0), matrix(10)])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    called = []
    for name in ("retrieval_sheet", "zero_shot_sheet"):  # drawn above; here only their places
        monkeypatch.setattr(plots, name, lambda *arguments, name=name: called.append(
            (name, arguments[-1].name, arguments[-2] is pairs)))
    plots.draw_run(tmp_path, model, tokenizer, pairs, 32)
    assert called == [("retrieval_sheet", "retrieval.png", True),
                      ("zero_shot_sheet", "zero_shot.png", True)]
    assert (tmp_path / "curves.png").stat().st_size > 5000
    assert (tmp_path / "similarity.png").stat().st_size > 5000


def test_scenes_sheet(tmp_path, figures):
    twice(tmp_path, plots.scenes_sheet)
    thumbnails = [axis for axis in figures[0].axes if axis.images]
    assert len(thumbnails) > len(plots.scenes.STYLES)
    images, captions, _ = plots.scenes.generate(3, 4)
    for axis, image, texts in zip(thumbnails, images, captions, strict=False):
        np.testing.assert_array_equal(axis.images[0].get_array(), image)
        assert " ".join(axis.get_xlabel().split()) in texts


# ------------------------------------------------------------------------------- labels


def test_the_confusion_picture(tmp_path, monkeypatch):
    counts = torch.tensor([[3, 1, 0], [0, 0, 0], [2, 0, 2]])
    figure = drawn(monkeypatch, lambda: plots.confusion_picture(
        counts, ["a $", "b", "c"], tmp_path / "c.png"))
    axis = figure.axes[0]
    np.testing.assert_allclose(
        axis.images[0].get_array(), [[0.75, 0.25, 0], [0, 0, 0], [0.5, 0, 0.5]])
    for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["a $", "b", "c"]
    assert axis.get_ylabel() == "truth" and axis.get_xlabel() == "said"
    many = drawn(monkeypatch, lambda: plots.confusion_picture(
        torch.eye(300).long(), [str(i) for i in range(300)], tmp_path / "many.png"))
    assert not many.axes[0].get_xticklabels() and max(many.get_size_inches()) < 14


@pytest.mark.parametrize("count, labels", [(1, 1), (3, 2), (2, 9)])
def test_the_sheet_of_classified_images(tmp_path, monkeypatch, count, labels):
    paths = [tmp_path / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        write_photograph(path, i)
    chances = torch.rand(count, labels, generator=torch.Generator().manual_seed(0)).softmax(1)
    names = [f"label {i} $" for i in range(labels)]
    figure = drawn(monkeypatch, lambda: plots.classified_sheet(
        paths, names, chances, tmp_path / "sheet.png"))
    for i, (picture, bars) in enumerate(zip(figure.axes[::2], figure.axes[1::2], strict=True)):
        np.testing.assert_array_equal(picture.images[0].get_array(), Image.open(paths[i]))
        best = chances[i].sort(descending=True).values[:4].tolist()
        assert [bar.get_width() for bar in bars.patches] == pytest.approx(best)
        top = int(chances[i].argmax())
        assert bars.texts[0].get_text() == f"label {top} $ {chances[i, top]:.0%}"
    assert not plt.get_fignums()
