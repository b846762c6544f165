"""The two walks over S again, for Hopper: warps that only fetch, and warps that take turns.

`triton_loss.sums_kernel` and `triton_blocks.block_kernel` leave to the compiler what a warp does
when. Here it is written down, in Gluon, the language below Triton's. A program has three parts that
run at the same time, on one multiprocessor:

    fetch     ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒ …   one warp: T, part by part, into a ring
    turn 0    ███S₀███░exp░   ███S₂███░exp░     four warps: a product, then what follows it
    turn 1            ███S₁███░exp░   ███S₃███  four more: the tensor cores always have work

(Warp specialisation and this "ping-pong" are those of FlashAttention-3, Shah et al. 2024, arXiv
2407.08608, §3.1.) A block of I, all D features of it, stays in shared memory for as long as its row
of tiles lasts, so that only T is fetched: half of what a tile of 128 × 128 reads otherwise. Beside
128 KiB of it (D = 512) there is room for a ring of four parts of T, each 128 × 64, and, where G is
written, for four quarters of a tile of it, two for each turn, on their way out.

Who waits for whom is told by barriers in shared memory. Each has phases: it passes to the next when
enough have arrived and all bytes that were announced are there; to wait for parity p is to wait
until a phase of that parity is over. A fresh barrier counts as having one of parity 1 behind it:
the first time round `fetch` finds every part of the ring empty.

    full[slot]   fetch → a turn   the part is there              its bytes
    empty[slot]  a turn → fetch   the part has been multiplied   1 arrival
    full_I       fetch → both     the block of I is there        its bytes
    empty_I      both → fetch     it is no longer needed         2 arrivals
    go[turn]     turn → turn      my product is under way: you   1 arrival

Without `go` turns would not alternate, and worse: a turn that waits for the second use of a slot
before the first has come sees the parity that it waits for, and multiplies what isn't there.

What is computed, and where its precision is, stands in `triton_loss`; the block of G in
`triton_blocks`. tests/gluon_on_cpu.py runs this file without a GPU.
"""

from functools import cache, partial

import torch
from miniclip_kernels import triton_blocks
from miniclip_kernels import triton_loss as base
from miniclip_kernels.triton_loss import LOG2E
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Rows, and columns, of a tile; features of a part; columns of a tile that leave at a time.
ROWS, FEATURES, OUT = 128, 64, 32
BLOCK, BLOCK_K, WIDTH = gl.constexpr(ROWS), gl.constexpr(FEATURES), gl.constexpr(OUT)
TILE = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))  # four warps have it
QUARTER = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16]))  # of its columns
LINE = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))  # of columns: one for each thread
# The same in both languages.
leave_out, softmax_gradient = (gluon.jit(x.fn) for x in (base.leave_out, base.softmax_gradient))


@gluon.jit
def fetch(I, T, memory, walk):  # noqa: E741
    """The warp that asks for blocks of I and parts of T, as soon as there is room."""
    i, ring, full, empty, full_I, empty_I, _, _ = memory
    first_block, blocks, step, first, last = walk
    K_STEPS: gl.constexpr = i.shape[0]
    STAGES: gl.constexpr = ring.shape[0]
    number, round_I = 0, 0  # of the part, of the block
    for block in range(first_block, blocks, step):
        mbarrier.wait(empty_I, (round_I & 1) ^ 1)
        mbarrier.expect(full_I, K_STEPS * I.block_type.nbytes)
        for k in gl.static_range(K_STEPS):
            tma.async_copy_global_to_shared(I, [block * BLOCK, k * BLOCK_K], full_I, i.index(k))
        for tile in range(first, last):
            for part in range(K_STEPS):
                slot = number % STAGES
                mbarrier.wait(empty.index(slot), (number // STAGES & 1) ^ 1)
                mbarrier.expect(full.index(slot), T.block_type.nbytes)
                tma.async_copy_global_to_shared(T, [tile * BLOCK, part * BLOCK_K],
                                                full.index(slot), ring.index(slot))
                number += 1
        round_I += 1


@gluon.jit
def product(memory, number, TURN):
    """A tile of I Tᵀ, (BLOCK, BLOCK) float32, of the parts of T from this number on."""
    i, ring, full, empty, _, _, go, _ = memory
    K_STEPS: gl.constexpr = i.shape[0]
    STAGES: gl.constexpr = ring.shape[0]
    S = gl.full([BLOCK, BLOCK], 0.0, gl.float32, TILE)
    for k in range(K_STEPS):  # one product under way while the next is asked for
        slot = (number + k) % STAGES
        mbarrier.wait(full.index(slot), (number + k) // STAGES & 1)
        S = hopper.warpgroup_mma(i.index(k), ring.index(slot).permute((1, 0)), S, use_acc=k > 0,
                                 is_async=True)
        S = hopper.warpgroup_mma_wait(1, deps=[S])
        mbarrier.arrive(empty.index((number + k - 1) % STAGES), pred=k > 0)
    mbarrier.arrive(go.index(1 - TURN))  # all asked for: the other may ask
    S = hopper.warpgroup_mma_wait(0, deps=[S])
    mbarrier.arrive(empty.index((number + K_STEPS - 1) % STAGES))
    return S


@gluon.jit
def leave(S, scale, r, c, G, out, first_row, corner, labels, BOTH, HAS_IDS, RAGGED, BOOST):
    """A quarter of a tile of I Tᵀ → BOOST · G, which leaves for memory while the next is made.

    The scale is asked for again: else the compiler would make all quarters before the first leaves.
    """
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, QUARTER))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, QUARTER))
    S = gl.convert_layout(S, QUARTER) * (gl.load(scale) * LOG2E)
    S = leave_out(S, first_row + row, corner + column, *labels, HAS_IDS, RAGGED)
    between = first_row + labels[2] - corner  # labels[2] is the label offset
    entries = BOOST * softmax_gradient(S, row, column, between, r, c, True, BOTH)
    tma.store_wait(1)  # the quarter before the last has left: there is room for two
    out.store(entries.to(G.dtype))
    hopper.fence_async_shared()
    tma.async_copy_shared_to_global(G, [first_row, corner], out)


