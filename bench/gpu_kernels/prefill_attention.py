"""Attention of prompts over paged keys and values: time and floating-point operations a second, beside torch.

Torch's is cuDNN's over keys and values that lie in a row, not in pages; where the first tokens of a prompt
are in the pages already it cannot do the same, so there it attends everything, and its rate counts that.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from bench.gpu_kernels.timing import microseconds
from gpu.paged_attention.source import Heads
from gpu.prefill_attention.cupy_kernel import PrefillAttention

MATMUL_RATE = 797e12  # operations a second: bf16 matrix products through torch on an H200
LLAMA_8B = Heads(32, 8, 128, torch.bfloat16)
QWEN3_06B = Heads(16, 8, 128, torch.bfloat16)
CASES = (  # heads, rows, tokens of each, the last ones of a context
    (LLAMA_8B, 1, 8192, 8192),
    (LLAMA_8B, 1, 32768, 32768),
    (LLAMA_8B, 1, 2048, 30000),
    (LLAMA_8B, 1, 512, 30000),
    (LLAMA_8B, 1, 2048, 2048),
    (LLAMA_8B, 4, 2048, 2048),
    (LLAMA_8B, 16, 512, 512),
    (LLAMA_8B, 64, 128, 128),
    (QWEN3_06B, 1, 8192, 8192),
    (Heads(32, 8, 64, torch.bfloat16), 1, 8192, 8192),
    (Heads(16, 8, 256, torch.bfloat16), 1, 8192, 8192),
)
BLOCK_SIZE = 16
ROUNDS = 3  # ours and torch's in turn: the clock falls as the device gets warm
MICROSECONDS = 3000.0  # of calls in a graph, about


def measure() -> list[dict[str, object]]:
    """One entry a case."""
    return [_measured(*case) for case in CASES]


def _measured(shape: Heads, rows: int, tokens: int, context: int) -> dict[str, object]:
    query = torch.randn(rows * tokens, shape.heads, shape.head_dim, device="cuda", dtype=shape.dtype)
    ours, theirs = _ours(shape, query, rows, tokens, context), _theirs(shape, query, rows, tokens, context)
    taken: dict[str, list[float]] = {"ours": [], "torch": []}
    for _ in range(ROUNDS):
        taken["ours"].append(_microseconds(ours))
        taken["torch"].append(_microseconds(theirs))
    each = 4 * shape.heads * shape.head_dim * rows  # operations for each pair of a query and what it sees
    causal = each * (tokens * (context - tokens) + tokens * (tokens + 1) // 2)
    seen_by_torch = causal if tokens == context else each * tokens * context
    achieved = causal / (median(taken["ours"]) * 1e-6)
    what = f"{rows} x {tokens} at {context}, {shape.heads}/{shape.kv_heads} x {shape.head_dim}"
    return {
        "op": "prefill_attention",
        "shape": what,
        "us": round(median(taken["ours"]), 2),
        "operations": causal,
        "achieved": achieved,
        "torch": seen_by_torch / (median(taken["torch"]) * 1e-6),
        "fraction": round(achieved / MATMUL_RATE, 3),
    }


def _microseconds(call: Callable[[], object]) -> float:
    once = microseconds([call])
    return microseconds([call] * max(1, round(MICROSECONDS / once)))


def _ours(shape: Heads, query: torch.Tensor, rows: int, tokens: int, context: int) -> Callable[[], object]:
    blocks = -(-context // BLOCK_SIZE)
    keys, values = torch.randn(
        2, rows * blocks, BLOCK_SIZE, shape.kv_heads, shape.head_dim, device="cuda", dtype=shape.dtype
    )
    tables = torch.randperm(rows * blocks, device="cuda").int().view(rows, blocks)
    starts = torch.arange(0, rows * tokens + 1, tokens, dtype=torch.int32, device="cuda")
    contexts = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    out, attention = torch.empty_like(query), PrefillAttention(shape)
    scale = shape.head_dim**-0.5
    return lambda: attention.enqueue(query, keys, values, tables, starts, contexts, scale, None, out)


def _theirs(shape: Heads, query: torch.Tensor, rows: int, tokens: int, context: int) -> Callable[[], object]:
    apart = query.view(rows, tokens, shape.heads, shape.head_dim).transpose(1, 2)
    keys, values = torch.randn(
        2, rows, shape.kv_heads, context, shape.head_dim, device="cuda", dtype=shape.dtype
    )

    def call() -> object:
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return scaled_dot_product_attention(
                apart, keys, values, is_causal=tokens == context, enable_gqa=True
            )

    return call
