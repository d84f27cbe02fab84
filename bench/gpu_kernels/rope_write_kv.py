"""rope_write_kv in CUDA C++ on parts of one tensor, for an 8B model and, with norms, for a 0.6B model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_kernels.rows import ROWS, measured
from gpu.rope_write_kv.cupy_kernel import RopeWriteKv
from gpu.rope_write_kv.norms import HeadNorms

HEAD_DIM, PAIRS, KV_HEADS, BLOCK_SIZE = 128, 64, 8, 16


def measure() -> list[dict[str, Any]]:
    op = RopeWriteKv(torch.bfloat16, HEAD_DIM, PAIRS)
    norms = HeadNorms(_random(HEAD_DIM), _random(HEAD_DIM), 1e-6)
    results = []
    for heads, given, told in ((32, None, ""), (16, norms, " with norms")):
        for rows in ROWS:
            # Query, key and value are read and written; cos and sin are float32.
            moved = rows * (2 * (heads + 2 * KV_HEADS) * HEAD_DIM * 2 + 2 * PAIRS * 4 + 4)
            shape = f"{rows} x ({heads} + 2 * {KV_HEADS}) x {HEAD_DIM}{told}"
            results.append(measured("rope_write_kv", shape, moved, partial(_drawn, op, rows, heads, given)))
    return results


def _drawn(op: RopeWriteKv, rows: int, heads: int, norms: HeadNorms | None) -> Callable[[], object]:
    together = _random(rows, heads + 2 * KV_HEADS, HEAD_DIM)
    query, key, value = together.tensor_split((heads, heads + KV_HEADS), dim=1)
    angles = torch.rand(rows, PAIRS, device="cuda")
    pools = torch.empty(
        2, rows // BLOCK_SIZE + 1, BLOCK_SIZE, KV_HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16
    )
    slots = torch.randperm(rows, device="cuda").int()
    return partial(op, query, key, value, angles.cos(), angles.sin(), slots, pools[0], pools[1], norms)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
