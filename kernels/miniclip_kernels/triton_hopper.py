"""Both passes over S for Hopper, warp-specialised: one producer, two consumers in ping-pong.

In `triton_loss.sums_kernel` and `triton_blocks.block_kernel` the compiler decides what each warp
does and when. Here the code decides, in Gluon, the language below Triton's. A program fills one
multiprocessor. It has three roles, which run at the same time:

    producer     ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒ …   one warp: loads T into the pipeline
    consumer 0   ███S₀███░exp░   ███S₂███░exp░     a warp group: a product, then its epilogue
    consumer 1            ███S₁███░exp░   ███S₃███  another: the tensor cores always have work

(Warp specialisation and ping-pong scheduling are those of FlashAttention-3, Shah et al. 2024,
arXiv 2407.08608, §3.1.) A block of I, with all its D features, stays resident in shared memory for
its whole row of tiles. So only T is loaded: half of what a tile of 128 × 128 reads otherwise. The
block takes 128 KiB (D = 512). That leaves room for a pipeline of four stages (eight up to
D = 256), each 128 × 64 of T. In `block_kernel` four quarters of a tile of G fit as well, two for
each consumer to store from.

Above 512 features a block of I has no room. Then both operands are STREAMED: a stage holds 128 × 64
of I and 256 × 64 of T. Each consumer has its own half of that T, and multiplies it by the same I.
So both work on one stage, and their tiles lie side by side: 128 × 256 in all, three quarters of
what two tiles read otherwise. The second consumer stays LEAD steps behind the first. That is how
one has products while the other has its epilogue, for as long as the stages last:

    consumer 0   ███S₀███░exp░███S₂███░exp░     stages 0 1 2 3 0 1 2 …
    consumer 1     ███S₁███░exp░███S₃███░exp░   the same, LEAD steps later

Producer and consumers wait for each other at mbarriers in shared memory. A barrier has phases. A
phase ends when all expected arrivals have come and all announced bytes are there. A wait for parity
p returns when a phase of that parity has ended. A fresh barrier acts as if a phase of parity 1 had
just ended: in the first round, the producer finds every stage empty.

    pipeline.full[stage]    producer → consumer    the stage is loaded             its bytes
    pipeline.empty[stage]   consumer → producer    the stage has been multiplied   1 arrival (2)
    resident.full           producer → both        the block of I is loaded        its bytes
    resident.empty          both → producer        it is no longer needed          2 arrivals
    order[consumer]         consumer → consumer    my product is issued: you next  1 arrival

(STREAMED: 2 arrivals, as both multiply a stage; `resident` has no barriers in use; in `order` the
next is called earlier, at step LEAD of the product.)

Without `order` the consumers would not alternate. Worse, a consumer could wait for the second use
of a stage before its first load has arrived. It would then see the parity that it waits for, and
multiply data that is not there.

`triton_loss` explains the equations and their precision, `triton_blocks` how a block of G is used.
tests/helpers/gluon_on_cpu.py runs this file without a GPU.
"""

from functools import cache, partial
from typing import Any, NamedTuple

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from . import triton_blocks, triton_loss, triton_tiles
from .products import boost
from .triton_loss import lines_of_columns
from .triton_tiles import LOG2E, as_pairs, cdiv, on

ROWS = 128  # and columns of a tile
DEPTH = 64  # features of a stage
QUARTER = 32  # columns of G that are stored at a time
RESIDENT = 512  # D up to which a block of I fits into shared memory; wider ones are streamed
ONCE = False  # one exponential an entry of G where that is safe: for the tuner
BLOCK, BLOCK_K, WIDTH = gl.constexpr(ROWS), gl.constexpr(DEPTH), gl.constexpr(QUARTER)
LEAD = gl.constexpr(3)  # STREAMED: steps of its product that the first consumer is ahead

# How a warp group's registers hold a tile of S, a quarter of it, and sums of its columns.
TILE_LAYOUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16]))
QUARTER_LAYOUT = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 32, 16]))
SUMS_LAYOUT = gl.constexpr(gl.BlockedLayout([1], [32], [4], [0]))  # one column for each thread

