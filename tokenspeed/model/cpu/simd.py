"""Sixteen float32 lanes as a value that numba code can compute with.

The lanes are LLVM's generic vector type: one AVX-512 register, two of AVX2 or four of NEON. Nothing here
names an instruction, and no operation is reordered, so every lane is the same function of its inputs in
whatever loop it is used.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir

from tokenspeed.model.cpu.jit import (
    cgutils,
    intrinsic,
    lower_builtin,
    models,
    njit,
    register_model,
    signature,
    templates,
    types,
)

LANES = 16

float32 = ir.FloatType()
int16 = ir.IntType(16)
int32 = ir.IntType(32)
int64 = ir.IntType(64)
float_lanes = ir.VectorType(float32, LANES)
int_lanes = ir.VectorType(int32, LANES)
short_lanes = ir.VectorType(int16, LANES)


class LanesType(types.Type):  # type: ignore[misc]
    """The numba type of sixteen float32 lanes."""

    def __init__(self) -> None:
        super().__init__(name="f32x16")


f32x16 = LanesType()


@register_model(LanesType)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, float_lanes)


def constant(value: int) -> Any:
    return ir.Constant(int64, value)


def every_lane(kind: Any, value: float | int) -> Any:
    return ir.Constant(kind, [value] * LANES)


def pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def broadcast(builder: Any, scalar: Any, kind: Any) -> Any:
    """A vector with `scalar` in every lane."""
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(int32, 0))
    return builder.shuffle_vector(first, undefined, every_lane(int_lanes, 0))


def widened(builder: Any, halves: Any) -> Any:
    """<16 x i16> of bfloat16 bits -> the same values in float32."""
    bits = builder.shl(builder.zext(halves, int_lanes), every_lane(int_lanes, 16))
    return builder.bitcast(bits, float_lanes)


def rounded(builder: Any, value: Any) -> Any:
    """float32 -> <16 x i16> of bfloat16 bits, to nearest, ties to even."""
    bits = builder.bitcast(value, int_lanes)
    sixteen, one = every_lane(int_lanes, 16), every_lane(int_lanes, 1)
    odd = builder.and_(builder.lshr(bits, sixteen), one)
    bias = builder.add(odd, every_lane(int_lanes, 0x7FFF))
    return builder.trunc(builder.lshr(builder.add(bits, bias), sixteen), short_lanes)


@intrinsic
def called(typing: Any) -> Any:
    """Keep the function that holds this a call: copies of large kernels cost only compile time."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), emit


def fetch_line(builder: Any, place: Any) -> None:
    """Ask for the cache line at a pointer to be brought to the second-level cache; any address will do."""
    line = builder.bitcast(place, ir.IntType(8).as_pointer())
    kind = ir.FunctionType(ir.VoidType(), [line.type] + [int32] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [line, *(ir.Constant(int32, hint) for hint in (0, 2, 1))])  # read, L2, data


@intrinsic
def prefetch(typing: Any, address: Any) -> Any:
    """Ask for the cache line at `address`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        fetch_line(builder, pointer(builder, arguments[0], int32))
        return context.get_dummy_value()

    return types.void(types.intp), emit


@intrinsic
def load(typing: Any, address: Any) -> Any:
    """Sixteen float32 from memory."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(pointer(builder, arguments[0], float_lanes), align=4)

    return f32x16(types.intp), emit


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Any:
    """Sixteen float32 to memory."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], pointer(builder, arguments[0], float_lanes), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, f32x16), emit


@intrinsic
def load_one(typing: Any, address: Any) -> Any:
    """One float32 from memory."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(pointer(builder, arguments[0], float32), align=4)

    return types.float32(types.intp), emit


@intrinsic
def store_one(typing: Any, address: Any, value: Any) -> Any:
    """One float32 to memory."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], pointer(builder, arguments[0], float32), align=4)
        return context.get_dummy_value()

    return types.void(types.intp, types.float32), emit


@intrinsic
def load_index(typing: Any, address: Any) -> Any:
    """One int32 from memory."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sext(builder.load(pointer(builder, arguments[0], int32), align=4), int64)

    return types.intp(types.intp), emit


@intrinsic
def store_address(typing: Any, place: Any, address: Any) -> Any:
    """One address to memory."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store(arguments[1], pointer(builder, arguments[0], int64))
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), emit


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """`value` in every lane."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return broadcast(builder, arguments[0], float_lanes)

    return f32x16(types.float32), emit


@intrinsic
def keep(typing: Any, value: Any, first: Any, end: Any, fill: Any) -> Any:
    """`value` in the lanes [first, end), `fill` in the others; the bounds may lie outside the lanes."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, first, end, fill = arguments
        lane = ir.Constant(int_lanes, list(range(LANES)))
        low = broadcast(builder, builder.trunc(first, int32), int_lanes)
        high = broadcast(builder, builder.trunc(end, int32), int_lanes)
        inside = builder.and_(builder.icmp_signed(">=", lane, low), builder.icmp_signed("<", lane, high))
        return builder.select(inside, value, broadcast(builder, fill, float_lanes))

    return f32x16(f32x16, types.intp, types.intp, types.float32), emit


@intrinsic
def where_set(typing: Any, address: Any, value: Any, other: Any) -> Any:
    """`value` in the lanes whose bits are set in the sixteen at `address`, the lowest first; else `other`."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, value, other = arguments
        bits = builder.load(pointer(builder, address, int16), align=2)
        lanes = builder.bitcast(bits, ir.VectorType(ir.IntType(1), LANES))
        return builder.select(lanes, value, broadcast(builder, other, float_lanes))

    return f32x16(types.intp, f32x16, types.float32), emit


