"""Styled examples: labels and captions are true of the pictures, and styles change nothing else."""

import numpy as np
import pytest

from miniclip.data import scenes, styled
from miniclip.data.styled import CLASSES, MANY_STYLES, ONE_STYLE, fresh_examples, training_examples


def test_no_class_is_held_out():
    held_out = {f"{colour} {shape}" for colour, shape in scenes.HELD_OUT}
    assert len(CLASSES) == 85 == len(set(CLASSES)) and not held_out & set(CLASSES)
    assert "robot dog" not in CLASSES


def test_captions_say_what_the_label_says():
    examples = training_examples(300, 3, MANY_STYLES)
    for label, captions in zip(examples.labels, examples.captions, strict=True):
        name, text = CLASSES[label], " | ".join(captions)
        if name in styled.KINDS:
            assert any(kind in text for kind in (name, *styled.KINDS[name])), text
        else:
            colour, shape = name.split()
            assert all(shape in caption for caption in captions) and colour in text
        others = {word for word in scenes.SHAPES if word in text.split()} - {name.split()[-1]}
        assert not others
    assert {CLASSES[label] for label in examples.labels} > set(styled.KINDS)


def test_a_robot_dog_has_the_label_dog():
    rng = np.random.default_rng(0)
    kinds = [styled.scene_of("dog", rng).objects[0].kind for _ in range(30)]
    assert {"French bulldog", "Brittany", "robot dog"} == set(kinds)


def test_one_style_never_names_a_style_and_many_do():
    one = training_examples(100, 0, ONE_STYLE)
    many = training_examples(100, 0, MANY_STYLES)
    words = ("sketch", "mosaic")
    assert not [text for captions in one.captions for text in captions for w in words if w in text]
    for word in words:
        share = np.mean([word in captions[0] for captions in many.captions])
        assert 0.15 < share < 0.35
    assert (one.labels == many.labels).all(), "the same objects"


def test_a_styled_caption_leaves_out_what_the_style_changes():
    many = training_examples(200, 1, ("sketch",))
    text = " ".join(t for captions in many.captions for t in captions)
    assert not {"background", "striped", "dotted", "checked", "grass"} & set(text.split())


@pytest.mark.parametrize("style", [s for s in styled.STYLES if s != "plain"])
def test_a_style_changes_the_picture(style):
    plain, other = fresh_examples(1, 5), fresh_examples(1, 5, (style,))
    assert (plain.labels == other.labels).all()
    assert (plain.images != other.images).any(axis=(1, 2, 3)).all()


def test_a_seed_is_a_set():
    assert (fresh_examples(1, 5).images == fresh_examples(1, 5).images).all()
    assert (fresh_examples(1, 5).images != fresh_examples(1, 6).images).any()
    assert (training_examples(5, 2, ONE_STYLE).images
            == training_examples(9, 2, ONE_STYLE).images[:5]).all()


def test_elsewhere_is_upside_down():
    rng = np.random.default_rng(0)
    scene = scenes.Scene((scenes.Object("triangle", "red", radius=0.3),), None, "white")
    plain = styled.draw(scene, rng, "plain").astype(int)
    turned = styled.draw(scene, rng, "elsewhere").astype(int)

    def red_rows(image):
        return ((image[..., 0] > 150) & (image[..., 1:].max(2) < 100)).sum(1)

    assert red_rows(plain)[18:24].sum() < red_rows(plain)[40:46].sum()
    assert red_rows(turned)[18:24].sum() > red_rows(turned)[40:46].sum()


def test_styles_take_turns():
    examples = fresh_examples(2, 5, ("plain", "sketch"), names=("red star", "robot dog"))
    assert examples.labels.tolist() == [0, 0, 1, 1] and examples.names == ("red star", "robot dog")
    white = (examples.images > 240).all(axis=3).mean(axis=(1, 2))
    assert white[1] > 0.7 and white[3] > 0.7
