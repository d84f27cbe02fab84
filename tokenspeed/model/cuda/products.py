"""Rows through matrices, with what stands next to a product: a norm before it, a sum or a gate after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gpu.table import Ops, RmsNorm


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


class Matrices(Protocol):
    """Rows through matrices, of the rows' own dtype."""

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = x @ weight.T + bias; out may be float32 (then without a bias)."""
        ...

    def gate(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out = silu(gate) * up, of x @ weight.T + bias = [gate, up]."""
        ...

    def add(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        """out += x @ weight.T + bias."""
        ...


@dataclass(frozen=True, slots=True)
class AfterNorm:
    """`matrices`, with a norm before them that is a kernel of its own. One call at a time."""

    matrices: Matrices
    rms_norm: RmsNorm
    eps: float
    workspace: Tensor  # [rows, hidden]

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        self.matrices.multiply(self._normalised(x, norm), weight, bias, out)

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        self.matrices.gate(self._normalised(x, norm), weight, bias, out)

    def add_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        self.matrices.add(x, weight, bias, out)

    def _normalised(self, x: Tensor, norm: Tensor) -> Tensor:
        normed = self.workspace[: x.shape[0]]
        self.rms_norm(x, norm, self.eps, normed)
        return normed


class LibraryMatrices:
    """By the device's own library, for any number of rows; gates and ups in one where that pays."""

    def __init__(self, ops: Ops, *, tokens: int, inner: int, like: Tensor) -> None:
        """Takes the workspace for so many tokens, in the dtype and on the device of `like`."""
        self._gated, self._silu_mul = ops.gated_linear, ops.silu_mul
        self._both = torch.empty(tokens, 2 * inner, dtype=like.dtype, device=like.device)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        multiply(x, weight, bias, out)

    def gate(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        rows, inner = out.shape
        if self._gated is not None and self._gated.pays(rows, x.shape[1], inner):
            self._gated.enqueue(x, weight, bias, out)
            return
        both = self._both[:rows]
        multiply(x, weight, bias, both)
        self._silu_mul(both[:, :inner], both[:, inner:], out)

    def add(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        add_product(x, weight, bias, out)


def many_rows(ops: Ops, *, tokens: int, hidden: int, inner: int, eps: float, like: Tensor) -> AfterNorm:
    """Products of up to so many rows, by the device's own library."""
    matrices = LibraryMatrices(ops, tokens=tokens, inner=inner, like=like)
    workspace = torch.empty(tokens, hidden, dtype=like.dtype, device=like.device)
    return AfterNorm(matrices, ops.rms_norm, eps, workspace)


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
