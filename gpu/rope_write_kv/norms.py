"""The norms of query and key heads, where a model has them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The weights that heads of a query and of a key are normalised with."""

    query: Tensor  # [head_dim]
    key: Tensor  # [head_dim]
    eps: float
