"""Checks of exercise 5."""

import torch
import torch.nn.functional as F

# 100 · row + column, and 10,000 more for each channel: every number says where it comes from.
LINE = torch.arange(6.0)
PICTURE = (10000 * LINE[:3, None, None] + 100 * LINE[:, None] + LINE)[None]  # (1, 3, 6, 6)


def patchified(answer, pixels, size):
    found = answer.patchify(pixels, size)
    assert isinstance(found, torch.Tensor), (
        f"patchify should return a tensor, not {found!r}: does it end with `return`?")
    B, C, S, _ = pixels.shape
    expected = (B, (S // size) ** 2, C * size * size)
    assert tuple(found.shape) == expected, (
        f"for pixels {tuple(pixels.shape)} and size {size} the shape should be {expected}, not "
        f"{tuple(found.shape)}")
    return found


def check_the_first_square(answer):
    """the first token is the top left square: channel, then row, then column"""
    found = patchified(answer, PICTURE, 2)[0, 0].tolist()
    expected = PICTURE[0, :, :2, :2].flatten().tolist()
    assert found != PICTURE.flatten()[:12].tolist(), (
        "a reshape alone goes on along the row of the picture: token 0 holds pixels that are not "
        "in its square. Split both sides of the picture in two axes, then permute")
    assert found != PICTURE[0, :, :2, :2].permute(1, 2, 0).flatten().tolist(), (
        "the right numbers in another order: the three channels of each pixel stand together, but "
        "the kernel of a convolution is (channel, row, column)")
    assert found != PICTURE[0, :, :2, :2].transpose(1, 2).flatten().tolist(), (
        "the square is mirrored: its rows should come before its columns")
    assert found == expected, f"token 0 should be {expected}, not {found}"


def check_the_order_of_the_squares(answer):
    """the squares stand row by row"""
    found = patchified(answer, PICTURE, 2)[0, :, 0].tolist()
    expected = [0, 2, 4, 200, 202, 204, 400, 402, 404]
    assert found != [0, 200, 400, 2, 202, 402, 4, 204, 404], (
        "the squares stand column by column: token 1 should be the square to the right of token 0, "
        "not the one below it")
    assert found == expected, (
        f"the first numbers of the nine squares should be {expected}, not {found} (100 · row + "
        "column says where a number comes from)")


def check_pictures_stay_apart(answer):
    """each picture of a batch gives its own tokens, and nothing is lost"""
    pixels = torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = patchified(answer, pixels, 4)
    for b in range(3):
        assert torch.equal(found[b].flatten().sort()[0], pixels[b].flatten().sort()[0]), (
            f"the tokens of picture {b} should hold exactly its own numbers")
        alone = patchified(answer, pixels[b:b + 1], 4)[0]
        assert torch.equal(found[b], alone), f"picture {b} should not depend on the others"


def check_one_square(answer):
    """a picture as small as one square is one token"""
    found = patchified(answer, PICTURE, 6)
    assert torch.equal(found.flatten(), PICTURE.flatten()), (
        "with size = S the only token should be the whole picture, flattened")


def check_embed_is_a_strided_convolution(answer):
    """embed equals a convolution whose stride is its kernel"""
    generator = torch.Generator().manual_seed(1)
    for size in (1, 4, 8):
        pixels = torch.randn(2, 3, 16, 16, generator=generator)
        weight = torch.randn(5, 3, size, size, generator=generator)
        expected = F.conv2d(pixels, weight, stride=size).flatten(2).transpose(1, 2)  # (B, T, C)
        found = answer.embed(pixels, weight)
        assert isinstance(found, torch.Tensor), "embed returns no tensor: is a `return` missing?"
        assert found.shape != expected.transpose(1, 2).shape, (
            f"the shape is {tuple(found.shape)}, channels before tokens; it should be (B, T, C) = "
            f"{tuple(expected.shape)}")
        assert found.shape == expected.shape, (
            f"the shape should be (B, T, C) = {tuple(expected.shape)}, not {tuple(found.shape)}")
        if size > 1:
            turned = F.conv2d(pixels, weight.flip(2, 3), stride=size).flatten(2).transpose(1, 2)
            assert not torch.allclose(found, turned, atol=1e-4), (
                "the kernels are turned round; PyTorch's convolution does not turn them, so the "
                "matrix should be weight.flatten(1) as it is")
        assert torch.allclose(found, expected, atol=1e-4), (
            f"kernels of {size} × {size}: differs from F.conv2d(pixels, weight, stride={size}) by "
            f"up to {(found - expected).abs().max():.2g}; each kernel, flattened in the order "
            "channel, row, column, should be one row of the matrix")


def axes(pixels, size, *order):
    B, C, S, _ = pixels.shape
    x = pixels.reshape(B, C, S // size, size, S // size, size).permute(0, *order)
    return x.reshape(B, (S // size) ** 2, C * size * size)


def only_reshaped(pixels, size):
    B, C, S, _ = pixels.shape
    return pixels.reshape(B, (S // size) ** 2, C * size * size)


def kernels_as_columns(pixels, weight):
    matrix = weight.reshape(-1, len(weight))  # the shape is right; the numbers are not
    return axes(pixels, weight.shape[-1], 2, 4, 1, 3, 5) @ matrix


def turned_kernels(pixels, weight):
    return axes(pixels, weight.shape[-1], 2, 4, 1, 3, 5) @ weight.flip(2, 3).flatten(1).T


WRONG = {
    "nothing but a reshape": ({"patchify": only_reshaped}, "a reshape alone"),
    "column by column": (
        {"patchify": lambda pixels, size: axes(pixels, size, 4, 2, 1, 3, 5)}, "column by column"),
    "channels last": (
        {"patchify": lambda pixels, size: axes(pixels, size, 2, 4, 3, 5, 1)}, "channels of each"),
    "kernels reshaped into columns": ({"embed": kernels_as_columns}, "one row of the matrix"),
    "kernels turned round": ({"embed": turned_kernels}, "turned round"),
}
