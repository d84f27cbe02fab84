"""Tokens drawn from whole rows of logits, in compiled code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenspeed.model.cpu.jit import cached, njit, source_digest
from tokenspeed.model.cpu.simd import (
    LANES,
    any_set,
    exp,
    flag_nan,
    greater,
    largest,
    load,
    load_one,
    splat,
    store,
    store_one,
    total,
    where_above,
    where_set,
)
from tokenspeed.model.randomness import AGAIN, STEP

VECTORS = 4  # of sixteen tokens of a row, which share one partial sum
STRIDE = VECTORS * LANES
NO_SHARE = -87.0  # from this exponent down a token weighs nothing
NOT_FINITE, NOTHING_LEFT = -1, -2  # in the place of tokens

Logits = NDArray[np.float32]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]
Doubles = NDArray[np.float64]
Entry = Callable[..., None]


class Chance(NamedTuple):
    """Where in [0, 1) the draws of a row fall: `randomness.uniform` of these, the first one for the `again`th
    time."""

    seed: np.uint64
    position: np.uint64
    again: np.uint64


class Row(NamedTuple):
    """Where one row is; addresses."""

    logits: int
    mask: int  # 0 for none
    tail: int  # a copy of its last vector, with -inf beyond the vocabulary
    vocab: int


def draw_rows(
    rows: Logits,
    numbers: Integers,
    masks: Integers,
    coldness: Logits,
    seeds: Words,
    positions: Words,
    *,
    again: int = 0,
    tries: int = 1,
) -> Integers:
    """Tokens [numbers, tries], drawn from the rows `numbers` of logits [rows, vocab].

    Token i takes a share of exp((logit - greatest) * coldness) where its mask allows it, and drawn is the
    token on whose share the chance in [0, 1) falls that `uniform` gives for the row's seed and position, the
    `again`th and each further of as many tries; that depends on nothing but this row. `masks` are addresses
    of int32 words, of which bit i % 32 of word i // 32 allows token i; 0 allows all. Instead of tokens there
    is `NOT_FINITE` for a row with a NaN, an infinity above or no finite logit, and `NOTHING_LEFT` for one of
    whose finite logits its mask allows none.
    """
    if rows.strides[1] != rows.itemsize:
        rows = np.ascontiguousarray(rows)
    places = rows.ctypes.data + numbers * rows.strides[0]
    tokens = np.empty((len(numbers), tries), np.int64)
    reached = np.empty(-(-rows.shape[1] // STRIDE))
    scratch = np.empty(STRIDE + LANES, np.float32)
    entry()(
        places, masks, rows.shape[1], coldness, seeds, positions, again, reached, scratch.ctypes.data, tokens
    )
    return tokens


def warm_up() -> None:
    """Compile what draws, or load it from disk, so that no step waits for that."""
    zero, word, one = np.zeros(1, np.int64), np.zeros(1, np.uint64), np.ones(1, np.float32)
    draw_rows(one[None], zero, zero, one, word, word)


@functools.cache
def entry() -> Entry:
    """The compiled function."""
    return compiled_entry(f"{source_digest()} {AGAIN} {STEP}")


def compiled_entry(digest: str) -> Entry:
    """`digest` becomes part of the key of numba's cache on disk, which itself looks at this file alone."""

    @cached
    def draw(
        places: Integers,
        masks: Integers,
        vocab: int,
        coldness: Logits,
        seeds: Words,
        positions: Words,
        again: int,
        reached: Doubles,
        scratch: int,
        tokens: Integers,
    ) -> None:
        """`reached` [blocks] and `scratch`, the address of STRIDE + LANES float32, are to compute in."""
        _ = digest
        for number in range(len(places)):
            row = Row(places[number], masks[number], scratch + 4 * STRIDE, vocab)
            chance = Chance(seeds[number], positions[number], np.uint64(again))
            draw_row(row, coldness[number], chance, reached, scratch, tokens[number])

    return draw


