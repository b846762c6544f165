"""The decoder and the pixels: odd images, transformers' own pixels, threads that read ahead."""

import io
import os
import threading

import numpy as np
import pytest
import torch
from odd_images import KEPT, SKIPPED
from PIL import Image
from small_data import SIZE, encoded, flat, noise, picture, smooth

from miniclip.data import images
from miniclip.data.images import MEAN, STD, Transform, decode, normalize, resize_crop


@pytest.mark.parametrize("name", SKIPPED)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images_that_are_skipped(name):
    pixels, reason = decode(SKIPPED[name][0], SIZE)
    assert pixels is None and reason in SKIPPED[name][1].split("|")


@pytest.mark.parametrize("name", KEPT)
def test_images_that_are_converted(name):
    file, expected, note = KEPT[name]
    pixels, said = decode(file, SIZE)
    assert pixels.shape == (SIZE, SIZE, 3) and pixels.dtype == np.uint8 and said == note
    assert np.abs(pixels.astype(int) - expected).max() <= 8


def test_a_truncated_image_is_never_half_grey():
    """Every cut of a JPEG is skipped or whole, whatever Pillow is told elsewhere."""
    whole = encoded(noise(), "JPEG")
    for cut in range(0, len(whole) - 2, len(whole) // 20):
        assert decode(whole[:cut], SIZE)[0] is None, cut


def test_a_thin_image_is_cropped_in_its_middle():
    line = np.zeros((1, 5000, 3), np.uint8)
    line[:, 2000:3000] = 200
    assert (decode(line, SIZE)[0] == 200).all()
    assert (decode(line.transpose(1, 0, 2), SIZE)[0] == 200).all()


def test_a_thin_image_does_not_grow_large(monkeypatch):
    """A line of 5,000 pixels, resized to a width of 64, would be 64 × 320,000."""
    resize, sizes = Image.Image.resize, []

    def watched(self, size, *arguments):
        sizes.append(size)
        return resize(self, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", watched)
    for width, height in ((1, 5000), (5000, 1)):
        assert decode(encoded(picture(0, width, height)), 64)[0].shape == (64, 64, 3)
    assert sizes == [(64, 3200), (3200, 64)]


def test_which_side_is_up_is_read_from_the_file(tmp_path):
    """A phone held upright: the sensor's left is the picture's top."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, :30, 0] = 250  # left red, right blue
    pixels[:, 30:, 2] = 250
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.jpg"
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    upright, note = decode(path, SIZE)
    assert note == "" and upright[1, :, 0].min() > 200 and upright[-2, :, 2].min() > 200
    assert upright[1, :, 2].max() < 50


def test_the_transform_is_clips():
    """Shorter side to S (bicubic), centre crop, [0, 1], CLIP's mean and deviation."""
    pixels = Transform(8)(flat("RGB", (255, 0, 51), 21, 13))
    assert pixels.shape == (3, 8, 8) and pixels.dtype == torch.float32
    expected = [(1 - 0.48145466) / 0.26862954, (0 - 0.4578275) / 0.26130258,
                (0.2 - 0.40821073) / 0.27577711]
    for channel, value in zip(pixels, expected, strict=True):
        torch.testing.assert_close(channel, torch.full((8, 8), value))
    assert Transform(8)(flat("L", 200)).shape == (3, 8, 8)
    assert Transform(8)(flat("RGBA", (1, 2, 3, 4))).shape == (3, 8, 8)


@pytest.mark.parametrize("width, first", [(4, 0), (5, 0), (6, 1), (7, 1), (8, 2), (9, 2), (11, 3)])
def test_the_crop_is_where_transformers_has_it(width, first):
    """(width - size) // 2; torchvision's CenterCrop, which openai/CLIP used, has 2 and 4 for 7, 11.

    test_pretrained.py compares whole images with transformers itself.
    """
    ramp = np.arange(width, dtype=np.uint8).repeat(3).reshape(1, width, 3).repeat(4, 0)
    for image, axis in ((ramp, 1), (ramp.transpose(1, 0, 2), 0)):  # no resize: the side is 4
        found = images.resize_crop(Image.fromarray(image), 4)
        assert found[:, :, 0].take(0, axis=1 - axis).tolist() == list(range(first, first + 4))


def test_the_longer_side_keeps_the_ratio():
    """500 × 333, Flickr's usual size: 96 × 64 after the resize, and 16 columns cut on each side."""
    image = noise(500, 333)
    whole = np.asarray(image.resize((96, 64), Image.Resampling.BICUBIC))
    assert (images.resize_crop(image, 64) == whole[:, 16:80]).all()


def test_decoding_and_the_transform_agree(tmp_path):
    """A model meets the same pixels in training and in use."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((700, 500))
    for format, tolerance in (("PNG", 0), ("JPEG", 12)):  # a JPEG is decoded at a smaller scale
        file = encoded(smooth, format)
        found = normalize(decode(file, 64)[0][None])[0]
        exact = Transform(64)(Image.open(io.BytesIO(file)))
        assert (found - exact).abs().max() * STD[0] * 255 <= tolerance
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright
    smooth.save(tmp_path / "phone.png", exif=exif)
    for path in (tmp_path / "phone.png", str(tmp_path / "phone.png")):
        found = normalize(decode(path, 64)[0][None])[0]
        torch.testing.assert_close(found, Transform(64)(Image.open(path)), rtol=0, atol=0)


def test_normalize_takes_arrays_and_tensors():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    expected = (images / 255 - MEAN) / STD
    for given in (images, torch.from_numpy(images)):
        found = normalize(given)
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.permute(0, 2, 3, 1), expected, atol=1e-5)




def processed(image: Image.Image, size: int, **options):
    """transformers' image processor on Pillow."""
    module = pytest.importorskip("transformers.models.clip.image_processing_pil_clip",
                                 reason="transformers with its Pillow backend is not installed")
    processor = module.CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, **options)
    return processor(image, return_tensors="np")["pixel_values"][0]


def check_pixels(image: Image.Image, size=224):
    """≤ 1/255 before normalisation; after it, the same but for rounding."""
    expected = processed(image, size, do_normalize=False)  # (3, S, S), 0 to 1
    found = resize_crop(image.convert("RGB"), size).transpose(2, 0, 1) / 255
    assert found.shape == expected.shape == (3, size, size)
    assert np.abs(found - expected).max() <= 1 / 255 + 1e-6, f"{image.size} {image.mode}"
    exact = processed(image, size)
    assert np.abs(Transform(size)(image).numpy() - exact).max() <= 1 / 255 / min(STD) + 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", [smooth, noise], ids=["smooth", "noise"])
@pytest.mark.parametrize("size", [224, 64, 35, 336])
def test_pixels_of_transformers(kind, size):
    """Of all shapes: larger, smaller, wide, tall; every parity of what the crop leaves."""
    rng = np.random.default_rng(size)
    for _ in range(25):
        short, ratio = int(size * np.exp(rng.uniform(-1.5, 1.2))), np.exp(rng.uniform(-1.5, 1.5))
        width, height = max(2, round(short * max(1, ratio))), max(2, round(short / min(1, ratio)))
        check_pixels(kind(width, height), size)
    for margin in range(9):  # no resize: the crop alone
        check_pixels(kind(size + margin, size), size)
        check_pixels(kind(size, size + margin), size)


@pytest.mark.parametrize("width, height", [
    (1, 1), (1, 2), (2, 1), (1, 50), (50, 1), (3, 150), (1, 999), (1000, 1), (4000, 100), (2, 997)])
def test_pixels_of_odd_images(width, height):
    check_pixels(noise(width, height))


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV", "F"])
def test_pixels_of_every_mode(mode):
    """But 16 bits: transformers makes white of nearly all of them."""
    image = noise(61, 47).convert(mode)
    assert image.mode == mode
    check_pixels(image, 32)


def test_pixels_of_real_photographs(real_data):
    import pyarrow.parquet as pq

    table = pq.read_table(next(real_data.glob("validation*.parquet")), columns=["image"])
    for row in table.slice(0, 40).to_pylist():
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        check_pixels(image)
        check_pixels(Image.open(io.BytesIO(encoded(image.convert("RGB").resize((640, 427)),
                                                   "JPEG"))), 64)


def test_threads_have_the_next_while_the_caller_has_these():
    """In order, every item once, never more than two portions ahead; a stop leaves none waiting."""
    done, began = [], threading.Event()

    def double(x):
        done.append(x)
        if x == 3:
            began.set()
        return 2 * x

    portions = images.in_threads(double, iter(range(8)), 3)
    assert next(portions) == [0, 2, 4]
    assert began.wait(30) and max(done) <= 5  # 3 to 5 come without being asked for
    assert [*portions] == [[6, 8, 10], [12, 14]] and sorted(done) == [*range(8)]
    assert [*images.in_threads(double, iter(()), 3)] == []

    done, released = [], threading.Event()

    def slow(x):
        done.append(x)
        return x < 50 or released.wait(30)

    portions = images.in_threads(slow, iter(range(100)), 50)
    next(portions)
    threading.Timer(0.2, released.set).start()
    portions.close()  # as when Ctrl-C ends the caller's loop
    assert len(done) <= 50 + os.cpu_count()
