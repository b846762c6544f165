"""The generated scenes: the same for the same seed, true to their captions, and visible."""

import re
import time
from itertools import combinations, product

import numpy as np
import pytest

from miniclip.data import scenes
from miniclip.data.drawing import BACKGROUNDS, PAINT, SHAPES, TEXTURES, THINGS
from miniclip.data.scenes import COLOURS, HELD_OUT, STYLES, Object, Scene

# Written here once more: the tests read captions as a person would, not as the code does.
GROUNDS = {
    "on a white background": "white", "on a black background": "black",
    "on a grey background": "grey", "on grass": "grass", "in the sky": "sky", "on sand": "sand",
    "on a street": "street", "on a striped blanket": "blanket",
}  # fmt: skip
PLACES = {
    "in the top left corner": lambda o: o.x < 0.4 and o.y < 0.4,
    "in the top right corner": lambda o: o.x > 0.6 and o.y < 0.4,
    "in the bottom left corner": lambda o: o.x < 0.4 and o.y > 0.6,
    "in the bottom right corner": lambda o: o.x > 0.6 and o.y > 0.6,
    "at the top": lambda o: o.y < 0.4, "at the bottom": lambda o: o.y > 0.6,
    "on the left": lambda o: o.x < 0.4, "on the right": lambda o: o.x > 0.6,
    "in the middle": lambda o: abs(o.x - 0.5) < 0.1 and abs(o.y - 0.5) < 0.1,
}  # fmt: skip
MARGIN = 0.4  # of the picture's side, between the centres


def _left(a, b):
    return b.x - a.x > MARGIN and abs(a.y - b.y) < 0.2


def _above(a, b):
    return b.y - a.y > MARGIN and abs(a.x - b.x) < 0.2


RELATIONS = {
    "left of": _left, "to the left of": _left, "above": _above, "over": _above,
    "right of": lambda a, b: _left(b, a), "to the right of": lambda a, b: _left(b, a),
    "below": lambda a, b: _above(b, a), "under": lambda a, b: _above(b, a),
    "beside": lambda a, b: _left(a, b) or _left(b, a),
    "next to": lambda a, b: _left(a, b) or _left(b, a), "and": lambda a, b: True,
}  # fmt: skip


def one_of(words):
    return "(" + "|".join(sorted(words, key=len, reverse=True)) + ")"


NOUN = (r"\b(an?) (?:(small|large) )?(?:(striped|dotted|checked) )?"
        rf"(?:{one_of(PAINT)}( and white)? )?"
        rf"{one_of([*SHAPES, *THINGS, 'dog'])}\b")  # fmt: skip
SENTENCE = (rf"(?:a photo of |a drawing of |a picture of |(?:{one_of(PLACES)} )?there is )?X"
            rf"(?: {one_of(RELATIONS)} X)?(?: {one_of(PLACES)})?"
            rf"(?: {one_of(GROUNDS)})?")  # fmt: skip


def names(noun, item):
    """Whether a phrase as ("a", "small", "striped", "red", "", "circle") is true of an object."""
    article, size, texture, colour, white, kind = noun
    first_word = size or texture or colour or kind
    assert article == ("an" if first_word[0] in "aeiou" else "a"), noun
    return (
        (not size or size == item.size)
        and (not texture or texture == item.texture)
        and (not colour or colour == item.colour)
        and (not colour or bool(white) == (item.kind == "Brittany"))
        and (kind == item.kind or (kind == "dog" and item.kind in ("French bulldog", "Brittany")))
    )


def is_true(caption, scene):
    """Whether a caption is a sentence of the small grammar above, and true of the scene."""
    nouns = [m.groups("") for m in re.finditer(NOUN, caption)]
    sentence = re.fullmatch(SENTENCE, re.sub(NOUN, "X", caption))
    assert sentence, f"no sentence: {caption!r}"
    before, relation, after, ground = sentence.groups()
    if ground and GROUNDS[ground] != scene.background:
        return False
    if len(nouns) != len(scene.objects):
        return False
    if relation is None:
        where = before or after
        return names(nouns[0], scene.objects[0]) and (not where or PLACES[where](scene.objects[0]))
    return any(
        names(nouns[0], a) and names(nouns[1], b) and RELATIONS[relation](a, b)
        for a, b in (scene.objects, scene.objects[::-1])
    )