@gluon.jit
def take_turns(memory, walk, labels, numbers, G, TURN, BOTH, HAS_IDS, RAGGED, BOOST):
    """Four warps and every second tile: its sums if there is no G; or BOOST · G of it."""
    i, ring, _, _, full_I, empty_I, go, way_out = memory
    first_block, blocks, step, first, last = walk
    M, N, _, _, _ = labels
    scale, by_row, by_column, room = numbers  # row_sums and column_sums; or r and c
    LAYOUT: gl.constexpr = TILE if G is None else QUARTER
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, LAYOUT))
    scale2 = gl.load(scale) * LOG2E
    shift = gl.maximum(scale2 - room, 0.0)
    round_I, turns = 0, 0
    for block in range(first_block, blocks, step):
        rows = block * BLOCK + row
        numbers_I = gl.load(by_row + rows, mask=(rows < M) & (G is not None), other=0.0)
        mbarrier.wait(full_I, round_I & 1)
        for tile in range(first + TURN, last + TURN, 2):
            mbarrier.wait(go.index(TURN), (turns & 1) ^ (1 - TURN))
            turns += 1
            if tile < last:
                corner = tile * BLOCK
                number = (round_I * (last - first) + tile - first) * i.shape[0]
                if G is None:
                    columns = corner + gl.arange(0, BLOCK, gl.SliceLayout(0, TILE))
                    S = product(memory, number, TURN) * scale2
                    E = gl.exp2(leave_out(S, rows, columns, *labels, HAS_IDS, RAGGED) - shift)
                    numbers_I += gl.sum(E, 1)
                    if BOTH:  # nobody else writes this line, nor the other turn these columns
                        columns = corner + gl.arange(0, BLOCK, LINE)
                        line = by_column + gl.cast(gl.program_id(0), gl.int64) * N
                        gl.atomic_add(line + columns, gl.convert_layout(gl.sum(E, 0), LINE),
                                      mask=columns < N, sem="relaxed")
                else:
                    c = ()  # is asked for early, for it comes from far away
                    for q in gl.static_range(4):
                        columns = corner + gl.arange(0, WIDTH, gl.SliceLayout(0, QUARTER))
                        columns += q * WIDTH
                        c += (gl.load(by_column + columns, mask=(columns < N) & BOTH, other=0.0),)
                    S = product(memory, number, TURN).reshape([BLOCK, 2, 2, WIDTH])
                    left, right = gl.split(S.permute((0, 3, 2, 1)))
                    quarters = gl.split(left) + gl.split(right)
                    for q in gl.static_range(4):
                        leave(quarters[q], scale, numbers_I, c[q], G,
                              way_out.index(2 * TURN + q % 2), block * BLOCK, corner + q * WIDTH,
                              labels, BOTH, HAS_IDS, RAGGED, BOOST)
            else:  # of an odd number of tiles there is none for this turn
                mbarrier.arrive(go.index(1 - TURN))
        mbarrier.arrive(empty_I)
        round_I += 1
        if G is None:
            line = by_row + gl.cast(gl.program_id(1) * 2 + TURN, gl.int64) * M
            gl.store(line + rows, numbers_I, mask=rows < M)
    if G is not None:
        tma.store_wait(0)


@gluon.jit
def barriers(COUNT, ARRIVALS):
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for which in gl.static_range(COUNT):
        mbarrier.init(made.index(which), count=ARRIVALS)
    return made


