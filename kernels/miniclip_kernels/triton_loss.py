"""The loss in Triton: similarities and symmetric cross-entropy fused, M × N never in memory.

What is to be computed (notation of `clip_loss`; δ_ij = 1 where text j belongs to image i)

    S = s · I Tᵀ                        r_i = log Σ_j exp S_ij          c_j = log Σ_i exp S_ij
    L = ½ (mean_i r_i + mean_j c_j) − mean_i S_ii
    G = exp(S − r) + exp(S − c) − 2δ    = 2N ∂L/∂S                      (M = N)
    dI = s/2N · G T       dT = s/2N · Gᵀ I       ds = 1/2N · Σ G ∘ I Tᵀ = 1/2N · Σ_i ⟨(G T)_i, I_i⟩

With direction "rows" there is no c: G = exp(S − r) − δ, and 1/M stands for 1/2N.

Three kernels. Each walks over S in tiles that live in registers and are forgotten at once:

                 columns: texts                 sums      one pass, 1 product. A program owns every
            ┌──────┬──────┬──────┬──────┐                 `groups`-th block of rows, in one of
            │ S₀₀  │ S₀₁  │ S₀₂  │ S₀₃  │ ─▶ Σ_j          `splits` stretches of columns. Σ_j stays
      rows: ├──────┼──────┼──────┼──────┤                 in registers; Σ_i is added to the
     images │ S₁₀  │ S₁₁  │  …   │      │ ─▶ Σ_j          program's own line of a (groups, N)
            └──────┴──────┴──────┴──────┘                 array, which no other program touches:
               ▼      ▼      ▼      ▼                     the order of additions is always the
              Σ_i    Σ_i    Σ_i    Σ_i                    same.

                                                finish    adds the lines up, takes logarithms, and
            ┌──────┬──────┬──────┬──────┐                 sums the loss: no product to speak of
    G_0· T =│ G₀₀  │ G₀₁  │ G₀₂  │ G₀₃  │ ─▶ dI₀
            └──────┴──────┴──────┴──────┘       gradient  S again, G from it, and G T into an
                                                          accumulator (TILE, BLOCK_D): 2 products
                                                          for each slice of BLOCK_D features. Other
                                                          programs exchange I and T, for dT: S
                                                          becomes Sᵀ.

For D ≤ BLOCK_D that makes 1 + 2 + 2 = 5 matrix products, with two slices 7; the least without
keeping S is 4, which is what `triton_blocks` needs.

Where the precision is. Products of 16-bit features are exact in float32, sums, logarithms and
accumulators are float32, the exponentials base 2 (the hardware's own). G is formed in float32, its
diagonal's 1 subtracted *before* the cast to the features' type: after it, a probability of 0.99
would leave 0.01 with an error of 17 %. Factors (s, 1/N, what comes from above) are applied to the
accumulator at the very end; in float16 G is cast 1,024 times too large (`boost`).

Without maxima. exp S may overflow. For unit vectors S ≤ s is known beforehand, so a fixed shift can
be taken out of every exponential, 2^(S' − shift) with S' = S · log₂e: as much as keeps the largest
possible sum at 2^120, and no more, since what is taken out of a float32 costs its last bits; up to
s = 72 at N = 65,536 it is nothing at all. Nothing is lost as long as a sum is not below 2^−80 (a
term that is flushed to zero is below 2^−126). With s = 100 and N = 65,536 that fails for a row
whose best cosine is below −0.28; and for vectors far from unit length sums may overflow. `finish`
sees either in the sum itself, and does that block of rows or columns again with a running maximum,
on the spot: nobody waits for the GPU to know.

Tile sizes stand in `tiles`. No file of another project was copied; what others did well and badly
is told in the README of this project's kernels: column sums in the pass of the row sums, no
floating-point atomics between programs, no probabilities dropped, wide tiles.
"""

