"""The plain torch reference of sample; see the package for the contract. Weights and sums are float64."""

from __future__ import annotations

import torch
from torch import Tensor

COLDEST = 1e-30  # a temperature below this divides differences of logits to infinity just the same
NOT_FINITE, NOTHING = 1, 2


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    tokens: Tensor,
    status: Tensor,
) -> None:
    """logits [rows, vocab]; all others [rows]."""
    if not len(logits):
        return
    peaks = logits.amax(1)  # NaN where there is one
    drawn = peaks.isfinite()
    status.copy_(torch.where(drawn, 0, torch.where(peaks.isneginf(), NOTHING, NOT_FINITE)))
    finite = torch.where(drawn[:, None], logits, 0.0)
    scaled = (finite - peaks.where(drawn, 0.0)[:, None]) / temperature.clamp(min=COLDEST)[:, None]
    weights = scaled.double().exp() * left(scaled, top_k, top_p, min_p)
    chosen = picked(weights, chances(seeds, positions))
    best = first_where(finite == finite.amax(1, keepdim=True))
    tokens.copy_(torch.where(drawn, torch.where(temperature == 0.0, best, chosen), 0))


def left(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Which of scaled [rows, vocab], logarithms of weights, the filters leave."""
    vocab = scaled.shape[1]
    ranked, order = scaled.sort(dim=1, descending=True, stable=True)
    rank = torch.arange(vocab, device=scaled.device)
    within = rank < torch.where(top_k > 0, top_k, vocab)[:, None]
    reached = (ranked.double().exp() * within).cumsum(1)
    targets = top_p.double() * reached[:, -1]
    before = reached.roll(1, 1)
    within &= (before < targets[:, None]) | (top_p >= 1.0)[:, None] | (rank == 0)
    within &= ranked.double().exp().float() >= min_p.clamp(max=1.0)[:, None]
    return torch.zeros_like(within).scatter(1, order, within)


def picked(weights: Tensor, chances: Tensor) -> Tensor:
    """For weights [rows, vocab], the id that each chance falls on; never one of weight 0."""
    reached = weights.cumsum(1)
    passed = (reached <= (chances * reached[:, -1])[:, None]).sum(1)
    last = (reached < reached[:, -1:]).sum(1)  # where rounding lets no sum pass the target
    return torch.minimum(passed, last)


def first_where(condition: Tensor) -> Tensor:
    """The lowest id of each row for which it holds."""
    vocab = condition.shape[1]
    return torch.where(condition, torch.arange(vocab, device=condition.device), vocab).amin(1)


def chances(seeds: Tensor, positions: Tensor) -> Tensor:
    """Numbers in [0, 1) with 53 random bits, float64."""
    step = _signed(0x9E3779B97F4A7C15)
    bits = _mixed(_mixed(seeds + step) + (positions.long() + 1) * step)
    return _shifted(bits, 11).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 wraps around as the unsigned numbers do."""
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """To the right, zeros moving in."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(bits: int) -> int:
    return bits - (1 << 64)
