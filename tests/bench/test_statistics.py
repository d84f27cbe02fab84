"""Known answers: percentiles, intervals, verdicts."""

from __future__ import annotations

import math
from random import Random

import pytest

from bench.serve.statistics import paired_ratio, percentile, resampled_ratio


def test_percentiles_are_interpolated_and_nothing_has_none() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0, 5.0], 50) == 3.0
    assert percentile([0.0, 10.0], 95) == 9.5
    assert percentile([], 50) is None


def test_an_interval_is_students_around_the_geometric_mean() -> None:
    ratio = paired_ratio([1.0, math.e, math.e**2])
    assert ratio is not None
    half = 4.303 / math.sqrt(3)  # the logs 0, 1, 2 have a standard deviation of 1
    expected = (math.e, math.exp(1 - half), math.exp(1 + half))
    assert tuple(ratio) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([2.0, 2.1, 1.9], "better"),
        ([0.5, 0.52, 0.48], "worse"),
        ([1.0, 1.01, 0.99], "no difference"),
        ([1.15, 1.16, 1.14], "no difference"),  # sure, but not worth switching for
        ([0.86, 0.87, 0.88], "no difference"),
        ([9.0, 1.1, 3.0], "no difference"),  # large, but not sure
        ([math.inf, math.inf], "better"),
        ([0.0, 0.0], "worse"),
    ],
)
def test_a_verdict_needs_both_certainty_and_a_fifth(ratios: list[float], verdict: str) -> None:
    ratio = paired_ratio(ratios)
    assert ratio is not None
    assert ratio.verdict == verdict


def test_a_large_ratio_that_is_not_certain_is_told_from_a_small_one() -> None:
    scattered, small = paired_ratio([9.0, 1.1, 3.0]), paired_ratio([1.0, 1.01, 0.99])
    assert scattered is not None
    assert small is not None
    assert (scattered.unsure, small.unsure) == (True, False)


def test_one_repeat_or_one_zero_among_others_tells_nothing() -> None:
    assert paired_ratio([2.0]) is None
    assert paired_ratio([2.0, math.inf]) is None


def test_the_interval_holds_the_true_ratio_as_often_as_it_claims() -> None:
    random = Random(1)
    held = 0
    for _ in range(2000):
        ratio = paired_ratio([2.0 * math.exp(random.gauss(0, 0.2)) for _ in range(3)])
        assert ratio is not None
        held += ratio.low <= 2.0 <= ratio.high
    assert 0.93 < held / 2000 < 0.97


def test_a_resampled_interval_holds_the_middle_of_the_resamples_if_they_differ_at_all() -> None:
    assert resampled_ratio(2.0, [1.0 + 0.01 * n for n in range(101)]) == (2.0, 1.02, 2.0)
    assert resampled_ratio(2.0, []) is None
    assert resampled_ratio(2.0, [2.0] * 100) is None
