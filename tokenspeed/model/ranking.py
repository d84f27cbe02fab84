"""Selecting from rows of logits without sorting the vocabulary."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = np.floating[Any]
Logits = NDArray[np.float32]
Ids = NDArray[np.intp]
Sums = NDArray[np.float64]

STRIDE = 64  # entries of a row that share one maximum
NUCLEUS_GUESS = 64  # entries ranked at first when looking for a nucleus
BIN_WIDTH = 1 / 64  # of log-probability, in nats; where a nucleus ends is looked for bin by bin
BINS = 2048  # the last one takes the whole tail


def top_ids(logits: Logits, count: int) -> Ids:
    """The ids of the `count` greatest logits [vocab], best first, equal ones by id. No NaN among them."""
    columns = len(logits) // STRIDE
    if count > columns:
        # ascending order of the negated row, and stable: equal logits stay in the order of their ids
        return np.argsort(-logits, kind="stable")[:count]
    # At least `count` entries reach the count-th greatest of disjoint maxima, and rarely many more do.
    maxima = logits[: columns * STRIDE].reshape(STRIDE, columns).max(axis=0)
    floor = np.partition(maxima, columns - count)[columns - count]
    candidates = np.flatnonzero(logits >= floor)
    return candidates[np.argsort(-logits[candidates], kind="stable")[:count]]


def nucleus(scaled: Logits, weights: Logits, top_p: float) -> Ids:
    """The fewest best ids whose `weights` reach `top_p` of their total, in no order; at least one.

    `scaled` [vocab] are the logarithms of `weights` [vocab], 0 for the greatest.
    """
    target = top_p * float(weights.sum(dtype=np.float64))
    best = top_ids(scaled, min(NUCLEUS_GUESS, len(scaled)))
    reached = np.cumsum(weights[best], dtype=np.float64)
    if reached[-1] >= target:
        return best[: prefix_reaching(reached, target)]
    # A flat distribution: weigh bins of nearly equal logits, and rank only the one where the nucleus ends.
    bins = np.minimum(scaled * np.float32(-1 / BIN_WIDTH), BINS - 1).astype(np.intp)
    reached = np.cumsum(np.bincount(bins, weights, BINS))
    last = int(np.searchsorted(reached, min(target, reached[-1]), side="left"))
    inside = np.flatnonzero(bins == last)
    ranked = inside[np.argsort(-scaled[inside], kind="stable")]
    before = float(reached[last - 1]) if last else 0.0
    count = prefix_reaching(np.cumsum(weights[ranked], dtype=np.float64), target - before)
    return np.concatenate([np.flatnonzero(bins < last), ranked[:count]])


def prefix_reaching(reached: Sums, target: float) -> int:
    """How many entries it takes for the ascending sums `reached` to come to `target`; at least one."""
    return min(int(np.searchsorted(reached, target, side="left")) + 1, len(reached))


def pick(weights: NDArray[Float], chance: float) -> int:
    """The index that `chance` in [0, 1) falls on where index i takes a share of weights[i].

    Weights are not negative and not all 0; an index of weight 0 is never picked.
    """
    reached = np.cumsum(weights, dtype=np.float64)
    passed = np.searchsorted(reached, chance * reached[-1], side="right")  # past equal sums: weights of 0
    last = np.searchsorted(reached, reached[-1], side="left")  # where rounding lets nothing pass
    return int(min(passed, last))
