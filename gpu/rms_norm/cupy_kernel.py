"""rms_norm in CUDA C++; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.elements import ACCESS_BYTES, check_rows, dtype_constant
from gpu.launch import Kernels
from gpu.rms_norm.source import CHUNKS_A_THREAD, SOURCE

THREADS, WARP = 1024, 32  # the most in a block; the fewest
FEW_ROWS = 256  # up to which a block has as many threads as it can use: latency counts, not occupancy


class RmsNorm:
    """Rows of one dtype: a whole number of 16-byte chunks each, at most 2,048 of them."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._width = ACCESS_BYTES // dtype.itemsize
        self._kernels = Kernels(SOURCE, {"DTYPE": dtype_constant(dtype)})

    def __call__(
        self, x: Tensor, weight: Tensor, eps: float, out: Tensor, delta: Tensor | None = None
    ) -> None:
        """See the package."""
        self._check(x, weight, out, delta)
        if x.shape[0]:
            self.enqueue(x, weight, eps, out, delta)

    def enqueue(
        self, x: Tensor, weight: Tensor, eps: float, out: Tensor, delta: Tensor | None = None
    ) -> None:
        """The call, unchecked, for one row or more."""
        rows, dim = x.shape
        chunks = dim // self._width
        each = _chunks_a_thread(rows, chunks)
        threads = -(-chunks // (each * WARP)) * WARP
        arguments = (x, weight, out, chunks, eps, x.stride(0), out.stride(0))
        if x.dtype != self._dtype:
            self._kernels.launch_early(f"wide_rms_norm_{each}", (rows,), (threads,), *arguments)
        elif delta is None:
            self._kernels.launch_early(f"rms_norm_{each}", (rows,), (threads,), *arguments)
        else:
            more = (delta, delta.stride(0))
            self._kernels.launch_early(f"add_rms_norm_{each}", (rows,), (threads,), *arguments, *more)

    def _check(self, x: Tensor, weight: Tensor, out: Tensor, delta: Tensor | None) -> None:
        rows, dim = x.shape
        most = THREADS * CHUNKS_A_THREAD[-1] * self._width
        if dim % self._width or dim > most:
            raise ValueError(f"rows of {dim} elements: need a multiple of {self._width} up to {most}")
        if x.dtype == torch.float32 and delta is not None and self._dtype != x.dtype:
            raise ValueError("rms_norm adds to rows of its own dtype alone; leave delta out for float32")
        check_rows("x", x, torch.float32 if x.dtype == torch.float32 else self._dtype, (rows, dim))
        check_rows("weight", weight[None], self._dtype, (1, dim))
        check_rows("out", out, self._dtype, (rows, dim))
        if delta is not None:
            check_rows("delta", delta, self._dtype, (rows, dim))


def _chunks_a_thread(rows: int, chunks: int) -> int:
    """As few as fit where rows are few; else as many as leave a block 128 threads."""
    fitting = [each for each in CHUNKS_A_THREAD if each * THREADS >= chunks]
    if rows <= FEW_ROWS:
        return fitting[0]
    return max((each for each in fitting if each * 128 <= chunks), default=fitting[0])
