"""Numba kernels, launched on torch's current stream; in Numba's CUDA simulator, on tensors of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from numba import config, cuda
from torch import Tensor

SIMULATED = bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


def enqueue(kernel: Any, grid: tuple[int, ...], threads: int, *arguments: Tensor | int | float) -> None:
    """Enqueue one kernel, compiling it at its first launch."""
    if SIMULATED:
        kernel[grid, threads](*(x.numpy() if isinstance(x, Tensor) else x for x in arguments))
        return
    stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
    passed = (cuda.as_cuda_array(x, sync=False) if isinstance(x, Tensor) else x for x in arguments)
    kernel[grid, threads, stream](*passed)
