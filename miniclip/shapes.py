"""Generated, captioned scenes: the data set that is always there.

For lessons, tests and machines without a network: coloured shapes, pairs of them in a relation, and
a few drawn things, on named backgrounds and each with several true captions, after the lecture's
"white dog beside a brown cat in a striped blanket" (minute 3:44). A fifth of the colour x shape
combinations never occurs in training (HELD_OUT), so that zero-shot classification can be measured
on classes never seen; STYLES show the same content under a shift (minute 13:50).

Every function draws from the numpy Generator it is given, or makes one for each image from the seed
and the image's number: image i is the same however many are asked for.
"""

from dataclasses import dataclass, replace
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

# fmt: off
PAINT = {  # RGB; the first ten are COLOURS, the last two only coats
    "red": (214, 32, 36), "green": (30, 160, 60), "blue": (36, 72, 222), "yellow": (246, 220, 30),
    "orange": (244, 130, 20), "purple": (128, 40, 170), "pink": (250, 140, 195),
    "brown": (118, 68, 32), "white": (250, 250, 250), "black": (18, 18, 20),
    "fawn": (214, 172, 120), "grey": (140, 144, 152)}
FIXED_PAINT = {"dark": (24, 22, 24), "light": (250, 250, 250), "skin": (236, 150, 150),
               "mask": (74, 62, 60), "eye": (150, 205, 60), "beak": (250, 170, 20),
               "glass": (190, 225, 245), "glow": (255, 40, 40)}  # parts of things, by their role
COLOURS = tuple(PAINT)[:10]
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond", "crescent",
          "arrow")
THINGS = ("French bulldog", "Brittany", "cat", "bird", "plane", "car", "robot dog")
# Two diagonals of a Latin square: every colour and every shape lacks exactly two partners.
HELD_OUT = tuple((colour, shape) for c, colour in enumerate(COLOURS)
                 for s, shape in enumerate(SHAPES) if (s - c) % 10 in (0, 3))
COATS = {  # kind -> the colours that training shows it in
    **{shape: tuple(c for c in COLOURS if (c, shape) not in HELD_OUT) for shape in SHAPES},
    "French bulldog": ("white", "fawn", "black"), "Brittany": ("orange", "brown"),
    "cat": ("black", "white", "brown", "grey", "orange"), "robot dog": ("grey",),
    "bird": COLOURS, "plane": COLOURS, "car": COLOURS}
BACKGROUNDS = {  # name -> (how a caption says it, its colour, its second colour)
    "white": ("on a white background", (244, 244, 242), (236, 236, 236)),
    "black": ("on a black background", (14, 14, 16), (26, 26, 28)),
    "grey": ("on a grey background", (168, 168, 170), (160, 160, 162)),
    "grass": ("on grass", (92, 140, 62), (70, 112, 44)),
    "sky": ("in the sky", (160, 206, 240), (232, 240, 246)),
    "sand": ("on sand", (226, 204, 160), (212, 186, 138)),
    "street": ("on a street", (104, 106, 110), (222, 222, 216)),
    "blanket": ("on a striped blanket", (112, 152, 164), (156, 124, 152))}
PLACES = {  # kind -> its backgrounds; a shape may be on any, another thing on any but the sky
    **dict.fromkeys(SHAPES, tuple(BACKGROUNDS)), "bird": ("sky", "white", "grass", "black"),
    "plane": ("sky", "white", "grey", "black"), "car": ("street", "white", "sand", "black")}
RELATIONS = {  # name -> (its opposite, the ways to say it)
    "left of": ("right of", ("left of", "to the left of")),
    "right of": ("left of", ("right of", "to the right of")),
    "above": ("below", ("above", "over")), "below": ("above", ("below", "under")),
    "beside": ("beside", ("beside", "next to"))}
