"""The plain torch reference of adjust_logits; see the package for the contract."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def adjust_logits(
    logits: Tensor,
    starts: Tensor,
    tokens: Tensor,
    counts: Tensor,
    biases: Tensor,
    repetition: Tensor,
    frequency: Tensor,
    presence: Tensor,
    mask: Tensor | None,
    kept: Tensor,
) -> None:
    """logits [rows, vocab], starts [rows + 1], mask [rows, words], penalties [rows]; the others [entries]."""
    rows, vocab = logits.shape
    if not rows:
        return
    entries = torch.arange(len(tokens), dtype=torch.int32, device=logits.device)
    row = torch.searchsorted(starts, entries, right=True) - 1
    used = (row >= 0) & (row < rows)
    row = row.clamp(0, rows - 1)
    inside = used & (tokens >= 0) & (tokens < vocab)
    at = torch.where(inside, tokens, 0).long()
    came = logits[row, at]
    penalty = torch.where(counts >= 0, repetition[row], 1.0)
    adjusted = torch.where(came > 0, came / penalty, came * penalty)
    subtracted = (counts.double() * frequency[row].double() + presence[row].double()).float()
    adjusted = torch.where(counts > 0, adjusted - subtracted, adjusted) + biases
    kept.copy_(torch.where(inside, came, torch.where(used, math.nan, kept)))
    logits[row[inside], at[inside]] = adjusted[inside]
    if mask is not None:
        bit = torch.arange(vocab, device=logits.device)
        logits.masked_fill_((mask[:, bit // 32] >> (bit % 32)) & 1 == 0, -math.inf)
