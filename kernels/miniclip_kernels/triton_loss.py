"""The loss in Triton: similarities and symmetric cross-entropy fused, M × N never in memory.

The equations (notation of `clip_loss`; δ_ij = 1 where text j belongs to image i)

    S = s · I Tᵀ                        r_i = log Σ_j exp S_ij          c_j = log Σ_i exp S_ij
    L = ½ (mean_i r_i + mean_j c_j) − mean_i S_ii
    G = exp(S − r) + exp(S − c) − 2δ    = 2N ∂L/∂S                      (M = N)
    dI = s/2N · G T       dT = s/2N · Gᵀ I       ds = 1/2N · Σ G ∘ I Tᵀ = 1/2N · Σ_i ⟨(G T)_i, I_i⟩

With direction "rows" there is no c: G = exp(S − r) − δ, and 1/M stands for 1/2N.

There are three kernels. Each computes S in tiles that stay in registers and are then discarded:

                 columns: texts                 sums      one pass, 1 product. A program owns every
            ┌──────┬──────┬──────┬──────┐                 `groups`-th block of rows, in one of
            │ S₀₀  │ S₀₁  │ S₀₂  │ S₀₃  │ ─▶ Σ_j          `splits` stretches of columns. Σ_j stays
      rows: ├──────┼──────┼──────┼──────┤                 in registers; Σ_i is added to the
     images │ S₁₀  │ S₁₁  │  …   │      │ ─▶ Σ_j          group's line of a (groups, N) array, in
            └──────┴──────┴──────┴──────┘                 columns that no other program adds to:
               ▼      ▼      ▼      ▼                     the order of additions is always the
              Σ_i    Σ_i    Σ_i    Σ_i                    same.

                                                finish    adds the lines up, takes logarithms, and
            ┌──────┬──────┬──────┬──────┐                 sums the loss: no product to speak of
    G_0· T =│ G₀₀  │ G₀₁  │ G₀₂  │ G₀₃  │ ─▶ dI₀
            └──────┴──────┴──────┴──────┘       gradient  S again, G from it, and G T into an
                                                          accumulator (HEIGHT, BLOCK_D): 2 products
                                                          for each slice of BLOCK_D features. Other
                                                          programs exchange I and T, for dT: S
                                                          becomes Sᵀ.

For D ≤ BLOCK_D that makes 1 + 2 + 2 = 5 matrix products, with two slices 7. The minimum without
keeping S is 4, which `triton_blocks` reaches.

Precision. Products of 16-bit features are exact in float32. Sums, logarithms and accumulators are
float32. Exponentials are base 2 (the hardware's own). G is formed in float32, and the 1 on its
diagonal is subtracted *before* the cast to the features' type. Subtracted after the cast, a
probability of 0.99 would leave 0.01 with an error of 17 %. Factors (s, 1/N, the upstream gradient)
are applied to the accumulator at the very end. In float16, G is cast 1,024 times too large
(`boost`).

No maxima. exp S may overflow. For unit vectors S ≤ s is known beforehand, so a fixed shift can be
subtracted from every exponent: 2^(S' − shift) with S' = S · log₂e. The shift is just large enough
to keep the largest possible sum at 2^120, since a larger one would cost the exponent more of its
last bits. Up to s = 72 at N = 65,536 the shift is 0. Nothing is lost as long as a sum is not below
2^−80 (a term that is flushed to zero is below 2^−126). With s = 100 and N = 65,536 that fails for a
row whose best cosine is below −0.28. For vectors far from unit length, sums may overflow. `finish`
detects both in the sum itself, and recomputes that block of rows or columns at once with a running
maximum. The host does not have to wait for the GPU.

Tile sizes are in `triton_tiles.launch_options`. No code of another project was copied. The README
beside this package says what was learnt from others: column sums in the pass of the row sums, no
floating-point atomics between programs, no probabilities dropped, wide tiles.
"""

import math

import triton
import triton.language as tl

