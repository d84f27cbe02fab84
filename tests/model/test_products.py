"""Products of many rows, with what stands next to them, and which implementation serves how many rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from gpu.gated_linear.reference import gated_linear
from gpu.gated_linear.source import BROAD, NARROW, pays, planned
from gpu.table import REFERENCE
from tokenspeed.model.cuda.products import AfterNorm, ByRows, many_rows

HIDDEN, INNER, EPS = 24, 40, 1e-5
H200 = 132  # multiprocessors


class Gated:
    """Serves some numbers of rows, and remembers which."""

    def __init__(self, *served: int) -> None:
        self._served = served
        self.given: list[int] = []

    def pays(self, rows: int, inputs: int, outputs: int) -> bool:
        assert (inputs, outputs) == (HIDDEN, INNER)
        return rows in self._served

    def enqueue(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        self.given.append(len(x))
        gated_linear(x, weight, bias, out)


def many(gated: Gated | None) -> AfterNorm:
    ops = replace(REFERENCE, gated_linear=gated)
    return many_rows(ops, tokens=9, hidden=HIDDEN, inner=INNER, eps=EPS, like=torch.empty(0))


@pytest.mark.parametrize("biased", [False, True])
def test_gates_and_ups_are_the_same_in_one_product_and_apart(biased: bool) -> None:
    torch.manual_seed(0)
    norm, weight = 1 + torch.randn(HIDDEN), torch.randn(2 * INNER, HIDDEN)
    bias = torch.randn(2 * INNER) if biased else None
    gated = Gated(5, 9)
    together, apart = many(gated), many(None)
    for rows in (1, 5, 8, 9):
        x = 3 * torch.randn(rows, HIDDEN)
        wide = x.double()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS) * norm
        sums = normed @ weight.double().T + (0.0 if bias is None else bias)
        expected = (silu(sums[:, :INNER]) * sums[:, INNER:]).float()
        for products in (together, apart):
            out = torch.full((rows, INNER), torch.nan)
            products.norm_gated(x, norm, weight, bias, out)
            torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert gated.given == [5, 9]


class Named:
    """Products that write their name."""

    def __init__(self, name: float) -> None:
        self._name = name

    def norm_linear(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        out.fill_(self._name)

    def norm_gated(self, x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        out.fill_(self._name)

    def add_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
        out.fill_(self._name)


def test_products_go_to_those_that_are_made_for_so_many_rows() -> None:
    products = ByRows(Named(1), 16, ByRows(Named(2), 128, Named(3)))
    none = torch.empty(0)
    for rows, name in ((1, 1), (16, 1), (17, 2), (128, 2), (129, 3), (5000, 3)):
        x, out = torch.empty(rows, 1), torch.empty(1)
        for product in (
            lambda x=x, out=out: products.norm_linear(x, none, none, None, out),
            lambda x=x, out=out: products.norm_gated(x, none, none, None, out),
            lambda x=x, out=out: products.add_linear(x, none, None, out),
        ):
            out.fill_(0)
            product()
            assert float(out) == name


def test_gates_and_ups_are_multiplied_in_one_where_it_was_measured_to_be_faster() -> None:
    """On an H200, beside a product by cuBLAS and silu_mul: bench/results/h200/gated_linear.json."""
    faster = {14336: (256, 512, 768, 1024, 1536, 2048, 3584, 8192), 3072: (1024, 1536, 2048, 3584, 8192)}
    slower = {14336: (64, 128, 384), 3072: (64, 128, 384, 512, 768)}
    for outputs, rows in faster.items():
        assert all(pays(count, outputs, H200) for count in rows)
    for outputs, rows in slower.items():
        assert not any(pays(count, outputs, H200) for count in rows)


def test_tiles_are_as_broad_as_leaves_the_device_busy() -> None:
    assert planned(8192, 14336, H200) is BROAD
    assert (
        planned(512, 14336, H200) is NARROW
    )  # 7 rounds of narrow ones, or 4 of broad ones that take twice as long
