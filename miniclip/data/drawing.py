"""How a thing is drawn: paint, backgrounds, textures, and the outlines of shapes and things.

This module knows what each kind of object looks like and draws it on a canvas. `scenes` knows what
is in a scene, what its captions say, and which data sets there are. Here an `item` is anything with
the fields of `scenes.Object`, and a `canvas` is a square RGB image.

All random numbers come from the numpy Generator that a function is given. Backgrounds and textures
are the same in every run: each is made once, and a picture gets a random window of it.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageChops, ImageDraw

# fmt: off
PAINT = {  # RGB; the first ten are scenes.COLOURS, the last two only coats
    "red": (214, 32, 36), "green": (30, 160, 60), "blue": (36, 72, 222), "yellow": (246, 220, 30),
    "orange": (244, 130, 20), "purple": (128, 40, 170), "pink": (250, 140, 195),
    "brown": (118, 68, 32), "white": (250, 250, 250), "black": (18, 18, 20),
    "fawn": (214, 172, 120), "grey": (140, 144, 152)}
FIXED_PAINT = {"dark": (24, 22, 24), "light": (250, 250, 250), "skin": (236, 150, 150),
               "mask": (74, 62, 60), "eye": (150, 205, 60), "beak": (250, 170, 20),
               "glass": (190, 225, 245), "glow": (255, 40, 40)}  # parts of things, by their role
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart", "ring", "diamond", "crescent",
          "arrow")
THINGS = ("French bulldog", "Brittany", "cat", "bird", "plane", "car", "robot dog")
BACKGROUNDS = {  # name -> (how a caption says it, its colour, its second colour)
    "white": ("on a white background", (244, 244, 242), (236, 236, 236)),
    "black": ("on a black background", (14, 14, 16), (26, 26, 28)),
    "grey": ("on a grey background", (168, 168, 170), (160, 160, 162)),
    "grass": ("on grass", (92, 140, 62), (70, 112, 44)),
    "sky": ("in the sky", (160, 206, 240), (232, 240, 246)),
    "sand": ("on sand", (226, 204, 160), (212, 186, 138)),
    "street": ("on a street", (104, 106, 110), (222, 222, 216)),
    "blanket": ("on a striped blanket", (112, 152, 164), (156, 124, 152))}
TEXTURES = ("plain", "striped", "dotted", "checked")
NEW_TEXTURES = ("zigzag", "rippled", "speckled")  # only in style "textured", never in training
# fmt: on

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
French bulldog: shade box -60 30 -36 88; shade box 6 30 30 88; coat oval -84 4 10 9; coat oval -20
  22 64 40; coat oval 26 22 42 46; coat box -84 30 -54 95; coat box 32 40 62 95; light oval 36 40 20
  24; coat 4 -34 -8 -68 -2 -92 10 -100 24 -90 40 -56; coat 92 -34 100 -66 96 -92 86 -100 72 -90 56
  -56; skin 10 -52 3 -72 8 -88 22 -62; skin 86 -52 91 -72 87 -88 74 -62; coat oval 48 -26 52 38;
  mask oval 48 -6 34 20; skin oval 48 8 9 8; dark oval 48 -16 12 8; dark box 24 -2 72 3; light oval
  22 -32 12 11; light oval 74 -32 12 11; dark oval 24 -31 9 10; dark oval 72 -31 9 10
Brittany: shade box -50 10 -38 86; shade box 14 10 25 86; coat -60 -8 -92 -46 -100 -34 -84 -8 -60
  12; coat oval -28 6 46 25; coat oval 16 8 32 32; coat -70 0 -44 30 -52 50 -52 95 -66 95 -70 50;
  coat box 28 15 42 95; coat 2 -10 28 -60 62 -46 46 20; mark oval -46 0 24 19; mark oval -2 -2 18
  14; coat 48 -70 72 -60 98 -54 100 -36 72 -28 50 -28; mark oval 48 -60 26 22; mark 30 -70 46 -62 48
  -30 40 -2 24 -6 20 -40; dark oval 62 -60 6 6; dark oval 96 -50 8 7
cat: coat -30 92 -72 86 -92 60 -90 20 -74 -4 -60 0 -74 24 -74 55 -60 70 -30 68; coat oval 8 50 46
  45; coat oval 12 20 33 40; coat -32 -40 -34 -98 6 -70; coat 56 -40 58 -98 18 -70; skin -22 -60 -26
  -82 -8 -68; skin 46 -60 50 -82 32 -68; coat oval 12 -36 50 38; eye oval -8 -42 11 10; eye oval 32
  -42 11 10; dark oval -8 -42 4 10; dark oval 32 -42 4 10; skin 4 -27 20 -27 12 -17; line -10 -20
  -62 -28; line -10 -14 -60 -6; line 34 -20 86 -28; line 34 -14 84 -6; line 2 50 2 92; line 22 50 22
  92
bird: coat -40 10 -100 2 -95 34 -40 34; beak 72 -34 102 -20 72 -8; line -6 50 -6 92; line 16 50 16
  92; coat oval 2 18 52 38; coat oval 50 -20 30 28; shade 24 12 12 -30 -50 -85 -44 -20 -20 22; light
  oval 58 -26 9 9; dark oval 60 -26 5 5
plane: shade 10 -10 -22 -62 -36 -62 -20 -10; coat -95 -55 -80 -55 -50 -10 -90 -5; coat -95 -10 -60
  -20 60 -20 85 -12 100 5 85 16 50 20 -60 12; glass 68 -15 84 -8 84 0 64 0; glass oval -40 -5 5 6;
  glass oval -20 -5 5 6; glass oval 0 -5 5 6; glass oval 20 -5 5 6; glass oval 40 -5 5 6; shade 25 8
  -15 8 -50 72 -34 72; shade -95 -4 -70 -4 -92 16 -100 16
car: coat -58 -5 -38 -50 30 -50 60 -5; coat -98 0 -90 -10 60 -10 94 4 100 40 -100 40; glass -44 -8
  -30 -40 -6 -40 -6 -8; glass 4 -8 4 -40 25 -40 46 -8; dark oval -54 40 22 22; dark oval 54 40 22
  22; light oval -54 40 10 10; light oval 54 40 10 10; beak box 88 10 100 22; glow box -100 8 -90 22
robot dog: shade box -50 30 -36 86; shade box 10 30 24 86; line -66 -5 -95 -45; line 50 -60 42 -95;
  glow oval 42 -92 8 8; shade box 24 -30 44 10; coat box -72 -12 42 36; coat box -72 36 -54 90; coat
  box 26 36 44 90; shade box -76 84 -46 96; shade box 22 84 52 96; coat box 22 -68 74 -22; coat box
  74 -48 98 -22; dark box 90 -48 99 -38; dark oval 54 -48 14 13; glow oval 54 -48 10 9; dark oval
  -50 12 7 7; dark oval -15 12 7 7; dark oval 20 12 7 7
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
    for kind, parts in (row.split(":") for row in _DRAWN.replace("\n  ", " ").strip().split("\n"))}


# --- Chance


def pick(rng, options):
    """One of a sequence, each as likely as the others."""
    return options[int(rng.random() * len(options))]  # rng.choice costs ten times as much


def between(rng, low, high):
    """A number in [low, high), evenly spread."""
    return low + (high - low) * rng.random()


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
        "blanket": x % 12 < 5, "striped": (x + y) % 7 < 2.6,
        "dotted": (x % 6 - 3) ** 2 + (y % 6 - 3) ** 2 < 3.2,
        "checked": ((x // 4 + y // 4) % 2 > 0) & (np.maximum(x % 4, y % 4) < 3.4),
        "zigzag": (y + np.abs(x % 8 - 4)) % 7 < 2.4,
        "rippled": np.hypot(x - 40, y - 40) % 6 < 2.2, "speckled": noise < 0.3}
    return forms.get(name, noise < 0.1)


@lru_cache(maxsize=32)
def ground(name, side) -> Image.Image:
    """A background, 1.5 times as wide as the picture that cuts its window from it; mode RGB."""
    wide, (_, base, second) = side * 3 // 2, BACKGROUNDS[name]
    grain = np.random.default_rng(8).uniform(-8, 8, (wide, wide, 1))
    pixels = np.where(_marks(name, side, wide)[..., None], second, base) + grain
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


@lru_cache(maxsize=32)
def pattern(texture, side) -> Image.Image:
    """A texture, 1.25 times as wide as the picture; mode L, 255 where its second colour goes."""
    return Image.fromarray(_marks(texture, side, side * 5 // 4).astype(np.uint8) * 255)


def window(rng, image, side) -> Image.Image:
    """A square cut from a larger image, `side` pixels wide, anywhere in it."""
    left, top = (int(rng.random() * (image.width - side + 1)) for _ in range(2))
    return image.crop((left, top, left + side, top + side))


def _mix(colour, other, share):
    return tuple(round(c + (o - c) * share) for c, o in zip(colour, other, strict=True))


def _palette(rng, item) -> dict[str, tuple[int, int, int]]:
    """Role -> RGB for one object, whose colour varies a little."""
    tint = tuple(round(min(255, max(0, c + between(rng, -9, 9)))) for c in PAINT[item.colour])
    coat = (248, 246, 240) if item.kind == "Brittany" else tint  # white, with coloured patches
    night = sum(coat) < 150
    return FIXED_PAINT | {"coat": coat, "mark": tint,
        "shade": _mix(coat, (120, 120, 120) if night else (0, 0, 0), 0.3),
        "line": (215, 215, 215) if night else (40, 36, 36),
        "second": _mix((30, 30, 34) if sum(coat) > 450 else (250, 250, 250), coat, 0.2)}


def _outlines(rng, item, side) -> list[tuple[str, list[float]]]:
    """The parts of an object where they lie in the picture: (role, [x, y, x, y, …] in pixels)."""
    stretch, parts = between(rng, 0.92, 1), []
    spin = item.radius * side * np.exp(1j * np.radians(item.turn))
    for role, points in PARTS[item.kind]:
        points = points.real * (-stretch if item.mirror else stretch) + 1j * points.imag
        points = points * spin + complex(item.x, item.y) * side
        parts.append((role, points.view(np.float64).tolist()))
    return parts


def _sketch(draw, item, parts, paper, colour, width):
    """Outlines only: a shape's in its own colour, which its class names, a thing's in ink."""
    ink = colour if item.kind in SHAPES else tuple(255 - c for c in paper)
    for role, part in parts:
        if role != "line":
            draw.polygon(part, fill=ink if role == "dark" else paper)
        rims = (part[: len(part) // 2], part[len(part) // 2 :]) if item.kind == "ring" else (part,)
        for rim in rims:
            closed = rim if role == "line" else rim + rim[:4]
            draw.line(closed, fill=ink, width=width, joint="curve")


def paint(canvas, item, rng, style):
    """Draw one object onto the canvas, in place -> its outlines, for `silhouette`."""
    side, draw, palette = canvas.width, ImageDraw.Draw(canvas), _palette(rng, item)
    parts = _outlines(rng, item, side)
    if style == "sketch":
        paper = canvas.getpixel((0, 0))
        _sketch(draw, item, parts, paper, palette["coat"], side // 42)
        return parts
    body = [part + part[:4] for role, part in parts if role in ("coat", "shade")]
    if item.kind in THINGS:  # a contour sets a white dog off from a white ground
        for part in body:
            draw.line(part, fill=palette["line"], width=side // 32, joint="curve")
    for role, part in parts:
        if role == "line":
            draw.line(part, fill=palette["line"], width=side // 64)
        else:
            draw.polygon(part, fill=palette[role])
    texture = pick(rng, NEW_TEXTURES) if style == "textured" else item.texture
    if texture != "plain":
        mask = Image.new("L", canvas.size)
        stencil = ImageDraw.Draw(mask)
        for role, part in parts:  # faces and wheels keep clear of the pattern
            stencil.polygon(part, fill=255 if role in ("coat", "shade") else 0)
        mask = ImageChops.darker(mask, window(rng, pattern(texture, side), side))
        canvas.paste(palette["second"], mask=mask)
    if item.kind in SHAPES:  # a rim of its own colour, or a pattern would fray the shape
        width = 1 if texture == "plain" else side // 42
        draw.line(body[0], fill=palette["coat"], width=width, joint="curve")
    return parts


def silhouette(parts, side) -> Image.Image:
    """What an object's outlines cover: mode L, 255 within. A ring's hole is not within."""
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for role, part in parts:
        if role == "line":
            draw.line(part, fill=255, width=side // 64)
        else:
            draw.polygon(part, fill=255)
    return mask


def clutter(canvas, rng):
    """Strew strokes in many colours over the background, in place."""
    draw, side = ImageDraw.Draw(canvas), canvas.width
    for x, y, dx, dy, thick, *colour in rng.random((35, 8)):
        end = (x + (dx - 0.5) / 5) * side, (y + (dy - 0.5) / 5) * side
        fill = tuple(int(40 + 180 * c) for c in colour)
        draw.line((x * side, y * side, *end), fill=fill, width=int(side * (1 + 2 * thick) / 64))