# The same functions, compiled as Gluon.
leave_out = gluon.jit(triton_tiles.leave_out.fn)
softmax_gradient = gluon.jit(triton_tiles.softmax_gradient.fn)
softmax_gradient_once = gluon.jit(triton_tiles.softmax_gradient_once.fn)


class Work(NamedTuple):
    """A program's share of S: every `step`-th block of rows, and a stretch of tiles in each."""

    first_block: Any
    blocks: Any  # of I, in all
    step: Any
    first_tile: Any
    last_tile: Any  # exclusive


class Resident(NamedTuple):
    """The block of I that stays for a row of tiles; STREAMED: the stages' parts of I."""

    buffers: Any  # shared memory (K_BLOCKS, BLOCK, BLOCK_K); STREAMED: (STAGES, …)
    full: Any
    empty: Any


class Pipeline(NamedTuple):
    """The stages that pass T from the producer to the consumers."""

    buffers: Any  # shared memory (STAGES, BLOCK, BLOCK_K); STREAMED: (2 · STAGES, …)
    full: Any  # a barrier for each stage
    empty: Any


class Output(NamedTuple):
    """The output of G: its descriptor and the buffers that it is stored from."""

    G: Any  # a tensor descriptor (M, N), in tiles (BLOCK, WIDTH)
    buffers: Any  # shared memory (4, BLOCK, WIDTH): two quarters for each consumer


# ------------------------------------------------------------------------------ the roles


@gluon.jit
def producer(I, T, work, resident, pipeline, K_BLOCKS: gl.constexpr,  # noqa: E741
             STREAMED: gl.constexpr):
    """Load I and T as soon as there is room for them."""
    if STREAMED:
        produce_both(I, T, work, resident, pipeline, K_BLOCKS)
    else:
        produce_stages_of_T(I, T, work, resident, pipeline, K_BLOCKS)


