"""The one matrix kernel: up to eight rows of operands times 32 packed outputs, or fewer rows times more.

A matrix [N, K] is packed in blocks of sixteen outputs. A block is a run of 64-byte steps; step s holds, for
each of the sixteen outputs, the 32 bits of its next reduction elements: two bfloat16 or one float32. Keys
and values are kept in the same form, so projections, attention scores and attention sums are all this
kernel. Each output has one accumulator that walks the steps in order: its bits do not depend on how many
rows share a call, nor on how a long reduction is cut into calls.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir

from tokenspeed.model.cpu import simd
from tokenspeed.model.cpu.jit import cgutils, intrinsic, njit, types
from tokenspeed.model.cpu.simd import called, constant, float_lanes, int_lanes, pointer

STEP_BYTES = 64
BLOCK = 16  # outputs of a block
PAIR = 2 * BLOCK  # outputs of one call
AHEAD = 64  # steps (4 KiB of each block) that weights are fetched before their use
MOST_ROWS = 8  # 8 rows x 2 blocks: sixteen accumulators, enough to hide the latency of a dot product
MOST_PAIRS = 4  # that few rows take together


class Bf16Dot(NamedTuple):
    """bfloat16 operands, two products a lane in one instruction (`vdpbf16ps` of avx512_bf16)."""

    rows: int  # rows of a full tile


class Bf16Widen(NamedTuple):
    """bfloat16 operands, widened by shifts and multiplied in float32: for any processor."""

    rows: int


class Float32(NamedTuple):
    """float32 operands, for any processor."""

    rows: int


Format = Bf16Dot | Bf16Widen | Float32


class BFloat(ir.types.Type):  # type: ignore[misc]
    """LLVM's bfloat, of which llvmlite needs only the spelling."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash("bfloat")


short_pairs = ir.VectorType(BFloat(), 2 * simd.LANES)


def step_dot(builder: Any, weights: list[Any], operand: Any, sums: list[Any]) -> list[Any]:
    """Add the products of one step by `vdpbf16ps`: weights and operand are <16 x i32> of bfloat16 pairs."""
    kind = ir.FunctionType(float_lanes, [float_lanes, short_pairs, short_pairs])
    dot = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512bf16.dpbf16ps.512")
    spread = builder.bitcast(simd.broadcast(builder, operand, int_lanes), short_pairs)
    lines = [builder.bitcast(line, short_pairs) for line in weights]
    return [builder.call(dot, [sum_, line, spread]) for sum_, line in zip(sums, lines, strict=True)]


def step_widen(builder: Any, weights: list[Any], operand: Any, sums: list[Any]) -> list[Any]:
    """The same in float32: first the products of the lower halves, then those of the upper."""
    for part in (low_half, high_half):
        spread = simd.broadcast(
            builder, builder.bitcast(part(builder, operand, simd.int32), simd.float32), float_lanes
        )
        lines = [builder.bitcast(part(builder, line, int_lanes), float_lanes) for line in weights]
        sums = [
            simd.multiply_add(builder, line, spread, sum_) for sum_, line in zip(sums, lines, strict=True)
        ]
    return sums


def low_half(builder: Any, bits: Any, kind: Any) -> Any:
    return builder.shl(bits, filled(kind, 16))


def high_half(builder: Any, bits: Any, kind: Any) -> Any:
    return builder.and_(bits, filled(kind, -65536))


def filled(kind: Any, value: int) -> Any:
    return simd.every_lane(kind, value) if isinstance(kind, ir.VectorType) else ir.Constant(kind, value)


def step_float(builder: Any, weights: list[Any], operand: Any, sums: list[Any]) -> list[Any]:
    """One float32 product a lane."""
    spread = simd.broadcast(builder, builder.bitcast(operand, simd.float32), float_lanes)
    lines = [builder.bitcast(line, float_lanes) for line in weights]
    return [simd.multiply_add(builder, line, spread, sum_) for sum_, line in zip(sums, lines, strict=True)]


