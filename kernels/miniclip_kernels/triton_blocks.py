"""The backward pass in 4 products: G in bounded blocks of memory, times T and I by cuBLAS.

`triton_loss` needs 5 products, and 7 or more where D is wide, because registers hold the sums of a
slice of either dI or dT, so that every tile of S is computed once for each. Here a tile is computed
once more in all. What G it gives is written to a block of BLOCK × BLOCK entries, 128 MiB and always
the same, and ordinary matrix products read it from there, twice:

              columns: BLOCK texts
            ┌──────────────┬───────            block_kernel   G₀₀ from I₀, T₀, r₀, c₀ → memory
     BLOCK  │              │                   PyTorch        sum of dI₀  +=  G₀₀  T₀
     images │     G₀₀  ────┼──▶ next block                    sum of dT₀  +=  G₀₀ᵀ I₀
            │              │
            ├──────────────┼───────

The sums are float32: one for the rows of a block, one for all texts. Why blocks this large, and
square: each addition to a sum is a trip of it to memory and back, so the sums travel N / BLOCK
times; and a product with BLOCK terms has enough to do for each trip of G (Liger's cross-entropy for
Hopper keeps 1,024 rows of a vocabulary in this way). A last kernel makes dI and dT of the sums.
Memory beyond inputs and gradients: a block and 4D(N + BLOCK) bytes. Below some D the trips of G (6
bytes an entry) last longer than the product that they save: `triton_loss.best` has the limit.

The forward pass, G's equation and where its precision is are those of `triton_loss`.
"""

import torch
import triton
import triton.language as tl
from miniclip_kernels import triton_loss as base
from miniclip_kernels.triton_loss import LOG2E, as_tiles, leave_out, similarities, softmax_gradient

BLOCK = 64 if base.INTERPRETED else 8192  # rows, columns of a block; of 32 bits half the columns
GROUP = tl.constexpr(8)  # rows of tiles that are walked together: what they read stays in the cache


@triton.jit
def block_kernel(A, B, scale, r, c, a_ids, b_ids, G, M, N, label_offset, D: tl.constexpr,
                 BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
                 COLUMNS: tl.constexpr, BOOST: tl.constexpr, HAS_IDS: tl.constexpr,
                 RAGGED: tl.constexpr, PRECISION: tl.constexpr):
    """BOOST · G (M, N), in the features' type: a program writes a tile. Grid (tiles,)."""
    A, B = as_tiles(A, M, D, BLOCK_M, BLOCK_K), as_tiles(B, N, D, BLOCK_N, BLOCK_K)
    G = as_tiles(G, M, N, BLOCK_M, BLOCK_N)
    tile, across = tl.program_id(0), tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP * across)
    height = tl.minimum(tl.cdiv(M, BLOCK_M) - group * GROUP, GROUP)
    tile %= GROUP * across
    first_row, first_column = (group * GROUP + tile % height) * BLOCK_M, tile // height * BLOCK_N
    row, column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)  # within the tile
    rows, columns = first_row + row, first_column + column
    S = similarities(A, B, first_row, first_column, tl.load(scale) * LOG2E, D, BLOCK_M, BLOCK_N,
                     BLOCK_K, PRECISION)
    S = leave_out(S, rows, columns, M, N, label_offset, a_ids, b_ids, HAS_IDS, RAGGED)
    r_here = tl.load(r + rows, mask=rows < M, other=0.0)
    c_here = tl.load(c + columns, mask=(columns < N) & COLUMNS, other=0.0)
    entries = BOOST * softmax_gradient(S, row, column, first_row + label_offset - first_column,
                                       r_here, c_here, True, COLUMNS)
    G.store([first_row, first_column], entries.to(G.dtype))  # nothing beyond the edge