import math
from contextlib import nullcontext
from functools import cache

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: NumPy, on any CPU
HEADROOM = 120  # bits: log₂ of the largest sum that unit vectors can give
SMALLEST = tl.constexpr(2.0**-80)  # a sum below has lost terms that count
LARGEST = tl.constexpr(2.0**126)
LOG2E = tl.constexpr(math.log2(math.e))
LINES = tl.constexpr(16)  # of partial sums, added up at a time
SHAPE = ("BLOCK_M", "BLOCK_N", "BLOCK_K")  # of tiles, among a kernel's launch options
GROUPS = 256  # lines of partial column sums, at most; and about as many programs at a time


@cache
def tiles(dtype, D, architecture):
    """{kernel: launch options}: tile sizes, warps and pipeline stages, and a cap of registers.

    |          |             | BLOCK_M | BLOCK_N | BLOCK_K | BLOCK_D   | warps | stages |
    | -------- | ----------- | ------- | ------- | ------- | --------- | ----- | ------ |
    | 16 bits  | sums, block | 128     | 128     | 64      |           | 8     | 3      |
    |          | gradient    | 128     | 128     | 64      | D to 256  | 8     | 3      |
    | 32 bits  | sums, block | 64      | 64      | 32      |           | 4     | 2      |
    |          | gradient    | 32      | 32      | 32      | D to 128  | 4     | 2      |
    | interpr. | sums, block | 64      | 32      | 32      |           |       |        |
    |          | gradient    | 32      | 32      | 32      | D to 64   |       |        |

    BLOCK_M × BLOCK_N is a tile of S, BLOCK_K the step of its product over the features, BLOCK_D the
    slice of features that a program accumulates a gradient for: the next power of two from D on,
    at least 16. Wide tiles feed the tensor cores (64 rows are one warp group's instruction). What
    bounds them is the 255 registers of a thread: 128 × 256 float32 in 256 threads take half of
    them. 64 × 512 would fit as well, but where one product feeds another Triton gives every warp 16
    rows of its own, and with 64 rows four of the eight warps would do again what the others do.
    Shared memory stays below the 99 KiB that small GPUs have since 8.6. gradient and finish, in
    which rows and columns change their roles, have square tiles, TILE × TILE.

    On Hopper (architecture 9.x, as (9, 0)) sums and block, at 128 registers a thread, leave room
    for a second program on the same multiprocessor: one multiplies while the other takes
    exponentials. Only sums with ids needs the cap for that (it would take 162), and spills nothing.
    With more than 512 features products are so long that fewer reads count for more: there tiles
    have 256 columns, and a multiprocessor to themselves.
    """
    wide_enough = max(16, triton.next_power_of_2(D))
    if INTERPRETED:
        sums = {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}
        gradient = {"TILE": 32, "BLOCK_D": min(wide_enough, 64)}
    elif dtype == torch.float32:
        sums = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
        gradient = {"TILE": 32, "BLOCK_D": min(wide_enough, 128)}
    else:
        sums = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3}
        gradient = {"TILE": 128, "BLOCK_D": min(wide_enough, 256)}
        if architecture[0] == 9:
            sums |= {"maxnreg": 128} if D <= 512 else {"BLOCK_N": 256}
    square = {name: sums[name] for name in ("BLOCK_K", "num_warps", "num_stages") if name in sums}
    return {"sums": sums, "finish": square | {"TILE": sums["BLOCK_M"]}, "block": sums,
            "gradient": square | gradient}


# ------------------------------------------------------------------------------ tiles of S

# In all that follows A (M, D) and B (N, D) are I and T, or T and I: rows of S belong to A, columns
# to B, and the pair of row i is column i + label_offset. They are tensor descriptors: base, shape
# and strides in one, of which a whole tile is loaded, by hardware on Hopper and later. What lies
# beyond the edge is read as zero. `in_tiles` makes what a kernel is given, `as_tiles` takes it.


@triton.jit
def as_tiles(X, M, N, BLOCK_M, BLOCK_N):
    """X; or where it is (base, stride in 16 bytes), a descriptor that is compiled to pointers."""
    if isinstance(X, tl.tensor_descriptor):
        return X
    else:
        unit: tl.constexpr = 128 // X[0].dtype.element_ty.primitive_bitwidth
        return tl.make_tensor_descriptor(X[0], [M, N], [X[1] * unit, 1], [BLOCK_M, BLOCK_N])