@gluon.jit
def produce_stages_of_T(I, T, work, resident, pipeline, K_BLOCKS: gl.constexpr):  # noqa: E741
    """Load blocks of I whole, and T stage by stage."""
    STAGES: gl.constexpr = pipeline.full.shape[0]
    loads, rounds = 0, 0  # of stages, of blocks of I
    for block in range(work.first_block, work.blocks, work.step):
        mbarrier.wait(resident.empty, (rounds & 1) ^ 1)
        mbarrier.expect(resident.full, K_BLOCKS * I.block_type.nbytes)
        for i in gl.static_range(K_BLOCKS):
            tma.async_copy_global_to_shared(I, [block * BLOCK, i * BLOCK_K], resident.full,
                                            resident.buffers.index(i))
        for tile in range(work.first_tile, work.last_tile):
            for k in range(K_BLOCKS):
                stage = loads % STAGES
                full = pipeline.full.index(stage)
                mbarrier.wait(pipeline.empty.index(stage), (loads // STAGES & 1) ^ 1)
                mbarrier.expect(full, T.block_type.nbytes)
                tma.async_copy_global_to_shared(T, [tile * BLOCK, k * BLOCK_K], full,
                                                pipeline.buffers.index(stage))
                loads += 1
        rounds += 1


@gluon.jit
def produce_both(I, T, work, resident, pipeline, K_BLOCKS: gl.constexpr):  # noqa: E741
    """Load I and two tiles' T stage by stage."""
    STAGES: gl.constexpr = pipeline.full.shape[0]
    loads = 0
    for block in range(work.first_block, work.blocks, work.step):
        for tile in range(work.first_tile, work.last_tile, 2):
            for k in range(K_BLOCKS):
                stage = loads % STAGES
                full = pipeline.full.index(stage)
                mbarrier.wait(pipeline.empty.index(stage), (loads // STAGES & 1) ^ 1)
                mbarrier.expect(full, I.block_type.nbytes + 2 * T.block_type.nbytes)
                tma.async_copy_global_to_shared(I, [block * BLOCK, k * BLOCK_K], full,
                                                resident.buffers.index(stage))
                for half in gl.static_range(2):
                    tma.async_copy_global_to_shared(T, [(tile + half) * BLOCK, k * BLOCK_K], full,
                                                    pipeline.buffers.index(2 * stage + half))
                loads += 1


@gluon.jit
def product(resident, pipeline, order, number, K_BLOCKS: gl.constexpr, STREAMED: gl.constexpr,
            CONSUMER: gl.constexpr):
    """A tile of I Tᵀ, (BLOCK, BLOCK) float32.

    number: how many tiles the program had before it; STREAMED: how many pairs of tiles.
    """
    STAGES: gl.constexpr = pipeline.full.shape[0]
    S = gl.full([BLOCK, BLOCK], 0.0, gl.float32, TILE_LAYOUT)
    for k in range(K_BLOCKS):  # one multiplication runs while the next is issued
        load = number * K_BLOCKS + k
        stage = load % STAGES
        mbarrier.wait(pipeline.full.index(stage), load // STAGES & 1)
        a = resident.buffers.index(stage if STREAMED else k)
        b = pipeline.buffers.index(2 * stage + CONSUMER if STREAMED else stage)
        S = hopper.warpgroup_mma(a, b.permute((1, 0)), S, use_acc=k > 0, is_async=True)
        if STREAMED:  # the other consumer follows at a distance
            mbarrier.arrive(order.index(1 - CONSUMER), pred=k == (LEAD - 1) * (1 - CONSUMER))
        S = hopper.warpgroup_mma_wait(1, deps=[S])
        mbarrier.arrive(pipeline.empty.index((load - 1) % STAGES), pred=k > 0)
    if not STREAMED:  # all is issued: the other consumer may issue
        mbarrier.arrive(order.index(1 - CONSUMER))
    S = hopper.warpgroup_mma_wait(0, deps=[S])
    mbarrier.arrive(pipeline.empty.index((number * K_BLOCKS + K_BLOCKS - 1) % STAGES))
    return S


@gluon.jit
def sums_consumer(work, resident, pipeline, order, pairs, scale, room, row_sums, column_sums,
                  CONSUMER: gl.constexpr, K_BLOCKS: gl.constexpr, STREAMED: gl.constexpr,
                  BOTH: gl.constexpr, ADD: gl.constexpr, RAGGED: gl.constexpr):
    """Every second tile: Σ_j 2^(S' − shift), kept in registers, and Σ_i, sent to memory."""
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, TILE_LAYOUT))
    column = gl.arange(0, BLOCK, gl.SliceLayout(0, TILE_LAYOUT))
    scale2 = gl.load(scale) * LOG2E
    shift = gl.maximum(scale2 - room, 0.0)
    tiles = work.last_tile - work.first_tile
    rounds, turns = 0, 0  # of blocks of I, at the tensor cores
    for block in range(work.first_block, work.blocks, work.step):
        rows = block * BLOCK + row
        row_sum = gl.full([BLOCK], 0.0, gl.float32, gl.SliceLayout(1, TILE_LAYOUT))
        if not STREAMED:
            mbarrier.wait(resident.full, rounds & 1)
        for tile in range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2):
            mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER))
            turns += 1
            if tile < work.last_tile:
                columns = tile * BLOCK + column
                number = turns - 1 if STREAMED else rounds * tiles + tile - work.first_tile
                S = product(resident, pipeline, order, number, K_BLOCKS, STREAMED,
                            CONSUMER) * scale2
                S = leave_out(S, rows, columns, pairs.M, pairs.N, pairs.label_offset,
                              pairs.image_ids, pairs.text_ids, RAGGED)
                E = gl.exp2(S - shift)
                row_sum += gl.sum(E, 1)
                if BOTH:  # no other program, nor the other consumer, adds to these columns of it
                    columns = tile * BLOCK + gl.arange(0, BLOCK, SUMS_LAYOUT)
                    line = column_sums + gl.cast(gl.program_id(0), gl.int64) * pairs.N
                    column_sum = gl.convert_layout(gl.sum(E, 0), SUMS_LAYOUT)
                    if ADD:
                        gl.atomic_add(line + columns, column_sum, mask=columns < pairs.N,
                                      sem="relaxed")
                    else:
                        gl.store(line + columns, column_sum, mask=columns < pairs.N)
            else:  # the last of an odd number of tiles was the other's
                mbarrier.arrive(order.index(1 - CONSUMER))
        if not STREAMED:
            mbarrier.arrive(resident.empty)
        rounds += 1
        line = row_sums + gl.cast(gl.program_id(1) * 2 + CONSUMER, gl.int64) * pairs.M
        gl.store(line + rows, row_sum, mask=rows < pairs.M)