@njit
def draw_row(row: Row, cold: float, chance: Chance, reached: Doubles, scratch: int, tokens: Integers) -> None:
    copy_tail(row)
    peak, peak_left = peaks(row)
    if not np.isfinite(peak):
        tokens[:] = NOT_FINITE
        return
    if not np.isfinite(peak_left):
        tokens[:] = NOTHING_LEFT
        return
    add_up(row, peak_left, cold, reached)
    for number in range(len(tokens)):
        target = uniform(chance, number) * reached[-1]
        block = fallen_on(reached, target)
        before = reached[block - 1] if block else 0.0
        within = fallen_within(row, block, peak_left, cold, target - before, scratch)
        tokens[number] = block * STRIDE + within


@njit
def uniform(chance: Chance, number: int) -> float:
    """As `randomness.uniform`."""
    seed = chance.seed ^ ((chance.again + np.uint64(number)) * np.uint64(AGAIN))
    word = mixed(seed + np.uint64(STEP)) + (chance.position + np.uint64(1)) * np.uint64(STEP)
    return float(mixed(word) >> np.uint64(11)) * 2.0**-53


@njit
def mixed(x: np.uint64) -> np.uint64:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit
def copy_tail(row: Row) -> None:
    first = (row.vocab - 1) // LANES * LANES
    store(row.tail, splat(-np.inf))
    for index in range(row.vocab - first):
        store_one(row.tail + 4 * index, load_one(row.logits + 4 * (first + index)))


@njit
def vector(row: Row, number: int) -> Any:
    """Sixteen logits."""
    whole = (number + 1) * LANES <= row.vocab
    return load(row.logits + 4 * LANES * number if whole else row.tail)


@njit
def left(row: Row, number: int, x: Any) -> Any:
    """A vector's logits, those that are not allowed -inf."""
    return where_set(row.mask + LANES // 8 * number, x, -np.inf) if row.mask else x


@njit
def has_left(row: Row, number: int) -> bool:
    """Whether any of a vector's logits is allowed."""
    return row.mask == 0 or any_set(row.mask + LANES // 8 * number)


@njit
def peaks(row: Row) -> Any:
    """The greatest logit, and the greatest that is allowed; the first is NaN where any logit is."""
    peak, peak_left, nan = splat(-np.inf), splat(-np.inf), splat(0.0)
    for number in range(vectors(row)):
        x = vector(row, number)
        nan = flag_nan(x, nan)
        peak = greater(peak, x)
        peak_left = greater(peak_left, left(row, number, x))
    return largest(peak) if largest(nan) == 0.0 else np.float32(np.nan), largest(peak_left)


@njit
def vectors(row: Row) -> int:
    return (row.vocab + LANES - 1) // LANES


@njit
def weights(row: Row, number: int, peak: float, cold: float) -> Any:
    """The shares of sixteen tokens."""
    scaled = (left(row, number, vector(row, number)) - splat(peak)) * splat(cold)
    return where_above(scaled, NO_SHARE, exp(scaled))


@njit
def add_up(row: Row, peak: float, cold: float, reached: Doubles) -> None:
    """The sum of all shares up to the end of each block."""
    sum_ = 0.0
    count = vectors(row)
    for block in range(len(reached)):
        shares = splat(0.0)
        for number in range(block * VECTORS, min((block + 1) * VECTORS, count)):
            if has_left(row, number):
                shares = shares + weights(row, number, peak, cold)
        sum_ += total(shares)
        reached[block] = sum_


@njit
def fallen_on(reached: Doubles, target: float) -> int:
    """The first block that passes the target; where rounding lets none, the last that adds anything."""
    last = 0
    for block in range(len(reached)):
        if reached[block] > target:
            return block
        if block == 0 or reached[block] > reached[block - 1]:
            last = block
    return last


@njit
def fallen_within(row: Row, block: int, peak: float, cold: float, target: float, scratch: int) -> int:
    """The same for the tokens of a block."""
    first = block * VECTORS
    end = min(first + VECTORS, vectors(row))
    for number in range(first, end):
        store(scratch + 4 * LANES * (number - first), weights(row, number, peak, cold))
    reached, last = 0.0, 0
    for index in range((end - first) * LANES):
        share = load_one(scratch + 4 * index)
        reached += share
        if reached > target and share > 0.0:
            return index
        if share > 0.0:
            last = index
    return last
