"""One pass over all layers, for any mix of decode rows and prefill chunks, as phases of a team's work."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tokenspeed.model.cpu.attention import attend, store_key, store_value
from tokenspeed.model.cpu.jit import inlined, njit, overload
from tokenspeed.model.cpu.layout import FLOAT, SLAB_TOKENS, Memory, Shape, Sizes
from tokenspeed.model.cpu.simd import (
    LANES,
    called,
    exp,
    fused,
    load,
    load_index,
    load_one,
    splat,
    store,
    store_address,
    store_one,
    total,
)
from tokenspeed.model.cpu.team import Team, share
from tokenspeed.model.cpu.tile import (
    BLOCK,
    MOST_ROWS,
    PAIR,
    STEP_BYTES,
    Format,
    accumulate,
    accumulate_wide,
    load_operand,
    operand_bytes,
    pairs_together,
    place,
    steps_of,
    store_operands,
)

VECTOR = LANES * FLOAT  # bytes
TASK_ROWS = 256  # token rows of a projection's task: its operands stay in the second-level cache


class Projection(NamedTuple):
    """A packed matrix as pairs of blocks of sixteen outputs, and its biases (addresses)."""

    low: int  # first block of pair 0
    high: int  # second block of pair 0
    low_bias: int
    high_bias: int
    advance: int  # blocks from a pair to the next: 2 where its blocks are neighbours
    pairs: int
    inputs: int  # elements of the reduction


@njit
def rms(shape: Shape, source: int, elements: int, count: int) -> float:
    """1 / root mean square of `count` float32 values, padded with zeros to `elements`."""
    squares = splat(0.0)
    for at in range(source, source + elements * FLOAT, VECTOR):
        value = load(at)
        squares = fused(value, value, squares)
    return 1.0 / math.sqrt(total(squares) / count + shape.epsilon)


@njit
def normalise(form: Format, shape: Shape, source: int, weight: int, target: int) -> None:
    """RMSNorm of one row of the residual stream, to operands."""
    called()
    scale = splat(rms(shape, source, shape.width, shape.hidden))
    for element in range(0, shape.width, LANES):
        value = load(source + element * FLOAT) * scale * load(weight + element * FLOAT)
        store_operands(form, target + element * operand_bytes(form), value)


@njit
def write_state(shape: Shape, source: int, weight: int, target: int) -> None:
    """RMSNorm of one row of the residual stream, to float32."""
    called()
    scale = splat(rms(shape, source, shape.width, shape.hidden))
    for at in range(0, shape.width * FLOAT, VECTOR):
        store(target + at, load(source + at) * scale * load(weight + at))


@njit
def embed(form: Format, shape: Shape, memory: Memory, token: int, target: int) -> None:
    """One row of the packed embedding, to float32."""
    steps = steps_of(form, shape.width)
    block = memory.embedding + token // BLOCK * steps * STEP_BYTES
    for element in range(shape.width):
        store_one(target + element * FLOAT, load_operand(form, block + place(form, token % BLOCK, element)))


class Assign(NamedTuple):
    """Sums become float32 rows at `target`, `stride` bytes apart."""

    target: int
    stride: int


class Add(NamedTuple):
    """Sums are added to float32 rows."""

    target: int
    stride: int


class Activate(NamedTuple):
    """silu(first half of a pair) x second half becomes rows of operands."""

    target: int
    stride: int


Sink = Assign | Add | Activate


def assign(form: Format, sink: Any, sums: int, stride: int, row: int, count: int, pair: int) -> None:
    for m in range(count):
        out = sink.target + (row + m) * sink.stride + pair * 2 * VECTOR
        store(out, load(sums + m * stride))
        store(out + VECTOR, load(sums + m * stride + VECTOR))


def add(form: Format, sink: Any, sums: int, stride: int, row: int, count: int, pair: int) -> None:
    for m in range(count):
        out = sink.target + (row + m) * sink.stride + pair * 2 * VECTOR
        store(out, load(out) + load(sums + m * stride))
        store(out + VECTOR, load(out + VECTOR) + load(sums + m * stride + VECTOR))


def activate(form: Format, sink: Any, sums: int, stride: int, row: int, count: int, pair: int) -> None:
    for m in range(count):
        gate = load(sums + m * stride)
        up = load(sums + m * stride + VECTOR)
        out = sink.target + (row + m) * sink.stride + pair * BLOCK * operand_bytes(form)
        store_operands(form, out, gate / (splat(1.0) + exp(splat(0.0) - gate)) * up)


SINKS = {Assign: assign, Add: add, Activate: activate}


def drain(form: Format, sink: Any, sums: int, stride: int, row: int, count: int, pair: int) -> None:
    """Hand sums [count <= 8 rows, pair of blocks] to the sink, whose kind the compiler knows.

    Rows of sums are `stride` bytes apart.
    """


@overload(drain)  # type: ignore[untyped-decorator]
def choose_sink(form: Format, sink: Any, sums: int, stride: int, row: int, count: int, pair: int) -> Any:
    return SINKS[sink.instance_class]


@njit
def project_few(
    form: Format,
    projection: Projection,
    rows: int,
    operands: int,
    scratch: int,
    sink: Sink,
    pair: int,
    pairs: int,
) -> None:
    """Multiply at most four rows with `pairs` pairs of blocks, which are read side by side."""
    steps = steps_of(form, projection.inputs)
    stride, width = projection.inputs * operand_bytes(form), pairs * 2 * VECTOR
    blocks = scratch + MOST_ROWS * 2 * VECTOR
    for p in range(pairs):
        skip = (pair + p) * projection.advance
        store_address(blocks + p * 16, projection.low + skip * steps * STEP_BYTES)
        store_address(blocks + p * 16 + 8, projection.high + skip * steps * STEP_BYTES)
        low_bias = load(projection.low_bias + skip * VECTOR)
        high_bias = load(projection.high_bias + skip * VECTOR)
        for at in range(scratch + p * 2 * VECTOR, scratch + p * 2 * VECTOR + rows * width, width):
            store(at, low_bias)
            store(at + VECTOR, high_bias)
    if pairs > 1:
        accumulate_wide(form, rows, blocks, steps, operands, stride, scratch, width)
    else:
        accumulate(form, rows, True, blocks, 1, steps, operands, stride, scratch, width)
    for p in range(pairs):
        drain(form, sink, scratch + p * 2 * VECTOR, width, 0, rows, pair + p)


@njit
def project(
    form: Format,
    team: Team,
    epoch: int,
    phase: int,
    projection: Projection,
    rows: int,
    operands: int,
    scratch: int,
    sink: Sink,
) -> None:
    """Multiply rows of operands with a matrix, a pair of its blocks and a slice of the rows at a time.

    Few rows take several pairs together, as long as that leaves every thread as much to do; the pairs that
    are left over are tasks of their own.
    """
    called()
    together = pairs_together(form, rows)
    if together > 1:
        wide = projection.pairs // (together * team.threads) * team.threads
        for task in share(team, epoch, phase, wide + projection.pairs - wide * together):
            if task < wide:
                project_few(form, projection, rows, operands, scratch, sink, task * together, together)
            else:
                project_few(form, projection, rows, operands, scratch, sink, task + wide * (together - 1), 1)
        return
    steps = steps_of(form, projection.inputs)
    stride = projection.inputs * operand_bytes(form)
    slices = -(-rows // TASK_ROWS)
    blocks = scratch + MOST_ROWS * 2 * VECTOR
    for task in share(team, epoch, phase, projection.pairs * slices):
        pair, first = task // slices, task % slices * TASK_ROWS
        skip = pair * projection.advance
        store_address(blocks, projection.low + skip * steps * STEP_BYTES)
        store_address(blocks + 8, projection.high + skip * steps * STEP_BYTES)
        low_bias = load(projection.low_bias + skip * VECTOR)
        high_bias = load(projection.high_bias + skip * VECTOR)
        for row in range(first, min(first + TASK_ROWS, rows), form.rows):
            count = min(form.rows, rows - row)
            for at in range(scratch, scratch + count * 2 * VECTOR, 2 * VECTOR):
                store(at, low_bias)
                store(at + VECTOR, high_bias)
            inputs, cold = operands + row * stride, row == first
            accumulate(form, count, cold, blocks, 1, steps, inputs, stride, scratch, 2 * VECTOR)
            drain(form, sink, scratch, 2 * VECTOR, row, count, pair)


@njit
def rotate(shape: Shape, memory: Memory, position: int, head: int) -> None:
    """Rotate one head, float32 [head] at `head`, in place."""
    half = shape.rotary_half
    cosines = memory.cosines + position * half * FLOAT
    sines = memory.sines + position * half * FLOAT
    whole = half // LANES * LANES * FLOAT
    for at in range(0, whole, VECTOR):
        a, b = load(head + at), load(head + at + half * FLOAT)
        c, s = load(cosines + at), load(sines + at)
        store(head + at, a * c - b * s)
        store(head + at + half * FLOAT, b * c + a * s)
    for at in range(whole, half * FLOAT, FLOAT):
        x, y = load_one(head + at), load_one(head + at + half * FLOAT)
        cosine, sine = load_one(cosines + at), load_one(sines + at)
        store_one(head + at, x * cosine - y * sine)
        store_one(head + at + half * FLOAT, y * cosine + x * sine)


@njit
def prepare(shape: Shape, memory: Memory, position: int, head: int, norm: int) -> None:
    """Normalise (where the family does) and rotate one query or key head in place."""
    if shape.qk_norm:
        scale = splat(rms(shape, head, shape.head, shape.head_dim))
        for at in range(0, shape.head * FLOAT, VECTOR):
            store(head + at, load(head + at) * scale * load(norm + at))
    rotate(shape, memory, position, head)


@njit
def split_heads(
    form: Format, shape: Shape, sizes: Sizes, memory: Memory, job: Any, layer: Any, index: int, token: int
) -> None:
    """Take one token's fused projection apart: queries to operands, its key and value to the pool."""
    called()
    size = operand_bytes(form)
    position, slot = load_index(job.positions + token * 4), load_index(job.slots + token * 4)
    row = memory.fused + token * sizes.fused * FLOAT
    scale = splat(shape.scale)
    for head in range(shape.heads):
        query = row + head * shape.head * FLOAT
        prepare(shape, memory, position, query, layer.query_norm)
        line = (head // sizes.group * SLAB_TOKENS + token) * sizes.group + head % sizes.group
        for element in range(0, shape.head, LANES):
            target = memory.queries + (line * shape.head + element) * size
            store_operands(form, target, load(query + element * FLOAT) * scale)
    last = token + 1 == job.count or load_index(job.slots + (token + 1) * 4) != slot + 1
    for head in range(shape.kv_heads):
        key = row + (shape.heads + head) * shape.head * FLOAT
        value = key + shape.kv_heads * shape.head * FLOAT
        prepare(shape, memory, position, key, layer.key_norm)
        store_key(form, shape, memory, slot, index, head, key)
        store_value(form, shape, memory, slot, index, head, value, last)


@inlined
def attend_task(
    form: Format,
    shape: Shape,
    sizes: Sizes,
    memory: Memory,
    scratch: int,
    job: Any,
    layer: Any,
    index: int,
    task: int,
) -> None:
    """Task = (run of queries, key head), the latest runs first: they have the longest contexts."""
    group = job.group_count - 1 - task // shape.kv_heads
    first = load_index(job.groups + group * 12)
    queries = load_index(job.groups + group * 12 + 4)
    row = load_index(job.groups + group * 12 + 8)
    table = job.tables + row * job.table_width * 4
    position = load_index(job.positions + first * 4)
    head = task % shape.kv_heads
    attend(form, shape, sizes, memory, scratch, table, first, queries, position, index, head, layer.window)


@inlined
def run_layer(
    form: Format,
    shape: Shape,
    sizes: Sizes,
    memory: Memory,
    team: Team,
    epoch: int,
    scratch: int,
    job: Any,
    layer: Any,
    index: int,
) -> None:
    """One layer over the pass's tokens, in eight phases."""
    phase, size, count = 1 + 8 * index, operand_bytes(form), job.count
    stream = shape.width * FLOAT
    residual = Add(memory.hidden, stream)
    for token in share(team, epoch, phase, count):
        source, target = memory.hidden + token * stream, memory.operands + token * shape.width * size
        normalise(form, shape, source, layer.input_norm, target)
    qkv = adjacent(form, layer.qkv, layer.qkv_bias, sizes.fused, shape.width)
    into_fused = Assign(memory.fused, sizes.fused * FLOAT)
    project(form, team, epoch, phase + 1, qkv, count, memory.operands, scratch, into_fused)
    for token in share(team, epoch, phase + 2, count):
        split_heads(form, shape, sizes, memory, job, layer, index, token)
    for task in share(team, epoch, phase + 3, job.group_count * shape.kv_heads):
        attend_task(form, shape, sizes, memory, scratch, job, layer, index, task)
    output = adjacent(form, layer.output, layer.output_bias, shape.width, sizes.attended)
    project(form, team, epoch, phase + 4, output, count, memory.attended, scratch, residual)
    for token in share(team, epoch, phase + 5, count):
        source, target = memory.hidden + token * stream, memory.operands + token * shape.width * size
        normalise(form, shape, source, layer.mlp_norm, target)
    both = Projection(
        layer.gate, layer.up, layer.gate_bias, layer.up_bias, 1, shape.intermediate // BLOCK, shape.width
    )
    into_activated = Activate(memory.activated, shape.intermediate * size)
    project(form, team, epoch, phase + 6, both, count, memory.operands, scratch, into_activated)
    down = adjacent(form, layer.down, layer.down_bias, shape.width, shape.intermediate)
    project(form, team, epoch, phase + 7, down, count, memory.activated, scratch, residual)


@njit
def adjacent(form: Format, matrix: int, bias: int, outputs: int, inputs: int) -> Projection:
    """A matrix whose pairs are neighbouring blocks."""
    block = steps_of(form, inputs) * STEP_BYTES
    return Projection(matrix, matrix + block, bias, bias + VECTOR, 2, outputs // PAIR, inputs)


@inlined
def run_pass(
    form: Format,
    shape: Shape,
    sizes: Sizes,
    memory: Memory,
    layers: Any,
    job: Any,
    team: Team,
    epoch: int,
    thread: int,
) -> None:
    """This thread's share of a whole pass: embed, all layers, and the logits and states that are wanted."""
    scratch = memory.scratch + thread * sizes.scratch
    stream = shape.width * FLOAT
    for token in share(team, epoch, 0, job.count):
        embed(form, shape, memory, load_index(job.tokens + token * 4), memory.hidden + token * stream)
    for index in range(shape.layers):
        run_layer(form, shape, sizes, memory, team, epoch, scratch, job, layers[index], index)
    last = 1 + 8 * shape.layers
    for row in share(team, epoch, last, job.logit_count + job.state_count):
        if row < job.logit_count:
            source = memory.hidden + load_index(job.logit_rows + row * 4) * stream
            target = memory.operands + row * shape.width * operand_bytes(form)
            normalise(form, shape, source, memory.norm, target)
        else:
            state = row - job.logit_count
            source = memory.hidden + load_index(job.state_rows + state * 4) * stream
            write_state(shape, source, memory.norm, job.states + state * stream)
    head = adjacent(form, memory.head, memory.head_bias, shape.vocab, shape.width)
    logits = Assign(job.logits, shape.vocab * FLOAT)
    project(form, team, epoch, last + 1, head, job.logit_count, memory.operands, scratch, logits)
