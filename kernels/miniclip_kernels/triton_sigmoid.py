"""The sigmoid loss in Triton: each tile's share of loss and gradients in one visit.

    Z = s · I Tᵀ + b        L = 1/M Σ_ij softplus(Z_ij) − 1/M Σ_belonging Z_ij
    G = σ(Z) − δ            dI = s/M · G T      dT = s/M · Gᵀ I      db = 1/M Σ G

(softplus(x) = log(1 + eˣ); Zhai et al. 2023, arXiv 2303.15343. δ is 1 where a text belongs to an
image.) No entry waits for its row or its column, so there is no pass before this one.

There are two ways, as with the softmax. `rows_kernel` keeps G in registers and accumulates a block
of G T there; S is computed once for dI and once for dT: 4 products, more if D is wide. Otherwise
`sigmoid_block_kernel` writes G to a block of memory that cuBLAS multiplies twice: 3 products, the
least there is (`triton_blocks` has the picture).

Precision is that of `triton_loss`: exponentials in base 2, sums in float32, the 1 subtracted before
the cast, G 1,024 times too large in float16. Of a tiny e, log(1 + e) would keep no digit; a series
does.
"""

import torch
import triton
import triton.language as tl

from .products import add_product, boost
from .triton_blocks import BLOCK, grouped_order, stretches
from .triton_tiles import (
    LOG2E,
    Matrix,
    Side,
    aligned,
    as_pairs,
    cdiv,
    constants,
    descriptor,
    dot_products,
    in_tiles,
    on,
    tile_and_options,
)

FEATURES = 128  # that a program accumulates: with 256, loss and G would not fit into registers too
SMALL = tl.constexpr(2.0**-10)  # up to here log(1 + e) = e − e²/2 + e³/3, to float32's last bit


@triton.jit
def loss_and_gradient(Z, rows, columns, M, N, label_offset, row_ids, column_ids,
                      RAGGED: tl.constexpr):
    """A tile of Z in base 2 → its loss in base 2, and its G: float32, 0 beyond the edge."""
    e = tl.exp2(-tl.abs(Z))  # at most 1: nothing overflows
    series = (e - e * e * (0.5 - e / 3)) * LOG2E
    softplus = tl.where(e < SMALL, series, tl.log2(1 + e))
    softplus += tl.maximum(Z, 0.0, propagate_nan=tl.PropagateNan.ALL)
    belong = rows[:, None] + label_offset == columns[None, :]
    if row_ids is not None:
        own = tl.load(row_ids + rows, mask=rows < M, other=0)[:, None]
        others = tl.load(column_ids + columns, mask=columns < N, other=0)[None, :]
        belong = belong | (own == others)
    loss = tl.where(belong, softplus - Z, softplus)
    G = tl.where(Z < 0, e, 1.0) / (1 + e)
    G = tl.where(belong, G - 1, G)
    if RAGGED:
        inside = (rows < M)[:, None] & (columns < N)[None, :]
        loss = tl.where(inside, loss, 0.0)
        G = tl.where(inside, G, 0.0)
    return loss, G


@triton.jit
def entries(S, first_row, first_column, bias, tile):
    """A tile → its sum of the loss, in base 2, and G, float32 (HEIGHT, WIDTH)."""
    rows = first_row + tl.arange(0, tile.HEIGHT)
    columns = first_column + tl.arange(0, tile.WIDTH)
    Z = dot_products(S, first_row, first_column, tile) + bias * LOG2E  # in base 2
    loss, G = loss_and_gradient(Z, rows, columns, S.rows.count, S.columns.count, S.label_offset,
                                S.rows.ids, S.columns.ids, tile.RAGGED)
    return tl.sum(loss), G


