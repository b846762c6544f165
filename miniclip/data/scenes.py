"""Generated, captioned scenes: the data set that is always there.

For lessons, tests and machines without a network. Scenes show coloured shapes, pairs of them in a
relation, and a few drawn things, on named backgrounds. Each has several true captions, like the
lecture's "white dog beside a brown cat in a striped blanket" (minute 3:44). A fifth of the colour x
shape combinations never occurs in training (HELD_OUT): zero-shot classification is measured on
these unseen classes. STYLES show the same content under a shift (minute 13:50).

This module decides what is in a scene, what its captions say, and which data sets there are.
`drawing` knows how each thing looks and draws it on the canvas.

All random numbers come from the numpy Generator that a function is given, or from one made for each
image from the seed and the image's number. So image i is the same, however many are asked for.
"""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from PIL import Image

from miniclip.data import drawing
from miniclip.data.drawing import BACKGROUNDS, PAINT, SHAPES, THINGS, between, ground, pick

# fmt: off
COLOURS = tuple(PAINT)[:10]
# Two diagonals of a Latin square: every colour and every shape lacks exactly two partners.
HELD_OUT = tuple((colour, shape) for c, colour in enumerate(COLOURS)
                 for s, shape in enumerate(SHAPES) if (s - c) % 10 in (0, 3))
COATS = {  # kind -> the colours that training shows it in
    **{shape: tuple(c for c in COLOURS if (c, shape) not in HELD_OUT) for shape in SHAPES},
    "French bulldog": ("white", "fawn", "black"), "Brittany": ("orange", "brown"),
    "cat": ("black", "white", "brown", "grey", "orange"), "robot dog": ("grey",),
    "bird": COLOURS, "plane": COLOURS, "car": COLOURS}
PLACES = {  # kind -> its backgrounds; a shape may be on any, the other things as in _scene
    **dict.fromkeys(SHAPES, tuple(BACKGROUNDS)), "bird": ("sky", "white", "grass", "black"),
    "plane": ("sky", "white", "grey", "black"), "car": ("street", "white", "sand", "black")}
RELATIONS = {  # name -> (its opposite, the ways to say it)
    "left of": ("right of", ("left of", "to the left of")),
    "right of": ("left of", ("right of", "to the right of")),
    "above": ("below", ("above", "over")), "below": ("above", ("below", "under")),
    "beside": ("beside", ("beside", "next to"))}
STYLES = ("plain", "sketch", "textured", "inverted", "cluttered", "resampled")
SPLITS = ("train", "validation", "held_out")
SIZES = ("small", "", "", "large")
RADII = {  # (is a thing, is in a pair) -> size word -> range of the radius, in parts of a side
    (False, False): {"small": (0.18, 0.205), "": (0.24, 0.29), "large": (0.33, 0.39)},
    (False, True): {"small": (0.155, 0.165), "": (0.175, 0.19), "large": (0.2, 0.205)},
    (True, False): {"small": (0.22, 0.25), "": (0.31, 0.37), "large": (0.41, 0.44)},
    (True, True): {"": (0.19, 0.205)}}
# fmt: on


@dataclass(frozen=True)
class Object:
    """One object; x, y (downwards) and radius in parts of the picture's side, turn in degrees."""

    kind: str
    colour: str
    size: str = ""  # "small", "large", or "" between them
    texture: str = "plain"
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2
    turn: float = 0.0
    mirror: bool = False


@dataclass(frozen=True)
class Scene:
    """One or two objects; `relation` says how the first stands to the second (None for one)."""

    objects: tuple[Object, ...]
    relation: str | None
    background: str


# --- Sampling


@cache
def visible(colour, background) -> bool:
    """Whether a colour stands out from both colours of a background (100 apart in RGB, of 442)."""
    grounds = np.array(BACKGROUNDS[background][1:])
    return bool(np.linalg.norm(grounds - PAINT[colour], axis=1).min() > 100)


