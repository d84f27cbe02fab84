"""The plain torch reference of silu_mul; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu


def silu_mul(gate: Tensor, up: Tensor, out: Tensor) -> None:
    """gate, up [rows, dim] -> out [rows, dim]."""
    torch.mul(silu(gate), up, out=out)
