"""What all Triton kernels here share: tiles of S, and how features reach them.

Notation of `clip_loss`. A kernel sees S from one side: its rows are the images and its columns the
texts, or the other way round (Sᵀ). `Matrix` holds both sides, `Tile` what is compiled in.
The upper half of this file runs on the device, the lower half on the host.
"""

import math
from contextlib import nullcontext
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: NumPy, on any CPU
LOG2E = tl.constexpr(math.log2(math.e))


# ------------------------------------------------------------------------------ on the device


class Pairs(NamedTuple):
    """Which rows and columns there are: an argument of every kernel."""

    M: int  # images
    N: int  # texts
    label_offset: int  # the pair of row i is column i + label_offset
    image_ids: Any  # int64 (M,), or None
    text_ids: Any  # int64 (N,), or None


class Side(NamedTuple):
    """The rows of S, or its columns."""

    features: Any  # a tensor descriptor (count, D), in tiles of the kernel's choice
    ids: Any  # pointer to int64 (count,), or None
    count: Any


class Matrix(NamedTuple):
    """S = scale · rows.features columns.featuresᵀ, (rows.count, columns.count), tile by tile.

    Each kernel builds it for itself: Triton 3.6 can't return a tuple that holds None (no ids).
    """

    rows: Side
    columns: Side
    label_offset: Any
    scale: Any  # s


class Tile(NamedTuple):
    """The numbers that a kernel is compiled for; `constants` makes them compile-time constants."""

    HEIGHT: tl.constexpr  # rows of S
    WIDTH: tl.constexpr  # columns of S
    DEPTH: tl.constexpr  # features that are multiplied at a time
    D: tl.constexpr  # features in all
    RAGGED: tl.constexpr  # whether some tile lies across the edge of S
    PRECISION: tl.constexpr  # of float32 products: "ieee" or "tf32"