from .backends import EVERY_GRADIENT
from .products import boost
from .triton_tiles import (
    INTERPRETED,
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
    mean_weight,
    on,
    similarities,
    softmax_gradient,
    tile_and_options,
)

BASE = 2  # of r and c
HEADROOM = 120  # bits: log₂ of the largest sum that unit vectors can give
SMALLEST = tl.constexpr(2.0**-80)  # a smaller sum has lost terms that count
LARGEST = tl.constexpr(2.0**126)
LINES = tl.constexpr(16)  # lines of partial sums that are added up at a time
GROUPS = 256  # lines of partial column sums, at most; and about as many programs at a time


# ------------------------------------------------------------------------------ forward


@triton.jit
def fixed_shift(scale, room):
    """The shift of every exponent: with `room` bits for the largest term, no sum overflows."""
    return tl.maximum(scale * LOG2E - room, 0.0)


@triton.jit
def sums_kernel(I, T, scale, pairs, room, row_sums, column_sums,  # noqa: E741
                tile, BOTH: tl.constexpr, ADD: tl.constexpr):
    """Σ_j 2^(S' − shift) → row_sums (splits, M);  Σ_i the same → column_sums (groups, N).

    Grid (groups, splits). ADD: a group has several blocks of rows, which add up in its line of
    column_sums: it must be zero before.
    """
    images = Side(descriptor(I, pairs.M, tile.D, tile.HEIGHT, tile.DEPTH), pairs.image_ids, pairs.M)
    texts = Side(descriptor(T, pairs.N, tile.D, tile.WIDTH, tile.DEPTH), pairs.text_ids, pairs.N)
    S = Matrix(images, texts, pairs.label_offset, tl.load(scale))
    M, N = pairs.M, pairs.N
    HEIGHT: tl.constexpr = tile.HEIGHT
    WIDTH: tl.constexpr = tile.WIDTH
    group, groups = tl.program_id(0), tl.num_programs(0)
    split, splits = tl.program_id(1), tl.num_programs(1)
    shift = fixed_shift(S.scale, room)
    stretch = tl.cdiv(tl.cdiv(N, WIDTH), splits) * WIDTH
    for first_row in range(group * HEIGHT, M, groups * HEIGHT):
        rows = first_row + tl.arange(0, HEIGHT)
        row_sum = tl.zeros((HEIGHT,), tl.float32)
        for first_column in range(split * stretch, min(N, (split + 1) * stretch), WIDTH):
            columns = first_column + tl.arange(0, WIDTH)
            E = tl.exp2(similarities(S, first_row, first_column, tile) - shift)
            row_sum += tl.sum(E, 1)
            line = column_sums + group.to(tl.int64) * N + columns
            if BOTH and ADD:  # "atomic" only to be added in the cache: no other program adds here
                tl.atomic_add(line, tl.sum(E, 0), mask=columns < N, sem="relaxed")
            elif BOTH:
                tl.store(line, tl.sum(E, 0), mask=columns < N)
        tl.store(row_sums + split.to(tl.int64) * M + rows, row_sum, mask=rows < M)


@triton.jit
def running_logsumexp(S, first_row, tile):
    """log₂ Σ_j 2^S' of a block of rows, (HEIGHT,), with a running maximum: right for any S."""
    top = tl.full((tile.HEIGHT,), -float("inf"), tl.float32)
    total = tl.zeros((tile.HEIGHT,), tl.float32)
    for first_column in range(0, S.columns.count, tile.WIDTH):
        entries = similarities(S, first_row, first_column, tile)
        higher = tl.maximum(top, tl.max(entries, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)  # no entry so far: avoid inf − inf
        total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(entries - shift[:, None]), 1)
        top = higher
    return top + tl.log2(total)


