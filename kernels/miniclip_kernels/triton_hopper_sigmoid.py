"""A block of the sigmoid loss's G for Hopper: the roles of `triton_hopper`, another epilogue.

Producer, pipeline and the order of the two consumers are those of `triton_hopper`, which explains
them. Only the epilogue differs: there are no sums of rows and columns to wait for, and each quarter
of a tile gives its share of the loss too. Every thread adds up what it sees, over all tiles of its
program; a program ends with 128 numbers for each consumer.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma

from . import triton_hopper, triton_sigmoid
from .products import boost
from .triton_hopper import (
    BLOCK,
    QUARTER,
    QUARTER_LAYOUT,
    ROWS,
    WIDTH,
    Output,
    barriers,
    gluon_tiles,
    grid,
    options_for,
    pipeline_of,
    producer,
    product,
    resident_block,
    share_of,
    streams,
)
from .triton_tiles import LOG2E, as_pairs, on

# The same function, compiled as Gluon.
loss_and_gradient = gluon.jit(triton_sigmoid.loss_and_gradient.fn)


@gluon.jit
def sigmoid_consumer(work, resident, pipeline, order, pairs, scale, bias, losses, totals, output,
                     CONSUMER: gl.constexpr, K_BLOCKS: gl.constexpr, STREAMED: gl.constexpr,
                     RAGGED: gl.constexpr, BOOST: gl.constexpr):
    """Every second tile: BOOST · G of it, stored quarter by quarter; its loss, its sum of G."""
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, QUARTER_LAYOUT))
    loss = gl.full([BLOCK], 0.0, gl.float32, gl.SliceLayout(1, QUARTER_LAYOUT))
    total = gl.full([BLOCK], 0.0, gl.float32, gl.SliceLayout(1, QUARTER_LAYOUT))
    tiles = work.last_tile - work.first_tile
    rounds, turns = 0, 0  # of blocks of I, at the tensor cores
    for block in range(work.first_block, work.blocks, work.step):
        if not STREAMED:
            mbarrier.wait(resident.full, rounds & 1)
        for tile in range(work.first_tile + CONSUMER, work.last_tile + CONSUMER, 2):
            mbarrier.wait(order.index(CONSUMER), (turns & 1) ^ (1 - CONSUMER))
            turns += 1
            if tile < work.last_tile:
                number = turns - 1 if STREAMED else rounds * tiles + tile - work.first_tile
                S = product(resident, pipeline, order, number, K_BLOCKS, STREAMED, CONSUMER)
                S = S.reshape([BLOCK, 2, 2, WIDTH])
                left, right = gl.split(S.permute((0, 3, 2, 1)))
                quarters = gl.split(left) + gl.split(right)
                for q in gl.static_range(4):
                    loss_here, total_here = sigmoid_epilogue(
                        quarters[q], scale, bias, pairs, block * BLOCK, tile * BLOCK + q * WIDTH,
                        output.G, output.buffers.index(2 * CONSUMER + q % 2), RAGGED, BOOST)
                    loss += loss_here
                    total += total_here
            else:  # the last of an odd number of tiles was the other's
                mbarrier.arrive(order.index(1 - CONSUMER))
        if not STREAMED:
            mbarrier.arrive(resident.empty)
        rounds += 1
    program = gl.program_id(0) * gl.num_programs(1) + gl.program_id(1)
    line = (program * 2 + CONSUMER) * BLOCK
    gl.store(losses + line + row, loss, mask=row < BLOCK)
    gl.store(totals + line + row, total, mask=row < BLOCK)
    tma.store_wait(0)


@gluon.jit
def sigmoid_epilogue(S, scale, bias, pairs, first_row, first_column, G, buffer,
                     RAGGED: gl.constexpr, BOOST: gl.constexpr):
    """A quarter of a tile of I Tᵀ → BOOST · G, stored; → its loss and G, summed over columns."""
    row = gl.arange(0, BLOCK, gl.SliceLayout(1, QUARTER_LAYOUT))
    column = gl.arange(0, WIDTH, gl.SliceLayout(0, QUARTER_LAYOUT))
    Z = (gl.convert_layout(S, QUARTER_LAYOUT) * gl.load(scale) + gl.load(bias)) * LOG2E
    loss, gradient = loss_and_gradient(
        Z, first_row + row, first_column + column, pairs.M, pairs.N, pairs.label_offset,
        pairs.image_ids, pairs.text_ids, RAGGED)
    tma.store_wait(1)  # the last store but one is done: its buffer is free
    buffer.store((BOOST * gradient).to(G.dtype))
    hopper.fence_async_shared()
    tma.async_copy_shared_to_global(G, [first_row, first_column], buffer)
    return gl.sum(loss, 1), gl.sum(gradient, 1)


@gluon.jit
def sigmoid_kernel(I, T, scale, bias, pairs, G, losses, totals,  # noqa: E741
                   K_BLOCKS: gl.constexpr, STAGES: gl.constexpr, STREAMED: gl.constexpr,
                   RAGGED: gl.constexpr, BOOST: gl.constexpr):
    """`triton_sigmoid.sigmoid_block_kernel`: BOOST · G (M, N), in the features' type.

    losses and totals (programs, 2, 128). Grid (groups of blocks of rows, splits of the columns).
    """
    resident = resident_block(I, K_BLOCKS, STAGES, STREAMED)
    pipeline, order = pipeline_of(T, STAGES, STREAMED), barriers(2, 1)
    work = share_of(pairs.M, pairs.N, STREAMED)
    output = Output(G, gl.allocate_shared_memory(G.dtype, [4, BLOCK, WIDTH], G.layout))
    gl.warp_specialize([
        (sigmoid_consumer, (work, resident, pipeline, order, pairs, scale, bias, losses, totals,
                            output, 0, K_BLOCKS, STREAMED, RAGGED, BOOST)),
        (sigmoid_consumer, (work, resident, pipeline, order, pairs, scale, bias, losses, totals,
                            output, 1, K_BLOCKS, STREAMED, RAGGED, BOOST)),
        (producer, (I, T, work, resident, pipeline, K_BLOCKS, STREAMED))], [4, 1], [232, 40])


def write(block, I, T, scale, bias, labels):  # noqa: E741
    """As `triton_sigmoid.write_block`, with 256 numbers for each program."""
    M, N = block.shape
    groups, splits = grid(M, N, triton_hopper.programs(I.device), streams(I))
    found = scale.new_zeros(2, groups * splits, 2, ROWS)
    options = options_for(I, M, N, labels)
    del options["BOTH"]
    with on(I):
        sigmoid_kernel[groups, splits](
            gluon_tiles(I), gluon_tiles(T), scale, bias, as_pairs(I, T, labels),
            gluon_tiles(block, QUARTER), *found, BOOST=boost(I.dtype), **options)
    return found