def _placed(rng, objects, relation) -> tuple[Object, ...]:
    """The same objects with a fresh position, radius, turn and mirror; the relation holds."""
    thing = objects[0].kind in THINGS
    radii = [between(rng, *RADII[thing, relation is not None][o.size]) for o in objects]
    if relation is None:
        low = 1.05 * radii[0] + 0.028  # a tip may reach a little beyond the radius
        spots = [(between(rng, low, 1 - low), between(rng, low, 1 - low))]
    else:  # far enough apart that two of the largest do not touch
        near, far = between(rng, 0.25, 0.26), between(rng, 0.74, 0.75)
        if relation in ("right of", "below") or (relation == "beside" and rng.random() < 0.5):
            near, far = far, near
        level = between(rng, 0.32, 0.68)
        spots = [(along, level + between(rng, -0.08, 0.08)) for along in (near, far)]
        if relation in ("above", "below"):
            spots = [(x, y) for y, x in spots]
    tilt = 5 if thing else 12  # a square turned by 45 degrees would be a diamond
    return tuple(
        replace(o, x=x, y=y, radius=r, turn=between(rng, -tilt, tilt), mirror=rng.random() < 0.5)
        for o, (x, y), r in zip(objects, spots, radii, strict=True))


def _object(rng, kind, colour=None, sizes=SIZES) -> Object:
    texture = pick(rng, drawing.TEXTURES[1:]) if kind in SHAPES and rng.random() < 0.35 else "plain"
    return Object(kind, colour or pick(rng, COATS[kind]), pick(rng, sizes), texture)


def _scene(rng, *objects, relation=None) -> Scene:
    """Place objects on a background against which all are visible; any two objects have one."""
    places = PLACES.get(objects[0].kind, ("white", "black", "grass", "sand", "street", "blanket"))
    clear = [b for b in places if all(visible(o.colour, b) for o in objects)]
    return Scene(_placed(rng, objects, relation), relation, pick(rng, clear))


def _pair(rng, kinds, relations) -> Scene:
    sizes = ("small", "large") if kinds is SHAPES and rng.random() < 0.25 else ("",)
    first = second = _object(rng, pick(rng, kinds), sizes=sizes)
    while (second.kind, second.colour) == (first.kind, first.colour):
        second = _object(rng, pick(rng, kinds), sizes=sizes)
    return _scene(rng, first, second, relation=pick(rng, relations))


