"""What the sources that are put after `elements.cuh` share: their dtypes, and which tensors they take."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

ELEMENTS = Path(__file__).with_name("elements.cuh")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # DTYPE in elements.cuh
ACCESS_BYTES = 16  # of one load or store


def dtype_constant(dtype: torch.dtype) -> int:
    """For `DTYPE`; `ValueError` where there is none."""
    if dtype not in DTYPES:
        raise ValueError(f"{dtype} has no kernel; use one of {', '.join(map(str, DTYPES))}")
    return DTYPES[dtype]


def check_rows(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Refuse what is not `shape` in `dtype`, dense but for its first stride, rows on 16-byte addresses."""
    if tensor.dtype != dtype:
        raise ValueError(f"{name} is {tensor.dtype}; make it {dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name} is {list(tensor.shape)}; make it {list(shape)}")
    strides, dense = tensor.stride(), 1
    for size, stride in zip(shape[:0:-1], strides[:0:-1], strict=True):
        if stride != dense and size > 1:
            raise ValueError(f"{name} has gaps within a row; make its rows contiguous")
        dense *= size
    if tensor.data_ptr() % ACCESS_BYTES or strides[0] * dtype.itemsize % ACCESS_BYTES:
        raise ValueError(f"rows of {name} do not start at multiples of {ACCESS_BYTES} bytes; align them")