@gluon.jit
def gradient_consumer(work, resident, pipeline, order, pairs, scale, r, c, output,
                      CONSUMER: gl.constexpr, K_BLOCKS: gl.constexpr, STREAMED: gl.constexpr,
                      BOTH: gl.constexpr, RAGGED: gl.constexpr, BOOST: gl.constexpr,
                      ONCE: gl.constexpr):
    """Every second tile: BOOST · G of it, stored quarter by quarter."""
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, QUARTER_LAYOUT))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, QUARTER_LAYOUT))
    tiles = work.last_tile - work.first_tile
    rounds, turns = 0, 0  # of blocks of I, at the tensor cores
    for block in range(work.first_block, work.blocks, work.step):
        first_row = block * BLOCK
        r_here = gl.load(r + first_row + row, mask=first_row + row < pairs.M, other=0.0)
        if not STREAMED:
            mbarrier.wait(resident.full, rounds & 1)
        for tile in range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2):
            mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER))
            turns += 1
            if tile < work.last_tile:
                first_column = tile * BLOCK
                c_here = ()  # loaded before the product, to hide the latency
                for q in gl.static_range(4):
                    columns = first_column + q * WIDTH + column
                    inside = (columns < pairs.N) & BOTH
                    c_here += (gl.load(c + columns, mask=inside, other=0.0),)
                number = turns - 1 if STREAMED else rounds * tiles + tile - work.first_tile
                S = product(resident, pipeline, order, number, K_BLOCKS, STREAMED, CONSUMER)
                S = S.reshape([BLOCK, 2, 2, WIDTH])
                left, right = gl.split(S.permute((0, 3, 2, 1)))
                quarters = gl.split(left) + gl.split(right)
                for q in gl.static_range(4):
                    epilogue(quarters[q], scale, r_here, c_here[q], pairs, first_row,
                             first_column + q * WIDTH, output.G,
                             output.buffers.index(2 * CONSUMER + q % 2), BOTH, RAGGED, BOOST,
                             ONCE)
            else:  # the last of an odd number of tiles was the other's
                mbarrier.arrive(order.index(1 - CONSUMER))
        if not STREAMED:
            mbarrier.arrive(resident.empty)
        rounds += 1
    tma.store_wait(0)


@gluon.jit
def epilogue(S, scale, r, c, pairs, first_row, first_column, G, buffer, BOTH: gl.constexpr,
             RAGGED: gl.constexpr, BOOST: gl.constexpr, ONCE: gl.constexpr):
    """A quarter of a tile of I Tᵀ → BOOST · G, stored while the next quarter is computed.

    Each quarter loads the scale again. Otherwise the compiler computes all before the first store.
    """
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, QUARTER_LAYOUT))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, QUARTER_LAYOUT))
    S = gl.convert_layout(S, QUARTER_LAYOUT) * (gl.load(scale) * LOG2E)
    S = leave_out(S, first_row + row, first_column + column, pairs.M, pairs.N, pairs.label_offset,
                  pairs.image_ids, pairs.text_ids, RAGGED)
    distance = first_row + pairs.label_offset - first_column
    if ONCE and BOTH:
        low = gl.minimum(gl.min(r, 0), gl.min(c, 0))
        entries = BOOST * softmax_gradient_once(S, row, column, distance, r, c, low, gl.max(r, 0),
                                                gl.max(c, 0))
    else:
        entries = BOOST * softmax_gradient(S, row, column, distance, r, c, True, BOTH)
    tma.store_wait(1)  # the last store but one is done: its buffer is free
    buffer.store(entries.to(G.dtype))
    hopper.fence_async_shared()
    tma.async_copy_shared_to_global(G, [first_row, first_column], buffer)


