"""One object a picture, with a label and with captions, drawn in one style or in many.

What the robustness experiment trains and tests with. A label is one of a list that was fixed
beforehand (CLASSES): 80 combinations of colour and shape and five kinds of things. A robot dog got
the label that is nearest, "dog". A caption says what it likes, the style too: "a sketch of a small
red circle in the top left corner".

The same seed and number give the same object in the same place, in whatever style it is drawn. Sets
for tests have another last number than sets for training, so that they never share a scene.
"""

from dataclasses import replace

import numpy as np

from miniclip.data import scenes
from miniclip.data.drawing import pick
from miniclip.data.pairs import Examples
from miniclip.data.shifts import mosaic, needlework, stained_glass

KINDS = {"dog": ("French bulldog", "Brittany", "robot dog"), "cat": ("cat",), "bird": ("bird",),
         "plane": ("plane",), "car": ("car",)}
COMBINATIONS = tuple(name for name in scenes.class_names()
                     if tuple(name.split()) not in scenes.HELD_OUT)
CLASSES = (*COMBINATIONS, *KINDS)

# style -> (how a caption calls it, the picture operation that makes it of a plain scene, if any)
STYLES = {
    "plain": ("", None), "sketch": ("sketch", None), "mosaic": ("mosaic", mosaic),
    "stained glass": ("stained glass window", stained_glass),
    "needlework": ("piece of needlework", needlework), "elsewhere": ("", None)}
ONE_STYLE = ("plain",)
MANY_STYLES = ("plain", "plain", "sketch", "mosaic")  # each as likely as another
SHIFTS = {  # the lecture's columns -> the styles that stand for them
    "in-domain": ("plain",), "V2": ("plain",), "R": ("mosaic",),
    "R, new": ("stained glass", "needlework"), "ObjectNet": ("elsewhere",), "Sketch": ("sketch",)}
WORDINGS = ("a {style} of {a}", "a {style} of {a} {place}", "{a}", "{a} {place}",
            "there is {a} {place}")  # people don't always say how a thing is drawn


def draw(scene: scenes.Scene, rng, style: str) -> np.ndarray:
    """A scene of one object in a style of STYLES → (64, 64, 3) uint8.

    "elsewhere" is what ObjectNet does to its objects: upside down, before clutter. (For a circle,
    square, ring, cross or diamond only the clutter is new.)
    """
    if style == "sketch":
        return scenes.render(scene, rng, "sketch")
    if style == "elsewhere":
        item = scene.objects[0]
        turned = replace(scene, objects=(replace(item, turn=item.turn + 180),))
        return scenes.render(turned, rng, "cluttered")
    plain, operation = scenes.render(scene, rng), STYLES[style][1]
    return operation(plain, rng) if operation else plain


def describe(scene: scenes.Scene, rng, style: str) -> list[str]:
    """Five true captions. Those of a style name it, and leave out what it may hide: the ground and
    the texture. They name the colour as often as others do."""
    word = STYLES[style][0]
    if not word:
        return scenes.captions(scene, rng)
    item = replace(scene.objects[0], texture="plain")
    colour = 0.7 if item.kind in scenes.THINGS else 0.92
    words = {"style": word, "place": scenes.place(item)}
    texts = [wording.format(a=scenes.phrase(rng, item, 0.5, colour), **words)
             for wording in WORDINGS]
    return [" ".join(text.split()) for text in texts]


def scene_of(name: str, rng) -> scenes.Scene:
    """A scene that a class name is true of."""
    if name in KINDS:
        return scenes.single(rng, pick(rng, KINDS[name]))
    if name in scenes.THINGS:
        return scenes.single(rng, name)
    colour, shape = name.split()
    return scenes.single(rng, shape, colour)


def training_examples(n: int, seed: int, styles) -> Examples:
    """n examples of CLASSES, each class and each of `styles` as likely as another."""
    images, texts, labels = np.zeros((n, 64, 64, 3), np.uint8), [], np.zeros(n, np.int64)
    for i in range(n):
        rng, styling = np.random.default_rng((seed, i)), np.random.default_rng((seed, i, 1))
        labels[i] = rng.integers(len(CLASSES))
        scene, style = scene_of(CLASSES[labels[i]], rng), pick(styling, styles)
        images[i] = draw(scene, rng, style)
        texts.append(describe(scene, styling, style))
    return Examples(images, texts, labels, CLASSES)


def fresh_examples(per_class: int, seed: int, styles=ONE_STYLE, names=CLASSES) -> Examples:
    """`per_class` examples of each name, the styles taking turns; the labels count `names`."""
    labels = np.repeat(np.arange(len(names)), per_class)
    images = np.zeros((len(labels), 64, 64, 3), np.uint8)
    for i, label in enumerate(labels):
        rng = np.random.default_rng((seed, i, 2))
        images[i] = draw(scene_of(names[label], rng), rng, styles[i % len(styles)])
    return Examples(images, [[names[label]] for label in labels], labels, tuple(names))