@triton.jit
def scale_kernel(sums, A, dA, scale, upstream, shares, weight, M, stride, D: tl.constexpr,
                 ROWS: tl.constexpr, WIDE: tl.constexpr):
    """dA (M, D) = s · factor · sums; Σ ⟨factor · sums, A⟩ of ROWS rows at a time → shares."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    feature = tl.arange(0, WIDE)[None, :]
    inside = (row < M) & (feature < D)
    total = tl.load(sums + row * D + feature, mask=inside, other=0.0) * tl.load(upstream) * weight
    tl.store(dA + row * D + feature, total * tl.load(scale), mask=inside)  # rounded only now
    a = tl.load(A + row * stride + feature, mask=inside, other=0.0)
    tl.store(shares + tl.program_id(0), tl.sum(total * a))


forward = base.forward


def stretches(length, most) -> list[slice]:
    """0 to length in parts of at most `most`, as equal as whole tiles can make them."""
    parts, unit = base.cdiv(length, most), min(most, 128)
    step = base.cdiv(base.cdiv(length, parts), unit) * unit
    return [slice(i, min(i + step, length)) for i in range(0, length, step)]


def add_product(total, A, B, first):
    """total (m, n) float32 += A (m, k) B (k, n), or = if it is the first; sums are float32."""
    options = {"out_dtype": total.dtype} if A.is_cuda and A.dtype != total.dtype else {}
    A, B = (x if options else x.to(total.dtype) for x in (A, B))  # a CPU has no such product
    torch.addmm(total, A, B, beta=int(not first), out=total, **options)


def scaled(sums, A, dA, scale, upstream, weight):
    """sums (M, D) of G B → dA (M, D), which is written, and its share of ds, in parts (…,)."""
    (M, D), wide = sums.shape, triton.next_power_of_2(sums.shape[1])
    shares = sums.new_empty(base.cdiv(M, 2048 // wide))
    with base.on(A):
        scale_kernel[len(shares),](sums, A, dA, scale, upstream, shares, weight, M, A.stride(0), D,
                                   2048 // wide, wide)
    return shares


def write(block, I, T, scale, r, c, ids, label_offset, both):  # noqa: E741
    """One block of BOOST · G, from its own rows of I, T, r, c and ids."""
    M, N = block.shape
    options = base.launch_options("block", I, ids[0])
    height, width, k = (options[name] for name in base.SHAPE)
    with base.on(I):
        block_kernel[base.cdiv(M, height) * base.cdiv(N, width),](
            base.in_tiles(I, height, k), base.in_tiles(T, width, k), scale, r, c, *ids,
            base.in_tiles(block, height, width), M, N, label_offset, COLUMNS=both,
            BOOST=base.boost(I.dtype), RAGGED=base.ragged(M, height, N, width), **options)


def backward(upstream, I, T, scale, r, c, labels, write=write):  # noqa: E741
    """upstream (): the gradient of what came of the loss → dI (M, D), dT (N, D), ds ().

    write: what fills a block of G; `triton_hopper` has its own.
    """
    label_offset, both, image_ids, text_ids = labels
    A, B, (M, D), N = base.aligned(I), base.aligned(T), I.shape, len(T)  # cuBLAS takes any I, T
    weight = (1 / (2 * N) if both else 1 / M) / base.boost(I.dtype)
    vertical, horizontal = stretches(M, BLOCK), stretches(N, BLOCK * 2 // I.itemsize)
    G = I.new_empty(vertical[0].stop, base.cdiv(horizontal[0].stop, 16) * 16)  # as `aligned`
    sum_I, sum_T = scale.new_empty(len(G), D), scale.new_empty(N, D)
    dI, dT = I.new_empty(M, D), T.new_empty(N, D)
    for rows in vertical:
        sums, own = sum_I[:rows.stop - rows.start], I[rows]
        for columns in horizontal:
            block = G[:len(sums), :columns.stop - columns.start]
            ids = [x if x is None else x[i] for x, i in ((image_ids, rows), (text_ids, columns))]
            write(block, A[rows], B[columns], scale, r[rows], c[columns] if both else c, ids,
                  label_offset + rows.start - columns.start, both)
            add_product(sums, block, T[columns], first=columns.start == 0)
            add_product(sum_T[columns], block.T, own, first=rows.start == 0)
        scaled(sums, A[rows], dI[rows], scale, upstream, weight)
    return dI, dT, scaled(sum_T, B, dT, scale, upstream, weight).sum()  # ds: of the texts' shares