def seen(scene, seed=0, style="plain"):
    """How far each pixel is from the same background without the objects: (64, 64)."""
    empty = Scene((), None, scene.background)
    with_objects = scenes.render(scene, np.random.default_rng(seed), style).astype(float)
    without = scenes.render(empty, np.random.default_rng(seed), style)
    return np.linalg.norm(with_objects - without, axis=2)


@pytest.fixture(scope="module")
def data():
    return scenes.generate(1500, 3)


@pytest.fixture(scope="module")
def drawn():
    return [scenes.sample_scene(np.random.default_rng((4, i))) for i in range(5000)]


# --- one seed, one data set


def test_the_same_seed_gives_the_same_data_however_many_are_asked_for():
    few, many, other = scenes.generate(5, 1), scenes.generate(20, 1), scenes.generate(5, 2)
    np.testing.assert_array_equal(few[0], many[0][:5])
    assert few[1] == many[1][:5] and few[2] == many[2][:5]
    assert few[1] != other[1] and (few[0] != other[0]).any()
    assert few[0].shape == (5, 64, 64, 3) and few[0].dtype == np.uint8


def test_test_sets_do_not_depend_on_their_size():
    few, many = scenes.held_out_set(2, 1)[0], scenes.held_out_set(3, 1)[0]
    np.testing.assert_array_equal(few.reshape(20, 2, -1), many.reshape(20, 3, -1)[:, :2])
    all_things, cats = scenes.thing_set(2, 1), scenes.thing_set(2, 1, things=("cat",))
    np.testing.assert_array_equal(all_things[0][all_things[1] == THINGS.index("cat")], cats[0])
    assert scenes.relation_set(3, 1)[1] == scenes.relation_set(9, 1)[1][:3]
    assert not np.array_equal(few, scenes.held_out_set(2, 2)[0])


def test_the_global_generator_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    first = scenes.generate(5, 1)
    np.testing.assert_array_equal(before, np.random.get_state()[1])
    np.random.seed(1)
    np.testing.assert_array_equal(first[0], scenes.generate(5, 1)[0])


def test_nothing_asked_for_is_nothing():
    assert scenes.generate(0, 1)[0].shape == (0, 64, 64, 3)
    assert scenes.held_out_set(0, 1)[0].shape == (0, 64, 64, 3)
    assert scenes.relation_set(0, 1)[1] == []


# --- what is held out


def test_a_fifth_is_held_out_and_each_colour_and_shape_lacks_two():
    assert len(COLOURS) == len(SHAPES) == 10 and len(set(HELD_OUT)) == 20
    for name, column in [*((c, 0) for c in COLOURS), *((s, 1) for s in SHAPES)]:
        assert sum(pair[column] == name for pair in HELD_OUT) == 2, name


def test_training_never_shows_a_held_out_combination_but_every_other(drawn):
    seen_pairs = {(o.colour, o.kind) for s in drawn for o in s.objects if o.kind in SHAPES}
    assert seen_pairs == set(product(COLOURS, SHAPES)) - set(HELD_OUT)
    for i in range(500):
        scene = scenes.sample_scene(np.random.default_rng((5, i)), split="validation")
        assert not {(o.colour, o.kind) for o in scene.objects} & set(HELD_OUT)


def test_no_training_caption_names_a_held_out_class(data):
    text = "\n".join(caption for row in data[1] for caption in row)
    assert "red square" in text
    assert not [f"{c} {s}" for c, s in HELD_OUT if f"{c} {s}" in text]


def test_the_held_out_split_and_set_show_nothing_else():
    for i in range(200):
        scene = scenes.sample_scene(np.random.default_rng((6, i)), split="held_out")
        assert [(o.colour, o.kind) for o in scene.objects] in [[pair] for pair in HELD_OUT]
    images, labels = scenes.held_out_set(3, 0)
    assert images.shape == (60, 64, 64, 3) and labels.dtype == np.int64
    wanted = sorted(f"{colour} {shape}" for colour, shape in HELD_OUT) * 3
    assert sorted(scenes.class_names()[label] for label in labels) == sorted(wanted)


