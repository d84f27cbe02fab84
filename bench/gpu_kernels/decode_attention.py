"""decode_attention next to the three kernels that do the same: time, and the share of the read ceiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.gpu_kernels.timing import copies_beyond_cache, microseconds
from gpu.decode_attention.cupy_kernel import DecodeAttention
from gpu.paged_attention.cupy_kernel import PagedAttention
from gpu.paged_attention.source import Heads
from gpu.rope_write_kv.cupy_kernel import RopeWriteKv

READ_CEILING = 4.67e12  # bytes a second: 16-byte loads by one kernel over memory on an H200
LLAMA_8B, QWEN3_06B = Heads(32, 8, 128, torch.bfloat16), Heads(16, 8, 128, torch.bfloat16)
CASES = (  # heads, rows, context
    (LLAMA_8B, 1, 512),
    (LLAMA_8B, 1, 4096),
    (LLAMA_8B, 1, 32768),
    (LLAMA_8B, 8, 512),
    (LLAMA_8B, 8, 4096),
    (LLAMA_8B, 8, 32768),
    (LLAMA_8B, 16, 2048),
    (LLAMA_8B, 32, 1024),
    (QWEN3_06B, 1, 512),
    (QWEN3_06B, 16, 512),
)
BLOCK_SIZE, PAIRS = 16, 64


def measure() -> list[dict[str, Any]]:
    """One entry a case."""
    return [_measured(*case) for case in CASES]


def _measured(shape: Heads, rows: int, context: int) -> dict[str, Any]:
    moved = 2 * rows * context * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    one, rope, attention = (
        DecodeAttention(shape, PAIRS),
        RopeWriteKv(shape.dtype, 128, PAIRS),
        PagedAttention(shape),
    )
    together, apart = [], []
    for _ in range(copies_beyond_cache(moved)):
        fused, split = _calls(shape, rows, context, one, rope, attention)
        together.append(fused)
        apart.append(split)
    taken = microseconds(together)
    return {
        "op": "decode_attention",
        "shape": f"{rows} x {context}, {shape.heads}/{shape.kv_heads} x {shape.head_dim}",
        "microseconds": taken,
        "apart_microseconds": microseconds(apart),
        "bytes": moved,
        "fraction": moved / taken * 1e6 / READ_CEILING,
    }


def _calls(
    shape: Heads, rows: int, context: int, one: DecodeAttention, rope: RopeWriteKv, attention: PagedAttention
) -> tuple[Callable[[], None], Callable[[], None]]:
    """On inputs of their own: the one kernel, and the others."""
    blocks = context // BLOCK_SIZE
    pool_shape = (2, rows * blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim)
    keys, values = torch.randn(pool_shape, device="cuda", dtype=shape.dtype)
    heads = torch.randn(
        rows, shape.heads + 2 * shape.kv_heads, shape.head_dim, device="cuda", dtype=shape.dtype
    )
    query, key, value = heads.tensor_split((shape.heads, shape.heads + shape.kv_heads), dim=1)
    tables = torch.randperm(rows * blocks, device="cuda").int().view(rows, blocks)
    contexts = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    starts = torch.arange(rows + 1, dtype=torch.int32, device="cuda")
    slots = tables[:, -1] * BLOCK_SIZE + BLOCK_SIZE - 1
    cos, sin = torch.randn(2, rows, PAIRS, device="cuda").cos()
    scale, out = shape.head_dim**-0.5, torch.empty_like(query.contiguous())

    def apart() -> None:
        rope.enqueue(query, key, value, cos, sin, slots, keys, values)
        attention.enqueue(query, keys, values, tables, starts, contexts, scale, None, out)

    def together() -> None:
        one.enqueue(query, key, value, cos, sin, keys, values, tables, contexts, scale, None, out)

    return together, apart