# ------------------------------------------------------------------------------ the kernels


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT fresh barriers, whose phases take ARRIVALS arrivals each."""
    made = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for which in gl.static_range(COUNT):
        mbarrier.init(made.index(which), count=ARRIVALS)
    return made


@gluon.jit
def share_of(M, N, STREAMED: gl.constexpr):
    """This program's work. Grid (groups of blocks of rows, splits of the columns).

    STREAMED: tiles come in pairs. The second of the last pair may lie beyond the edge.
    """
    TOGETHER: gl.constexpr = 2 if STREAMED else 1
    tiles = gl.cdiv(N, TOGETHER * BLOCK) * TOGETHER
    stretch = gl.cdiv(tiles // TOGETHER, gl.num_programs(1)) * TOGETHER
    first_tile = gl.program_id(1) * stretch
    return Work(gl.program_id(0), gl.cdiv(M, BLOCK), gl.num_programs(0), first_tile,
                gl.minimum(first_tile + stretch, tiles))


@gluon.jit
def resident_block(I, K_BLOCKS: gl.constexpr, STAGES: gl.constexpr,  # noqa: E741
                   STREAMED: gl.constexpr):
    SLOTS: gl.constexpr = STAGES if STREAMED else K_BLOCKS
    buffers = gl.allocate_shared_memory(I.dtype, [SLOTS, BLOCK, BLOCK_K], I.layout)
    return Resident(buffers, barriers(1, 1).index(0), barriers(1, 2).index(0))


@gluon.jit
def pipeline_of(T, STAGES: gl.constexpr, STREAMED: gl.constexpr):
    EACH: gl.constexpr = 2 if STREAMED else 1  # tiles of a stage, and consumers that multiply it
    buffers = gl.allocate_shared_memory(T.dtype, [EACH * STAGES, BLOCK, BLOCK_K], T.layout)
    return Pipeline(buffers, barriers(STAGES, 1), barriers(STAGES, EACH))


@gluon.jit
def sums_kernel(I, T, scale, pairs, room, row_sums, column_sums,  # noqa: E741
                K_BLOCKS: gl.constexpr, STAGES: gl.constexpr, STREAMED: gl.constexpr,
                BOTH: gl.constexpr, ADD: gl.constexpr, RAGGED: gl.constexpr):
    """`triton_loss.sums_kernel`: row_sums (2 · splits, M), column_sums (groups, N).

    Each consumer has a line of row sums. Grid (groups, splits).
    """
    resident = resident_block(I, K_BLOCKS, STAGES, STREAMED)
    pipeline, order = pipeline_of(T, STAGES, STREAMED), barriers(2, 1)
    work = share_of(pairs.M, pairs.N, STREAMED)
    gl.warp_specialize([
        (sums_consumer, (work, resident, pipeline, order, pairs, scale, room, row_sums,
                         column_sums, 0, K_BLOCKS, STREAMED, BOTH, ADD, RAGGED)),
        (sums_consumer, (work, resident, pipeline, order, pairs, scale, room, row_sums,
                         column_sums, 1, K_BLOCKS, STREAMED, BOTH, ADD, RAGGED)),
        (producer, (I, T, work, resident, pipeline, K_BLOCKS, STREAMED))], [4, 1], [232, 40])


@gluon.jit
def block_kernel(I, T, scale, pairs, r, c, G, K_BLOCKS: gl.constexpr,  # noqa: E741
                 STAGES: gl.constexpr, STREAMED: gl.constexpr, BOTH: gl.constexpr,
                 RAGGED: gl.constexpr, BOOST: gl.constexpr, ONCE: gl.constexpr):
    """`triton_blocks.block_kernel`: BOOST · G (M, N), in the features' type. Grid as above."""
    resident = resident_block(I, K_BLOCKS, STAGES, STREAMED)
    pipeline, order = pipeline_of(T, STAGES, STREAMED), barriers(2, 1)
    work = share_of(pairs.M, pairs.N, STREAMED)
    output = Output(G, gl.allocate_shared_memory(G.dtype, [4, BLOCK, WIDTH], G.layout))
    gl.warp_specialize([
        (gradient_consumer, (work, resident, pipeline, order, pairs, scale, r, c, output, 0,
                             K_BLOCKS, STREAMED, BOTH, RAGGED, BOOST, ONCE)),
        (gradient_consumer, (work, resident, pipeline, order, pairs, scale, r, c, output, 1,
                             K_BLOCKS, STREAMED, BOTH, RAGGED, BOOST, ONCE)),
        (producer, (I, T, work, resident, pipeline, K_BLOCKS, STREAMED))], [4, 1], [232, 40])


