"""Compiled draws fall where the cumulative distribution says, whatever else is drawn in the same call."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenspeed.model.cpu.drawing import NOT_FINITE, NOTHING_LEFT, draw_rows

Rows = NDArray[np.float32]
ALMOST_ONE = 1 - 2.0**-53
# Below, at and beside the sixteen tokens of a vector and the 64 of a block, and many of them.
VOCABS = (1, 15, 16, 17, 63, 64, 65, 96, 97, 5003)


def drawn(
    rows: Rows, chances: list[float], *, cold: float = 1.0, allowed: NDArray[np.bool_] | None = None
) -> list[int]:
    count, vocab = rows.shape
    masks = np.zeros(count, np.int64)
    if allowed is not None:
        bits = np.zeros((count, -(-vocab // 32) * 32), np.uint8)
        bits[:, :vocab] = allowed
        words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
        masks = words.ctypes.data + words.strides[0] * np.arange(count)
    coldness = np.full(count, cold, np.float32)
    return draw_rows(rows, np.arange(count), masks, coldness, np.array(chances)).tolist()


def assert_falls_on(token: int, row: Rows, chance: float, cold: float) -> None:
    """The token's share of the distribution in float64 holds the chance, but for float32's rounding."""
    shares = np.exp((row.astype(np.float64) - row.max()) * cold)
    reached = np.cumsum(shares) / shares.sum()
    assert shares[token] > 0
    assert reached[token] >= chance - 1e-5
    assert reached[token] - shares[token] / shares.sum() <= chance + 1e-5


@given(
    vocab=st.sampled_from(VOCABS),
    seed=st.integers(0, 1000),
    chance=st.sampled_from([0.0, 0.1, 0.5, 0.999, ALMOST_ONE]) | st.floats(0, 1, exclude_max=True),
    cold=st.sampled_from([0.01, 1.0, 3.0, 1e30]),
    part=st.sampled_from([0.02, 0.5, 1.0]),
)
@settings(deadline=None)
def test_a_draw_inverts_the_cumulative_distribution_of_what_is_allowed(
    vocab: int, seed: int, chance: float, cold: float, part: float
) -> None:
    random = np.random.default_rng(seed)
    row = (4 * random.standard_normal(vocab)).astype(np.float32)
    allowed = random.random(vocab) < part
    allowed[random.integers(vocab)] = True
    [token] = drawn(row[None], [chance], cold=cold, allowed=allowed[None])
    assert allowed[token]
    assert_falls_on(token, np.where(allowed, row, np.float32(-np.inf)), chance, cold)
    [token] = drawn(row[None], [chance], cold=cold)
    assert_falls_on(token, row, chance, cold)


@pytest.mark.parametrize("vocab", VOCABS)
def test_rows_are_drawn_as_each_of_them_alone(vocab: int) -> None:
    random = np.random.default_rng(vocab)
    rows = random.standard_normal((9, vocab)).astype(np.float32)
    allowed = random.random((9, vocab)) < 0.5
    allowed[:, 0] = True
    chances = random.random(9).tolist()
    alone = [drawn(rows[n : n + 1], chances[n : n + 1], allowed=allowed[n : n + 1])[0] for n in range(9)]
    assert drawn(rows, chances, allowed=allowed) == alone
    assert drawn(rows[::-1], chances[::-1], allowed=allowed[::-1]) == alone[::-1]


def test_rows_may_be_part_of_wider_ones_and_in_any_order() -> None:
    wide = np.random.default_rng(1).standard_normal((6, 128)).astype(np.float32)
    wide[:, 100:] = 50.0  # of which nothing may be drawn
    numbers, none = np.array([4, 0, 4]), np.zeros(3, np.int64)
    cold, chances = np.ones(3, np.float32), np.array([0.3, 0.6, 0.9])
    expected = [drawn(wide[n : n + 1, :100].copy(), [c])[0] for n, c in zip(numbers, chances, strict=True)]
    assert draw_rows(wide[:, :100], numbers, none, cold, chances).tolist() == expected
    turned = np.asfortranarray(wide[:, :100])
    assert draw_rows(turned, numbers, none, cold, chances).tolist() == expected


@pytest.mark.parametrize("chance", [0.0, 0.5, ALMOST_ONE])
def test_tokens_without_a_share_are_passed_over_at_either_end(chance: float) -> None:
    row = np.full((1, 300), -np.inf, np.float32)
    row[0, [130, 140]] = 0.0
    row[0, [120, 150]] = -100.0
    assert drawn(row, [chance]) == [140 if chance >= 0.5 else 130]


def test_rounding_never_draws_beyond_the_end() -> None:
    rows = np.random.default_rng(0).random((3000, 128), dtype=np.float32)
    rows[:, 100:] = -np.inf
    assert max(drawn(rows, [ALMOST_ONE] * 3000)) < 100


@pytest.mark.parametrize("at", [0, 15, 16, 99])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_that_is_not_finite_has_no_token_also_where_the_mask_hides_why(value: float, at: int) -> None:
    rows = np.zeros((3, 100), np.float32)
    rows[1, at] = value
    allowed = np.zeros((3, 100), np.bool_)
    allowed[:, 50] = True
    assert drawn(rows, [0.0] * 3) == [0, NOT_FINITE, 0]
    assert drawn(rows, [0.0] * 3, allowed=allowed) == [50, NOT_FINITE, 50]


def test_nothing_that_could_be_drawn_is_told_from_nothing_that_may_be() -> None:
    rows = np.full((2, 40), -np.inf, np.float32)
    rows[1, 7] = 1.0
    allowed = np.ones((2, 40), np.bool_)
    allowed[:, 7] = False
    assert drawn(rows, [0.5] * 2) == [NOT_FINITE, 7]
    assert drawn(rows, [0.5] * 2, allowed=allowed) == [NOT_FINITE, NOTHING_LEFT]