@gluon.jit
def walk_kernel(I, T, scale, i_ids, t_ids, by_row, by_column, G, M, N, label_offset,  # noqa: E741
                room, K_STEPS: gl.constexpr, STAGES: gl.constexpr, BOTH: gl.constexpr,
                HAS_IDS: gl.constexpr, RAGGED: gl.constexpr, BOOST: gl.constexpr):
    """Without G: `triton_loss.sums_kernel`, with by_row (2 · splits, M), a line for each turn, and
    by_column (groups, N) the sums. Else BOOST · G (M, N), in the features' type, from r and c.

    Grid (groups, splits): a program has every `groups`-th block of rows, and a stretch of columns.
    """
    i = gl.allocate_shared_memory(I.dtype, [K_STEPS, BLOCK, BLOCK_K], I.layout)
    ring = gl.allocate_shared_memory(T.dtype, [STAGES, BLOCK, BLOCK_K], T.layout)
    way_out = i
    if G is not None:
        way_out = gl.allocate_shared_memory(I.dtype, [4, BLOCK, WIDTH], G.layout)
    memory = (i, ring, barriers(STAGES, 1), barriers(STAGES, 1), barriers(1, 1).index(0),
              barriers(1, 2).index(0), barriers(2, 1), way_out)
    tiles = gl.cdiv(N, BLOCK)
    stretch = gl.cdiv(tiles, gl.num_programs(1))
    first = gl.program_id(1) * stretch
    walk = (gl.program_id(0), gl.cdiv(M, BLOCK), gl.num_programs(0), first,
            gl.minimum(first + stretch, tiles))
    labels, numbers = (M, N, label_offset, i_ids, t_ids), (scale, by_row, by_column, room)
    gl.warp_specialize([
        (take_turns, (memory, walk, labels, numbers, G, 0, BOTH, HAS_IDS, RAGGED, BOOST)),
        (take_turns, (memory, walk, labels, numbers, G, 1, BOTH, HAS_IDS, RAGGED, BOOST)),
        (fetch, (I, T, memory, walk))], [4, 1], [232, 40])


# ------------------------------------------------------------------------------ launching


# As many as there are multiprocessors: a program fills one.
programs = cache(lambda device: torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def grid(M, N, most):
    """(groups, splits) of programs, so that the one with the most tiles has as few as possible."""
    blocks, tiles = base.cdiv(M, ROWS), base.cdiv(N, ROWS)
    splits = min(range(1, min(tiles, most) + 1), key=lambda splits: (
        base.cdiv(blocks, most // splits) * base.cdiv(tiles, splits)))
    return min(blocks, most // splits), splits


@cache
def tile_layout(dtype, width):
    """How a tile (ROWS, width) lies in shared memory."""
    return gl.NVMMASharedLayout.get_default_for([ROWS, width], getattr(gl, str(dtype)[6:]))


def in_tiles(matrix, width=FEATURES):
    """A descriptor of which tiles (ROWS, width) are loaded or stored."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [ROWS, width],
                            tile_layout(matrix.dtype, width))


def launch(I, T, scale, ids, by_row, by_column, G, label_offset, room, grid, both):  # noqa: E741
    """For sums if there is no G to be written."""
    M, N, parts = len(I), len(T), base.cdiv(I.shape[1], FEATURES)
    with base.on(I):
        walk_kernel[grid](
            in_tiles(I), in_tiles(T), scale, *ids, by_row, by_column, G, M, N, label_offset, room,
            K_STEPS=parts, STAGES=4 if parts > 4 else 8, BOTH=both, HAS_IDS=ids[0] is not None,
            RAGGED=base.ragged(M, ROWS, N, ROWS), BOOST=base.boost(I.dtype), num_warps=4)


def sums(I, T, scale, labels, room):  # noqa: E741
    """As `triton_loss.sums`: lines of partial sums of rows (lines, M) and of columns (lines, N)."""
    (label_offset, both, *ids), M, N = labels, len(I), len(T)
    shape = groups, splits = grid(M, N, programs(I.device))
    row_sums = scale.new_empty(2 * splits, M)
    column_sums = scale.new_zeros(groups, N) if both else row_sums
    launch(I, T, scale, ids, row_sums, column_sums, None, label_offset, room, shape, both)
    return row_sums, column_sums


def write(block, I, T, scale, r, c, ids, label_offset, both):  # noqa: E741
    """As `triton_blocks.write`: one block of BOOST · G, from its own rows of everything."""
    launch(I, T, scale, ids, r, c, in_tiles(block, OUT), label_offset, 0.0,
           grid(*block.shape, programs(I.device)), both)


forward = partial(base.forward, sums=sums)
backward = partial(triton_blocks.backward, write=write)