def test_class_names_are_a_hundred_in_a_fixed_order():
    names_ = scenes.class_names()
    assert len(set(names_)) == 100 and names_[:2] == ["red circle", "red square"]
    assert names_[99] == "black arrow"


def test_training_is_mixed_as_promised(drawn):
    single = sum(s.relation is None and s.objects[0].kind in SHAPES for s in drawn) / 5000
    pair = sum(s.relation is not None and s.objects[0].kind in SHAPES for s in drawn) / 5000
    assert abs(single - 0.70) < 0.03 and abs(pair - 0.16) < 0.03
    things = {o.kind for s in drawn for o in s.objects} - set(SHAPES)
    assert things == set(THINGS)
    assert {s.relation for s in drawn} == {*scenes.RELATIONS, None}
    assert {s.background for s in drawn} == set(BACKGROUNDS)


# --- captions


def test_every_caption_is_true(data):
    for row, scene in zip(data[1], data[2], strict=True):
        for caption in row:
            assert is_true(caption, scene), (caption, scene)


def test_the_truth_test_can_fail():
    circle = Object("circle", "red", "small", "plain", x=0.25, y=0.5)
    star = Object("star", "blue", "", "striped", x=0.75, y=0.5)
    scene = Scene((circle, star), "left of", "grass")
    assert is_true("a red circle left of a striped blue star on grass", scene)
    assert is_true("a blue star to the right of a small red circle", scene)
    for wrong in ("a blue star left of a red circle", "a red star left of a blue circle",
                  "a red circle above a blue star", "a dotted red circle and a blue star",
                  "a large red circle and a blue star", "a red circle",
                  "a red circle and a blue star on sand"):  # fmt: skip
        assert not is_true(wrong, scene), wrong
    assert not is_true("a red circle on the right", Scene((circle,), None, "grass"))
    with pytest.raises(AssertionError):
        is_true("an red circle", Scene((circle,), None, "grass"))
    with pytest.raises(AssertionError):
        is_true("there is  circle", Scene((circle,), None, "grass"))


def test_captions_are_five_and_differ(data):
    assert all(len(row) == 5 for row in data[1])
    assert np.mean([len(set(row)) == 5 for row in data[1]]) > 0.99
    starts = ("a photo of", "a drawing of")
    said = [caption for row in data[1] for caption in row]
    for start in starts:
        assert 0.05 < np.mean([caption.startswith(start) for caption in said]) < 0.4


def test_as_many_captions_as_asked_for_even_where_little_can_be_said():
    scene = Scene((Object("circle", "red", x=0.4, y=0.4),), None, "white")  # no size, no place
    for count in (0, 1, 60):
        assert len(scenes.captions(scene, np.random.default_rng(0), count)) == count


# --- relations


def test_relation_scenes_hold_with_a_margin_and_do_not_overlap(drawn):
    pairs = [s for s in drawn if s.relation is not None]
    for scene in pairs:
        assert RELATIONS[scene.relation](*scene.objects), scene
        assert scene.objects[0] != scene.objects[1]
    for scene in pairs[:300]:
        alone = [seen(Scene((o,), None, scene.background)) > 40 for o in scene.objects]
        assert alone[0].any() and alone[1].any() and not (alone[0] & alone[1]).any(), scene


def test_relation_captions_are_right_in_the_picture_and_false_when_swapped():
    images, right, swapped = scenes.relation_set(150, 7)
    checked = 0
    for image, caption, wrong in zip(images, right, swapped, strict=True):
        (a, word, b), (c, same, d) = (
            re.fullmatch(rf"an? (\w+ \w+) {one_of(RELATIONS)} an? (\w+ \w+)", text).groups()
            for text in (caption, wrong)
        )
        assert (a, word, b) == (d, same, c) and caption != wrong
        colours = [text.split()[0] for text in (a, b)]
        if len(set(colours)) < 2 or {"white", "black"} & set(colours):
            continue  # those two colours also occur in textures and backgrounds
        apart = [np.linalg.norm(image - np.array(PAINT[k], float), axis=2) for k in colours]
        spots = [np.argwhere(far < 40).mean(0)[::-1] / 64 for far in apart]
        a, b = (Object("", "", x=x, y=y) for x, y in spots)
        assert RELATIONS[word](a, b) and not RELATIONS[word](b, a), caption
        checked += 1
    assert checked > 70


