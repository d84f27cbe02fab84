"""Numba kernels, launched on torch's current stream; in Numba's CUDA simulator, on tensors of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from numba import cuda
from torch import Tensor


def enqueue(kernel: Any, grid: tuple[int, ...], threads: int, *tensors: Tensor) -> None:
    """Enqueue one kernel, compiling it at its first launch."""
    if tensors[0].is_cuda:
        stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
        kernel[grid, threads, stream](*(cuda.as_cuda_array(tensor, sync=False) for tensor in tensors))
    else:
        kernel[grid, threads](*(tensor.numpy() for tensor in tensors))