STEPS = {Bf16Dot: step_dot, Bf16Widen: step_widen, Float32: step_float}


@intrinsic
def tile(
    typing: Any,
    form: Any,
    rows: Any,
    pairs: Any,
    ahead: Any,
    blocks: Any,
    parts: Any,
    steps: Any,
    operands: Any,
    stride: Any,
    out: Any,
    out_stride: Any,
) -> Any:
    """out[m, 16 b : 16 b + 16] += block b . operands[m], for the 2 `pairs` blocks side by side.

    `blocks` holds, for each of `parts` consecutive parts of the reduction, the addresses of its blocks, of
    `steps` steps each. `rows`, `pairs` and `ahead` (steps to fetch weights ahead, 0 for none) are literals;
    strides are in bytes.
    """
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (rows, pairs, ahead)):
        return None
    count, width, distance = rows.literal_value, 2 * pairs.literal_value, ahead.literal_value
    advance = STEPS[form.instance_class]

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, _, _, _, blocks, parts, steps, operands, stride, out, out_stride = arguments
        table = pointer(builder, blocks, simd.int64)
        inputs = [pointer(builder, offset(builder, operands, stride, m), simd.int32) for m in range(count)]
        outputs = [offset(builder, out, out_stride, m) for m in range(count)]
        cells = [
            [pointer(builder, builder.add(row, constant(STEP_BYTES * b)), float_lanes) for b in range(width)]
            for row in outputs
        ]
        sums = [[cgutils.alloca_once_value(builder, builder.load(c, align=4)) for c in row] for row in cells]
        with cgutils.for_range(builder, parts) as part:
            entries = [
                builder.add(builder.mul(part.index, constant(width)), constant(b)) for b in range(width)
            ]
            lines = [pointer(builder, builder.load(builder.gep(table, [b])), int_lanes) for b in entries]
            before = builder.mul(part.index, steps)
            starts = [builder.gep(row, [before]) for row in inputs]
            with cgutils.for_range(builder, steps) as loop:
                multiply_step(builder, advance, lines, starts, sums, loop.index, distance)
        for slots, targets in zip(sums, cells, strict=True):
            for slot, target in zip(slots, targets, strict=True):
                builder.store(builder.load(slot), target, align=4)
        return context.get_dummy_value()

    integers = [types.intp] * 7
    return types.void(form, rows, pairs, ahead, *integers), emit


def multiply_step(
    builder: Any,
    advance: Any,
    lines: list[Any],
    inputs: list[Any],
    sums: list[list[Any]],
    step: Any,
    distance: int,
) -> None:
    """One step of all blocks with all rows."""
    weights = [builder.load(builder.gep(line, [step]), align=STEP_BYTES) for line in lines]
    for line in lines if distance else ():
        simd.fetch_line(builder, builder.gep(line, [builder.add(step, constant(distance))]))
    for row, slots in zip(inputs, sums, strict=True):
        operand = builder.load(builder.gep(row, [step]), align=4)
        after = advance(builder, weights, operand, [builder.load(slot) for slot in slots])
        for slot, sum_ in zip(slots, after, strict=True):
            builder.store(sum_, slot)


def offset(builder: Any, base: Any, stride: Any, count: int) -> Any:
    return builder.add(base, builder.mul(stride, constant(count)))


