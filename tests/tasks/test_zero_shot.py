"""Tests of zero-shot classification on a user's images: evaluate.py's second half, its pictures."""

import copy
import json
import math
import os

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from PIL import Image
from small_data import encoded, flat
from test_evaluate import Stub, gray_images, stub, stub_tokenizer
from test_search import drawn, write_photograph, write_run

import miniclip
from miniclip import evaluate, plots
from miniclip.data import Transform, decode
from miniclip.evaluate import (
    TEMPLATES,
    class_vectors,
    classify,
    embed_images,
    embed_texts,
    labelled_images,
    read_image,
    zero_shot_report,
)


@pytest.fixture(scope="session")
def loaded(tmp_path_factory):
    """(model, tokenizer, transform) of an untrained run."""
    return miniclip.load(write_run(tmp_path_factory.mktemp("classify") / "run"))


def by_hand(loaded, path, labels, templates):
    """Probabilities of one image, in float64, one product at a time."""
    model, tokenizer, transform = loaded
    with torch.no_grad():
        image = model.encode_image(transform(Image.open(path))[None])[0].double()
        image, scores = image / image.norm(), []
        for label in labels:
            vectors = [model.encode_text(tokenizer([text.replace("{}", label)]))[0].double()
                       for text in templates]
            mean = sum(vector / vector.norm() for vector in vectors) / len(vectors)
            scores.append(model.logit_scale.exp().item() * float(image @ mean / mean.norm()))
    powers = [math.exp(score - max(scores)) for score in scores]
    return [power / sum(powers) for power in powers]


# ------------------------------------------------------------------------------- classify


@pytest.mark.parametrize("templates", [TEMPLATES, ("a photo of a {}",), ("{}, {}", "no {}")])
def test_classify_against_the_formula(loaded, folder, templates):
    labels = ["dog", "cat", "French bulldog", "thing with {braces} and 100 %"]
    paths = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        write_photograph(path, i)
    found = classify(paths, labels, loaded, templates)
    assert found.shape == (3, 4) and found.dtype == torch.float32 and not found.requires_grad
    for row, path in zip(found.tolist(), paths, strict=True):
        assert row == pytest.approx(by_hand(loaded, path, labels, templates), abs=1e-5)


def test_classify_takes_one_label_and_ten_thousand(loaded, folder):
    Image.new("RGB", (1, 1), "red").save(folder / "pixel.png")
    assert classify([folder / "pixel.png"], ["dog"], loaded).tolist() == [[1]]
    labels = [f"thing {i}" for i in range(10_000)]
    found = classify([str(folder / "pixel.png")], labels, loaded, ("a {}",))
    assert found.shape == (1, 10_000) and found.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("labels, templates, message", [
    ([], TEMPLATES, "give at least one label, and no empty one"),
    (["dog", " "], TEMPLATES, "give at least one label, and no empty one"),
    (["dog"], ("a {}", "a photo"), "the template 'a photo' has no {}, where the label goes"),
])
def test_what_can_not_be_asked(loaded, folder, labels, templates, message):
    write_photograph(folder / "a.png", 1)
    with pytest.raises(ValueError) as error:
        classify([folder / "a.png"], labels, loaded, templates)
    assert message in str(error.value)


def test_an_image_that_can_not_be_opened(folder):
    (folder / "text.jpg").write_text("no picture")
    for name, why in (("none.jpg", "no such file"), ("text.jpg", "unreadable"),
                      (".", "Is a directory")):
        with pytest.raises(ValueError) as error:
            read_image(folder / name, 8)
        assert str(error.value) == f"{folder / name} is no image that can be opened: {why}"
    flat("RGBA", (10, 20, 30, 0)).save(folder / "a.png")
    assert read_image(str(folder / "a.png"), 8).shape == (8, 8, 3)


def test_a_model_that_diverged_says_nothing(loaded, folder):
    write_photograph(folder / "a.png", 1)
    model, tokenizer, transform = loaded
    broken = copy.deepcopy(model)
    broken.text.projection.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="diverged"):
        classify([folder / "a.png"], ["dog"], (broken, tokenizer, transform))


