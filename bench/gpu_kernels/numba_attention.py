"""Decode attention in Numba CUDA beside the raw kernel: the share of the read ceiling that each reaches."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from bench.gpu_kernels import paged_attention as raw
from bench.gpu_kernels.timing import copies_beyond_cache, microseconds
from gpu.paged_attention.cupy_kernel import PagedAttention as RawAttention
from gpu.paged_attention.numba_kernel import PagedAttention
from gpu.paged_attention.source import Heads

CASES = (  # heads, rows, context, query tokens a row
    *raw.CASES[:9],
    (Heads(32, 8, 128, torch.float32), 64, 4096, 1),  # these two are for this kernel alone
    (Heads(32, 32, 80, torch.float16), 16, 4096, 1),
)


def measure() -> list[dict[str, object]]:
    """One entry a case."""
    return [_measured(*case) for case in CASES]


def _measured(shape: Heads, rows: int, context: int, tokens: int) -> dict[str, object]:
    moved = 2 * rows * context * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    inputs = [_inputs(shape, rows, context, tokens) for _ in range(copies_beyond_cache(moved))]
    ours = PagedAttention(shape, most_tokens=tokens)
    taken = microseconds([partial(ours, *given) for given in inputs])
    row: dict[str, object] = {
        "op": "numba_attention",
        "shape": f"{rows} x {context}, {tokens} tokens, {shape.heads}/{shape.kv_heads} x {shape.head_dim}",
        "dtype": str(shape.dtype).removeprefix("torch."),
        "us": round(taken, 2),
        "bytes": moved,
        "fraction": round(moved / (taken * 1e-6) / raw.READ_CEILING, 3),
    }
    try:
        theirs = RawAttention(shape, most_tokens=tokens)
    except ValueError:  # of heads or a dtype that the raw kernel does not take
        return row
    raw_taken = microseconds([partial(theirs, *given) for given in inputs])
    row["raw_us"] = round(raw_taken, 2)
    row["raw_fraction"] = round(moved / (raw_taken * 1e-6) / raw.READ_CEILING, 3)
    return row


def _inputs(shape: Heads, rows: int, context: int, tokens: int) -> tuple[Any, ...]:
    blocks = -(-context // raw.BLOCK_SIZE)
    pool = (2, rows * blocks, raw.BLOCK_SIZE, shape.kv_heads, shape.head_dim)
    keys, values = torch.randn(pool, device="cuda", dtype=shape.dtype)
    tables = torch.randperm(rows * blocks, device="cuda").int().view(rows, blocks)
    starts = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device="cuda")
    contexts = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    query = torch.randn(rows * tokens, shape.heads, shape.head_dim, device="cuda", dtype=shape.dtype)
    scale = shape.head_dim**-0.5
    return query, keys, values, tables, starts, contexts, scale, None, torch.empty_like(query)