@triton.jit
def logsumexp(S, first_row, sums, parts, shift, tile):
    """log₂ Σ_j 2^S' of a block of rows, from the lines of sums (parts, M) or else recomputed."""
    M = S.rows.count
    rows = first_row + tl.arange(0, tile.HEIGHT)
    total = tl.where(rows < M, 0.0, 1.0)
    for first in range(0, parts, LINES):  # many at once, to hide the latency of the loads
        lines = first + tl.arange(0, LINES)
        total += tl.sum(tl.load(sums + lines.to(tl.int64)[:, None] * M + rows[None, :], other=0.0,
                                mask=(lines < parts)[:, None] & (rows < M)[None, :]), 0)
    result = tl.log2(total) + shift
    good = (total >= SMALLEST) & (total <= LARGEST)  # false for NaN too
    if tl.min(good.to(tl.int32)) == 0:
        result = running_logsumexp(S, first_row, tile)
    return result


@triton.jit
def finish_kernel(I, T, scale, pairs, room, row_sums, column_sums, splits, groups,  # noqa: E741
                  weight, r, c, losses, tile, BOTH: tl.constexpr, LOSS: tl.constexpr):
    """Sums → r (M,), c (N,), in base 2; if LOSS, each block's share of it → losses (blocks,).

    Tiles are square: rows and columns change their roles. With LOSS and BOTH, M = N.
    """
    images = Side(descriptor(I, pairs.M, tile.D, tile.HEIGHT, tile.DEPTH), pairs.image_ids, pairs.M)
    texts = Side(descriptor(T, pairs.N, tile.D, tile.WIDTH, tile.DEPTH), pairs.text_ids, pairs.N)
    S = Matrix(images, texts, pairs.label_offset, tl.load(scale))
    first = tl.program_id(0) * tile.HEIGHT
    rows = first + tl.arange(0, tile.HEIGHT)
    inside = rows < pairs.M
    shift = fixed_shift(S.scale, room)
    r_here = logsumexp(S, first, row_sums, splits, shift, tile)
    tl.store(r + rows, r_here, mask=inside)
    entropy = r_here
    if BOTH:  # the same indices are those of columns, the rows of Sᵀ
        S_T = Matrix(texts, images, -pairs.label_offset, S.scale)
        c_here = logsumexp(S_T, first, column_sums, groups, shift, tile)
        tl.store(c + rows, c_here, mask=rows < pairs.N)
        entropy += c_here
    if LOSS:  # the labelled pairs' similarities are the diagonal of a tile of their own
        positives = dot_products(S, first, first + pairs.label_offset, tile)
        pair = (rows[:, None] == rows[None, :]) & inside[:, None]
        loss = tl.sum(tl.where(pair, entropy[:, None] - (1 + BOTH) * positives, 0.0))
        tl.store(losses + tl.program_id(0), loss * (weight / LOG2E))


# ------------------------------------------------------------------------------ backward


@triton.jit
def block_gradient(S, first_row, r, c, row_slices, column_slices, dA, factor, tile,
                   BLOCK_D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                   BOOST: tl.constexpr):
    """Write a block of rows and a slice of features of dA (M, D) = scale · factor · BOOST · G B.

    A and B are the features of S's rows and columns. row_slices and column_slices are the same in
    tiles (HEIGHT, BLOCK_D). Tiles of S must be square. The caller divides factor by BOOST.
    → Σ ⟨factor · BOOST · G B, A⟩ over both: the block's share of ds, if A is I.
    """
    M, N = S.rows.count, S.columns.count
    first_feature = tl.program_id(1) * BLOCK_D
    row, features = tl.arange(0, tile.HEIGHT), first_feature + tl.arange(0, BLOCK_D)
    rows = first_row + row
    r_here = tl.load(r + rows, mask=(rows < M) & ROWS, other=0.0)
    gradient = tl.zeros((tile.HEIGHT, BLOCK_D), tl.float32)
    for first_column in range(0, N, tile.WIDTH):
        entries = similarities(S, first_row, first_column, tile)
        columns = first_column + row
        c_here = tl.load(c + columns, mask=(columns < N) & COLUMNS, other=0.0)
        distance = first_row + S.label_offset - first_column
        # No entry is above its sum, but for rounding, which grows with S: `finish` has other tiles.
        highest = r_here[:, None] if ROWS else c_here[None, :]
        if ROWS and COLUMNS:
            highest = tl.minimum(highest, c_here[None, :])
        entries = tl.minimum(entries, highest, propagate_nan=tl.PropagateNan.ALL)
        G = softmax_gradient(entries, row, row, distance, r_here, c_here, ROWS, COLUMNS)
        b = column_slices.load([first_column, first_feature])  # (WIDTH, BLOCK_D)
        gradient = tl.dot((G * BOOST).to(b.dtype), b, gradient, input_precision=tile.PRECISION)
    gradient *= factor
    out = dA + rows.to(tl.int64)[:, None] * tile.D + features[None, :]
    tl.store(out, (gradient * S.scale).to(dA.dtype.element_ty),
             mask=(rows < M)[:, None] & (features < tile.D)[None, :])
    # Beyond the edge A is 0.
    return tl.sum(gradient * row_slices.load([first_row, first_feature]))


