"""The lecture's table on six small sets of exactly the Hub's form, its answers computed again."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_data import encoded, noise, picture
from small_models import write_run
from small_shards import serving, write_set

import miniclip
from miniclip.cli import main
from miniclip.data.images import decode
from miniclip.tasks.robustness import (
    OBJECTNET,
    SHIFTS,
    both_right,
    effective_robustness,
    fitted_line,
    logit,
    outputs_of,
    supervised_scores,
)
from miniclip.weights.supervised import load_classifier

IMAGENET = [f"thing {i}" for i in range(1000)]
SOME = {"ImageNet-R": [3, 500, 7], "ImageNet-A": [999, 0]}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("resnet") / "net"
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1],
                                       layer_type="basic", num_labels=1000)
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).eval()
    # The random network gives one class to all; its own noise as a threshold makes it vary.
    with torch.no_grad():
        model.classifier[1].weight.mul_(30)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.875, "resample": 3,
        "size": {"shortest_edge": 224}}))
    return str(folder)


def write_sets(root):
    """All six, with 1,000, 113 or a few classes, a broken image in each."""
    rng = np.random.default_rng(0)
    for number, shift in enumerate(SHIFTS):
        names = [IMAGENET[i] for i in SOME.get(shift.name, range(1000))]
        if shift.name == "ObjectNet":
            names = [f"object {i}" for i in range(113)]
        samples = [(encoded(picture(10 * number + i, 300, 260), "WEBP"),
                    int(rng.integers(len(names)))) for i in range(6)]
        samples.append((encoded(noise(250, 240), "WEBP"), 1))
        samples.insert(3, (b"broken", 0))
        write_set(root / shift.data, names, [samples[:5], samples[5:]],
                  ["a photo of a {c}.", "the {c}"])
    return root


def by_hand(loaded, classifier, root, shift):
    """One image at a time, in float64 where it matters → the two accuracies, in percent."""
    from miniclip.data.labelled import labelled_images

    model, tokenizer, transform = loaded
    rows, names, templates = labelled_images(str(root / shift.data))
    with torch.no_grad():
        vectors = []
        for name in names:
            texts = [model.encode_text(tokenizer([text.replace("{}", name)]))[0].double()
                     for text in templates]
            vectors.append(sum(text / text.norm() for text in texts))
        vectors = torch.stack([vector / vector.norm() for vector in vectors])
        clip, supervised = [], []
        for image, label in rows:
            ours, _ = decode(image, transform.size)
            if ours is None:
                continue
            feature = model.encode_image(miniclip.data.images.normalize(ours[None]))[0].double()
            clip.append(int((vectors @ feature).argmax()) == label)
            theirs, _ = decode(image, 224, classifier.resize)
            logits = classifier.logits(theirs[None])[0]
            if shift.name == "ObjectNet":
                groups = OBJECTNET
            else:
                groups = [[i] for i in SOME.get(shift.name, range(1000))]
            best = max(range(len(groups)), key=lambda c: max(logits[i] for i in groups[c]))
            supervised.append(best == label)
    return 100 * np.mean(clip), 100 * np.mean(supervised)


@pytest.mark.slow
def test_the_table_from_a_server_and_from_a_folder(tmp_path, monkeypatch, capsys, resnet):
    root = write_sets(tmp_path / "hub")
    run = write_run(tmp_path / "run")
    loaded = miniclip.load(run)
    classifier = load_classifier(resnet, torch.device("cpu"))
    with serving(root, monkeypatch):
        assert main(["robustness", str(run), "--supervised", resnet, "--json",
                     "--plot", str(tmp_path / "bars.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["set"] for row in told["sets"]] == [shift.name for shift in SHIFTS]
    for row, shift in zip(told["sets"], SHIFTS):
        assert (row["images"], row["unreadable"]) == (7, 1)
        clip, supervised = by_hand(loaded, classifier, root, shift)
        assert row["clip"]["accuracy"] == pytest.approx(clip, abs=0.01)
        assert row["supervised"]["accuracy"] == pytest.approx(supervised, abs=0.01)
        low, high = row["clip"]["interval"]
        assert low <= row["clip"]["accuracy"] <= high
        assert row["published_clip"] == shift.published
    assert {row["classes"] for row in told["sets"]} == {1000, 113, 3, 2}
    assert (tmp_path / "bars.png").stat().st_size > 5000
    assert main(["robustness", str(run), "--supervised", resnet, "--json",
                 "--sets", str(root / "clip-benchmark")]) == 0
    again = json.loads(capsys.readouterr().out)
    assert [row["clip"] for row in again["sets"]] == [row["clip"] for row in told["sets"]]


def test_a_table_for_eyes_and_without_an_opponent(tmp_path, capsys):
    root = write_sets(tmp_path / "hub")
    run = write_run(tmp_path / "run")
    for shift in SHIFTS[3:]:
        (root / shift.data).rename(tmp_path / shift.data.split("/")[1])
    ask = ["robustness", str(run), "--supervised", "none", "--sets", str(root / "clip-benchmark")]
    assert main([*ask, "--limit", "4"]) == 0
    out = capsys.readouterr().out
    assert "ImageNet-V2" in out and "ObjectNet" not in out and "70.74" in out
    assert "76.2 / 76.2" in out and "supervised: none" in out


def test_a_set_that_breaks_off_takes_no_other_with_it(tmp_path, capsys):
    root = write_sets(tmp_path / "hub")
    for shard in (root / SHIFTS[2].data).rglob("*.tar"):
        shard.unlink()
    command = ["robustness", str(write_run(tmp_path / "run")), "--supervised", "none", "--json",
               "--sets", str(root / "clip-benchmark"), "--plot", str(tmp_path / "bars.png")]
    assert main(command) == 2
    out, err = capsys.readouterr()
    assert [row["set"] for row in json.loads(out)["sets"]] == ["ImageNet", "ImageNet-V2"]
    assert (tmp_path / "bars.png").exists() and ".tar" in err.strip().splitlines()[-1]


@pytest.mark.parametrize("change, message", [
    (["--sets", "nowhere"], "nowhere has no wds_imagenet1k/"),
    (["--limit", "-3"], "it must be 0 (all) or a number of images"),
    (["--supervised", "no/such"], "the Hub does not answer"),
    ([], "timm"),
])
def test_what_is_refused(tmp_path, capsys, monkeypatch, change, message):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert main(["robustness", str(write_run(tmp_path / "run")), *change]) == 2
    err = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in err and err.startswith("miniclip robustness: ")


def test_the_hub_out_of_reach(tmp_path, capsys):
    assert main(["robustness", str(write_run(tmp_path / "run")), "--supervised", "none"]) == 2
    assert "clip-benchmark/wds_imagenet1k on the Hub is out of reach" in capsys.readouterr().err


# ------------------------------------------------------------------------------- the mapping


def test_objectnet_is_complete_and_no_output_stands_for_two():
    flat = [number for group in OBJECTNET for number in group]
    assert len(OBJECTNET) == 113 and len(flat) == len(set(flat)) and max(flat) < 1000
    assert OBJECTNET[0] == (409, 530)  # alarm clock: analog clock, digital clock
    assert OBJECTNET[2] == (954,)  # banana


def test_outputs_by_name():
    imagenet = ["tench", "Crane", "missile", "crane", "missile"]
    assert outputs_of(["Missile", "tench"], imagenet, "x") == [(2, 4), (0,)]
    assert outputs_of(["crane"], imagenet, "x") == [(1, 3)]
    assert outputs_of(imagenet, imagenet, "x") == [(0,), (1,), (2,), (3,), (4,)]
    with pytest.raises(ValueError, match="ImageNet has no class 'sofa'.*--supervised none"):
        outputs_of(["tench", "sofa"], imagenet, "some/set")


def test_a_class_has_the_largest_of_its_outputs():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, -1.0]])
    assert supervised_scores(logits, [(0, 2), (3,)]).tolist() == [[1, 2], [5, -1]]


def test_a_broken_network_ranks_nothing_first(loaded):
    class Nan:
        size = 16

        def resize(self, image, size):
            return np.asarray(image.resize((size, size)))

        def logits(self, images):
            return F.pad(torch.full((len(images), 999), torch.nan), (0, 1))

    from miniclip.data.labelled import LabelledSet

    rows = [(encoded(picture(1)), 0)]
    with pytest.raises(ValueError, match="NaN"):
        both_right(loaded, Nan(), LabelledSet(iter(rows), ["a", "b"], None), iter(rows),
                   [(0,), (1,)])
    with pytest.raises(ValueError, match="none of the 1 images can be opened"):
        both_right(loaded, None, LabelledSet(iter([]), ["a"], None), iter([(b"", 0)]), None)


def test_a_line_through_points_on_a_line():
    """logit y = 0.8 logit x − 1.2."""
    x = np.array([0.2, 0.4, 0.6, 0.9])
    y = 1 / (1 + np.exp(1.2 - 0.8 * np.log(x / (1 - x))))
    line = fitted_line(x, y, images=(1000, 1000))
    assert line[:2] == pytest.approx((0.8, -1.2))
    assert np.allclose(effective_robustness(x, y, line), 0)
    assert np.allclose(effective_robustness(x, y + 0.1, line), 0.1)


def test_none_and_all_right_are_half_an_image_away_from_infinity():
    assert logit([0.0, 1.0], 10).tolist() == pytest.approx([np.log(0.05 / 0.95), np.log(19)])
    line = fitted_line([0.0, 0.5, 1.0], [0.0, 0.5, 1.0], (10, 1000))
    assert line.slope == pytest.approx(np.log(1999) / np.log(19)), "each axis by its own count"
    assert line(0.5) == pytest.approx(0.5)


def test_models_that_are_equal_in_domain_have_a_level_line():
    line = fitted_line([0.5, 0.5], [0.2, 0.2], (100, 100))
    assert line(0.1) == line(0.9) == pytest.approx(0.2)


@pytest.mark.parametrize("arguments, message", [
    ([], "name a model, or --data shapes"),
    (["--data", "shapes", "a/b"], "trains its own models; leave out a/b"),
    (["--data", "elsewhere"], "name a model, or --data shapes"),
    (["a/b", "--data", "x/y", "--sets", "z"], "belong to the lecture's table"),
    (["a/b", "--data", "x/y", "--limit", "5"], "belong to the lecture's table"),
    (["a/b", "--seeds", "3"], "belong to --data"), (["a/b", "--sweep"], "belong to --data"),
    (["--data", "shapes", "--quick-gelu", "true"], "--quick-gelu belongs to a model"),
    (["--data", "shapes", "--seeds", "0"], "seeds is 0; it must be from 1"),
    (["--data", "shapes", "--steps", "19"], "steps is 19; it must be 20 or more"),
    (["--data", "shapes", "--sweep", "--plot", "x.png"], "leave out --seeds and --plot"),
    (["--data", "shapes", "--sweep", "--seeds", "2"], "leave out --seeds and --plot"),
    (["nowhere", "--data", "shapes/none"], "nowhere is no run of `miniclip train`")])
def test_options_that_do_not_go_together(capsys, arguments, message):
    assert main(["robustness", *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
