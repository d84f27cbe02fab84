"""Figures of requests whose times are known."""

from __future__ import annotations

import pytest

from bench.serve.figures import FIGURES, Figure, lasted, part_of_light, sample
from bench.serve.recording import Objective, Outcome

FIGURE = {figure.key: figure for figures in FIGURES.values() for figure in figures}
OBJECTIVE = Objective(ttft=0.5, gap=0.1)


def outcome(chunks: list[float], tokens: int | None = None, **more: object) -> Outcome:
    """Scheduled at 1 s, sent 0.2 s late."""
    given: dict[str, object] = {"completion_tokens": tokens, "ended": chunks[-1] if chunks else 1.5, **more}
    return Outcome("short", 0, 1.0, 4, 1.2, chunks=chunks, **given)  # type: ignore[arg-type]


def of(figure: Figure, *outcomes: Outcome) -> float | None:
    return figure.of([sample(one, OBJECTIVE) for one in outcomes], lasted(outcomes))


def test_ttft_counts_from_the_schedule_and_not_from_the_sending() -> None:
    assert of(FIGURE["ttft_p50"], outcome([1.3, 1.4])) == pytest.approx(300)


def test_a_gap_is_the_pause_between_two_chunks() -> None:
    assert of(FIGURE["gap_p50"], outcome([1.3, 1.35, 1.45, 1.75])) == pytest.approx(100)
    assert of(FIGURE["gap_p50"], outcome([1.3])) is None


def test_rates_count_the_tokens_of_usage_and_not_the_chunks() -> None:
    several = outcome([1.5, 2.0, 2.5], tokens=12)  # three chunks of four tokens
    assert of(FIGURE["decode_p50"], several) == pytest.approx(8.0)  # eight after the first chunk, in a second
    assert of(FIGURE["output_rate"], several) == pytest.approx(12 / 1.5)


def test_without_usage_a_chunk_counts_as_a_token() -> None:
    assert of(FIGURE["decode_p50"], outcome([1.5, 2.0, 2.5])) == pytest.approx(2.0)


def test_the_prompts_rate_is_its_tokens_over_the_time_to_first_token() -> None:
    assert of(FIGURE["prompt_rate"], outcome([1.5], prompt_tokens=100)) == pytest.approx(200)


def test_goodput_counts_requests_that_meet_the_whole_objective() -> None:
    good, slow, stutters = outcome([1.4, 1.45]), outcome([1.6, 1.65]), outcome([1.4, 1.55])
    failed = outcome([1.4, 1.45], error="gone")
    assert of(FIGURE["goodput"], good) == pytest.approx(1 / 0.45)
    for bad in (slow, stutters, failed):
        assert of(FIGURE["goodput"], bad) == 0


def test_a_failed_request_counts_in_no_wait_but_its_tokens_are_output() -> None:
    failed = outcome([1.4, 1.5], error="gone")
    assert of(FIGURE["ttft_p50"], failed) is None
    assert of(FIGURE["gap_p99"], failed) is None
    assert of(FIGURE["output_rate"], failed) == pytest.approx(2 / 0.5)


def test_phases_last_from_their_first_arrival_to_their_last_end() -> None:
    first, second = outcome([1.5], ended=2.0), outcome([1.5], ended=3.0)
    later = Outcome("short", 1, 10.0, 4, 10.0, ended=10.5, chunks=[10.5])
    assert lasted([first, second, later]) == pytest.approx(2.0 + 0.5)


def test_the_part_of_light_is_the_decode_rate_over_what_the_memory_allows() -> None:
    assert of(part_of_light(40.0), outcome([1.5, 2.0, 2.5], tokens=12)) == pytest.approx(0.2)