@triton.jit
def gradient_kernel(I, T, I_slices, T_slices, scale, pairs, upstream, weight, r, c,  # noqa: E741
                    dI, dT, scale_parts, tile, BLOCK_D: tl.constexpr, BOTH: tl.constexpr,
                    IMAGES: tl.constexpr, BOOST: tl.constexpr):
    """dI (M, D) if IMAGES, dT (N, D), and scale_parts (blocks of I, slices), whose sum is ds.

    I_slices and T_slices are I and T in tiles BLOCK_D wide. Grid (blocks of I and of T, slices), of
    either alone where the other side is frozen: scale_parts are then those of the side that is not.
    One launch computes both: with few pairs, either alone leaves half of a large GPU idle.
    """
    images = Side(descriptor(I, pairs.M, tile.D, tile.HEIGHT, tile.DEPTH), pairs.image_ids, pairs.M)
    texts = Side(descriptor(T, pairs.N, tile.D, tile.WIDTH, tile.DEPTH), pairs.text_ids, pairs.N)
    S = Matrix(images, texts, pairs.label_offset, tl.load(scale))
    I_slices = descriptor(I_slices, pairs.M, tile.D, tile.HEIGHT, BLOCK_D)
    T_slices = descriptor(T_slices, pairs.N, tile.D, tile.HEIGHT, BLOCK_D)
    block, blocks_I = tl.program_id(0), tl.cdiv(pairs.M, tile.HEIGHT) if IMAGES else 0
    part = scale_parts + block * tl.num_programs(1) + tl.program_id(1)
    factor = tl.load(upstream) * weight / BOOST
    if block < blocks_I:
        share = block_gradient(S, block * tile.HEIGHT, r, c, I_slices, T_slices, dI, factor, tile,
                               BLOCK_D, ROWS=True, COLUMNS=BOTH, BOOST=BOOST)
        tl.store(part, share)
    else:  # rows of Sᵀ are the columns of S
        S_T = Matrix(texts, images, -pairs.label_offset, S.scale)
        first_row = (block - blocks_I) * tile.HEIGHT
        share = block_gradient(S_T, first_row, c, r, T_slices, I_slices, dT, factor, tile,
                               BLOCK_D, ROWS=BOTH, COLUMNS=True, BOOST=BOOST)
        if not IMAGES:
            tl.store(part, share)


# ------------------------------------------------------------------------------ launching


