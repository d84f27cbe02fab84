"""All kernels of a decode step's layers in one graph, against the time that reading their weights takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_kernels.timing import microseconds
from gpu.decode_attention.cupy_kernel import DecodeAttention
from gpu.linear.cupy_kernel import FewRowsLinear, FusedLinear
from gpu.linear.source import Form, Into
from gpu.paged_attention.cupy_kernel import PagedAttention
from gpu.paged_attention.source import Heads
from gpu.rms_norm.cupy_kernel import RmsNorm
from gpu.rope_write_kv.cupy_kernel import RopeWriteKv
from gpu.rope_write_kv.norms import HeadNorms
from gpu.silu_mul.cupy_kernel import SiluMul

CEILING = 4.67e12  # bytes a second that an H200 reads in 16-byte loads
CONTEXT, BLOCK_SIZE, EPS = 256, 16, 1e-6
DTYPE = torch.bfloat16


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a decoder's layer."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    head_norms: bool
    layers: int  # in the graph: more than the L2 keeps

    @property
    def weights(self) -> tuple[tuple[int, int], ...]:
        """[outputs, inputs] of qkv, o, gate and up, down."""
        wide = self.heads * self.head_dim
        return (
            (wide + 2 * self.kv_heads * self.head_dim, self.hidden),
            (self.hidden, wide),
            (2 * self.intermediate, self.hidden),
            (self.hidden, self.intermediate),
        )

    def read_bytes(self, rows: int) -> int:
        """Of weights and context, by one layer."""
        context = rows * CONTEXT * 2 * self.kv_heads * self.head_dim
        return DTYPE.itemsize * (context + sum(outputs * inputs for outputs, inputs in self.weights))


SHAPES = {
    "8B": Shape(4096, 32, 8, 128, 14336, head_norms=False, layers=8),
    "0.6B": Shape(1024, 16, 8, 128, 3072, head_norms=True, layers=28),
}


class Decoding:
    """The tensors and kernels of a stack of layers for some rows."""

    def __init__(self, shape: Shape, rows: int) -> None:
        self.shape, self.rows = shape, rows
        self.x, self.normed, self.delta = (self._drawn(rows, shape.hidden) for _ in range(3))
        wide, inside = shape.heads * shape.head_dim, shape.intermediate
        self.qkv, self.attended = self._drawn(rows, shape.weights[0][0]), self._drawn(rows, wide)
        self.both, self.inside = self._drawn(rows, 2 * inside), self._drawn(rows, inside)
        self.weights = [self._layer() for _ in range(shape.layers)]
        blocks = rows * CONTEXT // BLOCK_SIZE
        self.pools = self._drawn(2, shape.layers, blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim)
        self.tables = torch.randperm(blocks, device="cuda").int().view(rows, -1)
        self.starts = torch.arange(rows + 1, dtype=torch.int32, device="cuda")
        self.contexts = torch.full((rows,), CONTEXT, dtype=torch.int32, device="cuda")
        self.slots = self.tables[:, -1].contiguous() * BLOCK_SIZE + BLOCK_SIZE - 1
        self.cos, self.sin = torch.randn(2, rows, shape.head_dim // 2, device="cuda").cos()
        heads = Heads(shape.heads, shape.kv_heads, shape.head_dim, DTYPE)
        self.attention, self.rope = (
            PagedAttention(heads),
            RopeWriteKv(DTYPE, shape.head_dim, shape.head_dim // 2),
        )
        self.decode_attention = DecodeAttention(
            heads, shape.head_dim // 2, normed=shape.head_norms, settled=True
        )
        self.linear, self.norm, self.gate = FewRowsLinear(DTYPE), RmsNorm(DTYPE), SiluMul(DTYPE)
        self.normed_linear = FusedLinear(DTYPE, Form(normed=True))
        self.gated_linear = FusedLinear(DTYPE, Form(normed=True, into=Into.GATED))
        self.adding_linear = FusedLinear(DTYPE, Form(into=Into.ADDED))

    def apart(self, layer: int) -> None:
        """Each operation by a kernel of its own."""
        qkv, o, up, down, norms = self.weights[layer]
        self.norm.enqueue(self.x, norms[0], EPS, self.normed, self.delta)
        self.linear.enqueue(self.normed, qkv, None, self.qkv)
        self._attend(layer)
        self.linear.enqueue(self.attended, o, None, self.delta)
        self.norm.enqueue(self.x, norms[1], EPS, self.normed, self.delta)
        self.linear.enqueue(self.normed, up, None, self.both)
        inside = self.shape.intermediate
        self.gate.enqueue(self.both[:, :inside], self.both[:, inside:], self.inside)
        self.linear.enqueue(self.inside, down, None, self.delta)

    def fused(self, layer: int) -> None:
        """Norms, activation and additions within the products; one kernel for attention."""
        qkv, o, up, down, norms = self.weights[layer]
        self.normed_linear.enqueue(self.x, qkv, self.qkv, norm=norms[0], eps=EPS)
        self._attend_fused(layer)
        self.adding_linear.enqueue(self.attended, o, self.x)
        self.gated_linear.enqueue(self.x, up, self.inside, norm=norms[1], eps=EPS)
        self.adding_linear.enqueue(self.inside, down, self.x)

    def products(self, layer: int) -> None:
        """No attention: what the rest takes."""
        qkv, o, up, down, norms = self.weights[layer]
        self.normed_linear.enqueue(self.x, qkv, self.qkv, norm=norms[0], eps=EPS)
        self.adding_linear.enqueue(self.attended, o, self.x)
        self.gated_linear.enqueue(self.x, up, self.inside, norm=norms[1], eps=EPS)
        self.adding_linear.enqueue(self.inside, down, self.x)

    def _attend(self, layer: int) -> None:
        query, key, value, keys, values, out, norms = self._of_attention(layer)
        self.rope.enqueue(query, key, value, self.cos, self.sin, self.slots, keys, values, norms)
        where, scale = (self.tables, self.starts, self.contexts), self.shape.head_dim**-0.5
        self.attention.enqueue(query, keys, values, *where, scale, None, out)

    def _attend_fused(self, layer: int) -> None:
        query, key, value, keys, values, out, norms = self._of_attention(layer)
        turning, where, scale = (self.cos, self.sin), (self.tables, self.contexts), self.shape.head_dim**-0.5
        self.decode_attention.enqueue(
            query, key, value, *turning, keys, values, *where, scale, None, out, norms
        )

    def _of_attention(
        self, layer: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, HeadNorms | None]:
        """Query, key, value, both pools and out of a layer; its norms, where it has them."""
        shape, norms = self.shape, self.weights[layer][4]
        heads = self.qkv.view(self.rows, -1, shape.head_dim)
        query, key, value = heads.tensor_split((shape.heads, shape.heads + shape.kv_heads), dim=1)
        out = self.attended.view(self.rows, shape.heads, shape.head_dim)
        head_norms = HeadNorms(norms[2], norms[3], EPS) if shape.head_norms else None
        return query, key, value, self.pools[0, layer], self.pools[1, layer], out, head_norms

    def _layer(self) -> tuple[Tensor, Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
        qkv, o, up, down = (self._drawn(*size) / size[1] ** 0.5 for size in self.shape.weights)
        norms = tuple(self._drawn(dim) for dim in (self.shape.hidden,) * 2 + (self.shape.head_dim,) * 2)
        return qkv, o, up, down, norms

    @staticmethod
    def _drawn(*size: int) -> Tensor:
        return torch.randn(*size, device="cuda", dtype=DTYPE)


def measure(rows: tuple[int, ...] = (1, 8, 16)) -> list[dict[str, Any]]:
    """A row of the table for each shape, number of rows and way to run it."""
    return [result for name in SHAPES for count in rows for result in _measured(name, count)]


def _measured(name: str, rows: int) -> list[dict[str, Any]]:
    shape = SHAPES[name]
    decoding = Decoding(shape, rows)
    floor = shape.read_bytes(rows) / CEILING * 1e6
    ways: dict[str, Callable[[int], None]] = {
        "apart": decoding.apart,
        "fused": decoding.fused,
        "products": decoding.products,
    }
    results = []
    for way, run in ways.items():
        taken = microseconds([partial(run, layer) for layer in range(shape.layers)])
        told = {"op": "layer", "shape": f"{name} {way}", "rows": rows, "microseconds": taken, "floor": floor}
        results.append({**told, "fraction": floor / taken})
    return results