def test_texts_are_encoded_no_longer_than_they_are(loaded):
    """Without what stands behind the end; the vectors are those of whole rows."""
    model, tokenizer, _ = loaded
    texts = ["dog", "a red dog and a blue cat", "", "cat " * 99]
    lengths = []
    hook = model.text.blocks[0].register_forward_hook(
        lambda block, given, out: lengths.append(out.shape[1]))
    found = embed_texts(model, tokenizer, texts, batch_size=3)
    hook.remove()
    used = (tokenizer(texts).argmax(1) + 1).tolist()
    assert lengths == [max(used[:3]), used[3]] and lengths[0] < model.config.context_length
    with torch.no_grad():
        whole = model.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)


def test_image_vectors_have_length_one_in_bfloat16_too(loaded):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        found = embed_images(loaded[0], images)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(20), rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------- labelled sets


def write_classes(root, counts: dict[str, int]):
    for number, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_photograph(root / name / f"{i}.png", 100 * number + i)


def test_a_folder_for_each_class(folder):
    write_classes(folder, {"dog": 3, "snow_leopard": 4, "cat/2019/deep": 2, ".hidden": 2,
                           "dog/.thumbs": 1, "notes": 0})
    (folder / "dog/._0.png").write_bytes(b"")
    (folder / "dog/list.txt").write_text("no image")
    write_photograph(folder / "loose.png", 5)
    rows, names = labelled_images(str(folder))
    assert names == ["cat", "dog", "snow leopard"]
    rows = [(path.relative_to(folder.resolve()).parts, label) for path, label in rows]
    assert len(rows) == 9 and {(parts[0], label) for parts, label in rows} == {
        ("cat", 0), ("dog", 1), ("snow_leopard", 2)}
    again = labelled_images(str(folder))[0]  # the same order, and not class by class
    assert [path.name for path, _ in again] == [parts[-1] for parts, _ in rows]
    labels = [label for _, label in rows]
    assert labels != sorted(labels)
    _, names = labelled_images(str(folder), None, {"snow_leopard": "big cat", "dog": "hound"})
    assert names == ["cat", "hound", "big cat"]


def test_what_is_no_file_is_no_image(folder):
    write_classes(folder, {"dog": 2})
    os.mkfifo(folder / "dog/waits for ever.jpg")
    assert sorted(path.name for path, _ in labelled_images(str(folder))[0]) == ["0.png", "1.png"]


def test_splits_of_a_folder(folder):
    write_classes(folder, {"val/dog": 2, "val/cat": 1, "train/dog": 4, "train/bird": 1})
    with pytest.raises(ValueError, match="holds splits; choose one with --split: train, val"):
        labelled_images(str(folder))
    rows, names = labelled_images(str(folder), "val")
    assert names == ["cat", "dog"] and sorted(label for _, label in rows) == [0, 1, 1]


@pytest.mark.parametrize("where, renamed, message", [
    ("empty", {}, "needs one folder of images for each class; found none"),
    ("no/such/folder", {}, "no such folder"),
    ("classes", {"dgo": "dog"}, "no class 'dgo' in .*; found: cat, dog"),
    ("classes/dog/0.png", {}, "is a file; name the folder"),
])
def test_a_set_that_is_none(folder, where, renamed, message):
    (folder / "empty").mkdir()
    write_classes(folder / "classes", {"dog": 1, "cat": 1})
    with pytest.raises(ValueError, match=message):
        labelled_images(str(folder / where), None, renamed)


def test_generated_scenes_are_a_labelled_set():
    rows, names = labelled_images("shapes")
    rows = list(rows)
    assert len(names) == 100 and len(rows) > 100
    assert rows[0][0].dtype == np.uint8 and decode(rows[0][0], 32)[0].shape == (32, 32, 3)
    assert len({label for _, label in rows}) == len(rows) / 20  # twenty of each held out


