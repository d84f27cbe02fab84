"""The plain torch reference of gather_ids; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_ids(sampled: Tensor, sources: Tensor, tokens: Tensor) -> None:
    """sampled [rows]; sources, tokens [tokens]."""
    if len(sampled):
        tokens.copy_(torch.where(sources >= 0, sampled[sources.clamp(min=0).long()], tokens))
