"""Percentiles, and what a ratio that was measured a few times allows to be said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

WORTH_SWITCHING = 1.2  # less of a ratio is not a reason to
Verdict = Literal["better", "worse", "no difference"]
# Student's t, two-sided 95%, for 1, 2, ... degrees of freedom; 1.96 beyond
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


class Ratio(NamedTuple):
    """How many times better the first is, with its 95% confidence interval; infinite where one is zero."""

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Better or worse only if the interval excludes 1 and the ratio is worth switching for."""
        if self.low > 1 and self.value >= WORTH_SWITCHING:
            return "better"
        if self.high < 1 and self.value <= 1 / WORTH_SWITCHING:
            return "worse"
        return "no difference"

    @property
    def unsure(self) -> bool:
        """Whether the ratio would be worth switching for, if only it were certain."""
        return self.verdict == "no difference" and not 1 / WORTH_SWITCHING < self.value < WORTH_SWITCHING


def percentile(values: ArrayLike, percent: float) -> float | None:
    """Interpolated between the nearest two; None of nothing."""
    found = np.asarray(values, dtype=float)
    return float(np.percentile(found, percent)) if found.size else None


def paired_ratio(ratios: Sequence[float]) -> Ratio | None:
    """From the ratio of each of two or more paired repeats: Student's interval around their geometric mean.

    A bootstrap of three pairs can say no more than their least and largest, which hold the true ratio three
    times in four; this holds it 95 times in 100 if ratios scatter like a log-normal.
    """
    if len(ratios) < 2:
        return None
    if any(ratio <= 0 or math.isinf(ratio) for ratio in ratios):
        return _one_sided(ratios)
    logs = [math.log(ratio) for ratio in ratios]
    mean = sum(logs) / len(logs)
    spread = math.sqrt(sum((log - mean) ** 2 for log in logs) / (len(logs) - 1))
    freedom = len(logs) - 1
    student = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96
    half = student * spread / math.sqrt(len(logs))
    return Ratio(math.exp(mean), _exp(mean - half), _exp(mean + half))


def resampled_ratio(value: float, ratios: Sequence[float]) -> Ratio | None:
    """From one repeat: the ratio, and what it was in resamples of the repeat's requests.

    None where resamples all say the same, as of requests of equal length: they know no chance.
    """
    if not ratios or math.isclose(min(ratios), max(ratios), rel_tol=1e-6):
        return None
    low, high = (float(bound) for bound in np.percentile(ratios, (2.5, 97.5), method="nearest"))
    return Ratio(value, min(low, value), max(high, value))


def _one_sided(ratios: Sequence[float]) -> Ratio | None:
    """One side is zero: told only if it is so in every repeat."""
    if all(math.isinf(ratio) for ratio in ratios):
        return Ratio(math.inf, math.inf, math.inf)
    if all(ratio == 0 for ratio in ratios):
        return Ratio(0.0, 0.0, 0.0)
    return None


def _exp(log: float) -> float:
    return math.exp(min(log, 700.0))
