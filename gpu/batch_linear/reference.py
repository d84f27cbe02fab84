"""The plain torch reference of batch_linear, by that of linear; see the package for the contract."""

from __future__ import annotations

from torch import Tensor

from gpu.linear.reference import fused_linear
from gpu.linear.source import Form


def batch_linear(form: Form, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x [rows, in], weight [out or 2 * out, in] -> out [rows, out], in float32 until the end."""
    fused_linear(form, x, weight, out, bias=bias)
