"""sample in CUDA C++ against the rate at which its logits can be read, and torch's argmax in the same run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.gpu_kernels.rows import measured
from gpu.sample.cupy_kernel import Sample

SHAPES = ((1, 151_936), (8, 151_936), (64, 128_256), (256, 128_256))


class Kind(NamedTuple):
    """How every row of a case is drawn."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


KINDS = {
    "greedy": Kind(temperature=0.0),
    "free": Kind(),
    "top_k 20, top_p 0.95": Kind(0.6, 20, 0.95),
    "top_p 0.9": Kind(top_p=0.9),
    "top_p 0.9, flat": Kind(4.0, top_p=0.9),
}


def measure() -> list[dict[str, Any]]:
    op = Sample(max(rows for rows, _ in SHAPES), max(vocab for _, vocab in SHAPES))
    results = []
    for rows, vocab in SHAPES:
        size = 4 * rows * vocab
        for name, kind in KINDS.items():
            make = partial(_drawing, op, rows, vocab, kind)
            results.append(measured("sample", f"{rows} x {vocab} {name}", size, make))
        results.append(measured("sample", f"{rows} x {vocab} argmax", size, partial(_argmax, rows, vocab)))
    return results


def _drawing(op: Sample, rows: int, vocab: int, kind: Kind) -> Callable[[], object]:
    settings = (
        torch.full((rows,), kind.temperature, device="cuda"),
        torch.full((rows,), kind.top_k, device="cuda", dtype=torch.int32),
        torch.full((rows,), kind.top_p, device="cuda"),
        torch.full((rows,), kind.min_p, device="cuda"),
        torch.arange(rows, device="cuda"),
        torch.arange(rows, device="cuda", dtype=torch.int32),
    )
    tokens, status = torch.empty(2, rows, device="cuda", dtype=torch.int32)
    return partial(op.enqueue, _logits(rows, vocab), *settings, tokens, status)


def _argmax(rows: int, vocab: int) -> Callable[[], object]:
    return partial(torch.argmax, _logits(rows, vocab), dim=1, out=torch.empty(rows, device="cuda").long())


def _logits(rows: int, vocab: int) -> Tensor:
    """As a model's are: a bell, three nats wide."""
    return 3 * torch.randn(rows, vocab, device="cuda")
