"""Attention over paged keys and values, as tiles of the one matrix kernel.

A block of the pool holds its keys packed with positions as outputs (scores = queries x keys) and its values
packed with positions as the reduction (sums = probabilities x values). A task is a run of queries of one
sequence and the heads that share a key head; it walks the context in tiles of aligned, absolute positions
with an online softmax. A tile that a query does not see leaves its state as it was, bit for bit, so a query's
result does not depend on the queries that walk with it.
"""

from __future__ import annotations

from tokenspeed.model.cpu.jit import njit
from tokenspeed.model.cpu.layout import FLOAT, LINE, SLAB_TOKENS, TILE_POSITIONS, Memory, Shape, Sizes
from tokenspeed.model.cpu.simd import (
    LANES,
    called,
    exp,
    greater,
    keep,
    largest,
    load,
    load_index,
    load_one,
    prefetch,
    splat,
    store,
    store_address,
    store_one,
    total,
)
from tokenspeed.model.cpu.tile import (
    BLOCK,
    PAIR,
    STEP_BYTES,
    Format,
    accumulate,
    operand_bytes,
    place,
    steps_of,
    store_operand,
    store_operands,
)

UNSEEN = -1e30  # the score of a masked position, and the maximum of no scores: finite, so differences are
VECTOR = LANES * FLOAT  # bytes


@njit
def entry(form: Format, shape: Shape, memory: Memory, block: int, layer: int, head: int, part: int) -> int:
    """Where a block keeps one layer's and head's keys (part 0) or values (part 1)."""
    size: int = shape.block_size * shape.head * operand_bytes(form)
    return memory.pool + block * shape.block_bytes + ((layer * shape.kv_heads + head) * 2 + part) * size


@njit
def store_key(form: Format, shape: Shape, memory: Memory, slot: int, layer: int, head: int, key: int) -> None:
    """Pack one position's key, float32 [head] at `key`, into its block."""
    block, offset = slot // shape.block_size, slot % shape.block_size
    base = entry(form, shape, memory, block, layer, head, 0)
    base += offset // BLOCK * BLOCK * shape.head * operand_bytes(form)
    for element in range(shape.head):
        store_operand(form, base + place(form, offset % BLOCK, element), load_one(key + element * FLOAT))


@njit
def store_value(
    form: Format, shape: Shape, memory: Memory, slot: int, layer: int, head: int, value: int, last: bool
) -> None:
    """Pack one position's value, float32 [head] at `value`, into its block.

    Two bfloat16 positions share a step. If this one is the `last` that its sequence has, the other half of
    the step is cleared: it is multiplied by a probability of zero, and memory never written may hold NaN.
    """
    block, offset = slot // shape.block_size, slot % shape.block_size
    base = entry(form, shape, memory, block, layer, head, 1)
    column = BLOCK * shape.block_size * operand_bytes(form)
    clear = last and offset % 2 == 0 and operand_bytes(form) == 2
    for element in range(shape.head):
        cell = base + element // BLOCK * column + place(form, element % BLOCK, offset)
        store_operand(form, cell, load_one(value + element * FLOAT))
        if clear:
            store_operand(form, cell + 2, 0.0)


