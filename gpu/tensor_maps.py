"""Tensor maps: what Hopper's copy engine is told of a matrix, as a kernel's argument. Needs a CUDA driver."""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any

import torch
from torch import Tensor

BYTES = 128
_TYPES = {torch.float16: 6, torch.bfloat16: 9}  # CU_TENSOR_MAP_DATA_TYPE_...
_SWIZZLE_128B = 3
_PROMOTIONS = {64: 1, 128: 2, 256: 3}  # CU_TENSOR_MAP_L2_PROMOTION_...
_KEPT = 4096  # maps: of all matrices of a model, and of activations of many numbers of rows


def tensor_map(matrix: Tensor, box_rows: int, box_columns: int, *, promoted: int = 256) -> bytes:
    """Of a matrix [rows, columns] of 16-bit elements with contiguous rows, fetched a box at a time.

    A row of a box, at most 128 bytes, is swizzled over 128; beyond the matrix there are zeros. The L2 fetches
    `promoted` bytes at once. The address, and rows in bytes, must be multiples of 16, else `ValueError`.
    `cuTensorMapEncodeTiled` in the CUDA driver API has the details.
    """
    rows, columns = matrix.shape
    kinds = _TYPES[matrix.dtype], _PROMOTIONS[promoted]
    return _encoded(matrix.data_ptr(), rows, columns, matrix.stride(0), kinds, box_rows, box_columns)


@lru_cache(maxsize=_KEPT)
def _encoded(
    address: int,
    rows: int,
    columns: int,
    stride: int,
    kinds: tuple[int, int],
    box_rows: int,
    box_columns: int,
) -> bytes:
    room = ctypes.create_string_buffer(2 * BYTES)  # the driver wants 64 bytes' alignment
    start = -ctypes.addressof(room) % 64
    status = _encode()(
        ctypes.byref(room, start),
        kinds[0],
        2,
        ctypes.c_void_p(address),
        (ctypes.c_uint64 * 2)(columns, rows),
        (ctypes.c_uint64 * 1)(2 * stride),
        (ctypes.c_uint32 * 2)(box_columns, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        0,
        _SWIZZLE_128B,
        kinds[1],
        0,
    )
    if status:
        raise ValueError(
            f"the CUDA driver makes no tensor map of {rows} rows of {columns}, {stride} apart:"
            f" error {status}; use another kernel"
        )
    return room.raw[start : start + BYTES]


@cache
def _encode() -> Any:
    return ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