@intrinsic
def any_set(typing: Any, address: Any) -> Any:
    """Whether any of the sixteen bits at `address` is set."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.load(pointer(builder, arguments[0], int16), align=2)
        return builder.icmp_unsigned("!=", bits, ir.Constant(int16, 0))

    return types.boolean(types.intp), emit


@intrinsic
def where_above(typing: Any, left: Any, bound: Any, value: Any) -> Any:
    """`value` in the lanes where `left` is greater than `bound`; else 0."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        left, bound, value = arguments
        above = builder.fcmp_ordered(">", left, broadcast(builder, bound, float_lanes))
        return builder.select(above, value, every_lane(float_lanes, 0.0))

    return f32x16(f32x16, types.float32, f32x16), emit


@intrinsic
def flag_nan(typing: Any, value: Any, flags: Any) -> Any:
    """`flags`, and 1 in the lanes where `value` is NaN."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, flags = arguments
        return builder.select(
            builder.fcmp_unordered("uno", value, value), every_lane(float_lanes, 1.0), flags
        )

    return f32x16(f32x16, f32x16), emit


@intrinsic
def greater(typing: Any, left: Any, right: Any) -> Any:
    """The larger of each pair of lanes; a NaN on the right wins, one on the left loses."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *arguments), *arguments)

    return f32x16(f32x16, f32x16), emit


@intrinsic
def lesser(typing: Any, left: Any, right: Any) -> Any:
    """The smaller of each pair of lanes; a NaN on the right wins, one on the left loses."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *arguments), *arguments)

    return f32x16(f32x16, f32x16), emit


@intrinsic
def fused(typing: Any, left: Any, right: Any, addend: Any) -> Any:
    """left * right + addend, rounded once where the processor can."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return multiply_add(builder, *arguments)

    return f32x16(f32x16, f32x16, f32x16), emit


def multiply_add(builder: Any, left: Any, right: Any, addend: Any) -> Any:
    kind = ir.FunctionType(float_lanes, [float_lanes] * 3)
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")
    return builder.call(function, [left, right, addend])


def reduction(combine: Any) -> Any:
    """An intrinsic's body that folds the upper half of the lanes onto the lower until one is left."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, width = arguments[0], LANES
        while width > 1:
            width //= 2
            half = ir.VectorType(int32, width)
            lower = builder.shuffle_vector(value, value, ir.Constant(half, list(range(width))))
            upper = builder.shuffle_vector(value, value, ir.Constant(half, list(range(width, 2 * width))))
            value = combine(builder, lower, upper)
        return builder.extract_element(value, ir.Constant(int32, 0))

    return emit


@intrinsic
def total(typing: Any, value: Any) -> Any:
    """The sum of the lanes, always in the same order."""
    return types.float32(f32x16), reduction(lambda builder, a, b: builder.fadd(a, b))


@intrinsic
def largest(typing: Any, value: Any) -> Any:
    """The largest lane."""
    pick = reduction(lambda builder, a, b: builder.select(builder.fcmp_ordered(">", a, b), a, b))
    return types.float32(f32x16), pick


@intrinsic
def power_of_two(typing: Any, shifted: Any) -> Any:
    """2 ** n, where the lanes hold n + 1.5 * 2**23: adding that number leaves n in the low bits."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.add(builder.bitcast(arguments[0], int_lanes), every_lane(int_lanes, 127))
        return builder.bitcast(builder.shl(bits, every_lane(int_lanes, 23)), float_lanes)

    return f32x16(f32x16), emit


def define_operator(symbol: Any, instruction: str) -> None:
    """Give numba `symbol` between two vectors, as one LLVM instruction."""

    class Typing(templates.ConcreteTemplate):  # type: ignore[misc]
        cases = [signature(f32x16, f32x16, f32x16)]  # noqa: RUF012  numba's spelling

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return getattr(builder, instruction)(*arguments)

    templates.infer_global(symbol)(Typing)
    lower_builtin(symbol, LanesType, LanesType)(emit)


define_operator(operator.add, "fadd")
define_operator(operator.sub, "fsub")
define_operator(operator.mul, "fmul")
define_operator(operator.truediv, "fdiv")


@njit
def exp(x: Any) -> Any:
    """e ** x within two units in the last place, for x in [-87, 88] (clamped to it); NaN stays NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2: a polynomial gives e ** r (coefficients of Cephes' expf), the
    exponent bits give 2 ** n.
    """
    x = lesser(splat(88.0), greater(splat(-87.0), x))
    shifted = fused(x, splat(1.44269504), splat(12582912.0))
    n = shifted - splat(12582912.0)
    r = fused(n, splat(-0.693359375), x)
    r = fused(n, splat(2.12194440e-4), r)
    y = fused(splat(1.9875691500e-4), r, splat(1.3981999507e-3))
    y = fused(y, r, splat(8.3334519073e-3))
    y = fused(y, r, splat(4.1665795894e-2))
    y = fused(y, r, splat(1.6666665459e-1))
    y = fused(y, r, splat(5.0000001201e-1))
    y = fused(y, r * r, r + splat(1.0))
    return y * power_of_two(shifted)
