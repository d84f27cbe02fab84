"""What is told of a run: figures of each kind of requests, and of all of them.

Times are in milliseconds from arrival; a gap is the time between two tokens of one choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np

from tokenspeed.sim.bound import waits
from tokenspeed.sim.recording import Recording
from tokenspeed.sim.simulate import Taken, Trace

Figures = dict[str, float | None]


class Column(NamedTuple):
    """A figure: its key in JSON, and its name and unit in tables."""

    key: str
    title: str
    unit: str = ""


LEARNING = 50  # steps, after which the cost model is held to its predictions
KIND_COLUMNS = (
    Column("requests", "requests"),
    Column("ttft_p50", "TTFT p50", "ms"),
    Column("ttft_p95", "p95", "ms"),
    Column("ttft_p99", "p99", "ms"),
    Column("gap_p50", "gap p50", "ms"),
    Column("gap_p99", "gap p99", "ms"),
    Column("longest_wait", "longest wait", "ms"),
    Column("of_bound", "of its bound"),
)
RUN_COLUMNS = (
    Column("tokens_per_second", "tokens/s"),
    Column("seconds", "lasted", "s"),
    Column("busy", "device busy"),
    Column("steps", "steps"),
    Column("preemptions", "preemptions"),
    Column("refused", "refused"),
    Column("prediction_p50", "TTFT predicted within, p50"),
    Column("prediction_p90", "p90"),
    Column("mixed_p50", "mixed steps within, p50"),
)


@dataclass(frozen=True, slots=True)
class Run:
    """The figures of one policy on one seed, and every time to first token, by kind: short prompts first."""

    kinds: Mapping[str, Figures]
    whole: Figures
    ttft: Mapping[str, list[float]]  # ms


class Spread(NamedTuple):
    """A figure over several seeds."""

    middle: float
    least: float
    largest: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """None where no seed has the figure."""
    known = [value for value in values if value is not None]
    return Spread(median(known), min(known), max(known)) if known else None


def run_of(trace: Trace) -> Run:
    """The figures of a simulated run."""
    bounds = {(id(wait.outcome)): wait.felt / wait.bound for wait in waits(trace)}
    kinds: dict[str, Figures] = {}
    ttft: dict[str, list[float]] = {}
    for kind in by_length({outcome.kind: len(outcome.request.prompt) for outcome in trace.outcomes}):
        outcomes = [outcome for outcome in trace.outcomes if outcome.kind == kind]
        ttft[kind] = [outcome.wait * 1e3 for outcome in outcomes if outcome.wait is not None]
        gaps = [np.diff(outcome.times) * 1e3 for outcome in outcomes if len(outcome.times) > 1]
        kinds[kind] = {
            "requests": float(len(outcomes)),
            **_ttft(ttft[kind]),
            "gap_p50": percentile(np.concatenate(gaps), 50) if gaps else None,
            "gap_p99": percentile(np.concatenate(gaps), 99) if gaps else None,
            "longest_wait": max(ttft[kind], default=None),
            "of_bound": max((bounds[id(o)] for o in outcomes if id(o) in bounds), default=None),
        }
    errors = [
        abs(outcome.predicted - outcome.wait) / outcome.wait
        for outcome in trace.outcomes
        if outcome.wait and not outcome.choice
    ]
    whole: Figures = {
        "tokens_per_second": sum(len(o.times) for o in trace.outcomes) / trace.span if trace.span else None,
        "seconds": trace.span,
        "busy": trace.busy / trace.span if trace.span else None,
        "steps": float(len(trace.steps)),
        "preemptions": float(trace.preemptions),
        "refused": float(sum(outcome.refused is not None for outcome in trace.outcomes)),
        **_prediction(errors),
        "mixed_p50": _off(trace.steps),
    }
    return Run(kinds, whole, ttft)


def recorded(recording: Recording) -> Run:
    """What was felt when it was recorded; gaps are not in a recording."""
    felt = recording.felt
    ttft = {
        kind: [f.first * 1e3 for f in felt if f.kind == kind and f.first is not None]
        for kind in by_length({f.kind: f.prompt for f in felt})
    }
    kinds: dict[str, Figures] = {
        kind: {
            "requests": float(sum(f.kind == kind for f in felt)),
            **_ttft(values),
            "longest_wait": max(values, default=None),
        }
        for kind, values in ttft.items()
    }
    begin = min((f.arrival for f in felt), default=0.0)
    lasted = max((f.ended for f in felt), default=0.0) - begin
    whole: Figures = {
        "tokens_per_second": sum(f.tokens for f in felt) / lasted if lasted else None,
        "seconds": lasted,
        "busy": sum(step.seconds for step in recording.steps) / lasted if lasted else None,
        "steps": float(len(recording.steps)),
        **_prediction([abs(f.predicted - f.first) / f.first for f in felt if f.first]),
        "mixed_p50": _off(
            [Taken(s.predicted, s.seconds, bool(s.decodes and s.chunks)) for s in recording.steps]
        ),
    }
    return Run(kinds, whole, ttft)


def percentile(
    values: Sequence[float] | np.ndarray[tuple[int], np.dtype[np.float64]], percent: float
) -> float | None:
    """Interpolated between the nearest two; None of nothing."""
    return float(np.percentile(values, percent)) if len(values) else None


def _ttft(values: Sequence[float]) -> Figures:
    return {f"ttft_p{percent}": percentile(values, percent) for percent in (50, 95, 99)}


def _prediction(errors: Sequence[float]) -> Figures:
    return {f"prediction_p{percent}": percentile(errors, percent) for percent in (50, 90)}


def _off(steps: Sequence[Taken]) -> float | None:
    """By how much predictions of steps that decode and prefill are off, once some steps taught them."""
    known = [step for step in steps[LEARNING:] if step.mixed]
    return percentile([abs(step.predicted - step.seconds) / step.seconds for step in known], 50)


def by_length(prompts: Mapping[str, int]) -> list[str]:
    """Kinds of requests, given the tokens of some prompt of each: those with short prompts first."""
    return sorted(prompts, key=lambda kind: prompts[kind])