@triton.jit
def one_block(S, first_row, column_slices, sums, losses, totals, bias, tile,
              BLOCK_D: tl.constexpr, PRODUCT: tl.constexpr, COUNT: tl.constexpr,
              BOOST: tl.constexpr):
    """A block of rows and a slice of features of G B, where B are S's columns: → sums, if PRODUCT.

    The block's loss and its sum of G, if COUNT, in the first slice: → losses, totals.
    """
    first_feature = tl.program_id(1) * BLOCK_D
    product = tl.zeros((tile.HEIGHT, BLOCK_D), tl.float32)
    loss, total = 0.0, 0.0
    for first_column in range(0, S.columns.count, tile.WIDTH):
        loss_here, G = entries(S, first_row, first_column, bias, tile)
        loss += loss_here
        total += tl.sum(G)
        if PRODUCT:
            b = column_slices.load([first_column, first_feature])  # (WIDTH, BLOCK_D)
            product = tl.dot((G * BOOST).to(b.dtype), b, product, input_precision=tile.PRECISION)
    if PRODUCT:
        rows = first_row + tl.arange(0, tile.HEIGHT)
        features = first_feature + tl.arange(0, BLOCK_D)
        tl.store(sums + rows.to(tl.int64)[:, None] * tile.D + features[None, :], product / BOOST,
                 mask=(rows < S.rows.count)[:, None] & (features < tile.D)[None, :])
    if COUNT:
        if tl.program_id(1) == 0:
            tl.store(losses + tl.program_id(0), loss)
            tl.store(totals + tl.program_id(0), total)


@triton.jit
def rows_kernel(I, T, I_slices, T_slices, scale, bias, pairs, sum_I, sum_T,  # noqa: E741
                losses, totals, tile, BLOCK_D: tl.constexpr, IMAGES: tl.constexpr,
                PRODUCT: tl.constexpr, BOOST: tl.constexpr):
    """G T (M, D) if IMAGES, Gᵀ I (N, D); the loss's and G's sums, of the first side that is there.

    Grid (blocks of I and of T, slices), of either alone where the other is not wanted.
    """
    images = Side(descriptor(I, pairs.M, tile.D, tile.HEIGHT, tile.DEPTH), pairs.image_ids, pairs.M)
    texts = Side(descriptor(T, pairs.N, tile.D, tile.WIDTH, tile.DEPTH), pairs.text_ids, pairs.N)
    S = Matrix(images, texts, pairs.label_offset, tl.load(scale))
    I_slices = descriptor(I_slices, pairs.M, tile.D, tile.HEIGHT, BLOCK_D)
    T_slices = descriptor(T_slices, pairs.N, tile.D, tile.HEIGHT, BLOCK_D)
    block, blocks_I = tl.program_id(0), tl.cdiv(pairs.M, tile.HEIGHT) if IMAGES else 0
    b = tl.load(bias)
    if block < blocks_I:
        one_block(S, block * tile.HEIGHT, T_slices, sum_I, losses, totals, b, tile, BLOCK_D,
                  PRODUCT, True, BOOST)
    else:  # rows of Sᵀ are the columns of S
        S_T = Matrix(texts, images, -pairs.label_offset, S.scale)
        one_block(S_T, (block - blocks_I) * tile.HEIGHT, I_slices, sum_T, losses, totals, b, tile,
                  BLOCK_D, PRODUCT, not IMAGES, BOOST)


@triton.jit
def sigmoid_block_kernel(I, T, scale, bias, pairs, G, losses, totals, tile,  # noqa: E741
                         BOOST: tl.constexpr):
    """BOOST · G (M, N), in the features' type, and each tile's loss and sum of G. Grid (tiles,)."""
    images = Side(descriptor(I, pairs.M, tile.D, tile.HEIGHT, tile.DEPTH), pairs.image_ids, pairs.M)
    texts = Side(descriptor(T, pairs.N, tile.D, tile.WIDTH, tile.DEPTH), pairs.text_ids, pairs.N)
    S = Matrix(images, texts, pairs.label_offset, tl.load(scale))
    G = descriptor(G, pairs.M, pairs.N, tile.HEIGHT, tile.WIDTH)
    first_row, first_column = grouped_order(tl.program_id(0), pairs.M, pairs.N, tile.HEIGHT,
                                            tile.WIDTH)
    loss, gradient = entries(S, first_row, first_column, tl.load(bias), tile)
    tl.store(losses + tl.program_id(0), loss)
    tl.store(totals + tl.program_id(0), tl.sum(gradient))
    G.store([first_row, first_column], (BOOST * gradient).to(G.dtype))  # nothing beyond the edge


