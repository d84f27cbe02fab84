"""Decode attention over paged keys and values: time, and the share of the read ceiling that it reaches."""

from __future__ import annotations

import torch

from bench.gpu_kernels.timing import copies_beyond_cache, microseconds
from gpu.paged_attention.cupy_kernel import PagedAttention
from gpu.paged_attention.source import Heads

READ_CEILING = 4.67e12  # bytes a second: 16-byte loads by one kernel over memory on an H200
LLAMA_8B = Heads(32, 8, 128, torch.bfloat16)
QWEN3_06B = Heads(16, 8, 128, torch.bfloat16)
CASES = (  # heads, rows, context, query tokens a row
    (LLAMA_8B, 64, 8192, 1),
    (LLAMA_8B, 1, 32768, 1),
    (LLAMA_8B, 8, 32768, 1),
    (LLAMA_8B, 256, 512, 1),
    (LLAMA_8B, 256, 1024, 1),
    (LLAMA_8B, 1, 512, 1),
    (LLAMA_8B, 64, 8192, 4),
    (LLAMA_8B, 64, 8192, 8),
    (QWEN3_06B, 64, 8192, 1),
    (QWEN3_06B, 1, 512, 1),
    (QWEN3_06B, 256, 512, 1),
    (Heads(32, 8, 64, torch.bfloat16), 64, 8192, 1),
    (Heads(8, 4, 256, torch.bfloat16), 64, 8192, 1),
)
BLOCK_SIZE = 16


def measure() -> list[dict[str, object]]:
    """One entry a case."""
    return [_measured(*case) for case in CASES]


def _measured(shape: Heads, rows: int, context: int, tokens: int) -> dict[str, object]:
    moved = 2 * rows * context * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    attention = PagedAttention(shape, most_tokens=tokens)
    calls, blocks = [], -(-context // BLOCK_SIZE)
    starts = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device="cuda")
    contexts = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    for _ in range(copies_beyond_cache(moved)):
        pools = torch.randn(
            2, rows * blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim, device="cuda", dtype=shape.dtype
        )
        tables = torch.randperm(rows * blocks, device="cuda").int().view(rows, blocks)
        query = torch.randn(rows * tokens, shape.heads, shape.head_dim, device="cuda", dtype=shape.dtype)
        arguments = (
            query,
            *pools,
            tables,
            starts,
            contexts,
            shape.head_dim**-0.5,
            None,
            torch.empty_like(query),
        )
        calls.append(lambda arguments=arguments: attention(*arguments))
    taken = microseconds(calls)
    achieved = moved / (taken * 1e-6)
    what = f"{rows} x {context}, {tokens} tokens, {shape.heads}/{shape.kv_heads} x {shape.head_dim}"
    return {
        "op": "paged_attention",
        "shape": what,
        "us": round(taken, 2),
        "bytes": moved,
        "achieved": achieved,
        "fraction": round(achieved / READ_CEILING, 3),
    }
