"""The figures: what each says of the requests of one kind in one repeat.

A gap is the pause between two pieces of one answer, however many tokens the second brings: that is what a
reader feels. Rates count tokens; the pieces of an answer are taken to bring equally many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.serve.recording import Objective, Outcome
from bench.serve.statistics import percentile

Array = NDArray[np.float64]


class Sample(NamedTuple):
    """One request as figures see it."""

    ttft: float | None  # seconds from the scheduled arrival
    gaps: Array  # seconds
    decode_rate: float | None  # tokens/s from the first piece to the last
    prompt_rate: float | None  # tokens/s from the scheduled arrival to the first piece
    tokens: int
    good: bool


class Figure(NamedTuple):
    """One row of the report. `of` takes samples and the seconds that they lasted."""

    key: str
    title: str
    unit: str
    less_is_better: bool
    of: Callable[[Sequence[Sample], float], float | None]


def sample(outcome: Outcome, objective: Objective) -> Sample:
    """A request that failed counts for nothing but its tokens."""
    gaps = np.diff(np.asarray(outcome.chunks, dtype=float))
    if outcome.error is not None or not outcome.chunks:
        return Sample(None, gaps[:0], None, None, outcome.tokens, good=False)
    ttft = outcome.chunks[0] - outcome.scheduled
    lasted = outcome.chunks[-1] - outcome.chunks[0]
    after_first = outcome.tokens * (1 - 1 / len(outcome.chunks))
    worst = percentile(gaps, 99)
    return Sample(
        ttft=ttft,
        gaps=gaps,
        decode_rate=after_first / lasted if lasted > 0 else None,
        prompt_rate=outcome.prompt_tokens / ttft if outcome.prompt_tokens and ttft > 0 else None,
        tokens=outcome.tokens,
        good=ttft <= objective.ttft and (worst is None or worst <= objective.gap),
    )


def lasted(outcomes: Iterable[Outcome]) -> float:
    """Seconds from the first scheduled arrival to the last end, summed over phases."""
    bounds: dict[int, tuple[float, float]] = {}
    for outcome in outcomes:
        begin, end = bounds.get(outcome.phase, (outcome.scheduled, outcome.ended))
        bounds[outcome.phase] = (min(begin, outcome.scheduled), max(end, outcome.ended))
    return sum(end - begin for begin, end in bounds.values())


def _ttft(percent: float) -> Callable[[Sequence[Sample], float], float | None]:
    return lambda samples, _: _percentile_ms([s.ttft for s in samples], percent)


def _gap(percent: float) -> Callable[[Sequence[Sample], float], float | None]:
    def of(samples: Sequence[Sample], _: float) -> float | None:
        gaps = np.concatenate([s.gaps for s in samples]) if samples else np.empty(0)
        value = percentile(gaps, percent)
        return None if value is None else value * 1e3

    return of


def _percentile_ms(values: Iterable[float | None], percent: float) -> float | None:
    value = percentile([value for value in values if value is not None], percent)
    return None if value is None else value * 1e3


def _decode(percent: float) -> Callable[[Sequence[Sample], float], float | None]:
    return lambda samples, _: percentile([s.decode_rate for s in samples if s.decode_rate], percent)


def _prompt_rate(samples: Sequence[Sample], _: float) -> float | None:
    return percentile([s.prompt_rate for s in samples if s.prompt_rate], 50)


def _output_rate(samples: Sequence[Sample], seconds: float) -> float | None:
    return sum(s.tokens for s in samples) / seconds if seconds > 0 else None


def _goodput(samples: Sequence[Sample], seconds: float) -> float | None:
    return sum(s.good for s in samples) / seconds if seconds > 0 else None


def part_of_light(tokens_per_second: float) -> Figure:
    """The decode rate of a request, as a part of the highest that the memory allows."""

    def of(samples: Sequence[Sample], seconds: float) -> float | None:
        rate = DECODE_50.of(samples, seconds)
        return None if rate is None else rate / tokens_per_second

    return Figure("light", "part of light", "", False, of)


TTFT_50 = Figure("ttft_p50", "TTFT p50", "ms", True, _ttft(50))
TTFT_95 = Figure("ttft_p95", "TTFT p95", "ms", True, _ttft(95))
TTFT_99 = Figure("ttft_p99", "TTFT p99", "ms", True, _ttft(99))
GAP_50 = Figure("gap_p50", "gap p50", "ms", True, _gap(50))
GAP_99 = Figure("gap_p99", "gap p99", "ms", True, _gap(99))
DECODE_50 = Figure("decode_p50", "decode p50", "tok/s", False, _decode(50))
DECODE_5 = Figure("decode_p5", "decode p5", "tok/s", False, _decode(5))
PROMPT_RATE = Figure("prompt_rate", "prompt p50", "tok/s", False, _prompt_rate)
OUTPUT_RATE = Figure("output_rate", "output of all", "tok/s", False, _output_rate)
GOODPUT = Figure("goodput", "goodput", "req/s", False, _goodput)

WAITS = (TTFT_50, TTFT_95, TTFT_99, GAP_50, GAP_99, DECODE_50, DECODE_5, OUTPUT_RATE, GOODPUT)
FIGURES = {  # of each workload
    "chat": WAITS,
    "mixed": WAITS,
    "prefill": (TTFT_50, PROMPT_RATE),
    "streams": (TTFT_50, TTFT_99, GAP_50, GAP_99, DECODE_50, OUTPUT_RATE),
    "throughput": WAITS,
    "trace": WAITS,
}
TOTALS = (OUTPUT_RATE, GOODPUT)  # of all kinds together: percentiles over different kinds tell of neither
TOGETHER = frozenset({"chat", "mixed", "trace"})  # whose kinds run at the same time
