"""The plain torch reference of rms_norm; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None:
    """x [rows, dim], weight [dim] -> out [rows, dim]."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    torch.mul(scaled.to(x.dtype), weight, out=out)