def sample_scene(rng, *, split="train") -> Scene:
    """Draw a scene: 70 % one shape, 16 % two shapes, 8 % one thing, 6 % two animals.

    "train" and "validation" never hold a combination of HELD_OUT. Both have the same distribution,
    so give them different seeds. "held_out" is always one shape of such a combination.
    Raises ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
    if split == "held_out":
        colour, shape = pick(rng, HELD_OUT)
        return _scene(rng, _object(rng, shape, colour))
    chance = rng.random()
    if chance < 0.70:
        return _scene(rng, _object(rng, pick(rng, SHAPES)))
    if chance < 0.86:
        return _pair(rng, SHAPES, tuple(RELATIONS)[:4])
    if chance < 0.94:
        return _scene(rng, _object(rng, pick(rng, THINGS)))
    return _pair(rng, (*THINGS[:3], "robot dog"), ("left of", "right of", "beside", "beside"))


# --- The picture


def render(scene, rng, style="plain", size=64) -> np.ndarray:
    """Draw a scene -> (size, size, 3) uint8, RGB; styles and errors as in `render_masked`."""
    return render_masked(scene, rng, style, size)[0]


def render_masked(scene, rng, style="plain", size=64) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene -> (size, size, 3) uint8, RGB, and where its objects are: (K, size, size) bool.

    A pixel belongs to an object that covers half of it. Objects never overlap.

    Styles: "plain"; "sketch", outlines on bare paper; "textured", patterns that training never
    shows; "inverted" colours; "cluttered" background; "resampled", new positions for the same
    objects, size words, relation and background, like ImageNet-V2 for ImageNet. Then a caption that
    tells a single object's place may be false. ValueError for another style or a size below 32.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; one of {', '.join(STYLES)}")
    if size < 32:
        raise ValueError(f"size must be at least 32 pixels, got {size}")
    side = 2 * size  # drawn twice as large, then averaged: smooth edges
    if style == "resampled":
        scene = replace(scene, objects=_placed(rng, scene.objects, scene.relation))
    if style == "sketch":  # dark paper where a pale shape would be lost on white
        pale = any(o.kind in SHAPES and sum(PAINT[o.colour]) > 450 for o in scene.objects)
        canvas = Image.new("RGB", (side, side), (24, 24, 26) if pale else (250, 250, 248))
    else:
        canvas = drawing.window(rng, ground(scene.background, side), side)
    if style == "cluttered":
        drawing.clutter(canvas, rng)
    outlines = [drawing.paint(canvas, item, rng, style) for item in scene.objects]
    masks = [np.array(drawing.silhouette(parts, side).reduce(2)) > 127 for parts in outlines]
    image = np.array(canvas.reduce(2))
    masks = np.array(masks, bool).reshape(-1, size, size)
    return 255 - image if style == "inverted" else image, masks


# --- Captions

# fmt: off
_ONE = ("{a}", "a photo of {a}", "a drawing of {a}", "there is {a} {place}", "{a} {place}",
        "{a} {ground}", "{a} {place} {ground}", "{place} there is {a}", "a picture of {a} {ground}",
        "a photo of {a} {ground}", "a drawing of {a} {place}")
_TWO = ("{a} {relation} {b}", "{a} {relation} {b} {ground}", "there is {a} {relation} {b}",
        "a photo of {a} {relation} {b}", "a drawing of {a} {relation} {b}", "{a} {relation} {b}",
        "{a} and {b}", "a picture of {a} and {b} {ground}")
# fmt: on


def side(where: float, low: str, high: str) -> str:
    """One of the two words, or "" between them; where: in parts of the picture's side."""
    if where < 0.37:
        return low
    return high if where > 0.63 else ""


def place(item) -> str:
    """An object's place in the picture, in words; "" if it is not clear-cut."""
    row = side(item.y, "top", "bottom")
    column = side(item.x, "left", "right")
    if row and column:
        return f"in the {row} {column} corner"
    if row or column:
        return f"at the {row}" if row else f"on the {column}"
    return "in the middle" if max(abs(item.x - 0.5), abs(item.y - 0.5)) < 0.09 else ""


