"""linear for few rows against the rate at which memory can be read, and against cuBLAS in the same run."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu_kernels.timing import microseconds
from gpu.linear.cupy_kernel import FewRowsLinear
from gpu.linear.reference import linear as reference
from gpu.table import Linear

CEILING = 4.67e12  # bytes a second that an H200 reads in 16-byte loads
CHAIN_BYTES = 450_000_000  # of different weights in a graph, nine times the L2
SHAPES = {  # [outputs, inputs]
    "8B qkv": (6144, 4096),
    "8B o": (4096, 4096),
    "8B gate, up": (28672, 4096),
    "8B down": (4096, 14336),
    "8B head": (128256, 4096),
    "0.6B qkv": (4096, 1024),
    "0.6B o": (1024, 2048),
    "0.6B gate, up": (6144, 1024),
    "0.6B down": (1024, 3072),
    "0.6B head": (151936, 1024),
}


def measure(rows: tuple[int, ...] = (1, 4, 8, 16)) -> list[dict[str, Any]]:
    """A row of the table for each shape and number of rows."""
    implementations: dict[str, Linear] = {
        "": FewRowsLinear(torch.bfloat16),
        "early_": FewRowsLinear(torch.bfloat16, early=True),
        "cublas_": reference,
    }
    return [
        _measured(implementations, name, shape, count) for name, shape in SHAPES.items() for count in rows
    ]


def _measured(
    implementations: dict[str, Linear], name: str, shape: tuple[int, int], rows: int
) -> dict[str, Any]:
    outputs, inputs = shape
    read = 2 * outputs * inputs
    weights = [_drawn(outputs, inputs) for _ in range(min(64, 3 + CHAIN_BYTES // read))]
    x, out = _drawn(rows, inputs), torch.empty(rows, outputs, device="cuda", dtype=torch.bfloat16)
    taken = {prefix: _timed(call, x, weights, out) for prefix, call in implementations.items()}
    achieved = read / min(taken[""], taken["early_"]) * 1e6
    return {
        "op": "linear",
        "shape": f"{name} {outputs}x{inputs}",
        "rows": rows,
        **{f"{prefix}microseconds": time for prefix, time in taken.items()},
        "bytes": read,
        "achieved": achieved,
        "fraction": achieved / CEILING,
        "cublas_over_ours": taken["cublas_"] * achieved / read / 1e6,
    }


def _timed(call: Linear, x: Tensor, weights: list[Tensor], out: Tensor) -> float:
    return microseconds([partial(call, x, weight, None, out) for weight in weights])


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)
