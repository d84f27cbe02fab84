"""What a recording says: every figure of every kind with its spread, the ratios, and what to beware of."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.serve.figures import FIGURES, TOGETHER, TOTALS, Figure, Sample, lasted, part_of_light, sample
from bench.serve.recording import EVERYTHING, Outcome, Recording, Repeat
from bench.serve.statistics import Ratio, paired_ratio, percentile, resampled_ratio
from bench.serve.workloads import stream_kind

RESAMPLES = 300


class Spread(NamedTuple):
    """A figure over the repeats."""

    median: float
    least: float
    largest: float


class Row(NamedTuple):
    """One figure of one kind: a spread for each endpoint, and of two how many times better the first is."""

    kind: str
    figure: Figure
    spreads: tuple[Spread | None, ...]
    ratio: Ratio | None


class Measured(NamedTuple):
    """What of a repeat a figure is computed from."""

    samples: list[Sample]
    seconds: float
    complete: bool


class Summary:
    """A recording, read."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.kinds = recording.kinds
        together = len(self.kinds) > 1 and recording.workload in TOGETHER
        self.scopes = [*self.kinds, *([EVERYTHING] if together else [])]
        self.rows: list[Row] = []
        for scope in self.scopes:
            measured = self._measured(scope)
            rows = (_row(scope, figure, measured) for figure in self._figures(scope))
            self.rows += [row for row in rows if row is not None]

    def repeats(self, endpoint: int) -> list[Repeat]:
        """Those of one endpoint that figures are taken from: the whole ones, or without any what there is."""
        of_it = [repeat for repeat in self.recording.repeats if repeat.endpoint == endpoint]
        return [repeat for repeat in of_it if repeat.complete] or [
            repeat for repeat in of_it if repeat.outcomes
        ]

    def outcomes(self, endpoint: int) -> list[Outcome]:
        """Everything that was sent to one endpoint."""
        return [
            outcome
            for repeat in self.recording.repeats
            if repeat.endpoint == endpoint
            for outcome in repeat.outcomes
        ]

    def errors(self) -> int:
        return sum(
            outcome.error is not None for repeat in self.recording.repeats for outcome in repeat.outcomes
        )

    def _figures(self, scope: str) -> Sequence[Figure]:
        """Those of the workload; of one stream also its part of what the memory allows."""
        figures = TOTALS if scope == EVERYTHING else FIGURES[self.recording.workload]
        light = self.recording.light
        if light is None or scope != stream_kind(1):
            return figures
        return [*figures, part_of_light(light.tokens_per_second)]

    def _measured(self, scope: str) -> list[dict[int, Measured]]:
        """What of each endpoint's repeats is in the scope, by the number of the repeat."""
        return [
            {repeat.number: self._within(repeat, scope) for repeat in self.repeats(endpoint)}
            for endpoint in range(len(self.recording.endpoints))
        ]

    def _within(self, repeat: Repeat, scope: str) -> Measured:
        outcomes = [outcome for outcome in repeat.outcomes if scope in (outcome.kind, EVERYTHING)]
        samples = [sample(outcome, self.recording.objective) for outcome in outcomes]
        return Measured(samples, lasted(outcomes), repeat.complete)

    def counts(self, endpoint: int) -> dict[str, str]:
        """How much was asked and answered, by kind, told."""
        told = {}
        for kind in self.kinds:
            of_kind = [outcome for outcome in self.outcomes(endpoint) if outcome.kind == kind]
            failed = sum(outcome.error is not None for outcome in of_kind)
            answered = [outcome for outcome in of_kind if outcome.error is None]
            parts = [f"{len(of_kind)} requests", f"{failed} errors"]
            if answered:
                parts.append(f"{np.mean([outcome.tokens for outcome in answered]):,.0f} tokens out")
            counted = [outcome.prompt_tokens for outcome in answered if outcome.prompt_tokens is not None]
            if counted:
                wanted = self.recording.prompt_tokens.get(kind)
                asked = f" of {wanted:,.0f} wanted" if wanted else ""
                parts.append(f"{np.mean(counted):,.0f} tokens in{asked}")
            told[kind] = ", ".join(parts)
        return told

    def lateness(self, endpoint: int) -> tuple[float, float, float]:
        """Milliseconds between a request's time and its sending: p50, p99 and the largest."""
        late = [(outcome.sent - outcome.scheduled) * 1e3 for outcome in self.outcomes(endpoint)]
        return percentile(late, 50) or 0.0, percentile(late, 99) or 0.0, max(late, default=0.0)

    def error_counts(self, endpoint: int) -> list[tuple[str, int]]:
        """Errors by what was said, most frequent first."""
        said = Counter(outcome.error for outcome in self.outcomes(endpoint) if outcome.error is not None)
        return said.most_common(5)


def _row(scope: str, figure: Figure, measured: Sequence[dict[int, Measured]]) -> Row | None:
    values = [{n: figure.of(part.samples, part.seconds) for n, part in of_one.items()} for of_one in measured]
    spreads = tuple(_spread([value for value in of_one.values() if value is not None]) for of_one in values)
    if not any(spreads):
        return None
    return Row(scope, figure, spreads, _ratio(figure, *measured) if len(measured) == 2 else None)


def _ratio(figure: Figure, first: dict[int, Measured], second: dict[int, Measured]) -> Ratio | None:
    """From the repeats that both endpoints completed."""
    pairs = [(first[n], second[n]) for n in first if n in second and first[n].complete and second[n].complete]
    ratios = [ratio for pair in pairs if (ratio := _times_better(figure, *pair)) is not None]
    if len(pairs) == 1 and ratios:
        return _resampled(figure, *pairs[0], ratios[0])
    return paired_ratio(ratios)


def _spread(values: Sequence[float]) -> Spread | None:
    if not values:
        return None
    return Spread(float(np.median(values)), min(values), max(values))


def _times_better(figure: Figure, first: Measured, second: Measured) -> float | None:
    """None where it cannot be told."""
    one, two = figure.of(first.samples, first.seconds), figure.of(second.samples, second.seconds)
    if one is None or two is None or one == two == 0:
        return None
    above, below = (two, one) if figure.less_is_better else (one, two)
    return above / below if below else math.inf


def _resampled(figure: Figure, first: Measured, second: Measured, ratio: float) -> Ratio | None:
    """The same draw for both sides where both had the same requests, so that what they share cancels."""
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        picks = random.integers(0, len(first.samples), len(first.samples))
        same = len(first.samples) == len(second.samples)
        others = picks if same else random.integers(0, len(second.samples), len(second.samples))
        drawn.append(_times_better(figure, _picked(first, picks), _picked(second, others)))
    return resampled_ratio(ratio, [value for value in drawn if value is not None])


def _picked(measured: Measured, picks: NDArray[np.int64]) -> Measured:
    return measured._replace(samples=[measured.samples[pick] for pick in picks])