@njit
def accumulate(
    form: Format,
    rows: int,
    cold: bool,
    blocks: int,
    parts: int,
    steps: int,
    operands: int,
    stride: int,
    out: int,
    out_stride: int,
) -> None:
    """`tile` for 1..8 rows; `cold` says that the weights come from memory rather than from a cache.

    With few rows the memory is the limit and the processor fetches ahead by itself. With many, computing
    hides what comes next from it; asking for it makes 8 rows over cold weights 13% to 40% faster, but over
    cached weights 4% to 10% slower.
    """
    called()
    if rows == 8 and cold:
        tile(form, 8, 1, AHEAD, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 8:
        tile(form, 8, 1, 0, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 1:
        tile(form, 1, 1, 0, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 2:
        tile(form, 2, 1, 0, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 3:
        tile(form, 3, 1, 0, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 4:
        tile(form, 4, 1, 0, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 5:
        tile(form, 5, 1, AHEAD, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 6:
        tile(form, 6, 1, AHEAD, blocks, parts, steps, operands, stride, out, out_stride)
    elif rows == 7:
        tile(form, 7, 1, AHEAD, blocks, parts, steps, operands, stride, out, out_stride)


@njit
def pairs_together(form: Format, rows: int) -> int:
    """Pairs of blocks that so many rows are multiplied with in one call, if there are no more rows.

    With few rows the memory is the limit, and one core draws a quarter to a half more from it when it reads
    eight streams ahead rather than two. Where registers are few, their sums would not fit.
    """
    if form.rows < MOST_ROWS:
        return 1
    if rows <= 2:
        return MOST_PAIRS
    return 2 if rows <= 4 else 1


@njit
def accumulate_wide(
    form: Format, rows: int, blocks: int, steps: int, operands: int, stride: int, out: int, out_stride: int
) -> None:
    """`tile` for 1 to 4 rows with `pairs_together` pairs of blocks of weights in memory."""
    called()
    if rows == 1:
        tile(form, 1, 4, AHEAD, blocks, 1, steps, operands, stride, out, out_stride)
    elif rows == 2:
        tile(form, 2, 4, AHEAD, blocks, 1, steps, operands, stride, out, out_stride)
    elif rows == 3:
        tile(form, 3, 2, AHEAD, blocks, 1, steps, operands, stride, out, out_stride)
    elif rows == 4:
        tile(form, 4, 2, AHEAD, blocks, 1, steps, operands, stride, out, out_stride)


@intrinsic
def store_operands(typing: Any, form: Any, address: Any, value: Any) -> Any:
    """Sixteen float32 to memory as operands of the format."""
    narrow = form.instance_class is not Float32

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, address, value = arguments
        if narrow:
            value = simd.rounded(builder, value)
        builder.store(value, pointer(builder, address, value.type), align=2)
        return context.get_dummy_value()

    return types.void(form, types.intp, simd.f32x16), emit


@intrinsic
def store_operand(typing: Any, form: Any, address: Any, value: Any) -> Any:
    """One float32 to memory as an operand of the format."""
    narrow = form.instance_class is not Float32

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, address, value = arguments
        if narrow:
            lanes = simd.rounded(builder, simd.broadcast(builder, value, float_lanes))
            value = builder.extract_element(lanes, ir.Constant(simd.int32, 0))
        builder.store(value, pointer(builder, address, value.type), align=2)
        return context.get_dummy_value()

    return types.void(form, types.intp, types.float32), emit


@intrinsic
def load_operand(typing: Any, form: Any, address: Any) -> Any:
    """One operand of the format from memory, as float32."""
    narrow = form.instance_class is not Float32

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address = arguments[1]
        if not narrow:
            return builder.load(pointer(builder, address, simd.float32), align=4)
        bits = builder.zext(builder.load(pointer(builder, address, simd.int16), align=2), simd.int32)
        return builder.bitcast(builder.shl(bits, ir.Constant(simd.int32, 16)), simd.float32)

    return types.float32(form, types.intp), emit


@intrinsic
def operand_bytes(typing: Any, form: Any) -> Any:
    """Bytes of one operand: 2 or 4."""
    size = 4 if form.instance_class is Float32 else 2

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return constant(size)

    return types.intp(form), emit


@njit
def steps_of(form: Format, elements: int) -> int:
    """Steps that `elements` of a reduction take."""
    steps: int = -(-elements * operand_bytes(form) // 4)
    return steps


@njit
def place(form: Format, output: int, element: int) -> int:
    """Byte offset, inside one block, of reduction element `element` of output `output`."""
    size: int = operand_bytes(form)
    return (element * size // 4 * BLOCK + output) * 4 + element * size % 4
