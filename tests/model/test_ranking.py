"""Selection without sorting gives what sorting gives."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenspeed.model.randomness import uniform
from tokenspeed.model.ranking import nucleus, pick, top_ids

# Few different values, so that equals abound; lengths on both sides of the block size.
rows = st.lists(st.sampled_from([-np.inf, -40.0, -3.0, -0.5, 0.0]), min_size=0, max_size=400).map(
    lambda values: np.array([0.0, *values], dtype=np.float32)
)
chances = st.floats(0, 1, exclude_max=True)
ALMOST_ONE = 1 - 2.0**-53


def ranked(row: NDArray[np.float32]) -> list[int]:
    return sorted(range(len(row)), key=lambda token: (-row[token], token))


@given(row=rows, count=st.integers(1, 500))
def test_the_top_is_the_start_of_the_sorted_row(row: NDArray[np.float32], count: int) -> None:
    count = min(count, len(row))
    assert top_ids(row, count).tolist() == ranked(row)[:count]


@given(row=rows, top_p=st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999]), seed=st.integers(0, 3))
def test_a_nucleus_is_the_shortest_prefix_of_the_sorted_row_with_its_mass(
    row: NDArray[np.float32], top_p: float, seed: int
) -> None:
    noise = np.random.default_rng(seed).random(len(row), dtype=np.float32)
    row = row - noise + np.float32(noise[0])
    row -= row.max()
    weights = np.exp(row)
    order = ranked(row)
    reached = np.cumsum(weights[order].astype(np.float64))
    found = nucleus(row, weights, top_p)
    assert set(found.tolist()) == set(order[: len(found)])
    assert reached[len(found) - 1] >= top_p * reached[-1] - 1e-9
    assert len(found) == 1 or reached[len(found) - 2] < top_p * reached[-1] + 1e-9


@given(row=rows, chance=chances)
def test_picking_inverts_the_cumulative_sum_and_passes_over_weights_of_zero(
    row: NDArray[np.float32], chance: float
) -> None:
    weights = np.exp(row)
    reached = np.cumsum(weights, dtype=np.float64)
    token = pick(weights, chance)
    assert weights[token] > 0
    assert reached[token] - weights[token] <= chance * reached[-1] + 1e-9
    assert reached[token] >= chance * reached[-1] - 1e-9


def test_a_nucleus_ends_where_its_mass_is_reached_exactly() -> None:
    weights = np.ones(4, dtype=np.float32)
    assert nucleus(np.zeros(4, dtype=np.float32), weights, 0.5).tolist() == [0, 1]


def test_a_weight_of_zero_is_not_picked_at_either_end() -> None:
    weights = np.zeros(300, dtype=np.float32)
    weights[[130, 140]] = 1.0
    for chance, token in ((0.0, 130), (ALMOST_ONE, 140)):
        assert pick(weights, chance) == token


def test_rounding_never_picks_beyond_the_end() -> None:
    weights = np.random.default_rng(0).random((3000, 128), dtype=np.float32)
    weights[:, 100:] = 0.0
    assert max(pick(row, ALMOST_ONE) for row in weights) < 100


def test_uniform_numbers_are_those_of_splitmix64() -> None:
    # The generator's published test vector: seed 0 gives 0xE220A8397B1DCDAF first.
    stream = 0xE220A8397B1DCDAF
    mask, step = (1 << 64) - 1, 0x9E3779B97F4A7C15
    z = (stream + step) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    assert uniform(0, 0) == ((z ^ (z >> 31)) >> 11) / 2**53


def test_uniform_numbers_fill_their_range_evenly_over_seeds_and_over_positions() -> None:
    over_positions = [uniform(5, position) for position in range(8000)]
    over_seeds = [uniform(seed, 5) for seed in range(8000)]
    along_both = [uniform(number, number) for number in range(8000)]
    for numbers in (over_positions, over_seeds, along_both):
        counts = np.histogram(numbers, bins=80, range=(0, 1))[0]
        assert ((counts - 100) ** 2 / 100).sum() < 80 + 5 * np.sqrt(160)
        correlation = np.corrcoef(numbers[:-1], numbers[1:])[0, 1]
        assert abs(correlation) < 0.05


def test_a_position_that_draws_again_has_numbers_of_its_own() -> None:
    numbers = [[uniform(seed, 3, again) for again in range(5)] for seed in range(2000)]
    for number, other in combinations(np.transpose(numbers), 2):
        assert abs(np.corrcoef(number, other)[0, 1]) < 0.1


def test_a_seed_may_be_any_integer() -> None:
    assert uniform(-1, 3) == uniform(2**64 - 1, 3)
    assert 0 <= uniform(2**200, 10**9) < 1
