"""silu_mul in CUDA C++; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.elements import ACCESS_BYTES, check_rows, dtype_constant
from gpu.launch import Kernels
from gpu.silu_mul.source import SOURCE

THREADS, WARP = 256, 32


class SiluMul:
    """Rows of one dtype: a whole number of 16-byte chunks each."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._width = ACCESS_BYTES // dtype.itemsize
        self._kernels = Kernels(SOURCE, {"DTYPE": dtype_constant(dtype)})

    def __call__(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        """See the package."""
        rows, dim = gate.shape
        if dim % self._width:
            raise ValueError(f"rows of {dim} elements: need a multiple of {self._width}")
        for name, tensor in (("gate", gate), ("up", up), ("out", out)):
            check_rows(name, tensor, self._dtype, (rows, dim))
        if rows:
            self.enqueue(gate, up, out)

    def enqueue(self, gate: Tensor, up: Tensor, out: Tensor) -> None:
        """The call, unchecked, for one row or more."""
        rows, dim = gate.shape
        chunks = dim // self._width
        threads = min(THREADS, -(-chunks // WARP) * WARP)
        grid = (rows, -(-chunks // threads))
        strides = (gate.stride(0), up.stride(0), out.stride(0))
        self._kernels.launch_early("silu_mul", grid, (threads,), gate, up, out, chunks, *strides)
