"""What kernels of products ask of a tensor; importable without a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNED = 16  # bytes, at which tensors begin: so many are read at once


def require(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Raise `ValueError`, one line, for a tensor that `op` cannot take as `name`."""
    if tensor.dtype != dtype:
        raise ValueError(f"{op} was compiled for {name} in {dtype}, not {tensor.dtype}: make one for that")
    if tensor.shape != shape:
        raise ValueError(f"{op} got {name} {list(tensor.shape)}: make it {list(shape)}")
    if not tensor.is_contiguous():
        raise ValueError(f"{op} in CUDA takes a contiguous {name}: copy it first")
    if tensor.data_ptr() % ALIGNED:
        raise ValueError(f"{op} in CUDA takes {name} at a multiple of {ALIGNED} bytes: copy it first")