def sums(I, T, scale, labels, room):  # noqa: E741
    """→ lines of partial sums, of rows (lines, M) and of columns (lines, N), to be added up."""
    tile, options = tile_and_options("sums", I, T)
    M, N, blocks = len(I), len(T), cdiv(len(I), tile.HEIGHT)
    groups = min(blocks, 2 if INTERPRETED else GROUPS)
    splits = min(cdiv(N, tile.WIDTH), max(1, GROUPS // blocks))
    row_sums = scale.new_empty(splits, M)
    column_sums = lines_of_columns(scale, groups, blocks, N) if labels.both else row_sums
    with on(I):
        sums_kernel[groups, splits](
            in_tiles(I, tile.HEIGHT, tile.DEPTH), in_tiles(T, tile.WIDTH, tile.DEPTH), scale,
            as_pairs(I, T, labels), room, row_sums, column_sums, constants(tile), labels.both,
            groups < blocks, **options)
    return row_sums, column_sums


def lines_of_columns(scale, groups, blocks, N):
    """Room for column sums (groups, N); zeros only where a group adds up several blocks of rows."""
    return scale.new_zeros(groups, N) if groups < blocks else scale.new_empty(groups, N)


def forward(I, T, scale, labels, sums=sums):  # noqa: E741
    """→ loss (), r (M,), c (N,) (or (0,) if not `both`), float32; r and c in base 2.

    sums: the function that computes the lines of partial sums; `triton_hopper` has its own.
    """
    losses, r, c = finished(I, T, scale, labels, sums, True)
    return losses.sum(), r, c


def logsumexps(I, T, scale, labels, sums=sums):  # noqa: E741
    """→ r (M,), c (N,) of these rows alone, of any M and N, as `forward`."""
    _, r, c = finished(I, T, scale, labels, sums, False)
    return r, c


def finished(I, T, scale, labels, sums, loss):  # noqa: E741
    """→ each block's share of the loss (or nothing, if not `loss`), r and c."""
    M, N = len(I), len(T)
    I, T = aligned(I), aligned(T)  # noqa: E741
    room = HEADROOM - math.log2(max(M, N))  # for one exponential, in bits
    row_sums, column_sums = sums(I, T, scale, labels, room)
    tile, options = tile_and_options("finish", I, T)
    r, c = scale.new_empty(M), scale.new_empty(N if labels.both else 0)
    blocks = cdiv(M if loss or not labels.both else max(M, N), tile.HEIGHT)
    losses = scale.new_empty(blocks if loss else 0)
    with on(I):
        finish_kernel[blocks,](
            in_tiles(I, tile.HEIGHT, tile.DEPTH), in_tiles(T, tile.WIDTH, tile.DEPTH), scale,
            as_pairs(I, T, labels), room, row_sums, column_sums, len(row_sums), len(column_sums),
            mean_weight(labels, M), r, c, losses, constants(tile), labels.both, loss, **options)
    return losses, r, c


def backward(upstream, I, T, scale, r, c, labels, needs=EVERY_GRADIENT):  # noqa: E741
    """upstream (): the gradient with respect to the loss → dI (M, D), dT (N, D), ds ().

    What `needs` leaves out is None, and no program computes it.
    """
    (M, D), N = I.shape, len(T)
    I, T = aligned(I), aligned(T)  # noqa: E741
    tile, options = tile_and_options("gradient", I, T)
    square, depth, wide = tile.HEIGHT, tile.DEPTH, options["BLOCK_D"]
    images = needs.images or not needs.texts  # ds comes from the images' programs, or the others'
    blocks_I, blocks_T = images * cdiv(M, square), needs.texts * cdiv(N, square)
    slices = cdiv(D, wide)
    dI, dT = I.new_empty(M if images else 0, D), T.new_empty(N if needs.texts else 0, D)
    scale_parts = scale.new_empty((blocks_I or blocks_T) * slices)
    with on(I):
        gradient_kernel[blocks_I + blocks_T, slices](
            in_tiles(I, square, depth), in_tiles(T, square, depth), in_tiles(I, square, wide),
            in_tiles(T, square, wide), scale, as_pairs(I, T, labels), upstream,
            mean_weight(labels, M), r, c, dI, dT, scale_parts, constants(tile), BOTH=labels.both,
            IMAGES=images, BOOST=boost(I.dtype), **options)
    return (dI if needs.images else None, dT if needs.texts else None,
            scale_parts.sum() if needs.scale else None)