# ------------------------------------------------------------------------------ launching


def in_registers(I, T, scale, bias, labels, needs):  # noqa: E741
    """→ Σ loss (), Σ G (), G T (M, D), Gᵀ I (N, D), float32; what `needs` leaves out is None."""
    (M, D), N = I.shape, len(T)
    I, T = aligned(I), aligned(T)  # noqa: E741
    tile, options = tile_and_options("gradient", I, T)
    wide = options["BLOCK_D"] = min(options["BLOCK_D"], FEATURES)
    square, depth = tile.HEIGHT, tile.DEPTH
    product = needs.images or needs.texts
    images = needs.images or not product  # without any gradient, the images' programs count
    blocks_I, blocks_T = images * cdiv(M, square), needs.texts * cdiv(N, square)
    sum_I = scale.new_empty(M if needs.images else 0, D)
    sum_T = scale.new_empty(N if needs.texts else 0, D)
    losses, totals = scale.new_empty(2, blocks_I or blocks_T)
    with on(I):
        rows_kernel[blocks_I + blocks_T, cdiv(D, wide) if product else 1](
            in_tiles(I, square, depth), in_tiles(T, square, depth), in_tiles(I, square, wide),
            in_tiles(T, square, wide), scale, bias, as_pairs(I, T, labels), sum_I, sum_T, losses,
            totals, constants(tile), IMAGES=images, PRODUCT=product, BOOST=boost(I.dtype),
            **options)
    return (losses.sum() / LOG2E.value, totals.sum(), sum_I if needs.images else None,
            sum_T if needs.texts else None)


def in_blocks(I, T, scale, bias, labels, needs, write=None):  # noqa: E741
    """As `in_registers`, with a block of G in memory.

    write: the function that fills it, None for the one below; `triton_hopper_sigmoid` has its own.
    """
    write = write or write_block
    if not (needs.images or needs.texts):
        return in_registers(I, T, scale, bias, labels, needs)
    A, B, (M, D), N = aligned(I), aligned(T), I.shape, len(T)  # cuBLAS takes any I, T
    vertical, horizontal = stretches(M, BLOCK), stretches(N, BLOCK * 2 // I.itemsize)
    G = I.new_empty(vertical[0].stop, cdiv(horizontal[0].stop, 16) * 16)  # as `aligned`
    sum_I = scale.new_empty(M, D) if needs.images else None
    sum_T = scale.new_empty(N, D) if needs.texts else None
    counted = []
    for rows in vertical:
        for columns in horizontal:
            block = G[:rows.stop - rows.start, :columns.stop - columns.start]
            counted.append(write(block, A[rows], B[columns], scale, bias,
                                 labels.block(rows, columns)).flatten(1).sum(1))
            if needs.images:
                add_product(sum_I[rows], block, T[columns], first=columns.start == 0)
            if needs.texts:
                add_product(sum_T[columns], block.T, I[rows], first=rows.start == 0)
    loss, total = torch.stack(counted).sum(0)
    for sums in (sum_I, sum_T):
        if sums is not None and boost(I.dtype) != 1:
            sums /= boost(I.dtype)
    return loss / LOG2E.value, total, sum_I, sum_T


def write_block(block, I, T, scale, bias, labels):  # noqa: E741
    """Fill a block with BOOST · G → its losses and sums of G, (2, …) of them, to be added up."""
    tile, options = tile_and_options("block", I, T)
    count = cdiv(len(I), tile.HEIGHT) * cdiv(len(T), tile.WIDTH)
    found = scale.new_empty(2, count)
    with on(I):
        sigmoid_block_kernel[count,](
            in_tiles(I, tile.HEIGHT, tile.DEPTH), in_tiles(T, tile.WIDTH, tile.DEPTH), scale, bias,
            as_pairs(I, T, labels), in_tiles(block, tile.HEIGHT, tile.WIDTH), *found,
            constants(tile), BOOST=boost(I.dtype), **options)
    return found
