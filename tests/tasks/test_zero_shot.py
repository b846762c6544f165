"""Zero-shot classification: a user's images, labels and templates; the report; planted models."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import encoded, flat
from small_models import Stub, gray_images, stub, stub_tokenizer, write_photograph

from miniclip.data import scenes
from miniclip.data.images import Transform, read_image
from miniclip.tasks.zero_shot import (
    TEMPLATES,
    class_vectors,
    classify,
    shapes_report,
    zero_shot,
    zero_shot_report,
)


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


def test_ten_thousand_classes_have_no_confusion(loaded):
    names = [f"thing {i}" for i in range(1001)]
    rows = [(encoded(flat("L", i)), i) for i in range(3)]
    figures, confusion = zero_shot_report(loaded, iter(rows), names, ["{}"])
    assert confusion is None and figures["images"] == 3 and len(figures["classes"]) == 3


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


def test_class_vectors_need_names(loaded):
    model, tokenizer, _ = loaded
    assert class_vectors(model, tokenizer, ["dog"]).shape == (1, 16)
    with pytest.raises(ValueError, match="at least one label"):
        class_vectors(model, tokenizer, [])
    with pytest.raises(ValueError, match="at least one label"):
        class_vectors(model, tokenizer, "dog")  # not d, o and g


# ------------------------------------------------------------------------------- planted models


def test_class_vectors_normalise_average_normalise():
    """Vectors of very different lengths: each template has one vote."""
    model = stub()
    model.texts *= torch.logspace(-2, 2, 200)[:, None]
    found = class_vectors(model, stub_tokenizer, ["3", "4"], ["{}", "1{} of them", "{}0 here"])
    for vector, rows in zip(found, ([3, 13, 30], [4, 14, 40]), strict=True):
        mean = sum(model.texts[row] / model.texts[row].norm() for row in rows) / 3
        torch.testing.assert_close(vector, mean / mean.norm())
    assert len(class_vectors(model, stub_tokenizer, ["5"])) == 1  # with templates of its own


def test_zero_shot_counts_the_nearest_class():
    model = Stub(torch.eye(10), torch.eye(10))
    names = [str(i) for i in range(10)]
    images, labels = gray_images([0, 1, 2, 3, 9, 9, 7]), np.array([0, 1, 2, 3, 9, 8, 0])
    assert zero_shot(model, stub_tokenizer, images, labels, names) == round(100 * 5 / 7, 2)
    assert zero_shot(model, stub_tokenizer, images[:5], labels[:5], names) == 100
    # The order of the names is the numbering of the labels.
    assert zero_shot(model, stub_tokenizer, images[:1], np.array([9]), names[::-1]) == 100


def test_the_report_on_shapes(monkeypatch):
    """Planted: a model that knows every class but those of sketches, and no relation."""
    names = scenes.class_names()
    asked = []

    def held_out_set(per_class, seed, style="plain"):
        asked.append(style)
        labels = np.array([3, 50, 99])
        return gray_images(labels + (style == "sketch"), 64), labels

    def relation_set(n, seed):
        return gray_images([1, 2, 3, 4], 64), ["1", "2", "9", "8"], ["9", "8", "3", "7"]

    monkeypatch.setattr(scenes, "held_out_set", held_out_set)
    monkeypatch.setattr(scenes, "relation_set", relation_set)
    numbers = {f"a {name}": i for i, name in enumerate(names)}
    monkeypatch.setattr(
        "miniclip.tasks.zero_shot.class_vectors",
        lambda model, tokenizer, given: torch.eye(101)[[numbers[f"a {name}"] for name in given]])
    model = Stub(torch.eye(101), torch.eye(101))
    model.config = type("Config", (), {"image_size": 32})
    report = shapes_report(model, stub_tokenizer)
    assert asked == list(scenes.STYLES) == list(report["held_out"])
    assert report["held_out"].pop("sketch") == 0
    assert set(report["held_out"].values()) == {100}
    assert report["relations"] == 50  # right, right, wrong, and a tie, which is wrong too