def article(words: str) -> str:
    """Words with their article: "an orange star"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def phrase(rng, item, detail, colour=1.0) -> str:
    """ "a small striped red circle": size, texture with chance `detail`, colour with `colour`."""
    known = [word for word in (item.size, item.texture) if word not in ("", "plain")]
    words = [word for word in known if rng.random() < detail]
    if rng.random() < colour:
        words.append(f"{item.colour} and white" if item.kind == "Brittany" else item.colour)
    dog = item.kind in ("French bulldog", "Brittany") and rng.random() < 0.2
    return article(" ".join([*words, "dog" if dog else item.kind]))


def _caption(scene, rng) -> str:
    first, relation = scene.objects[0], scene.relation
    words = {"ground": BACKGROUNDS[scene.background][0]}
    if relation is None:
        colour = 0.7 if first.kind in THINGS else 0.92
        words |= {"a": phrase(rng, first, 0.5, colour), "place": place(first)}
    else:
        second = scene.objects[1]
        if rng.random() < 0.5:
            first, second, relation = second, first, RELATIONS[relation][0]
        words |= {"a": phrase(rng, first, 0.35), "b": phrase(rng, second, 0.35)}
        words["relation"] = pick(rng, RELATIONS[relation][1])
    text = pick(rng, _ONE if relation is None else _TWO).format(**words)
    return " ".join(text.split())  # a place without words leaves a gap


def captions(scene, rng, count=5) -> list[str]:
    """`count` true captions of a scene. Duplicates are accepted only after 50 tries."""
    if count < 0:
        raise ValueError(f"count must not be negative, got {count}")
    found = []
    for attempt in range(50 + count):
        text = _caption(scene, rng) if len(found) < count else ""
        if text and (text not in found or attempt >= 50):
            found.append(text)
    return found


# --- Data sets: the generator of an image comes from its seed, number, class and purpose


def _check(number, seed):
    if number < 0 or seed < 0:
        raise ValueError(f"number and seed must not be negative, got {number} and {seed}")


def generate(n, seed) -> tuple[np.ndarray, list[list[str]], list[Scene]]:
    """n training pairs: images (n, 64, 64, 3) uint8, five captions for each, and the scenes."""
    _check(n, seed)
    images, texts, scenes = np.zeros((n, 64, 64, 3), np.uint8), [], []
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        scenes.append(sample_scene(rng))
        images[i] = render(scenes[i], rng)
        texts.append(captions(scenes[i], rng))
    return images, texts, scenes


def class_names() -> list[str]:
    """The 100 combinations, "red circle" first; the labels of `held_out_set` are indexes of it."""
    return [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]


def single(rng, kind, colour=None) -> Scene:
    """A scene of one object; without a colour, one of those that training shows the kind in."""
    return _scene(rng, _object(rng, kind, colour))


def _class_set(classes, per_class, seed, style, purpose) -> tuple[np.ndarray, np.ndarray]:
    """Single objects of classes {label: (kind, colour or None)}; one seed, one set of scenes."""
    _check(per_class, seed)
    labels = np.repeat(np.array(list(classes), np.int64), per_class)
    images = np.zeros((len(labels), 64, 64, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        rng = np.random.default_rng((seed, i % per_class, label, purpose))
        images[i] = render(single(rng, *classes[label]), rng, style)
    return images, labels


def held_out_set(per_class, seed, style="plain") -> tuple[np.ndarray, np.ndarray]:
    """Single shapes of the 20 held-out combinations only, to be ranked among all 100.

    -> images (20 * per_class, 64, 64, 3) uint8, labels (20 * per_class,) int64: indexes of
    `class_names()`. The same seed shows the same scenes in every style.
    """
    names = class_names()
    classes = {names.index(f"{colour} {shape}"): (shape, colour) for colour, shape in HELD_OUT}
    return _class_set(classes, per_class, seed, style, 1)


def thing_set(per_class, seed, style="plain", things=THINGS) -> tuple[np.ndarray, np.ndarray]:
    """One drawn thing each -> images (len(things) * per_class, 64, 64, 3) uint8, labels int64:
    indexes of THINGS, whichever things are asked for."""
    if unknown := [thing for thing in things if thing not in THINGS]:
        raise ValueError(f"unknown thing {unknown[0]!r}; of {', '.join(THINGS)}")
    classes = {THINGS.index(thing): (thing, None) for thing in things}
    return _class_set(classes, per_class, seed, style, 2)


def relation_set(n, seed) -> tuple[np.ndarray, list[str], list[str]]:
    """Two shapes each, of combinations seen in training -> images (n, 64, 64, 3) uint8, true
    captions, and false ones in which the two objects are swapped."""
    _check(n, seed)
    images, right, swapped = np.zeros((n, 64, 64, 3), np.uint8), [], []
    for i in range(n):
        rng = np.random.default_rng((seed, i, 0, 3))
        scene = _pair(rng, SHAPES, tuple(RELATIONS)[:4])
        a, b = (article(f"{o.colour} {o.kind}") for o in scene.objects)
        images[i] = render(scene, rng)
        right.append(f"{a} {scene.relation} {b}")
        swapped.append(f"{b} {scene.relation} {a}")
    return images, right, swapped
