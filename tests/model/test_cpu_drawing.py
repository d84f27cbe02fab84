"""Compiled draws fall where the cumulative distribution says, whatever else is drawn in the same call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenspeed.model.cpu.drawing import NOT_FINITE, NOTHING_LEFT, draw_rows, fallen_on
from tokenspeed.model.randomness import uniform

Rows = NDArray[np.float32]
# Below, at and beside the sixteen tokens of a vector and the 64 of a block, and many of them.
VOCABS = (1, 15, 16, 17, 63, 64, 65, 96, 97, 5003)
# Positions that a seed of 0 draws with about the least, middle and greatest chances.
BY_CHANCE = sorted(range(20_000), key=lambda position: uniform(0, position))
LEAST, MIDDLE, GREATEST = BY_CHANCE[0], BY_CHANCE[10_000], BY_CHANCE[-1]


def drawn(
    rows: Rows,
    positions: list[int],
    *,
    seed: int = 0,
    cold: float = 1.0,
    allowed: NDArray[np.bool_] | None = None,
    again: int = 0,
    tries: int = 1,
) -> list[list[int]]:
    count, vocab = rows.shape
    masks = np.zeros(count, np.int64)
    if allowed is not None:
        bits = np.zeros((count, -(-vocab // 32) * 32), np.uint8)
        bits[:, :vocab] = allowed
        words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
        masks = words.ctypes.data + words.strides[0] * np.arange(count)
    coldness, seeds = np.full(count, cold, np.float32), np.full(count, seed, np.uint64)
    numbers, places = np.arange(count), np.array(positions, np.uint64)
    return draw_rows(rows, numbers, masks, coldness, seeds, places, again=again, tries=tries).tolist()


def assert_falls_on(token: int, row: Rows, chance: float, cold: float) -> None:
    """The token's share of the distribution in float64 holds the chance, but for float32's rounding."""
    shares = np.exp((row.astype(np.float64) - row.max()) * cold)
    reached = np.cumsum(shares) / shares.sum()
    assert shares[token] > 0
    assert reached[token] >= chance - 1e-5
    assert reached[token] - shares[token] / shares.sum() <= chance + 1e-5


@given(
    vocab=st.sampled_from(VOCABS),
    random=st.integers(0, 1000),
    seed=st.integers(0, 2**64 - 1),
    position=st.sampled_from([LEAST, GREATEST, 2**64 - 1]) | st.integers(0, 10**6),
    cold=st.sampled_from([0.01, 1.0, 3.0, 1e30]),
    part=st.sampled_from([0.02, 0.5, 1.0]),
    again=st.integers(0, 4),
)
@settings(deadline=None)
def test_a_draw_inverts_the_cumulative_distribution_of_what_is_allowed(
    vocab: int, random: int, seed: int, position: int, cold: float, part: float, again: int
) -> None:
    numbers = np.random.default_rng(random)
    row = (4 * numbers.standard_normal(vocab)).astype(np.float32)
    allowed = numbers.random(vocab) < part
    allowed[numbers.integers(vocab)] = True
    left = np.where(allowed, row, np.float32(-np.inf))
    for among, mask in ((row, None), (left, allowed[None])):
        tries = drawn(row[None], [position], seed=seed, cold=cold, allowed=mask, again=again, tries=3)[0]
        for number, token in enumerate(tries):
            assert_falls_on(token, among, uniform(seed, position, again + number), cold)


@pytest.mark.parametrize("vocab", VOCABS)
def test_rows_are_drawn_as_each_of_them_alone(vocab: int) -> None:
    random = np.random.default_rng(vocab)
    rows = random.standard_normal((9, vocab)).astype(np.float32)
    allowed = random.random((9, vocab)) < 0.5
    allowed[:, 0] = True
    positions = list(range(9))
    alone = [drawn(rows[n : n + 1], [n], allowed=allowed[n : n + 1])[0] for n in positions]
    assert drawn(rows, positions, allowed=allowed) == alone
    assert drawn(rows[::-1], positions[::-1], allowed=allowed[::-1]) == alone[::-1]


def test_rows_may_be_part_of_wider_ones_and_in_any_order() -> None:
    wide = np.random.default_rng(1).standard_normal((6, 128)).astype(np.float32)
    wide[:, 100:] = 50.0  # of which nothing may be drawn
    numbers, none, cold = np.array([4, 0, 4]), np.zeros(3, np.int64), np.ones(3, np.float32)
    seeds, positions = np.zeros(3, np.uint64), np.array([7, 8, 9], np.uint64)
    expected = [
        drawn(wide[n : n + 1, :100].copy(), [int(at)])[0] for n, at in zip(numbers, positions, strict=True)
    ]
    for rows in (wide[:, :100], np.asfortranarray(wide[:, :100])):
        assert draw_rows(rows, numbers, none, cold, seeds, positions).tolist() == expected


@pytest.mark.parametrize("position", [LEAST, MIDDLE, GREATEST])
def test_tokens_without_a_share_are_passed_over_at_either_end(position: int) -> None:
    row = np.full((1, 300), -np.inf, np.float32)
    row[0, [130, 140]] = 0.0
    row[0, [120, 150]] = -100.0
    assert drawn(row, [position]) == [[140 if uniform(0, position) >= 0.5 else 130]]


def test_rounding_never_draws_beyond_the_end() -> None:
    """Not even where the last sum does not pass the target."""
    reached = np.array([0.0, 1.0, 1.0, 1.5, 1.5])
    assert [fallen_on(reached, target) for target in (0.0, 0.99, 1.0, 1.49, 1.5, 2.0)] == [1, 1, 3, 3, 3, 3]
    rows = np.random.default_rng(0).random((3000, 128), dtype=np.float32)
    rows[:, 100:] = -np.inf
    assert max(drawn(rows, [GREATEST] * 3000)) < [100]


@pytest.mark.parametrize("at", [0, 15, 16, 99])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_has_no_token_also_where_the_mask_hides_why(value: float, at: int) -> None:
    rows = np.zeros((3, 100), np.float32)
    rows[1, at] = value
    allowed = np.zeros((3, 100), np.bool_)
    allowed[:, 50] = True
    assert drawn(rows, [LEAST] * 3) == [[0], [NOT_FINITE], [0]]
    assert drawn(rows, [LEAST] * 3, allowed=allowed, tries=2) == [[50, 50], [NOT_FINITE] * 2, [50, 50]]


def test_nothing_that_could_be_drawn_is_told_from_nothing_that_may_be() -> None:
    rows = np.full((2, 40), -np.inf, np.float32)
    rows[1, 7] = 1.0
    allowed = np.ones((2, 40), np.bool_)
    allowed[:, 7] = False
    assert drawn(rows, [MIDDLE] * 2) == [[NOT_FINITE], [7]]
    assert drawn(rows, [MIDDLE] * 2, allowed=allowed) == [[NOT_FINITE], [NOTHING_LEFT]]
