"""The probe: penalties, shots and worth; planted features; sets of every kind."""

import doctest
import sys

import numpy as np
import pytest
import torch
from small_models import write_photograph

from miniclip.data.drawing import SHAPES
from miniclip.tasks import probe as room
from miniclip.tasks.probe import (
    Split,
    check_classes,
    choose_penalty,
    classifier,
    divided,
    few_shots,
    fit_and_score,
    labelled_splits,
    pick_shots,
    probe_features,
    probe_report,
    worth,
)


def blobs(n, spread, seed, classes=3, dimensions=5):
    """Classes around corners: (features (N, C), labels (N,))."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), n)
    return np.eye(classes, dimensions)[labels] + rng.normal(0, spread, (len(labels), dimensions)
                                                            ), labels


def test_the_examples():
    assert doctest.testmod(room).failed == 0


def test_the_classifier_minimises_what_it_says():
    """The gradient of summed losses + penalty / 2 · |W|² is zero at what scikit-learn finds."""
    features, labels = blobs(20, 0.5, 0)
    penalty = 0.7
    found = classifier(penalty).set_params(tol=1e-8).fit(features, labels)
    weights = torch.tensor(found.coef_, requires_grad=True)
    logits = torch.tensor(features) @ weights.T + torch.tensor(found.intercept_)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels), reduction="sum")
    (loss + penalty / 2 * weights.square().sum()).backward()
    assert weights.grad.abs().max() < 1e-3


def test_the_search_finds_the_peak_and_tries_few(monkeypatch):
    tried = []

    def score(train, validation, penalty):
        tried.append(penalty)
        return np.array(-abs(np.log10(penalty) - 1.3))  # best between two of the first seven

    monkeypatch.setattr(room, "fit_and_score", score)
    assert abs(np.log10(choose_penalty(None, None)) - 1.3) <= 1 / 16 + 1e-9
    assert len(tried) == len(set(tried)) < 20  # of 97 on the whole grid
    monkeypatch.setattr(room, "fit_and_score", lambda *rest: np.array(0.5))
    assert choose_penalty(None, None) == 1e6  # of equals the largest


def test_shots_are_of_every_class():
    labels = np.array([0] * 5 + [1] * 9 + [2] * 3)
    rows = pick_shots(labels, 3, np.random.default_rng(0))
    assert sorted(labels[rows]) == [0] * 3 + [1] * 3 + [2] * 3 and len(set(rows)) == 9


def test_more_shots_are_better_and_repeatable():
    data = {"train": blobs(40, 0.8, 0), "validation": blobs(20, 0.8, 1), "test": blobs(200, 0.8, 2)}
    rows = [few_shots(data, shots, 6) for shots in (1, 16)]
    assert rows[0]["accuracy"] + 5 < rows[1]["accuracy"]
    for row in rows:
        low, high = row["interval"]
        assert 0 <= low < row["accuracy"] < high <= 100
    assert rows[0] == few_shots(data, 1, 6)
    best = fit_and_score(data["train"], data["test"], 1.0)
    assert best.shape == (600,) and 100 * best.mean() > rows[0]["accuracy"]


@pytest.mark.parametrize("zero_shot, expected", [
    (5, 1.0), (10, 1.0), (20, 1.41), (30, 2.0), (40, 2.83), (50, 4.0), (51, None)])
def test_what_a_sentence_is_worth(zero_shot, expected):
    rows = [{"shots": 1, "accuracy": 10}, {"shots": 2, "accuracy": 30},
            {"shots": 4, "accuracy": 50}]
    assert worth(rows, zero_shot) == (expected and pytest.approx(expected, abs=0.01))
    assert worth([], zero_shot) is None


def test_features_are_those_before_the_projection(loaded):
    model = loaded[0]
    size = model.config.image_size
    images = np.random.default_rng(0).integers(0, 256, (7, size, size, 3), np.uint8)
    found = probe_features(model, images, batch_size=3)
    assert found.shape == (7, model.config.vision_width) and found.dtype == np.float64
    with torch.no_grad():
        whole = model.encode_image(room.normalize(images)).double().numpy()
    projection = model.vision.projection.detach().double().numpy()
    np.testing.assert_allclose(found @ projection, whole, atol=1e-4)


@pytest.mark.slow
def test_the_report_on_scenes(loaded):
    splits, names = labelled_splits("shapes", loaded[2].size)
    assert len(names) == 20 and names[0].split()[1] in SHAPES
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 800, "validation": 200, "test": 800}
    small = {name: Split(split.images[::4], split.labels[::4]) for name, split in splits.items()}
    figures = probe_report(loaded, names, small, draws=2)
    assert [row["shots"] for row in figures["shots"]] == [1, 2, 4, 8]  # there are ten of each
    assert figures["classes"] == 20 and figures["images"] == 200
    assert figures["probe"]["examples"] == 250
    assert figures["probe"]["accuracy"] > figures["zero_shot"]["accuracy"]  # it is untrained
    assert figures["worth"] == 1.0


def test_styles_show_other_pictures(loaded):
    plain, _ = labelled_splits("shapes", 64)
    sketch, _ = labelled_splits("shapes", 64, "sketch")
    assert (plain["test"].labels == sketch["test"].labels).all()
    assert (plain["test"].images != sketch["test"].images).any()


def write_set(root, classes=("cat", "dog"), splits=("train", "test"), count=10):
    for s, split in enumerate(splits):
        for c, name in enumerate(classes):
            for i in range(count):
                write_photograph(root / split / name / f"{i}.png", 100 * s + 20 * c + i)
    return str(root)


def test_a_folder_with_splits(folder):
    where = write_set(folder)
    (folder / "test/dog/broken.png").write_text("no picture")
    splits, names = labelled_splits(where, 16)
    assert names == ["cat", "dog"] and splits["test"].images.shape == (20, 16, 16, 3)
    assert np.bincount(splits["train"].labels).tolist() == [8, 8]
    assert np.bincount(splits["validation"].labels).tolist() == [2, 2]  # a fifth of train
    few, _ = labelled_splits(where, 16, limit=12)
    assert len(few["test"].labels) <= 12


def test_a_folder_without_splits(folder):
    where = write_set(folder, splits=("",))
    splits, _ = labelled_splits(where, 16)
    assert sum(len(split.labels) for split in splits.values()) == 20
    assert all(len(np.unique(split.labels)) == 2 for split in splits.values())


def test_a_folder_of_train_and_val_is_tested_on_val(folder):
    splits, _ = labelled_splits(write_set(folder, splits=("train", "val")), 16)
    assert {name: len(split.labels) for name, split in splits.items()} == {
        "train": 16, "test": 20, "validation": 4}


def test_secret_labels_are_refused():
    with pytest.raises(ValueError, match="kept secret"):
        room.read_split(iter([(np.zeros((9, 9, 3), np.uint8), -1)]), 8)


def test_a_part_is_divided_off():
    split = Split(np.arange(50).reshape(50, 1, 1, 1), np.repeat([0, 1], [40, 10]))
    kept, part = divided(split)
    assert np.bincount(part.labels).tolist() == [8, 2]
    assert sorted([*kept.images.flat, *part.images.flat]) == list(range(50))


@pytest.mark.parametrize("splits, classes, arguments, message", [
    (("test",), ("cat", "dog"), {}, "no split 'train' for a probe to be trained on"),
    (("train", "test"), ("cat", "dog"), {"style": "sketch"}, "--style belongs to --data shapes"),
])
def test_sets_that_can_not_be_probed(folder, splits, classes, arguments, message):
    with pytest.raises(ValueError, match=message):
        labelled_splits(write_set(folder, classes, splits, 1), 16, **arguments)


def test_what_else_is_refused(folder):
    with pytest.raises(ValueError, match="unknown style 'oil'; one of plain"):
        labelled_splits("shapes", 16, "oil")
    write_set(folder, ("cat", "dog"), ("train",), 2)
    write_set(folder, ("cat", "fox"), ("test",), 2)
    with pytest.raises(ValueError, match="the splits don't have the same classes"):
        labelled_splits(str(folder), 16)
    split = Split(np.zeros((2, 4, 4, 3), np.uint8), np.array([0, 0]))
    with pytest.raises(ValueError, match="no training image of the class 'dog'"):
        check_classes({"train": split}, ["cat", "dog"])
    with pytest.raises(ValueError, match="at least two classes"):
        check_classes({"train": split}, ["cat"])


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(ValueError, match=r"needs scikit-learn: pip install 'miniclip\[probe\]'"):
        classifier(1.0)
