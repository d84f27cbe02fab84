"""rms_norm in CUDA C++, with and without an addition, for the rows of an 8B and of a 0.6B model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_kernels.rows import ROWS, measured
from gpu.rms_norm.cupy_kernel import RmsNorm

DIMS = (4096, 1024)
EPS = 1e-5


def measure() -> list[dict[str, Any]]:
    op = RmsNorm(torch.bfloat16)
    results = []
    for dim in DIMS:
        for rows in ROWS:
            size = 2 * rows * dim  # bytes of a tensor
            results.append(measured("rms_norm", f"{rows} x {dim}", 2 * size, partial(_alone, op, rows, dim)))
            adding = partial(_adding, op, rows, dim)
            results.append(measured("rms_norm", f"{rows} x {dim} + delta", 4 * size, adding))
    return results


def _alone(op: RmsNorm, rows: int, dim: int) -> Callable[[], object]:
    x, weight = _random(rows, dim), _random(dim)
    return partial(op, x, weight, EPS, torch.empty_like(x))


def _adding(op: RmsNorm, rows: int, dim: int) -> Callable[[], object]:
    x, delta, weight = _random(rows, dim), _random(rows, dim), _random(dim)
    return partial(op, x, weight, EPS, torch.empty_like(x), delta)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
