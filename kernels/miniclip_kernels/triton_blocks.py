"""A backward pass for 4 products in all: cuBLAS multiplies bounded blocks of G by T and I.

`triton_loss` needs 5 products, and 7 or more where D is wide. Its registers hold the sums of one
slice of dI or dT, so it computes every tile of S once for each slice. Here the backward pass
computes a tile only once. It writes the tile's G to a block of BLOCK × BLOCK entries, 128 MiB that
every block of S reuses. Ordinary matrix products then read the block twice:

              columns: BLOCK texts
            ┌──────────────┬───────            block_kernel   G₀₀ from I₀, T₀, r₀, c₀ → memory
     BLOCK  │              │                   PyTorch        sum of dI₀  +=  G₀₀  T₀
     images │     G₀₀  ────┼──▶ next block                    sum of dT₀  +=  G₀₀ᵀ I₀
            │              │
            ├──────────────┼───────

The sums are float32: one for the rows of a block, one for all texts. Blocks are large and square
for two reasons. Each addition reads a sum from memory and writes it back, N / BLOCK times in all.
And a product with BLOCK terms does enough work for each read of G. (Liger's cross-entropy for
Hopper keeps 1,024 rows of a vocabulary in this way.) A last kernel computes dI and dT from the
sums. Memory beyond inputs and gradients: a block and 4D(N + BLOCK) bytes. Below some D the memory
traffic of G (6 bytes an entry) takes longer than the product that it saves: `backends.best` has
the limit.

The forward pass, the equation of G and its precision are those of `triton_loss`.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import triton_loss
from .backends import EVERY_GRADIENT
from .products import add_product, boost
from .triton_tiles import (
    INTERPRETED,
    Matrix,
    Side,
    aligned,
    as_pairs,
    cdiv,
    constants,
    descriptor,
    in_tiles,
    mean_weight,
    on,
    similarities,
    softmax_gradient,
    softmax_gradient_once,
    tile_and_options,
)

BLOCK = 64 if INTERPRETED else 8192  # rows, columns of a block; half the columns for 32 bits
GROUP = tl.constexpr(8)  # rows of tiles that run together: what they read stays in the cache


@triton.jit
def grouped_order(number, M, N, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """The corner (row, column) of the tile with this number: GROUP rows of tiles at a time."""
    across = tl.cdiv(N, WIDTH)
    group, within = number // (GROUP * across), number % (GROUP * across)
    rows_of_tiles = tl.minimum(tl.cdiv(M, HEIGHT) - group * GROUP, GROUP)
    row = group * GROUP + within % rows_of_tiles
    return row * HEIGHT, within // rows_of_tiles * WIDTH


@triton.jit
def block_kernel(I, T, scale, pairs, r, c, G, tile,  # noqa: E741
                 COLUMNS: tl.constexpr, BOOST: tl.constexpr, ONCE: tl.constexpr = False):
    """BOOST · G (M, N), in the features' type: a program writes a tile. Grid (tiles,).

    ONCE: one exponential an entry where that is safe: for the tuner, until a GPU says that it pays.
    """
    images = Side(descriptor(I, pairs.M, tile.D, tile.HEIGHT, tile.DEPTH), pairs.image_ids, pairs.M)
    texts = Side(descriptor(T, pairs.N, tile.D, tile.WIDTH, tile.DEPTH), pairs.text_ids, pairs.N)
    S = Matrix(images, texts, pairs.label_offset, tl.load(scale))
    M, N = pairs.M, pairs.N
    G = descriptor(G, M, N, tile.HEIGHT, tile.WIDTH)
    first_row, first_column = grouped_order(tl.program_id(0), M, N, tile.HEIGHT, tile.WIDTH)
    row, column = tl.arange(0, tile.HEIGHT), tl.arange(0, tile.WIDTH)  # within the tile
    rows, columns = first_row + row, first_column + column
    entries = similarities(S, first_row, first_column, tile)
    r_here = tl.load(r + rows, mask=rows < M, other=0.0)
    c_here = tl.load(c + columns, mask=(columns < N) & COLUMNS, other=0.0)
    distance = first_row + pairs.label_offset - first_column
    if ONCE and COLUMNS:
        low = tl.minimum(tl.min(r_here), tl.min(c_here))
        gradient = softmax_gradient_once(entries, row, column, distance, r_here, c_here, low,
                                         tl.max(r_here), tl.max(c_here))
    else:
        gradient = softmax_gradient(entries, row, column, distance, r_here, c_here, True, COLUMNS)
    G.store([first_row, first_column], (BOOST * gradient).to(G.dtype))  # nothing beyond the edge


class Sums(NamedTuple):
    """G B for some rows of S (or of Sᵀ), their features A, and where their gradient goes."""

    sums: Any  # float32 (rows, D)
    A: Any  # (rows, D), with this stride
    dA: Any  # (rows, D)
    rows: int
    stride: int


@triton.jit
def scale_kernel(first, second, scale, upstream, weight, shares, D: tl.constexpr,
                 ROWS: tl.constexpr, WIDE: tl.constexpr):
    """dA = s · factor · sums of both; Σ ⟨factor · sums, A⟩ of ROWS rows at a time → shares."""
    block, blocks = tl.program_id(0), tl.cdiv(first.rows, ROWS)
    if block < blocks:
        share = scale_rows(first, block, scale, upstream, weight, D, ROWS, WIDE)
    else:
        share = scale_rows(second, block - blocks, scale, upstream, weight, D, ROWS, WIDE)
    tl.store(shares + block, share)


@triton.jit
def scale_rows(own, block, scale, upstream, weight, D: tl.constexpr, ROWS: tl.constexpr,
               WIDE: tl.constexpr):
    """Write ROWS rows of dA. → Σ ⟨factor · sums, A⟩ of them."""
    row = block.to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    feature = tl.arange(0, WIDE)[None, :]
    inside = (row < own.rows) & (feature < D)
    at = row * D + feature
    total = tl.load(own.sums + at, mask=inside, other=0.0) * tl.load(upstream) * weight
    tl.store(own.dA + at, total * tl.load(scale), mask=inside)  # rounded only now
    return tl.sum(total * tl.load(own.A + row * own.stride + feature, mask=inside, other=0.0))


# ------------------------------------------------------------------------------ launching


BASE, forward, logsumexps = triton_loss.BASE, triton_loss.forward, triton_loss.logsumexps


def stretches(length, most) -> list[slice]:
    """0 to length in parts of at most `most`, as equal as whole tiles can make them."""
    parts, unit = cdiv(length, most), min(most, 128)
    step = cdiv(cdiv(length, parts), unit) * unit
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def sums_of(sums, A, dA):
    """An argument of `scaled`."""
    return Sums(sums, A, dA, len(sums), A.stride(0))


def scaled(ready, scale, upstream, weight):
    """Write the gradients of one or two `Sums`, in one launch → the last's shares of ds (…,)."""
    first, last = ready[0], ready[-1]
    D = first.sums.shape[1]
    wide = triton.next_power_of_2(D)
    height = 2048 // wide
    blocks = [cdiv(own.rows, height) for own in ready]
    shares = scale.new_empty(sum(blocks))
    with on(first.A):
        scale_kernel[len(shares),](first, last, scale, upstream, weight, shares, D, height, wide)
    return shares[-blocks[-1]:]