# ------------------------------------------------------------------------------ launching


@cache
def programs(device):
    """The number of programs that run at once: one fills a multiprocessor."""
    return torch.cuda.get_device_properties(device).multi_processor_count


@cache
def grid(M, N, most, streamed=False):
    """The grid (groups, splits) in which the program with the most tiles has the fewest.

    most: programs that run at the same time. streamed: tiles come in pairs.
    """
    blocks, tiles = cdiv(M, ROWS), cdiv(N, 2 * ROWS if streamed else ROWS)

    def tiles_of_one(splits):
        return cdiv(blocks, most // splits) * cdiv(tiles, splits)

    splits = min(range(1, min(tiles, most) + 1), key=tiles_of_one)
    return min(blocks, most // splits), splits


@cache
def tile_layout(dtype, width):
    """How a tile (ROWS, width) lies in shared memory."""
    gluon_type = getattr(gl, str(dtype).removeprefix("torch."))
    return gl.NVMMASharedLayout.get_default_for([ROWS, width], gluon_type)


def gluon_tiles(matrix, width=DEPTH):
    """A descriptor that loads or stores tiles (ROWS, width) of the matrix."""
    return TensorDescriptor(matrix, list(matrix.shape), list(matrix.stride()), [ROWS, width],
                            tile_layout(matrix.dtype, width))


def streams(I):  # noqa: E741
    """Whether blocks of these features are too wide to stay in shared memory."""
    return I.shape[1] > RESIDENT


def options_for(I, M, N, labels):  # noqa: E741
    """The compile-time arguments that both kernels share, and their warps."""
    K_BLOCKS, streamed = cdiv(I.shape[1], DEPTH), streams(I)
    width = 2 * ROWS if streamed else ROWS
    return {"K_BLOCKS": K_BLOCKS, "STAGES": 4 if K_BLOCKS > 4 else 8, "STREAMED": streamed,
            "BOTH": labels.both, "RAGGED": bool(M % ROWS or N % width), "num_warps": 4}


def sums(I, T, scale, labels, room):  # noqa: E741
    """As `triton_loss.sums`: lines of partial sums of rows (lines, M) and of columns (lines, N)."""
    M, N, blocks = len(I), len(T), cdiv(len(I), ROWS)
    groups, splits = grid(M, N, programs(I.device), streams(I))
    row_sums = scale.new_empty(2 * splits, M)
    column_sums = lines_of_columns(scale, groups, blocks, N) if labels.both else row_sums
    with on(I):
        sums_kernel[groups, splits](
            gluon_tiles(I), gluon_tiles(T), scale, as_pairs(I, T, labels), room, row_sums,
            column_sums, ADD=groups < blocks, **options_for(I, M, N, labels))
    return row_sums, column_sums


def write(block, I, T, scale, r, c, labels):  # noqa: E741
    """As `triton_blocks.write`: one block of BOOST · G, from its own rows of everything."""
    M, N = block.shape
    with on(I):
        block_kernel[grid(M, N, programs(I.device), streams(I))](
            gluon_tiles(I), gluon_tiles(T), scale, as_pairs(I, T, labels), r, c,
            gluon_tiles(block, QUARTER), BOOST=boost(I.dtype), ONCE=ONCE,
            **options_for(I, M, N, labels))


BASE = triton_loss.BASE
forward = partial(triton_loss.forward, sums=sums)
logsumexps = partial(triton_loss.logsumexps, sums=sums)
backward = partial(triton_blocks.backward, write=write)
