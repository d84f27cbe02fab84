"""The plain torch references of linear and of its forms; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from gpu.linear.source import Form, Into


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x [rows, in], weight [out, in], bias [out] -> out [rows, out]."""
    if bias is None:
        torch.mm(x, weight.T, out=out)
    else:
        torch.addmm(bias, x, weight.T, out=out)


def fused_linear(
    form: Form,
    x: Tensor,
    weight: Tensor,
    out: Tensor,
    *,
    bias: Tensor | None = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
) -> None:
    """x [rows, in], weight [out or 2 * out, in], norm [in] -> out [rows, out], in float32 until the end."""
    wide = x.float()
    if norm is not None:
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * norm.float()
    sums = wide @ weight.float().T
    if bias is not None:
        sums += bias.float()
    match form.into:
        case Into.ADDED:
            sums += out.float()
        case Into.GATED:
            gate, up = sums.chunk(2, dim=-1)
            sums = silu(gate) * up
    out.copy_(sums)