def write(block, I, T, scale, r, c, labels):  # noqa: E741
    """Fill a block with BOOST · G, from its own rows of I, T, r and c and its own labels."""
    tile, options = tile_and_options("block", I, T)
    with on(I):
        block_kernel[cdiv(len(I), tile.HEIGHT) * cdiv(len(T), tile.WIDTH),](
            in_tiles(I, tile.HEIGHT, tile.DEPTH), in_tiles(T, tile.WIDTH, tile.DEPTH), scale,
            as_pairs(I, T, labels), r, c, in_tiles(block, tile.HEIGHT, tile.WIDTH),
            constants(tile), COLUMNS=labels.both, BOOST=boost(I.dtype), **options)


def backward(upstream, I, T, scale, r, c, labels, needs=EVERY_GRADIENT,  # noqa: E741
             write=write):
    """upstream (): the gradient with respect to the loss → dI (M, D), dT (N, D), ds ().

    What `needs` leaves out is None, and costs no product. write: the function that fills a block of
    G; `triton_hopper` has its own.
    """
    A, B, (M, D), N = aligned(I), aligned(T), I.shape, len(T)  # cuBLAS takes any I, T
    weight = mean_weight(labels, M) / boost(I.dtype)
    vertical, horizontal = stretches(M, BLOCK), stretches(N, BLOCK * 2 // I.itemsize)
    G = I.new_empty(vertical[0].stop, cdiv(horizontal[0].stop, 16) * 16)  # as `aligned`
    from_images = needs.images or not needs.texts  # without the texts' sums, ds comes from here
    sum_I = scale.new_empty(len(G), D) if from_images else None
    dI = I.new_empty(M, D) if from_images else None
    sum_T, dT = (scale.new_empty(N, D), T.new_empty(N, D)) if needs.texts else (None, None)
    shares = []
    for rows in vertical:
        height, own = rows.stop - rows.start, I[rows]
        for columns in horizontal:
            block = G[:height, :columns.stop - columns.start]
            c_here = c[columns] if labels.both else c
            write(block, A[rows], B[columns], scale, r[rows], c_here, labels.block(rows, columns))
            if from_images:
                add_product(sum_I[:height], block, T[columns], first=columns.start == 0)
            if needs.texts:
                add_product(sum_T[columns], block.T, own, first=rows.start == 0)
        ready = []
        if from_images:
            ready.append(sums_of(sum_I[:height], A[rows], dI[rows]))
        if needs.texts and rows.stop == M:  # the sums of the texts are complete
            ready.append(sums_of(sum_T, B, dT))
        if ready:  # in one launch
            shares.append(scaled(ready, scale, upstream, weight))
    ds = None
    if needs.scale:  # of all texts, or of all blocks of images
        ds = shares[-1].sum() if needs.texts or len(shares) == 1 else torch.cat(shares).sum()
    return dI if needs.images else None, dT, ds