@triton.jit
def similarities(A, B, first_row, first_column, scale2, D, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION):
    """A tile of S' = S · log₂e, (BLOCK_M, BLOCK_N) float32: scale2 · A[rows] B[columns]ᵀ."""
    S = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, D, BLOCK_K):
        a, b = A.load([first_row, k]), B.load([first_column, k])  # (BLOCK_M or _N, BLOCK_K)
        S = tl.dot(a, b.T, S, input_precision=PRECISION)
    return S * scale2


@triton.jit
def leave_out(S, rows, columns, M, N, label_offset, a_ids, b_ids, HAS_IDS, RAGGED):
    """−inf for what does not count: beyond the edge, or of the same image and not the pair."""
    if HAS_IDS:
        own = tl.load(a_ids + rows, mask=rows < M, other=0)[:, None]
        others = tl.load(b_ids + columns, mask=columns < N, other=0)[None, :]
        pair = rows[:, None] + label_offset == columns[None, :]
        S = tl.where((own == others) & (pair == 0), -float("inf"), S)
    if RAGGED:
        S = tl.where((rows < M)[:, None] & (columns < N)[None, :], S, -float("inf"))
    return S


# ------------------------------------------------------------------------------ forward


@triton.jit
def sums_kernel(A, B, scale, a_ids, b_ids, row_sums, column_sums, M, N, label_offset, room,
                D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
                BLOCK_K: tl.constexpr, BOTH: tl.constexpr, HAS_IDS: tl.constexpr,
                RAGGED: tl.constexpr, PRECISION: tl.constexpr):
    """Σ_j 2^(S' − shift) → row_sums (splits, M);  Σ_i the same → column_sums (groups, N).

    Grid (groups, splits). column_sums must be zero before.
    """
    A, B = as_tiles(A, M, D, BLOCK_M, BLOCK_K), as_tiles(B, N, D, BLOCK_N, BLOCK_K)
    group, groups = tl.program_id(0), tl.num_programs(0)
    split, splits = tl.program_id(1), tl.num_programs(1)
    scale2 = tl.load(scale) * LOG2E
    shift = tl.maximum(scale2 - room, 0.0)
    stretch = tl.cdiv(tl.cdiv(N, BLOCK_N), splits) * BLOCK_N
    for first_row in range(group * BLOCK_M, M, groups * BLOCK_M):
        rows = first_row + tl.arange(0, BLOCK_M)
        row_sum = tl.zeros((BLOCK_M,), tl.float32)
        for first_column in range(split * stretch, min(N, (split + 1) * stretch), BLOCK_N):
            columns = first_column + tl.arange(0, BLOCK_N)
            S = similarities(A, B, first_row, first_column, scale2, D, BLOCK_M, BLOCK_N, BLOCK_K,
                             PRECISION)
            S = leave_out(S, rows, columns, M, N, label_offset, a_ids, b_ids, HAS_IDS, RAGGED)
            E = tl.exp2(S - shift)
            row_sum += tl.sum(E, 1)
            if BOTH:  # "atomic" only to be added in the cache: nobody else writes this line
                line = column_sums + group.to(tl.int64) * N + columns
                tl.atomic_add(line, tl.sum(E, 0), mask=columns < N, sem="relaxed")
        tl.store(row_sums + split.to(tl.int64) * M + rows, row_sum, mask=rows < M)