TEXTURES = ("plain", "striped", "dotted", "checked")
NEW_TEXTURES = ("zigzag", "rippled", "speckled")  # only in style "textured", never in training
STYLES = ("plain", "sketch", "textured", "inverted", "cluttered", "resampled")
SPLITS = ("train", "validation", "held_out")
SIZES = ("small", "", "", "large")
RADII = {  # (is a thing, is in a pair) -> size word -> range of the radius, in parts of a side
    (False, False): {"small": (0.14, 0.165), "": (0.18, 0.23), "large": (0.27, 0.33)},
    (False, True): {"small": (0.13, 0.14), "": (0.15, 0.17), "large": (0.19, 0.205)},
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


# --- Outlines. Points are x + iy in [-1, 1], y downwards: turning and placing are arithmetic.

_RIM = np.exp(2j * np.pi * np.arange(33) / 32)

# kind: part; part; … in the order of drawing, in hundredths. A part is "role x y x y …", a polygon,
# "role oval x y rx ry" or "role box left top right bottom". Its role names its colour (_palette):
# "coat" is the object's own, "shade" a darker one (far legs, wings), "mark" a patch, and "line" is
# a stroke. Things look to the right.
_DRAWN = """
square: coat box -80 -80 80 80
triangle: coat 0 -95 95 75 -95 75
cross: coat -30 -95 30 -95 30 -30 95 -30 95 30 30 30 30 95 -30 95 -30 30 -95 30 -95 -30 -30 -30
star: coat 0 -105 26 -36 100 -32 43 14 62 85 0 45 -62 85 -43 14 -100 -32 -26 -36
heart: coat 0 -45 2 -53 12 -71 34 -85 63 -85 87 -67 97 -39 87 -9 63 18 34 43 12 65 2 82 0 88 -2 82
  -12 65 -34 43 -63 18 -87 -9 -97 -39 -87 -67 -63 -85 -34 -85 -12 -71 -2 -53
diamond: coat 0 -102 66 0 0 102 -66 0
arrow: coat -100 -28 10 -28 10 -80 100 0 10 80 10 28 -100 28
French bulldog: shade box -60 30 -36 88; shade box 6 30 30 88; coat oval -84 4 10 9;
  coat oval -20 22 64 40; coat oval 26 22 42 46; coat box -84 30 -54 95; coat box 32 40 62 95;
  light oval 36 40 20 24; coat 4 -34 -8 -68 -2 -92 10 -100 24 -90 40 -56;
  coat 92 -34 100 -66 96 -92 86 -100 72 -90 56 -56; skin 10 -52 3 -72 8 -88 22 -62;
  skin 86 -52 91 -72 87 -88 74 -62; coat oval 48 -26 52 38; mask oval 48 -6 34 20;
  skin oval 48 8 9 8; dark oval 48 -16 12 8; dark box 24 -2 72 3; light oval 22 -32 12 11;
  light oval 74 -32 12 11; dark oval 24 -31 9 10; dark oval 72 -31 9 10
Brittany: shade box -50 10 -38 86; shade box 14 10 25 86;
  coat -60 -8 -92 -46 -100 -34 -84 -8 -60 12; coat oval -28 6 46 25; coat oval 16 8 32 32;
  coat -70 0 -44 30 -52 50 -52 95 -66 95 -70 50; coat box 28 15 42 95;
  coat 2 -10 28 -60 62 -46 46 20; mark oval -46 0 24 19; mark oval -2 -2 18 14;
  coat 48 -70 72 -60 98 -54 100 -36 72 -28 50 -28; mark oval 48 -60 26 22;
  mark 30 -70 46 -62 48 -30 40 -2 24 -6 20 -40; dark oval 62 -60 6 6; dark oval 96 -50 8 7
cat: coat -30 92 -72 86 -92 60 -90 20 -74 -4 -60 0 -74 24 -74 55 -60 70 -30 68;
  coat oval 8 50 46 45; coat oval 12 20 33 40; coat -32 -40 -34 -98 6 -70;
  coat 56 -40 58 -98 18 -70; skin -22 -60 -26 -82 -8 -68; skin 46 -60 50 -82 32 -68;
  coat oval 12 -36 50 38; eye oval -8 -42 11 10; eye oval 32 -42 11 10; dark oval -8 -42 4 10;
  dark oval 32 -42 4 10; skin 4 -27 20 -27 12 -17; line -10 -20 -62 -28; line -10 -14 -60 -6;
  line 34 -20 86 -28; line 34 -14 84 -6; line 2 50 2 92; line 22 50 22 92
bird: coat -40 10 -100 2 -95 34 -40 34; beak 72 -34 102 -20 72 -8; line -6 50 -6 92;
  line 16 50 16 92; coat oval 2 18 52 38; coat oval 50 -20 30 28;
  shade 24 12 12 -30 -50 -85 -44 -20 -20 22; light oval 58 -26 9 9; dark oval 60 -26 5 5
plane: shade 10 -10 -22 -62 -36 -62 -20 -10; coat -95 -55 -80 -55 -50 -10 -90 -5;
  coat -95 -10 -60 -20 60 -20 85 -12 100 5 85 16 50 20 -60 12; glass 68 -15 84 -8 84 0 64 0;
  glass oval -40 -5 5 6; glass oval -20 -5 5 6; glass oval 0 -5 5 6; glass oval 20 -5 5 6;
  glass oval 40 -5 5 6; shade 25 8 -15 8 -50 72 -34 72; shade -95 -4 -70 -4 -92 16 -100 16
car: coat -58 -5 -38 -50 30 -50 60 -5; coat -98 0 -90 -10 60 -10 94 4 100 40 -100 40;
  glass -44 -8 -30 -40 -6 -40 -6 -8; glass 4 -8 4 -40 25 -40 46 -8; dark oval -54 40 22 22;
  dark oval 54 40 22 22; light oval -54 40 10 10; light oval 54 40 10 10; beak box 88 10 100 22;
  glow box -100 8 -90 22
robot dog: shade box -50 30 -36 86; shade box 10 30 24 86; line -66 -5 -95 -45; line 50 -60 42 -95;
  glow oval 42 -92 8 8; shade box 24 -30 44 10; coat box -72 -12 42 36; coat box -72 36 -54 90;
  coat box 26 36 44 90; shade box -76 84 -46 96; shade box 22 84 52 96; coat box 22 -68 74 -22;
  coat box 74 -48 98 -22; dark box 90 -48 99 -38; dark oval 54 -48 14 13; glow oval 54 -48 10 9;
  dark oval -50 12 7 7; dark oval -15 12 7 7; dark oval 20 12 7 7
"""


def _part(text):
    """One part of _DRAWN -> its role and its outline (P,) complex."""
    role, *words = text.split()
    form = words.pop(0) if words[0] in ("oval", "box") else "polygon"
    n = np.array(words, float) / 100
    if form == "oval":
        return role, n[0] + 1j * n[1] + n[2] * _RIM.real + 1j * n[3] * _RIM.imag
    if form == "box":
        n = n[[0, 1, 2, 1, 2, 3, 0, 3]]
    return role, n[::2] + 1j * n[1::2]


PARTS = {
    "circle": [("coat", 0.95 * _RIM)],
    "ring": [("coat", np.append(0.98 * _RIM, 0.55 * _RIM[::-1]))],
    "crescent": [("coat", np.append(_RIM[5:28] + 0.1, 0.85 * _RIM[24:7:-1] + 0.58))],
} | {
    kind: [_part(text) for text in parts.split(";")]
    for kind, parts in (line.split(":") for line in _DRAWN.replace("\n  ", " ").strip().split("\n"))
}


# --- Sampling


def _pick(rng, options):
    return options[int(rng.random() * len(options))]  # rng.choice costs ten times as much


def _between(rng, low, high):
    return low + (high - low) * rng.random()


@cache
def visible(colour, background) -> bool:
    """Whether a colour stands out from both colours of a background (100 apart in RGB, of 442)."""
    grounds = np.array(BACKGROUNDS[background][1:])
    return bool(np.linalg.norm(grounds - PAINT[colour], axis=1).min() > 100)


def _placed(rng, objects, relation) -> tuple[Object, ...]:
    """The same objects with a fresh position, radius, turn and mirror; the relation holds."""
    thing = objects[0].kind in THINGS
    radii = [_between(rng, *RADII[thing, relation is not None][o.size]) for o in objects]
    if relation is None:
        low = 1.05 * radii[0] + 0.028  # a tip may reach a little beyond the radius
        spots = [(_between(rng, low, 1 - low), _between(rng, low, 1 - low))]
    else:  # far enough apart that two of the largest do not touch
        near, far = _between(rng, 0.25, 0.26), _between(rng, 0.74, 0.75)
        if relation in ("right of", "below") or (relation == "beside" and rng.random() < 0.5):
            near, far = far, near
        level = _between(rng, 0.32, 0.68)
        spots = [(along, level + _between(rng, -0.08, 0.08)) for along in (near, far)]
        if relation in ("above", "below"):
            spots = [(x, y) for y, x in spots]
    tilt = 5 if thing else 12  # a square turned by 45 degrees would be a diamond
    return tuple(
        replace(o, x=x, y=y, radius=r, turn=_between(rng, -tilt, tilt), mirror=rng.random() < 0.5)
        for o, (x, y), r in zip(objects, spots, radii, strict=True)
    )


def _object(rng, kind, colour=None, sizes=SIZES) -> Object:
    textured = kind in SHAPES and rng.random() < 0.35
    texture = _pick(rng, TEXTURES[1:]) if textured else "plain"
    return Object(kind, colour or _pick(rng, COATS[kind]), _pick(rng, sizes), texture)


def _scene(rng, *objects, relation=None) -> Scene:
    """Place objects on a background on which all of them are seen: there is one for any two."""
    places = PLACES.get(objects[0].kind, ("white", "black", "grass", "sand", "street", "blanket"))
    clear = [b for b in places if all(visible(o.colour, b) for o in objects)]
    return Scene(_placed(rng, objects, relation), relation, _pick(rng, clear))


def _pair(rng, kinds, relations) -> Scene:
    sizes = ("small", "large") if kinds is SHAPES and rng.random() < 0.25 else ("",)
    first = second = _object(rng, _pick(rng, kinds), sizes=sizes)
    while (second.kind, second.colour) == (first.kind, first.colour):
        second = _object(rng, _pick(rng, kinds), sizes=sizes)
    return _scene(rng, first, second, relation=_pick(rng, relations))


def sample_scene(rng, *, split="train") -> Scene:
    """Draw a scene: 45 % one shape, 30 % two shapes, 15 % one thing, 10 % two animals.

    "train" and "validation" (the same scenes in kind: keep their seeds apart) never hold a
    combination of HELD_OUT; "held_out" is one shape of such a combination, and nothing else.
    Raises ValueError for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; one of {', '.join(SPLITS)}")
    if split == "held_out":
        colour, shape = _pick(rng, HELD_OUT)
        return _scene(rng, _object(rng, shape, colour))
    chance = rng.random()
    if chance < 0.45:
        return _scene(rng, _object(rng, _pick(rng, SHAPES)))
    if chance < 0.75:
        return _pair(rng, SHAPES, tuple(RELATIONS)[:4])
    if chance < 0.90:
        return _scene(rng, _object(rng, _pick(rng, THINGS)))
    return _pair(rng, (*THINGS[:3], "robot dog"), ("left of", "right of", "beside", "beside"))


# --- Drawing


def _marks(name, side, wide) -> np.ndarray:
    """Where the second colour of a background or a texture goes: (wide, wide) bool."""
    y, x = np.mgrid[:wide, :wide] * (64 / side)  # in 64ths of a picture, whatever its size
    noise = np.random.default_rng(7).random((wide, wide))  # fixed: the same in every run
    column = x.astype(int)
    u, v = (x + 27 * (y // 26)) % 46 - 23, y % 26 - 13  # from the middle of the nearest cloud
    blade = ((y + 4 * noise[0, column]) / 4).astype(int)
    forms = {
        "grass": noise[blade, column] < 0.3,
        "sky": ((u / 10) ** 2 + (v / 3) ** 2 < 1) | (np.hypot(u + 1, v + 2) < 4.5),
        "street": (y % 34 < 2) & (x % 18 < 10),
        "blanket": x % 12 < 5,
        "striped": (x + y) % 7 < 2.6,
        "dotted": (x % 6 - 3) ** 2 + (y % 6 - 3) ** 2 < 3.2,
        "checked": ((x // 4 + y // 4) % 2 > 0) & (np.maximum(x % 4, y % 4) < 3.4),
        "zigzag": (y + np.abs(x % 8 - 4)) % 7 < 2.4,
        "rippled": np.hypot(x - 40, y - 40) % 6 < 2.2,
        "speckled": noise < 0.3,
    }
    return forms.get(name, noise < 0.1)


@lru_cache(maxsize=32)
def _ground(name, side) -> Image.Image:
    """A background, 1.5 times as wide as the picture that cuts its window from it; mode RGB."""
    wide, (_, base, second) = side * 3 // 2, BACKGROUNDS[name]
    grain = np.random.default_rng(8).uniform(-8, 8, (wide, wide, 1))
    pixels = np.where(_marks(name, side, wide)[..., None], second, base) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@lru_cache(maxsize=32)
def _pattern(texture, side) -> Image.Image:
    """A texture, 1.25 times as wide as the picture; mode L, 255 where its second colour goes."""
    return Image.fromarray(_marks(texture, side, side * 5 // 4).astype(np.uint8) * 255)


def _window(rng, image, side) -> Image.Image:
    left, top = (int(rng.random() * (image.width - side + 1)) for _ in range(2))
    return image.crop((left, top, left + side, top + side))


def _mix(colour, other, share):
    return tuple(round(c + (o - c) * share) for c, o in zip(colour, other, strict=True))


def _palette(rng, item) -> dict[str, tuple[int, int, int]]:
    """Role -> RGB for one object, whose colour varies a little."""
    paint = tuple(round(min(255, max(0, c + _between(rng, -9, 9)))) for c in PAINT[item.colour])
    coat = (248, 246, 240) if item.kind == "Brittany" else paint  # white, with coloured patches
    night = sum(coat) < 150
    return FIXED_PAINT | {
        "coat": coat,
        "mark": paint,
        "shade": _mix(coat, (120, 120, 120) if night else (0, 0, 0), 0.3),
        "line": (215, 215, 215) if night else (40, 36, 36),
        "second": _mix((30, 30, 34) if sum(coat) > 450 else (250, 250, 250), coat, 0.2),
    }


def _outlines(rng, item, side) -> list[tuple[str, list[float]]]:
    """The parts of an object where they lie in the picture: (role, [x, y, x, y, …] in pixels)."""
    stretch, parts = _between(rng, 0.92, 1), []
    spin = item.radius * side * np.exp(1j * np.radians(item.turn))
    for role, points in PARTS[item.kind]:
        points = points.real * (-stretch if item.mirror else stretch) + 1j * points.imag
        points = points * spin + complex(item.x, item.y) * side
        parts.append((role, points.view(np.float64).tolist()))
    return parts


def _sketch(draw, item, parts, paper, colour, width):
    """Outlines only: of a shape in its colour, which is its class, of a thing in ink."""
    ink = colour if item.kind in SHAPES else tuple(255 - c for c in paper)
    for role, part in parts:
        if role != "line":
            draw.polygon(part, fill=ink if role == "dark" else paper)
        rims = (part[: len(part) // 2], part[len(part) // 2 :]) if item.kind == "ring" else (part,)
        for rim in rims:
            closed = rim if role == "line" else rim + rim[:4]
            draw.line(closed, fill=ink, width=width, joint="curve")


def _paint(canvas, item, rng, style):
    """Draw one object onto the canvas, in place."""
    side, draw, palette = canvas.width, ImageDraw.Draw(canvas), _palette(rng, item)
    parts = _outlines(rng, item, side)
    if style == "sketch":
        paper = canvas.getpixel((0, 0))
        return _sketch(draw, item, parts, paper, palette["coat"], side // 42)
    body = [part + part[:4] for role, part in parts if role in ("coat", "shade")]
    if item.kind in THINGS:  # a contour sets a white dog off from a white ground
        for part in body:
            draw.line(part, fill=palette["line"], width=side // 32, joint="curve")
    for role, part in parts:
        if role == "line":
            draw.line(part, fill=palette["line"], width=side // 64)
        else:
            draw.polygon(part, fill=palette[role])
    texture = _pick(rng, NEW_TEXTURES) if style == "textured" else item.texture
    if texture != "plain":
        mask = Image.new("L", canvas.size)
        stencil = ImageDraw.Draw(mask)
        for role, part in parts:  # faces and wheels keep clear of the pattern
            stencil.polygon(part, fill=255 if role in ("coat", "shade") else 0)
        mask = ImageChops.darker(mask, _window(rng, _pattern(texture, side), side))
        canvas.paste(palette["second"], mask=mask)
    if item.kind in SHAPES:  # a rim of its own colour, or a pattern would fray the shape
        width = 1 if texture == "plain" else side // 42
        draw.line(body[0], fill=palette["coat"], width=width, joint="curve")


def _clutter(canvas, rng):
    """Strew strokes in many colours over the background, in place."""
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for x, y, dx, dy, thick, *colour in rng.random((35, 8)):
        end = (x + (dx - 0.5) / 5) * side, (y + (dy - 0.5) / 5) * side
        fill = tuple(int(40 + 180 * c) for c in colour)
        draw.line((x * side, y * side, *end), fill=fill, width=int(side * (1 + 2 * thick) / 64))


def render(scene, rng, style="plain", size=64) -> np.ndarray:
    """Draw a scene -> (size, size, 3) uint8, RGB.

    Styles: "plain"; "sketch", outlines on bare paper; "textured", patterns that training never
    shows; "inverted" colours; "cluttered" background; "resampled", the same objects, size words,
    relation and background placed afresh, as ImageNet-V2 is to ImageNet (a caption that tells the
    place of a single object may then fail). Raises ValueError for another style or a size below 32.
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
        canvas = _window(rng, _ground(scene.background, side), side)
    if style == "cluttered":
        _clutter(canvas, rng)
    for item in scene.objects:
        _paint(canvas, item, rng, style)
    image = np.array(canvas.reduce(2))
    return 255 - image if style == "inverted" else image


# --- Captions

# fmt: off
_ONE = ("{a}", "a photo of {a}", "a drawing of {a}", "there is {a} {place}", "{a} {place}",
        "{a} {ground}", "{a} {place} {ground}", "{place} there is {a}", "a picture of {a} {ground}",
        "a photo of {a} {ground}", "a drawing of {a} {place}")
_TWO = ("{a} {relation} {b}", "{a} {relation} {b} {ground}", "there is {a} {relation} {b}",
        "a photo of {a} {relation} {b}", "a drawing of {a} {relation} {b}", "{a} {relation} {b}",
        "{a} and {b}", "a picture of {a} and {b} {ground}")
# fmt: on


def place(item) -> str:
    """Where in the picture an object is, in words; "" where that could be doubted."""
    row = "top" if item.y < 0.37 else "bottom" if item.y > 0.63 else ""
    column = "left" if item.x < 0.37 else "right" if item.x > 0.63 else ""
    if row and column:
        return f"in the {row} {column} corner"
    if row or column:
        return f"at the {row}" if row else f"on the {column}"
    return "in the middle" if max(abs(item.x - 0.5), abs(item.y - 0.5)) < 0.09 else ""


def _article(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _phrase(rng, item, detail, colour=1.0) -> str:
    """ "a small striped red circle": size and texture each with chance `detail`, and the colour."""
    known = [word for word in (item.size, item.texture) if word not in ("", "plain")]
    words = [word for word in known if rng.random() < detail]
    if rng.random() < colour:
        words.append(item.colour + " and white" * (item.kind == "Brittany"))
    dog = item.kind in ("French bulldog", "Brittany") and rng.random() < 0.2
    return _article(" ".join([*words, "dog" if dog else item.kind]))


def _caption(scene, rng) -> str:
    first, relation = scene.objects[0], scene.relation
    words = {"ground": BACKGROUNDS[scene.background][0]}
    if relation is None:
        colour = 0.7 if first.kind in THINGS else 0.92
        words |= {"a": _phrase(rng, first, 0.5, colour), "place": place(first)}
    else:
        second = scene.objects[1]
        if rng.random() < 0.5:
            first, second, relation = second, first, RELATIONS[relation][0]
        words |= {"a": _phrase(rng, first, 0.35), "b": _phrase(rng, second, 0.35)}
        words["relation"] = _pick(rng, RELATIONS[relation][1])
    text = _pick(rng, _ONE if relation is None else _TWO).format(**words)
    return " ".join(text.split())  # a place without words leaves a gap


def captions(scene, rng, count=5) -> list[str]:
    """`count` true captions of a scene, all different as far as 50 further tries allow."""
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


def _class_set(classes, per_class, seed, style, purpose) -> tuple[np.ndarray, np.ndarray]:
    """Single objects of classes {label: (kind, colour or None)}; one seed, one set of scenes."""
    _check(per_class, seed)
    labels = np.repeat(np.array(list(classes), np.int64), per_class)
    images = np.zeros((len(labels), 64, 64, 3), np.uint8)
    for i, label in enumerate(labels.tolist()):
        rng = np.random.default_rng((seed, i % per_class, label, purpose))
        images[i] = render(_scene(rng, _object(rng, *classes[label])), rng, style)
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
    """Two shapes each, of combinations seen in training -> images (n, 64, 64, 3) uint8, right
    captions, and the same captions with their two objects swapped, hence false."""
    _check(n, seed)
    images, right, swapped = np.zeros((n, 64, 64, 3), np.uint8), [], []
    for i in range(n):
        rng = np.random.default_rng((seed, i, 0, 3))
        scene = _pair(rng, SHAPES, tuple(RELATIONS)[:4])
        a, b = (_article(f"{o.colour} {o.kind}") for o in scene.objects)
        images[i] = render(scene, rng)
        right.append(f"{a} {scene.relation} {b}")
        swapped.append(f"{b} {scene.relation} {a}")
    return images, right, swapped