@pytest.fixture
def hub(monkeypatch):
    """A Hub with one small classification set, which is streamed as a real one."""
    def table(labels, features):
        images = [{"bytes": encoded(flat("RGB", (60 * i, 0, 0))), "path": None} for i in range(4)]
        images[2] = {"bytes": b"broken", "path": None}
        return datasets.Dataset.from_dict(
            {"img": images, "fine": labels}, features=features).to_iterable_dataset()

    kinds = datasets.Features({"img": datasets.Image(decode=False),
                               "fine": datasets.ClassLabel(names=["sea_lion", "bee", "fox"])})
    kinds["img"] = datasets.Image()
    there = {"test": table([2, 0, 1, 2], kinds), "train": table([0, 0, 0, 0], kinds)}
    monkeypatch.setattr(evaluate, "check_hub", lambda source: None)
    monkeypatch.setattr(datasets, "load_dataset", lambda where, streaming: (
        there if (where, streaming) == ("some/set", True) else None))
    return there


def test_a_hub_set(hub, loaded):
    rows, names = labelled_images("some/set", None, {"fox": "red fox"})
    assert names == ["sea lion", "bee", "red fox"]
    rows = list(rows)
    assert [label for _, label in rows] == [2, 0, 1, 2]  # test, without being asked
    assert decode(rows[3][0], 8)[0][0, 0].tolist() == [180, 0, 0]
    figures, confusion = zero_shot_report(loaded, labelled_images("some/set", "train")[0], names)
    assert figures["unreadable"] == 1 and figures["images"] == confusion[0].sum() == 3


def test_a_hub_set_without_labels(hub):
    with pytest.raises(ValueError, match="no split 'dev' in some/set; found: test, train"):
        labelled_images("some/set", "dev")
    hub["test"] = hub["test"].cast_column("fine", datasets.Value("int64"))
    with pytest.raises(ValueError, match="needs a column of images and one of class labels; "
                                         "found: img, fine"):
        labelled_images("some/set")


def test_a_hub_set_whose_labels_are_secret(hub, loaded):
    secret = [(row["img"]["bytes"], None) for row in hub["train"].cast_column(
        "img", datasets.Image(decode=False))]
    with pytest.raises(ValueError, match="kept secret"):
        zero_shot_report(loaded, iter(secret), ["a", "b", "c"])


def test_a_hub_that_breaks_off(hub, monkeypatch):
    """Of the libraries below, each has errors of its own."""
    def broken():
        yield {"img": {"bytes": b""}, "fine": 0}
        raise RuntimeError("Dataset scripts are no longer supported")

    monkeypatch.setattr(datasets.IterableDataset, "__iter__", lambda self: broken())
    rows, _ = labelled_images("some/set")
    with pytest.raises(ConnectionError, match="some/set .*RuntimeError: Dataset scripts"):
        list(rows)


def test_a_split_must_be_there(folder):
    for split in ("val", "train"):
        (folder / split / "dog").mkdir(parents=True)
        flat("RGB", (1, 2, 3)).save(folder / split / "dog/1.png")
    with pytest.raises(ValueError, match="no split 'vla' in .*; found: train, val"):
        labelled_images(str(folder), "vla")


def test_ten_thousand_classes_have_no_confusion(loaded):
    names = [f"thing {i}" for i in range(1001)]
    rows = [(encoded(flat("L", i)), i) for i in range(3)]
    figures, confusion = zero_shot_report(loaded, iter(rows), names, ["{}"])
    assert confusion is None and figures["images"] == 3 and len(figures["classes"]) == 3


def test_a_hub_out_of_reach():
    with pytest.raises(ConnectionError):
        labelled_images("some/set")


# ------------------------------------------------------------------------------- the report


def planted(levels, labels):
    """Rows whose image of gray level i is nearest to class i, for a model that looks them up."""
    return iter(zip(gray_images(levels), labels))