# --- pictures


def test_any_two_colours_have_a_background_that_shows_both():
    for a, b in [*combinations(COLOURS, 2), *((c, c) for c in COLOURS)]:
        assert any(scenes.visible(a, g) and scenes.visible(b, g) for g in BACKGROUNDS), (a, b)
    for thing in THINGS:
        for colour in scenes.COATS[thing]:
            thing_scenes = [scenes._scene(np.random.default_rng(i), Object(thing, colour))
                            for i in range(5)]  # fmt: skip
            assert all(scenes.visible(colour, s.background) for s in thing_scenes)


@pytest.mark.parametrize("colour", COLOURS)
def test_every_shape_is_seen_on_every_background_that_it_may_have(colour):
    for shape, ground in product(SHAPES, BACKGROUNDS):
        if scenes.visible(colour, ground):
            far = seen(Scene((Object(shape, colour, "small", radius=0.14),), None, ground))
            assert (far > 75).sum() >= 80, (colour, shape, ground)  # of 4,096 pixels
            assert np.ptp(np.argwhere(far > 75), axis=0).max() >= 12, (colour, shape, ground)


def test_the_visibility_test_can_fail():
    assert not scenes.visible("white", "white") and not scenes.visible("green", "grass")
    white = Scene((Object("circle", "white", "large", radius=0.3),), None, "white")
    assert (seen(white) > 75).sum() == 0


@pytest.mark.parametrize("thing", THINGS)
def test_every_thing_is_seen(thing):
    for colour, ground in product(scenes.COATS[thing], BACKGROUNDS):
        if scenes.visible(colour, ground):
            far = seen(Scene((Object(thing, colour, "small", radius=0.22),), None, ground))
            assert (far > 75).sum() >= 120, (colour, ground)


def test_no_object_leaves_the_picture(drawn):
    for scene in drawn[:400]:
        far = seen(scene) > 60
        assert not far[[0, -1]].any() and not far[:, [0, -1]].any(), scene


@pytest.mark.parametrize("texture", TEXTURES)
def test_the_colour_of_an_object_is_most_of_it(texture):
    for colour, shape in product(COLOURS, SHAPES):
        ground = next(g for g in BACKGROUNDS if scenes.visible(colour, g))
        scene = Scene((Object(shape, colour, "small", texture, radius=0.14),), None, ground)
        pixels = scenes.render(scene, np.random.default_rng(1))[seen(scene, 1) > 75].astype(float)
        far = np.stack([np.linalg.norm(pixels - PAINT[c], axis=1) for c in COLOURS])
        votes = np.bincount(far.argmin(0), minlength=10)
        assert COLOURS[votes.argmax()] == colour, (colour, shape, texture)
        own = np.linalg.norm(pixels - PAINT[colour], axis=1)
        assert texture == "plain" or (own > 50).sum() >= 5, (colour, shape, texture)


# --- styles


def test_styles_keep_the_labels_and_change_the_picture():
    plain, labels = scenes.held_out_set(2, 5)
    for style in STYLES[1:]:
        images, same = scenes.held_out_set(2, 5, style)
        np.testing.assert_array_equal(labels, same)
        assert images.shape == plain.shape and images.dtype == np.uint8
        changed = (np.abs(images.astype(int) - plain).max(-1) > 30).sum((1, 2))
        assert (changed >= 8).all(), (style, changed)


def test_each_style_is_what_it_says():
    star = Object("star", "red", "large", "plain", 0.5, 0.5, 0.3)
    scene = Scene((star,), None, "sand")
    plain, *others = (scenes.render(scene, np.random.default_rng(2), style) for style in STYLES)
    sketch, textured, inverted, cluttered, resampled = others
    on_star = seen(scene, 2) > 75
    outside = np.ones((64, 64), bool)
    outside[10:54, 10:54] = False
    np.testing.assert_array_equal(inverted, 255 - plain)
    np.testing.assert_array_equal(textured[outside], plain[outside])
    assert (textured[on_star] != plain[on_star]).any()
    assert (np.abs(cluttered[outside].astype(int) - plain[outside]).max(-1) > 30).mean() > 0.02
    assert (sketch[32, 32] > 240).all() and (plain[32, 32] != sketch[32, 32]).any()  # hollow
    reds = [(im[..., 0].astype(int) - im[..., 1] > 120).sum() for im in (sketch, plain, resampled)]
    assert 0 < reds[0] < reds[1] / 2 and reds[2] > reds[1] / 2


