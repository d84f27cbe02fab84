"""The plain torch reference of copy_blocks; see the package for the contract."""

from __future__ import annotations

from torch import Tensor


def copy_blocks(pool: Tensor, sources: Tensor, targets: Tensor) -> None:
    """pool [planes, blocks, size], sources and targets [copies]."""
    made = sources >= 0
    pool[:, targets[made].long()] = pool[:, sources[made].long()]
