"""Gates and ups of many rows: operations a second, beside a product by torch and silu_mul, in turn."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from bench.gpu_kernels.timing import microseconds
from gpu.gated_linear.cupy_kernel import Product
from gpu.gated_linear.source import PLANS, planned
from gpu.silu_mul.cupy_kernel import SiluMul

MATRICES = {"8B": (14336, 4096), "0.6B": (3072, 1024)}  # outputs, inputs
ROWS = (64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 3584, 8192)
ROUNDS = 3  # in turn: the clock falls as the device gets warm
MICROSECONDS = 4000.0  # of calls in a graph, about


def measure(rows: tuple[int, ...] = ROWS) -> list[dict[str, Any]]:
    """One entry for each matrix and number of rows."""
    return [_measured(name, *shape, count) for name, shape in MATRICES.items() for count in rows]


def _measured(name: str, outputs: int, inputs: int, rows: int) -> dict[str, Any]:
    x, weight = _drawn(rows, inputs), _drawn(2 * outputs, inputs)
    calls = {"torch": _theirs(x, weight, outputs)}
    for plan in PLANS:
        calls[str(plan.width)] = _ours(Product(plan, torch.bfloat16), x, weight, outputs)
    taken: dict[str, list[float]] = {kind: [] for kind in calls}
    for _ in range(ROUNDS):
        for kind, call in calls.items():
            taken[kind].append(_microseconds(call))
    multiprocessors = torch.cuda.get_device_properties().multi_processor_count
    chosen = str(planned(rows, outputs, multiprocessors).width)
    ours = median(taken[chosen])
    return {
        "op": "gated_linear",
        "shape": f"{name} {2 * outputs}x{inputs}",
        "rows": rows,
        **{f"us_{kind}": round(median(times), 1) for kind, times in taken.items()},
        "chosen": chosen,
        "achieved": 4 * rows * outputs * inputs / ours * 1e6,
        "torch_over_ours": round(median(taken["torch"]) / ours, 3),
    }


def _ours(product: Product, x: Tensor, weight: Tensor, outputs: int) -> Callable[[], object]:
    out = torch.empty(x.shape[0], outputs, device="cuda", dtype=x.dtype)
    return lambda: product(x, weight, None, out)


def _theirs(x: Tensor, weight: Tensor, outputs: int) -> Callable[[], object]:
    both = torch.empty(x.shape[0], 2 * outputs, device="cuda", dtype=x.dtype)
    out, silu_mul = torch.empty(x.shape[0], outputs, device="cuda", dtype=x.dtype), SiluMul(x.dtype)

    def call() -> None:
        torch.mm(x, weight.T, out=both)
        silu_mul.enqueue(both[:, :outputs], both[:, outputs:], out)

    return call


def _microseconds(call: Callable[[], object]) -> float:
    once = microseconds([call])
    return microseconds([call] * max(1, round(MICROSECONDS / once)))


def _drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").mul_(shape[1] ** -0.5).bfloat16()