@triton.jit
def running_logsumexp(A, B, first_row, M, N, label_offset, a_ids, b_ids, scale2, D, TILE, BLOCK_K,
                      HAS_IDS, RAGGED, PRECISION):
    """log₂ Σ_j 2^S' of a block of rows, (TILE,), with a running maximum: right for any S."""
    rows = first_row + tl.arange(0, TILE)
    top = tl.full((TILE,), -float("inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    for first_column in range(0, N, TILE):
        columns = first_column + tl.arange(0, TILE)
        S = similarities(A, B, first_row, first_column, scale2, D, TILE, TILE, BLOCK_K, PRECISION)
        S = leave_out(S, rows, columns, M, N, label_offset, a_ids, b_ids, HAS_IDS, RAGGED)
        higher = tl.maximum(top, tl.max(S, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)  # nothing yet: not inf − inf
        total = total * tl.exp2(top - shift) + tl.sum(tl.exp2(S - shift[:, None]), 1)
        top = higher
    return top + tl.log2(total)


@triton.jit
def logsumexp(sums, parts, A, B, first_row, M, N, label_offset, a_ids, b_ids, scale2, shift, D,
              TILE, BLOCK_K, HAS_IDS, RAGGED, PRECISION):
    """log₂ Σ_j 2^S' of a block of rows from the `parts` lines of sums (parts, M); or anew."""
    rows = first_row + tl.arange(0, TILE)
    total = tl.where(rows < M, 0.0, 1.0)
    for first in range(0, parts, LINES):  # many at once, for each has to come from far away
        lines = first + tl.arange(0, LINES)
        total += tl.sum(tl.load(sums + lines.to(tl.int64)[:, None] * M + rows[None, :], other=0.0,
                                mask=(lines < parts)[:, None] & (rows < M)[None, :]), 0)
    result = tl.log2(total) + shift
    good = (total >= SMALLEST) & (total <= LARGEST)  # false for NaN too
    if tl.min(good.to(tl.int32)) == 0:
        result = running_logsumexp(A, B, first_row, M, N, label_offset, a_ids, b_ids, scale2, D,
                                   TILE, BLOCK_K, HAS_IDS, RAGGED, PRECISION)
    return result


@triton.jit
def finish_kernel(A, B, scale, a_ids, b_ids, row_sums, column_sums, splits, groups, r, c, losses,
                  M, N, label_offset, room, weight, D: tl.constexpr, TILE: tl.constexpr,
                  BLOCK_K: tl.constexpr, BOTH: tl.constexpr, HAS_IDS: tl.constexpr,
                  RAGGED: tl.constexpr, PRECISION: tl.constexpr):
    """Sums → r (M,), c (N,), in base 2, and each block's share of the loss → losses (blocks,).

    Tiles are TILE × TILE: rows and columns change their roles.
    """
    A, B = as_tiles(A, M, D, TILE, BLOCK_K), as_tiles(B, N, D, TILE, BLOCK_K)
    first = tl.program_id(0) * TILE
    rows = first + tl.arange(0, TILE)
    scale2 = tl.load(scale) * LOG2E
    shift = tl.maximum(scale2 - room, 0.0)
    r_here = logsumexp(row_sums, splits, A, B, first, M, N, label_offset, a_ids, b_ids, scale2,
                       shift, D, TILE, BLOCK_K, HAS_IDS, RAGGED, PRECISION)
    tl.store(r + rows, r_here, mask=rows < M)
    entropy = r_here
    if BOTH:  # M = N: the same numbers are those of columns, the rows of Sᵀ
        c_here = logsumexp(column_sums, groups, B, A, first, N, M, -label_offset, b_ids, a_ids,
                           scale2, shift, D, TILE, BLOCK_K, HAS_IDS, RAGGED, PRECISION)
        tl.store(c + rows, c_here, mask=rows < N)
        entropy += c_here
    # The labelled pairs' similarities are the diagonal of a tile of their own.
    S = similarities(A, B, first, first + label_offset, scale2, D, TILE, TILE, BLOCK_K, PRECISION)
    pair = (rows[:, None] == rows[None, :]) & (rows < M)[:, None]
    loss = tl.sum(tl.where(pair, entropy[:, None] - (2 if BOTH else 1) * S, 0.0))
    tl.store(losses + tl.program_id(0), loss * (weight / LOG2E))


# ------------------------------------------------------------------------------ backward


@triton.jit
def softmax_gradient(S, row, column, between, r, c, ROWS, COLUMNS):
    """A tile of G, float32, from that of S', its rows' r and its columns' c.

    G has a softmax over each row if ROWS, over each column if COLUMNS, and minus as many at the
    pair, also where that lies beyond the edge: B has zeros there. row and column count from the
    tile's corner, and the pair of a row is the column that is `between` further.
    """
    if ROWS:
        G = tl.exp2(S - r[:, None])
    if COLUMNS:
        Q = tl.exp2(S - c[None, :])
        G = G + Q if ROWS else Q
    pair = row[:, None] + between == column[None, :]
    return tl.where(pair, G - (ROWS + COLUMNS), G)  # in float32, before the cast


@triton.jit
def block_gradient(A, B, A_slices, B_slices, first_row, scale, r, c, a_ids, b_ids, dA, M, N,
                   label_offset, factor, D, TILE, BLOCK_K, BLOCK_D, ROWS, COLUMNS, BOOST, HAS_IDS,
                   RAGGED, PRECISION):
    """dA (M, D) = scale · factor · G B, a block of its rows and a slice of its features.

    → Σ ⟨factor · G B, A⟩ over both: the block's share of ds, if it is rows of I that A has.
    """
    first_feature = tl.program_id(1) * BLOCK_D
    row, features = tl.arange(0, TILE), first_feature + tl.arange(0, BLOCK_D)
    rows = first_row + row
    scale_value = tl.load(scale)
    r_here = tl.load(r + rows, mask=(rows < M) & ROWS, other=0.0)
    gradient = tl.zeros((TILE, BLOCK_D), tl.float32)
    for first_column in range(0, N, TILE):
        S = similarities(A, B, first_row, first_column, scale_value * LOG2E, D, TILE, TILE,
                         BLOCK_K, PRECISION)
        columns = first_column + row
        c_here = tl.load(c + columns, mask=(columns < N) & COLUMNS, other=0.0)
        S = leave_out(S, rows, columns, M, N, label_offset, a_ids, b_ids, HAS_IDS, RAGGED)
        G = softmax_gradient(S, row, row, first_row + label_offset - first_column, r_here, c_here,
                             ROWS, COLUMNS)
        b = B_slices.load([first_column, first_feature])  # (TILE, BLOCK_D)
        gradient = tl.dot((G * BOOST).to(b.dtype), b, gradient, input_precision=PRECISION)
    gradient *= factor
    out = dA + rows.to(tl.int64)[:, None] * D + features[None, :]
    tl.store(out, (gradient * scale_value).to(dA.dtype.element_ty),
             mask=(rows < M)[:, None] & (features < D)[None, :])
    return tl.sum(gradient * A_slices.load([first_row, first_feature]))  # beyond the edge A is 0


@triton.jit
def gradient_kernel(I, T, I_slices, T_slices, scale, upstream, r, c, i_ids, t_ids,  # noqa: E741
                    dI, dT, scale_parts, M, N, label_offset, weight, D: tl.constexpr,
                    TILE: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
                    BOTH: tl.constexpr, BOOST: tl.constexpr, HAS_IDS: tl.constexpr,
                    RAGGED: tl.constexpr, PRECISION: tl.constexpr):
    """dI (M, D), dT (N, D) and scale_parts (blocks of I, slices), to be added up to ds.

    I_slices and T_slices are I and T in tiles BLOCK_D wide. Grid (blocks of I and of T, slices):
    one launch, for of few pairs either alone leaves half of a large GPU without work.
    """
    I, T = as_tiles(I, M, D, TILE, BLOCK_K), as_tiles(T, N, D, TILE, BLOCK_K)  # noqa: E741
    I_slices = as_tiles(I_slices, M, D, TILE, BLOCK_D)
    T_slices = as_tiles(T_slices, N, D, TILE, BLOCK_D)
    block, blocks_I = tl.program_id(0), tl.cdiv(M, TILE)
    factor = tl.load(upstream) * weight / BOOST
    if block < blocks_I:
        share = block_gradient(I, T, I_slices, T_slices, block * TILE, scale, r, c, i_ids, t_ids,
                               dI, M, N, label_offset, factor, D, TILE, BLOCK_K, BLOCK_D, True,
                               BOTH, BOOST, HAS_IDS, RAGGED, PRECISION)
        tl.store(scale_parts + block * tl.num_programs(1) + tl.program_id(1), share)
    else:  # rows of Sᵀ are the columns of S
        block_gradient(T, I, T_slices, I_slices, (block - blocks_I) * TILE, scale, c, r, t_ids,
                       i_ids, dT, N, M, -label_offset, factor, D, TILE, BLOCK_K, BLOCK_D, BOTH,
                       True, BOOST, HAS_IDS, RAGGED, PRECISION)


# ------------------------------------------------------------------------------ launching


def check(backend, features):
    """ValueError, in one line, where a backend of Triton's can't take these features."""
    D, dtype = features.shape[1], str(features.dtype).removeprefix("torch.")
    if backend == "hopper":
        if features.itemsize != 2 or D > 512:
            raise ValueError(f"backend 'hopper' takes bfloat16 or float16 and D up to 512, not {D} "
                             f"in {dtype}")
        if not features.is_cuda or INTERPRETED or architecture(features.device)[0] != 9:
            raise ValueError("backend 'hopper' needs a GPU of compute capability 9 (H100, H200)")
        return
    # The interpreter multiplies bfloat16 as if its bits were integers.
    if features.dtype in (torch.float64, torch.bfloat16)[:1 + INTERPRETED]:
        raise ValueError(f"backend {backend!r} takes no {dtype} here; tiled, dense and numpy do")
    if D > 2048:
        raise ValueError(f"backend {backend!r} takes D up to 2048, not {D}")
    if not features.is_cuda and not INTERPRETED:
        raise ValueError(f"backend {backend!r} needs CUDA tensors, not {features.device.type}; "
                         "on a CPU set TRITON_INTERPRET=1 before triton is first imported")


@cache
def architecture(device):
    """Compute capability, as (9, 0), which is what the interpreter can do as well.

    From 9.0 on (Hopper) tiles are loaded and stored by hardware; of AMD's GPUs, whose numbers mean
    something else, this is not asked. PyTorch takes microseconds to say.
    """
    instead = (9, 0) if INTERPRETED else (8, 0) if torch.version.hip else None
    return instead or torch.cuda.get_device_capability(device)


def best(features, N):
    """The backend for these M features and N others: about the fastest on an H200."""
    (M, D), capability = features.shape, architecture(features.device)
    if features.dtype == torch.float64 or D > 2048 or capability < (8, 0) or INTERPRETED:
        return "tiled"  # older GPUs have too little memory in a multiprocessor
    if D <= 64 or M * N * D <= 2**28:
        return "triton"
    return "hopper" if capability[0] == 9 and features.itemsize == 2 and D <= 512 else "blocks"


def launch_options(kernel, I, image_ids):  # noqa: E741
    """What a launch is told: the kernel's tiles, and the constants that all kernels share."""
    tf32 = torch.get_float32_matmul_precision() != "highest"  # PyTorch's own switch
    return tiles(I.dtype, I.shape[1], architecture(I.device))[kernel] | {
        "D": I.shape[1], "HAS_IDS": image_ids is not None, "PRECISION": "tf32" if tf32 else "ieee"}


def cdiv(a, b):
    """a / b, rounded up. (Triton's own takes microseconds: it is meant for kernels.)"""
    return -(-a // b)


def boost(dtype):
    """What G is multiplied by before it is cast: float16's smallest normal number is 6e-5."""
    return 1024.0 if dtype == torch.float16 else 1.0


def ragged(rows, height, columns, width):
    """Whether some tile (height, width) has an edge of S (rows, columns) within it."""
    return bool(rows % height or columns % width)


def aligned(features):
    """These features, or a copy, as a descriptor takes them: each row in a piece, on 16 bytes."""
    unit, features = 16 // features.itemsize, features.resolve_neg()
    (N, D), (row, feature) = features.shape, features.stride()
    if feature == 1 and row >= D and row % unit == 0 and features.data_ptr() % 16 == 0:
        return features
    return features.new_empty(N, cdiv(D, unit) * unit)[:, :D].copy_(features)


def in_tiles(features, rows, columns):
    """Aligned features as a kernel takes them, to load or store tiles (rows, columns)."""
    shape, strides = list(features.shape), list(features.stride())
    if architecture(features.device) >= (9, 0):
        return TensorDescriptor(features, shape, strides, [rows, columns])
    return features, strides[0] * features.itemsize // 16


def on(tensor):
    """Triton launches on the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def sums(I, T, scale, labels, room):  # noqa: E741
    """→ lines of partial sums, of rows (lines, M) and of columns (lines, N), to be added up."""
    (label_offset, both, *ids), M, N = labels, len(I), len(T)
    options = launch_options("sums", I, ids[0])
    height, width, k = (options[name] for name in SHAPE)
    blocks = cdiv(M, height)
    groups = min(blocks, 2 if INTERPRETED else GROUPS)
    splits = min(cdiv(N, width), max(1, GROUPS // blocks))
    row_sums = scale.new_empty(splits, M)
    column_sums = scale.new_zeros(groups, N) if both else row_sums
    with on(I):
        sums_kernel[groups, splits](
            in_tiles(I, height, k), in_tiles(T, width, k), scale, *ids, row_sums, column_sums, M, N,
            label_offset, room, BOTH=both, RAGGED=ragged(M, height, N, width), **options)
    return row_sums, column_sums


def forward(I, T, scale, labels, sums=sums):  # noqa: E741
    """→ loss (), r (M,), c (N,) (or (0,) if not `both`), float32; r and c in base 2.

    sums: what gives the lines of partial sums; `triton_hopper` has its own.
    """
    (label_offset, both, *ids), M, N = labels, len(I), len(T)
    I, T = aligned(I), aligned(T)  # noqa: E741
    options = launch_options("finish", I, ids[0])
    square, k = options["TILE"], options["BLOCK_K"]
    r, c, losses = map(scale.new_empty, (M, N if both else 0, cdiv(M, square)))
    room = HEADROOM - math.log2(max(M, N))  # for one exponential, in bits
    row_sums, column_sums = sums(I, T, scale, labels, room)
    with on(I):
        finish_kernel[len(losses),](
            in_tiles(I, square, k), in_tiles(T, square, k), scale, *ids, row_sums, column_sums,
            len(row_sums), len(column_sums), r, c, losses, M, N, label_offset, room,
            1 / (2 * N) if both else 1 / M, BOTH=both, RAGGED=ragged(M, square, N, square),
            **options)
    return losses.sum(), r, c


def backward(upstream, I, T, scale, r, c, labels):  # noqa: E741
    """upstream (): the gradient of what came of the loss → dI (M, D), dT (N, D), ds ()."""
    (label_offset, both, *ids), (M, D), N = labels, I.shape, len(T)
    I, T = aligned(I), aligned(T)  # noqa: E741
    options = launch_options("gradient", I, ids[0])
    square, k, wide = options["TILE"], options["BLOCK_K"], options["BLOCK_D"]
    blocks, slices = cdiv(M, square), cdiv(D, wide)
    dI, dT, scale_parts = I.new_empty(M, D), T.new_empty(N, D), scale.new_empty(blocks * slices)
    with on(I):
        gradient_kernel[blocks + cdiv(N, square), slices](
            in_tiles(I, square, k), in_tiles(T, square, k), in_tiles(I, square, wide),
            in_tiles(T, square, wide), scale, upstream, r, c, *ids, dI, dT, scale_parts, M, N,
            label_offset, 1 / (2 * N) if both else 1 / M, BOTH=both, BOOST=boost(I.dtype),
            RAGGED=ragged(M, square, N, square), **options)
    return dI, dT, scale_parts.sum()
