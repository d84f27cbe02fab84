"""The plain torch reference of rms_norm; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, delta: Tensor | None = None) -> None:
    """x [rows, dim], weight [dim] -> out [rows, dim]; x += delta first."""
    if delta is not None:
        x += delta
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out.copy_(scaled.to(x.dtype) * weight)
