"""The plain torch reference of embed; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor


def embed(
    tokens: Tensor,
    sources: Tensor,
    sampled: Tensor,
    positions: Tensor,
    embedding: Tensor,
    inverse_frequencies: Tensor,
    scaling: float,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
) -> None:
    """tokens, sources, positions [tokens]; sampled [rows]; embedding [vocab, dim]."""
    if len(sampled):
        tokens.copy_(torch.where(sources >= 0, sampled[sources.clamp(min=0).long()], tokens))
    hidden.copy_(embedding[tokens.long()])
    angles = positions[:, None].float() * inverse_frequencies
    cos.copy_(angles.cos() * scaling)
    sin.copy_(angles.sin() * scaling)