@njit
def attend(
    form: Format,
    shape: Shape,
    sizes: Sizes,
    memory: Memory,
    scratch: int,
    table: int,
    first: int,
    queries: int,
    position: int,
    layer: int,
    head: int,
    window: int,
) -> None:
    """Attend from tokens [first, first + queries), at `position`.., with the heads of key head `head`."""
    rows = queries * sizes.group
    width = -(-shape.head // PAIR) * PAIR * FLOAT  # bytes of a row of sums
    scores = scratch
    probabilities = scores + rows * TILE_POSITIONS * FLOAT
    sums = probabilities + rows * TILE_POSITIONS * FLOAT
    maxima = sums + rows * width
    totals = maxima + rows * FLOAT
    blocks = scratch + sizes.scratch - TILE_POSITIONS // BLOCK * 16
    for row in range(rows):
        store_one(maxima + row * FLOAT, UNSEEN)
        store_one(totals + row * FLOAT, 0.0)
    for at in range(sums, maxima, VECTOR):
        store(at, splat(0.0))
    size = operand_bytes(form)
    operands = memory.queries + (head * SLAB_TOKENS + first) * sizes.group * shape.head * size
    end = position + queries
    start = 0 if window == 0 else max(0, position - window + 1) // TILE_POSITIONS * TILE_POSITIONS
    fetch_blocks(form, shape, memory, table, start, min(start + TILE_POSITIONS, end), layer, head)
    for tile_start in range(start, end, TILE_POSITIONS):
        tile_end = min(tile_start + TILE_POSITIONS, end)
        fetch_blocks(form, shape, memory, table, tile_end, min(tile_end + TILE_POSITIONS, end), layer, head)
        score(form, shape, memory, table, tile_start, tile_end, layer, head, rows, operands, scores, blocks)
        for row in range(rows):
            seen = position + row // sizes.group + 1 - tile_start
            unseen = seen - window if window > 0 else 0
            weigh(form, row, unseen, seen, scores, probabilities, sums, width, maxima, totals)
        mix(
            form,
            shape,
            memory,
            table,
            tile_start,
            tile_end,
            layer,
            head,
            rows,
            probabilities,
            sums,
            width,
            blocks,
        )
    for row in range(rows):
        token, query_head = first + row // sizes.group, head * sizes.group + row % sizes.group
        out = memory.attended + (token * sizes.attended + query_head * shape.head) * size
        share = splat(1.0) / splat(load_one(totals + row * FLOAT))
        for element in range(0, shape.head, LANES):
            value = load(sums + row * width + element * FLOAT) * share
            store_operands(form, out + element * size, value)


@njit
def fetch_blocks(
    form: Format, shape: Shape, memory: Memory, table: int, start: int, end: int, layer: int, head: int
) -> None:
    """Ask for the blocks that begin in [start, end): the processor cannot guess where they lie."""
    size = shape.block_size
    for position in range(-(-start // size) * size, end, size):
        block = load_index(table + position // size * 4)
        keys = entry(form, shape, memory, block, layer, head, 0)
        for at in range(keys, keys + 2 * size * shape.head * operand_bytes(form), LINE):
            prefetch(at)


@njit
def score(
    form: Format,
    shape: Shape,
    memory: Memory,
    table: int,
    start: int,
    end: int,
    layer: int,
    head: int,
    rows: int,
    operands: int,
    scores: int,
    blocks: int,
) -> None:
    """scores[row, position - start] = query . key for the positions of a tile, 32 at a time."""
    steps = steps_of(form, shape.head)
    stride = shape.head * operand_bytes(form)
    for position in range(start, end, PAIR):
        low = keys_at(form, shape, memory, table, position, layer, head)
        store_address(blocks, low)
        store_address(blocks + 8, low)
        if position + BLOCK < end:
            store_address(blocks + 8, keys_at(form, shape, memory, table, position + BLOCK, layer, head))
        for row in range(0, rows, form.rows):
            count = min(form.rows, rows - row)
            out = scores + (row * TILE_POSITIONS + position - start) * FLOAT
            for m in range(count):
                store(out + m * TILE_POSITIONS * FLOAT, splat(0.0))
                store(out + m * TILE_POSITIONS * FLOAT + VECTOR, splat(0.0))
            inputs = operands + row * stride
            accumulate(form, count, False, blocks, 1, steps, inputs, stride, out, TILE_POSITIONS * FLOAT)


@njit
def keys_at(
    form: Format, shape: Shape, memory: Memory, table: int, position: int, layer: int, head: int
) -> int:
    """The packed keys of the sixteen positions from `position`."""
    block = load_index(table + position // shape.block_size * 4)
    offset: int = position % shape.block_size * shape.head * operand_bytes(form)
    return entry(form, shape, memory, block, layer, head, 0) + offset


@njit
def weigh(
    form: Format,
    row: int,
    unseen: int,
    seen: int,
    scores: int,
    probabilities: int,
    sums: int,
    width: int,
    maxima: int,
    totals: int,
) -> None:
    """One row's online softmax over a tile, of which it sees the positions [unseen, seen)."""
    called()
    scores += row * TILE_POSITIONS * FLOAT
    probabilities += row * TILE_POSITIONS * operand_bytes(form)
    s0 = keep(load(scores), unseen, seen, UNSEEN)
    s1 = keep(load(scores + VECTOR), unseen - LANES, seen - LANES, UNSEEN)
    s2 = keep(load(scores + 2 * VECTOR), unseen - 2 * LANES, seen - 2 * LANES, UNSEEN)
    s3 = keep(load(scores + 3 * VECTOR), unseen - 3 * LANES, seen - 3 * LANES, UNSEEN)
    before = load_one(maxima + row * FLOAT)
    after = max(before, largest(greater(greater(s0, s1), greater(s2, s3))))
    p0 = keep(exp(s0 - splat(after)), unseen, seen, 0.0)
    p1 = keep(exp(s1 - splat(after)), unseen - LANES, seen - LANES, 0.0)
    p2 = keep(exp(s2 - splat(after)), unseen - 2 * LANES, seen - 2 * LANES, 0.0)
    p3 = keep(exp(s3 - splat(after)), unseen - 3 * LANES, seen - 3 * LANES, 0.0)
    step = LANES * operand_bytes(form)
    store_operands(form, probabilities, p0)
    store_operands(form, probabilities + step, p1)
    store_operands(form, probabilities + 2 * step, p2)
    store_operands(form, probabilities + 3 * step, p3)
    weight = load_one(totals + row * FLOAT)
    if after != before:
        fade = exp(splat(before) - splat(after))
        weight *= largest(fade)
        store_one(maxima + row * FLOAT, after)
        for at in range(sums + row * width, sums + (row + 1) * width, VECTOR):
            store(at, load(at) * fade)
    store_one(totals + row * FLOAT, weight + total((p0 + p1) + (p2 + p3)))


@njit
def mix(
    form: Format,
    shape: Shape,
    memory: Memory,
    table: int,
    start: int,
    end: int,
    layer: int,
    head: int,
    rows: int,
    probabilities: int,
    sums: int,
    width: int,
    blocks: int,
) -> None:
    """sums[row] += probabilities[row] x values over the positions of a tile, whole KV blocks at a time."""
    size = operand_bytes(form)
    column = BLOCK * shape.block_size * size  # bytes of sixteen elements of a block's values
    stride = TILE_POSITIONS * size
    position = start
    while position < end:
        offset = position % shape.block_size
        parts, length = 1, min(shape.block_size - offset, end - position)
        if length == shape.block_size:
            parts = (end - position) // length
        for element in range(0, shape.head, PAIR):
            for part in range(parts):
                block = load_index(table + (position // shape.block_size + part) * 4)
                values = (
                    entry(form, shape, memory, block, layer, head, 1) + steps_of(form, offset) * STEP_BYTES
                )
                low = values + element // BLOCK * column
                store_address(blocks + part * 16, low)
                store_address(blocks + part * 16 + 8, low + column if element + BLOCK < shape.head else low)
            for row in range(0, rows, form.rows):
                count = min(form.rows, rows - row)
                inputs = probabilities + row * stride + (position - start) * size
                out = sums + row * width + element * FLOAT
                accumulate(
                    form, count, False, blocks, parts, steps_of(form, length), inputs, stride, out, width
                )
        position += parts * length
