"""Rows through matrices, with what stands next to a product: a norm before it, a sum or a gate after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu.table import Ops

BATCH_ROWS = 128  # of a batch that decodes, for which there are products of their own


class Products(Protocol):
    """What a layer multiplies. Matrices are [out, in]; a bias may be None. What is normalised, and what is
    added to, may be float32."""

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = rms_norm(x, norm) @ weight.T + bias; out may be float32 (then without a bias)."""
        ...

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = silu(gate) * up, of rms_norm(x, norm) @ weight.T + bias = [gate, up]."""
        ...

    def add_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out += x @ weight.T + bias."""
        ...


class ManyRows:
    """Through the matrix products of the device's own library, for any number of rows."""

    def __init__(self, ops: Ops, *, tokens: int, hidden: int, inner: int, eps: float, like: Tensor) -> None:
        """Takes the workspace for so many tokens, in the dtype and on the device of `like`."""
        self._ops, self._eps = ops, eps
        self._normed = torch.empty(tokens, hidden, dtype=like.dtype, device=like.device)
        self._both = torch.empty(tokens, 2 * inner, dtype=like.dtype, device=like.device)

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        normed = self._normed[: x.shape[0]]
        self._ops.rms_norm(x, norm, self._eps, normed)
        multiply(normed, weight, bias, out)

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        rows, inner = out.shape
        gated = self._ops.gated_linear
        if gated is not None and gated.pays(rows, x.shape[1], inner):
            normed = self._normed[:rows]
            self._ops.rms_norm(x, norm, self._eps, normed)
            gated.enqueue(normed, weight, bias, out)
            return
        both = self._both[:rows]
        self.norm_linear(x, norm, weight, bias, both)
        self._ops.silu_mul(both[:, :inner], both[:, inner:], out)

    def add_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        add_product(x, weight, bias, out)


@dataclass(frozen=True, slots=True)
class ByRows:
    """`few` for up to `most` rows, `many` for more."""

    few: Products
    most: int
    many: Products

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        self._of(x).norm_linear(x, norm, weight, bias, out)

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        self._of(x).norm_gated(x, norm, weight, bias, out)

    def add_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        self._of(x).add_linear(x, weight, bias, out)

    def _of(self, x: Tensor) -> Products:
        return self.few if x.shape[0] <= self.most else self.many


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = x @ weight.T + bias, through torch; out may be float32 where there is no bias."""
    if bias is not None:
        torch.addmm(bias, x, weight.T, out=out)
    elif out.dtype == x.dtype:
        torch.mm(x, weight.T, out=out)
    elif x.is_cuda:  # sums are in float32 anyway: keep them
        torch.ops.aten.mm.dtype_out(x, weight.T, out.dtype, out=out)
    else:
        torch.mm(x.to(out.dtype), weight.T.to(out.dtype), out=out)


def add_product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out += x @ weight.T + bias, through torch."""
    if bias is not None:
        out += bias
    if out.dtype == x.dtype:
        torch.addmm(out, x, weight.T, out=out)
    else:  # sums are in float32 anyway
        torch.ops.aten.addmm.dtype_out(out, x, weight.T, out.dtype, out=out)
