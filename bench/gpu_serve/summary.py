"""From what became of requests to the numbers that are kept and shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bench.gpu_serve.measure import Played
from bench.serve.figures import Sample, lasted, sample
from bench.serve.recording import Objective, Outcome

PERCENTS = (1, 5, 25, 50, 75, 90, 95, 99, 99.9)
ERRORS = 5  # kinds of errors that are told
DIGITS = 4


def summary(played: Played) -> dict[str, Any]:
    """A workload as JSON: of every kind of its requests, and of all of them."""
    kinds = played.plan.kinds()
    told = {kind: of_kind([one for one in played.outcomes if one.kind == kind]) for kind in kinds}
    return {
        "workload": played.plan.key,
        "title": played.plan.title,
        "asked": len(played.plan.arrivals),
        "not_run": played.not_run,
        "warm_up_failed": played.warm_up_failed,
        "kinds": told,
        "client_late_ms": spread([(one.sent - one.scheduled) * 1e3 for one in played.outcomes]),
        "server_metrics": played.metrics,
    }


def of_kind(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts, rates and percentiles; those that failed are counted, and their waits are in no percentile."""
    samples = [sample(outcome, Objective()) for outcome in outcomes]
    failed = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    seconds = lasted(outcomes)
    tokens = sum(outcome.tokens for outcome in outcomes)
    chunks = sum(len(outcome.chunks) for outcome in outcomes)
    return {
        "requests": len(outcomes),
        "failed": failed.total(),
        "errors": dict(failed.most_common(ERRORS)),
        "ended_early": sum(one.error is None and one.tokens < one.max_tokens for one in outcomes),
        "without_usage": sum(one.error is None and one.completion_tokens is None for one in outcomes),
        "seconds": round(seconds, DIGITS),
        "prompt_tokens": sum(outcome.prompt_tokens or 0 for outcome in outcomes),
        "output_tokens": tokens,
        "chunks": chunks,
        "tokens_per_chunk": round(tokens / chunks, DIGITS) if chunks else None,
        "output_tokens_per_s": round(tokens / seconds, DIGITS) if seconds else None,
        **_spreads(samples),
    }


def _spreads(samples: Sequence[Sample]) -> dict[str, Any]:
    gaps = np.concatenate([one.gaps for one in samples]) if samples else np.empty(0)
    return {
        "ttft_ms": spread([one.ttft * 1e3 for one in samples if one.ttft is not None]),
        "gap_ms": spread(gaps * 1e3),
        "decode_tokens_per_s": spread([one.decode_rate for one in samples if one.decode_rate]),
    }


def spread(values: ArrayLike) -> dict[str, float] | None:
    """Least, mean, percentiles and largest; None of nothing."""
    found = np.asarray(values, dtype=float)
    if not found.size:
        return None
    told = {"least": found.min(), "mean": found.mean(), "largest": found.max()}
    told |= {
        f"p{percent:g}": value
        for percent, value in zip(PERCENTS, np.percentile(found, PERCENTS), strict=True)
    }
    return {"count": found.size} | {name: round(float(value), DIGITS) for name, value in told.items()}
