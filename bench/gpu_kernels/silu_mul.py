"""silu_mul in CUDA C++ on the halves of one tensor, for the rows of an 8B and of a 0.6B model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from bench.gpu_kernels.rows import ROWS, measured
from gpu.silu_mul.cupy_kernel import SiluMul

DIMS = (14336, 3072)


def measure() -> list[dict[str, Any]]:
    op = SiluMul(torch.bfloat16)
    return [
        measured("silu_mul", f"{rows} x {dim}", 3 * 2 * rows * dim, partial(_drawn, op, rows, dim))
        for dim in DIMS
        for rows in ROWS
    ]


def _drawn(op: SiluMul, rows: int, dim: int) -> Callable[[], object]:
    both = torch.randn(rows, 2 * dim, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, dim, device="cuda", dtype=torch.bfloat16)
    return partial(op, both[:, :dim], both[:, dim:], out)
