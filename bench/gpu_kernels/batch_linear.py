"""linear for 17 to 128 rows: against the rate at which memory is read, and beside torch (cuBLAS), in turn.

The rows "layer" are all products of a decoder's layer with its norms, gate and additions, in a chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.gpu_kernels.layer import SHAPES, Shape
from bench.gpu_kernels.timing import microseconds
from gpu.batch_linear.cupy_kernel import BatchLinear, BatchMatrices
from gpu.linear.source import Form, Into
from gpu.rms_norm.cupy_kernel import RmsNorm
from gpu.silu_mul.cupy_kernel import SiluMul
from tokenspeed.model.cuda.products import AfterNorm

CEILING = 4.67e12  # bytes a second that an H200 reads in 16-byte loads
CHAIN_BYTES = 450_000_000  # of different weights in a graph, nine times the L2
ROWS = (17, 32, 64, 128)
ROUNDS = 3  # in turn
EPS = 1e-6
DTYPE = torch.bfloat16
ADDED, GATED, WIDE = Form(into=Into.ADDED, wide_out=True), Form(into=Into.GATED), Form(wide_out=True)
PRODUCTS = {  # outputs, inputs, form
    "8B qkv": (6144, 4096, Form()),
    "8B o": (4096, 4096, ADDED),
    "8B gate, up": (14336, 4096, GATED),
    "8B down": (4096, 14336, ADDED),
    "8B head": (128256, 4096, WIDE),
    "0.6B qkv": (4096, 1024, Form()),
    "0.6B o": (1024, 2048, ADDED),
    "0.6B gate, up": (3072, 1024, GATED),
    "0.6B down": (1024, 3072, ADDED),
    "0.6B head": (151936, 1024, WIDE),
}


def measure(rows: tuple[int, ...] = ROWS) -> list[dict[str, Any]]:
    """A row of the table for each layer and each product, by number of rows."""
    ops = {form: BatchLinear(DTYPE, form) for form in (Form(), ADDED, GATED, WIDE)}
    layers = [_layer(name, count) for name in SHAPES for count in rows]
    return layers + [_product(ops, name, count) for name in PRODUCTS for count in rows]


def _product(ops: dict[Form, BatchLinear], name: str, rows: int) -> dict[str, Any]:
    outputs, inputs, form = PRODUCTS[name]
    sums = 2 * outputs if form.into is Into.GATED else outputs
    read = 2 * sums * inputs
    weights = [_drawn(sums, inputs) for _ in range(min(64, 3 + CHAIN_BYTES // read))]
    x = _drawn(rows, inputs)
    out = torch.zeros(rows, outputs, device="cuda", dtype=torch.float32 if form.wide_out else DTYPE)
    taken = _in_turn(
        {
            "ours": [partial(ops[form].enqueue, x, weight, None, out) for weight in weights],
            "torch": [partial(_theirs(form, x, out), weight) for weight in weights],
        }
    )
    return _told(f"{name} {sums}x{inputs}", rows, read, taken)


def _theirs(form: Form, x: Tensor, out: Tensor) -> Callable[[Tensor], object]:
    """What a step does without this op: a product, then silu_mul over what it wrote."""
    rows, outputs = out.shape
    if form.into is Into.ADDED:
        return lambda weight: torch.ops.aten.addmm.dtype_out(out, x, weight.T, torch.float32, out=out)
    if form.wide_out:
        return lambda weight: torch.ops.aten.mm.dtype_out(x, weight.T, torch.float32, out=out)
    if form.into is not Into.GATED:
        return lambda weight: torch.mm(x, weight.T, out=out)
    both, silu_mul = torch.empty(rows, 2 * outputs, device="cuda", dtype=DTYPE), SiluMul(DTYPE)

    def call(weight: Tensor) -> None:
        torch.mm(x, weight.T, out=both)
        silu_mul.enqueue(both[:, :outputs], both[:, outputs:], out)

    return call


class _Layers:
    """A stack of layers without attention, and what they work on."""

    def __init__(self, shape: Shape, rows: int) -> None:
        self.weights = [
            tuple(_drawn(outputs, inputs) for outputs, inputs in shape.weights) for _ in range(shape.layers)
        ]
        self.norm = _drawn(1, shape.hidden)[0]
        self.stream = torch.randn(rows, shape.hidden, device="cuda")
        self.normed, self.qkv = _drawn(rows, shape.hidden), _drawn(rows, shape.weights[0][0])
        self.attended = _drawn(rows, shape.heads * shape.head_dim)
        self.both, self.inside = _drawn(rows, 2 * shape.intermediate), _drawn(rows, shape.intermediate)
        self.rms_norm, self.silu_mul = RmsNorm(DTYPE), SiluMul(DTYPE)
        matrices = BatchMatrices(DTYPE, wide=True)
        self.products = AfterNorm(matrices, self.rms_norm.enqueue, EPS, self.normed)

    def ours(self, layer: int) -> None:
        qkv, o, up, down = self.weights[layer]
        self.products.norm_linear(self.stream, self.norm, qkv, None, self.qkv)
        self.products.add_linear(self.attended, o, None, self.stream)
        self.products.norm_gated(self.stream, self.norm, up, None, self.inside)
        self.products.add_linear(self.inside, down, None, self.stream)

    def theirs(self, layer: int) -> None:
        qkv, o, up, down = self.weights[layer]
        stream, inner = self.stream, self.inside.shape[1]
        add = partial(torch.ops.aten.addmm.dtype_out, out_dtype=torch.float32, out=stream)
        self.rms_norm.enqueue(stream, self.norm, EPS, self.normed)
        torch.mm(self.normed, qkv.T, out=self.qkv)
        add(stream, self.attended, o.T)
        self.rms_norm.enqueue(stream, self.norm, EPS, self.normed)
        torch.mm(self.normed, up.T, out=self.both)
        self.silu_mul.enqueue(self.both[:, :inner], self.both[:, inner:], self.inside)
        add(stream, self.inside, down.T)


def _layer(name: str, rows: int) -> dict[str, Any]:
    shape = SHAPES[name]
    layers = _Layers(shape, rows)
    calls = {
        "ours": [partial(layers.ours, layer) for layer in range(shape.layers)],
        "torch": [partial(layers.theirs, layer) for layer in range(shape.layers)],
    }
    read = DTYPE.itemsize * sum(outputs * inputs for outputs, inputs in shape.weights)
    return _told(f"{name} layer", rows, read, _in_turn(calls))


def _in_turn(calls: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, float]:
    taken: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(ROUNDS):
        for kind, those in calls.items():
            taken[kind].append(microseconds(those))
    return {kind: median(times) for kind, times in taken.items()}


def _told(shape: str, rows: int, read: int, taken: dict[str, float]) -> dict[str, Any]:
    return {
        "op": "batch_linear",
        "shape": shape,
        "rows": rows,
        "microseconds": taken["ours"],
        "torch_microseconds": taken["torch"],
        "bytes": read,
        "fraction": read / taken["ours"] * 1e6 / CEILING,
        "torch_over_ours": taken["torch"] / taken["ours"],
    }


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").mul_(shape[1] ** -0.5).to(DTYPE)