@triton.jit
def descriptor(X, rows, columns, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """X as a tensor descriptor of tiles (HEIGHT, WIDTH).

    X is a descriptor already, or a pair (pointer, stride in units of 16 bytes). From a pair the
    compiler makes ordinary pointers, for GPUs without a copy engine. Loads beyond the edge give 0.
    """
    if isinstance(X, tl.tensor_descriptor):
        return X
    else:
        unit: tl.constexpr = 128 // X[0].dtype.element_ty.primitive_bitwidth
        return tl.make_tensor_descriptor(X[0], [rows, columns], [X[1] * unit, 1], [HEIGHT, WIDTH])


@triton.jit
def dot_products(S, first_row, first_column, tile):
    """One tile of S' = S · log₂e, float32 (HEIGHT, WIDTH)."""
    product = tl.zeros((tile.HEIGHT, tile.WIDTH), tl.float32)
    for k in range(0, tile.D, tile.DEPTH):
        a = S.rows.features.load([first_row, k])  # (HEIGHT, DEPTH)
        b = S.columns.features.load([first_column, k])  # (WIDTH, DEPTH)
        product = tl.dot(a, b.T, product, input_precision=tile.PRECISION)
    return product * (S.scale * LOG2E)


@triton.jit
def similarities(S, first_row, first_column, tile):
    """One tile of S' like `dot_products`, with −inf at entries that do not count."""
    rows = first_row + tl.arange(0, tile.HEIGHT)
    columns = first_column + tl.arange(0, tile.WIDTH)
    return leave_out(dot_products(S, first_row, first_column, tile), rows, columns, S.rows.count,
                     S.columns.count, S.label_offset, S.rows.ids, S.columns.ids, tile.RAGGED)


@triton.jit
def leave_out(S, rows, columns, M, N, label_offset, row_ids, column_ids, RAGGED: tl.constexpr):
    """S with −inf beyond the edge, and where the ids are equal but it is not the labelled pair."""
    if row_ids is not None:
        own = tl.load(row_ids + rows, mask=rows < M, other=0)[:, None]
        others = tl.load(column_ids + columns, mask=columns < N, other=0)[None, :]
        pair = rows[:, None] + label_offset == columns[None, :]
        S = tl.where((own == others) & (pair == 0), -float("inf"), S)
    if RAGGED:
        S = tl.where((rows < M)[:, None] & (columns < N)[None, :], S, -float("inf"))
    return S


@triton.jit
def softmax_gradient(S, row, column, distance, r, c, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """A tile of G, float32, from a tile of S', the r of its rows and the c of its columns.

    G sums a softmax over each row (if ROWS) and one over each column (if COLUMNS). At the pair it
    subtracts 1 for each of them. row and column count from the tile's corner; the pair of a row is
    in column row + distance. Beyond the edge G may be anything: there its product's other factor
    is 0.
    """
    if ROWS:
        G = tl.exp2(S - r[:, None])
    if COLUMNS:
        Q = tl.exp2(S - c[None, :])
        G = G + Q if ROWS else Q
    pair = row[:, None] + distance == column[None, :]
    return tl.where(pair, G - (ROWS + COLUMNS), G)  # in float32, before the cast


@triton.jit
def softmax_gradient_once(S, row, column, distance, r, c, low, highest_r, highest_c):
    """`softmax_gradient` of rows and columns, with one exponential an entry instead of two.

        2^(S − r) + 2^(S − c) = 2^(S − low) · (2^(low − r) + 2^(low − c))

    What stands in brackets is a number for each row and each column. low: the least r or c of the
    tile, so that both are at most 1. No entry is above its sums. Where 2^(S − low) could overflow
    all the same, the tile takes two exponentials.
    """
    if tl.minimum(highest_r, highest_c) - low < 100:  # false for NaN too
        G = tl.exp2(S - low) * (tl.exp2(low - r)[:, None] + tl.exp2(low - c)[None, :])
    else:
        G = tl.exp2(S - r[:, None]) + tl.exp2(S - c[None, :])
    pair = row[:, None] + distance == column[None, :]
    return tl.where(pair, G - 2, G)


# ------------------------------------------------------------------------------ on the host


@cache
def launch_options(kernel, dtype, D, architecture):
    """{option: value} of a kernel's launch: sizes of tiles, warps, pipeline stages, registers.

    kernel: sums, finish, block or gradient. architecture: compute capability, as (9, 0).

    |          |             | BLOCK_M | BLOCK_N | BLOCK_K | BLOCK_D   | warps | stages |
    | -------- | ----------- | ------- | ------- | ------- | --------- | ----- | ------ |
    | 16 bits  | sums, block | 128     | 128     | 64      |           | 8     | 3      |
    |          | finish      | 128     | 128     | 64      |           | 8     | 3      |
    |          | gradient    | 128     | 128     | 64      | D to 256  | 8     | 3      |
    | 32 bits  | sums, block | 64      | 64      | 32      |           | 4     | 2      |
    |          | finish      | 64      | 64      | 32      |           | 4     | 2      |
    |          | gradient    | 32      | 32      | 32      | D to 128  | 4     | 2      |
    | interpr. | sums, block | 64      | 32      | 32      |           |       |        |
    |          | finish      | 64      | 64      | 32      |           |       |        |
    |          | gradient    | 32      | 32      | 32      | D to 64   |       |        |

    BLOCK_M × BLOCK_N is a tile of S. BLOCK_K is the step of its product over the features. BLOCK_D
    is the slice of features that a program accumulates a gradient for: the next power of two from
    D on, at least 16. Wide tiles feed the tensor cores (64 rows are one warp group's instruction).
    Their limit is the 255 registers of a thread: 128 × 256 float32 in 256 threads take half of
    them. 64 × 512 would fit as well. But where one product feeds another, Triton gives every warp
    16 rows of its own: of eight warps on 64 rows, four would repeat the work of the others.
    Shared memory stays below the 99 KiB that small GPUs have since 8.6. gradient and finish have
    square tiles, because their rows and columns exchange roles.

    On Hopper (9.x) sums and block use at most 128 registers a thread. So a second program fits on
    the same multiprocessor: one multiplies while the other takes exponentials. Only sums with ids
    needs the cap for that (it would take 162); the cap causes no spills. With more than 512
    features the products are long, and fewer reads matter more than a second program. There tiles
    have 256 columns, and a program has the multiprocessor to itself.
    """
    wide_enough = max(16, triton.next_power_of_2(D))
    if INTERPRETED:
        height, width, square, slice_, usual = 64, 32, 32, 64, {"BLOCK_K": 32}
    elif dtype == torch.float32:
        height, width, square, slice_ = 64, 64, 32, 128
        usual = {"BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    else:
        height, width, square, slice_ = 128, 128, 128, 256
        usual = {"BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
    if kernel == "finish":
        return usual | {"BLOCK_M": height, "BLOCK_N": height}
    if kernel == "gradient":
        return usual | {"BLOCK_M": square, "BLOCK_N": square, "BLOCK_D": min(wide_enough, slice_)}
    options = usual | {"BLOCK_M": height, "BLOCK_N": width}
    if architecture[0] == 9 and dtype.itemsize == 2 and not INTERPRETED:
        if D <= 512:
            options["maxnreg"] = 128
        else:
            options["BLOCK_N"] = 256
    return options


@cache
def architecture(device):
    """Compute capability, such as (9, 0). The interpreter is (9, 0): it supports descriptors.

    From 9.0 on (Hopper) hardware loads and stores tiles. AMD's GPUs count as (8, 0): their own
    numbers mean something else. The result is cached, since asking PyTorch takes microseconds.
    """
    if INTERPRETED:
        return 9, 0
    if torch.version.hip:
        return 8, 0
    return torch.cuda.get_device_capability(device)


def tile_and_options(kernel, I, T):  # noqa: E741
    """→ the tile of a kernel for these features (M, D), (N, D), and the rest of its launch options.
    """
    (M, D), N = I.shape, T.shape[0]
    return chosen(launch_options, kernel, I.dtype, M, N, D, architecture(I.device),
                  torch.get_float32_matmul_precision())


@lru_cache(maxsize=1024)
def chosen(launch_options, kernel, dtype, M, N, D, architecture, precision):
    """`tile_and_options`, cached: Python takes as long for it as for a launch."""
    options = dict(launch_options(kernel, dtype, D, architecture))
    height = options.pop("BLOCK_M")
    width, depth = options.pop("BLOCK_N"), options.pop("BLOCK_K")
    tf32 = precision != "highest"  # PyTorch's own switch
    ragged = bool(M % height or N % width)
    return Tile(height, width, depth, D, ragged, "tf32" if tf32 else "ieee"), options


@lru_cache(maxsize=1024)
def constants(tile):
    """The tile as an argument of a launch, with each number a compile-time constant."""
    return Tile(*map(tl.constexpr, tile))


def as_pairs(I, T, labels):  # noqa: E741
    """The argument `pairs` of every kernel."""
    return Pairs(len(I), len(T), labels.label_offset, labels.image_ids, labels.text_ids)


def cdiv(a, b):
    """a / b, rounded up. (Triton's own takes microseconds: it is meant for kernels.)"""
    return -(-a // b)


def mean_weight(labels, M):
    """The factor of a sum over all rows (and columns): 1/2M for both directions, 1/M for rows."""
    return 1 / (2 * M) if labels.both else 1 / M


def aligned(features):
    """These features, or a copy that a descriptor takes: contiguous rows, aligned to 16 bytes."""
    unit, features = 16 // features.itemsize, features.resolve_neg()
    (N, D), (row, feature) = features.shape, features.stride()
    if feature == 1 and row >= D and row % unit == 0 and features.data_ptr() % 16 == 0:
        return features
    return features.new_empty(N, cdiv(D, unit) * unit)[:, :D].copy_(features)


def in_tiles(features, height, width):
    """The argument X of `descriptor` for aligned features, in tiles (height, width)."""
    shape, strides = list(features.shape), list(features.stride())
    if architecture(features.device) >= (9, 0):
        return TensorDescriptor(features, shape, strides, [height, width])
    return features, strides[0] * features.itemsize // 16


def on(tensor):
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
