"""Image files of every odd kind: those that are skipped, and those that are kept."""

import struct
import zlib

from small_data import colour, encoded, flat, noise, picture

PNG = encoded(picture(0))


def huge(width, height) -> bytes:
    """A PNG of a few bytes whose header claims width × height pixels."""
    png = bytearray(PNG)
    png[16:24] = struct.pack(">II", width, height)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def animation() -> bytes:
    frames = [flat("RGB", (250, 0, 0)), flat("RGB", (0, 250, 0)), flat("RGB", (0, 0, 250))]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


SKIPPED = {
    "no-image": (b"this is no image", "unreadable"),
    "empty": (b"", "unreadable"),
    "missing": (None, "missing"),
    "jpeg-cut": (encoded(noise(), "JPEG")[:1500], "truncated"),
    "png-cut": (encoded(noise())[:2000], "truncated|unreadable"),
    "gif-cut": (encoded(noise(channels=1), "GIF")[:900], "truncated|unreadable"),
    "png-bits": (encoded(noise()).replace(b"IDAT", b"IDAX"), "truncated|unreadable"),
    "header-alone": (PNG[:30], "truncated|unreadable"),
    "20000x20000": (huge(20_000, 20_000), "too large"),
    "13000x12000": (huge(13_000, 12_000), "too large"),  # Pillow itself only warns of it
}


KEPT = {  # name -> file, its colour as decoded, what is said of it
    "rgb": (PNG, colour(0), ""),
    "jpeg": (encoded(picture(1), "JPEG"), colour(1), ""),
    "large-jpeg": (encoded(picture(2, 900, 700), "JPEG"), colour(2), ""),
    "gray": (encoded(flat("L", 90)), (90, 90, 90), "converted from L"),
    "gray-jpeg": (encoded(flat("L", 90), "JPEG"), (90, 90, 90), "converted from L"),
    "one-bit": (encoded(flat("1", 1)), (255, 255, 255), "converted from 1"),
    "16-bit": (encoded(flat("I;16", 25700)), (100, 100, 100), "converted from I;16"),
    "10 of 16 bits": (encoded(flat("I;16", 300)), (75, 75, 75), "converted from I;16"),
    "12 of 16 bits": (encoded(flat("I;16", 2048)), (128, 128, 128), "converted from I;16"),
    "14 of 16 bits": (encoded(flat("I;16", 8192)), (128, 128, 128), "converted from I;16"),
    "8 of 32 bits": (encoded(flat("I", 200), "TIFF"), (200, 200, 200), "converted from I"),
    "float-to-1": (encoded(flat("F", 0.4), "TIFF"), (102, 102, 102), "converted from F"),
    "float-to-255": (encoded(flat("F", 99.0), "TIFF"), (99, 99, 99), "converted from F"),
    "palette": (encoded(picture(3).quantize(4)), colour(3), "converted from P"),
    "rgba": (encoded(flat("RGBA", (9, 90, 200, 99))), (9, 90, 200), "converted from RGBA"),
    "gray-alpha": (encoded(flat("LA", (60, 10))), (60, 60, 60), "converted from LA"),
    "cmyk": (encoded(flat("CMYK", (0, 255, 255, 0)), "JPEG"), (255, 0, 0), "converted from CMYK"),
    "gif": (encoded(picture(4), "GIF"), colour(4), "converted from P"),
    "animated": (animation(), (250, 0, 0), "animated, first frame taken"),
    "webp": (encoded(picture(5), "WEBP", lossless=True), colour(5), ""),
    "one-pixel": (encoded(picture(6, 1, 1)), colour(6), ""),
    "1x5000": (encoded(picture(7, 1, 5000)), colour(7), ""),
    "5000x1": (encoded(picture(8, 5000, 1)), colour(8), ""),
    "2x1": (encoded(picture(9, 2, 1)), colour(9), ""),
}