def test_resampling_moves_the_objects_and_keeps_their_relation():
    images = {"plain": [], "resampled": []}
    a, b = Object("star", "red", x=0.25), Object("ring", "blue", x=0.75)
    for i, style in product(range(5), images):
        image = scenes.render(Scene((a, b), "left of", "white"), np.random.default_rng(i), style)
        red = np.argwhere(np.linalg.norm(image - np.array(PAINT["red"]), axis=2) < 40).mean(0)
        blue = np.argwhere(np.linalg.norm(image - np.array(PAINT["blue"]), axis=2) < 40).mean(0)
        assert red[1] < blue[1]
        images[style].append(red)
    assert np.std(images["plain"], axis=0).max() < 0.5 < np.std(images["resampled"], axis=0).max()


def test_other_sizes():
    scene = Scene((Object("star", "red", radius=0.3),), None, "grass")
    for size in (32, 96, 100):
        image = scenes.render(scene, np.random.default_rng(0), size=size)
        assert image.shape == (size, size, 3)
        assert image[size // 2, size // 2, 0] > 190  # red in the middle


# --- errors and speed


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scenes.generate(-1, 0), "must not be negative"),
        (lambda: scenes.generate(1, -1), "must not be negative"),
        (lambda: scenes.held_out_set(-1, 0), "must not be negative"),
        (lambda: scenes.relation_set(-1, 0), "must not be negative"),
        (lambda: scenes.thing_set(1, 0, things=("unicorn",)), "unknown thing 'unicorn'"),
        (lambda: scenes.held_out_set(1, 0, "oil"), "unknown style 'oil'"),
        (lambda: scenes.sample_scene(np.random.default_rng(0), split="dev"), "unknown split 'dev'"),
        (lambda: scenes.captions(None, np.random.default_rng(0), -1), "must not be negative"),
        (lambda: scenes.render(None, None, size=8), "at least 32"),
    ],
)
def test_errors_are_one_clear_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_speed_is_told():
    start = time.process_time()
    scenes.generate(500, 11)
    print(f"{500 / (time.process_time() - start):.0f} images a second on one core")


@pytest.mark.parametrize("style", STYLES)
def test_masks_are_where_the_objects_are(style):
    """Changing what lies within a mask's object changes only pixels near the mask."""
    for seed in range(8):
        rng = np.random.default_rng((seed, 77))
        scene = scenes.sample_scene(rng)
        picture, masks = scenes.render_masked(scene, np.random.default_rng(seed), style)
        assert masks.shape == (len(scene.objects), 64, 64) and masks.dtype == bool
        assert (masks.sum(0) <= 1).all() and masks.any((1, 2)).all()
        if style == "resampled":
            continue  # the objects lie elsewhere
        for item, mask in zip(scene.objects, masks):
            rows, columns = np.nonzero(mask)
            reach = item.radius * 64 * 1.12 + 1
            assert np.abs(rows - item.y * 64).max() <= reach
            assert np.abs(columns - item.x * 64).max() <= reach
        if style == "plain":  # an empty scene of the same chance shows what the objects hide
            empty = scenes.render(scenes.Scene((), None, scene.background),
                                  np.random.default_rng(seed))
            changed = (picture.astype(int) - empty).__abs__().max(2) > 40
            assert (changed == masks.any(0)).mean() > 0.95


def test_the_picture_is_the_same_with_and_without_masks():
    scene = scenes.sample_scene(np.random.default_rng(5))
    first = scenes.render(scene, np.random.default_rng(6), "textured")
    assert (first == scenes.render_masked(scene, np.random.default_rng(6), "textured")[0]).all()


def test_a_mask_of_a_ring_has_a_hole():
    scene = Scene((Object("ring", "red", radius=0.35),), None, "white")
    _, masks = scenes.render_masked(scene, np.random.default_rng(0))
    assert not masks[0, 32, 32] and masks[0, 32, 32 + 17]
    assert 0.5 < masks[0].sum() / (np.pi * (0.35 * 64) ** 2 * (0.98**2 - 0.55**2)) < 1.1