def test_the_report_of_a_planted_model():
    """Similarities fall with the distance on a circle of ten, so the nearest five are known."""
    angle = torch.arange(10) * 2 * math.pi / 10
    table = torch.stack([angle.cos(), angle.sin()], 1)
    loaded = (Stub(table, table), stub_tokenizer, Transform(4))
    names = [str(i) for i in range(10)]
    levels, labels = [3, 3, 4, 5, 8, 8, 9], [3, 3, 3, 3, 3, 7, 9]  # 8 is five from 3, one from 7
    figures, confusion = zero_shot_report(loaded, planted(levels, labels), names)
    assert figures["images"] == 7 and figures["unreadable"] == 0
    assert figures["top1"] == round(100 * 3 / 7, 2) and figures["top5"] == round(100 * 6 / 7, 2)
    assert [row["name"] for row in figures["classes"]] == ["3", "7", "9"]
    three, seven, nine = figures["classes"]
    assert (three["images"], three["top1"], three["top5"]) == (5, 40, 80)
    assert (seven["top1"], seven["top5"], seven["mistaken_for"]) == (0, 100, "8")
    assert (nine["top1"], nine["mistaken_for"]) == (100, None)
    assert three["mistaken_for"] in ("4", "5", "8")
    assert confusion.shape == (10, 10) and confusion.sum() == 7
    assert confusion[3].tolist() == [0, 0, 0, 2, 1, 1, 0, 0, 1, 0] and confusion[7, 8] == 1
    assert json.loads(json.dumps(figures)) == figures


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_report_against_brute_force(data):
    count, classes = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 9))
    model = stub(n=classes + 3, m=classes, d=5)
    levels = data.draw(st.lists(st.integers(0, classes + 2), min_size=count, max_size=count))
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count))
    names = [str(i) for i in range(classes)]
    figures, confusion = zero_shot_report(
        (model, stub_tokenizer, Transform(4)), planted(levels, labels), names, ("{}",))
    images, texts = (F.normalize(t.double(), dim=1) for t in (model.images, model.texts))
    ranked = [(images[level] @ texts.T).argsort(descending=True).tolist() for level in levels]
    for k in (1, 5):
        right = [label in row[:k] for label, row in zip(labels, ranked)]
        assert figures[f"top{k}"] == pytest.approx(100 * sum(right) / count, abs=0.01)
        for told in figures["classes"]:
            own = [hit for hit, label in zip(right, labels) if names[label] == told["name"]]
            assert told["images"] == len(own)
            assert told[f"top{k}"] == pytest.approx(100 * sum(own) / len(own), abs=0.01)
    expected = torch.zeros(classes, classes, dtype=torch.long)
    for label, row in zip(labels, ranked):
        expected[label, row[0]] += 1
    assert confusion.equal(expected)


def test_broken_images_and_many_chunks(loaded, folder):
    """Broken ones are counted; more images than one chunk come out in the right classes."""
    pixel = encoded(flat("RGB", (9, 9, 9), 8, 8))
    rows = [(pixel if i % 5 else b"broken", i % 3) for i in range(600)]
    figures, confusion = zero_shot_report(loaded, iter(rows), ["dog", "cat", "bird"])
    assert figures["unreadable"] == 120 and figures["images"] == confusion.sum() == 480
    assert confusion.sum(1).tolist() == [160, 160, 160]
    assert figures["top5"] == 100  # of three classes
    with pytest.raises(ValueError, match="none of the 2 images can be opened"):
        zero_shot_report(loaded, iter([(b"", 0), (None, 1)]), ["dog", "cat"])


def test_labels_that_are_kept_secret(loaded):
    with pytest.raises(ValueError, match="kept secret; choose another --split"):
        zero_shot_report(loaded, iter([(encoded(flat("L", 9)), -1)]), ["dog", "cat"])


# ------------------------------------------------------------------------------- pictures


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


def test_class_vectors_need_names(loaded):
    model, tokenizer, _ = loaded
    assert class_vectors(model, tokenizer, ["dog"]).shape == (1, 16)
    with pytest.raises(ValueError, match="at least one label"):
        class_vectors(model, tokenizer, [])
    with pytest.raises(ValueError, match="at least one label"):
        class_vectors(model, tokenizer, "dog")  # not d, o and g
