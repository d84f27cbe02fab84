"""The CUDA source of rope_write_kv."""

from __future__ import annotations

from math import gcd
from pathlib import Path

from gpu.elements import ACCESS_BYTES, DTYPES, ELEMENTS
from gpu.source import BASE, Constants, Source

WARP = 32
HEADS = ((64, 32), (96, 48), (128, 64), (256, 128), (128, 32), (80, 10))  # (head_dim, pairs) worth compiling


def constants(dtype: int, itemsize: int, head_dim: int, pairs: int) -> Constants:
    """For heads of one shape: as wide accesses as divide their parts, as many lanes as these occupy."""
    width = gcd(ACCESS_BYTES // itemsize, pairs, head_dim)
    turning = pairs // width  # chunks
    group = min(WARP, 1 << (turning - 1).bit_length())
    return {"DTYPE": dtype, "HEAD_DIM": head_dim, "PAIRS": pairs, "WIDTH": width, "GROUP": group}


SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("rope_write_kv",),
    variants=tuple(
        constants(number, dtype.itemsize, *shape) for dtype, number in DTYPES.items() for shape in HEADS
    ),
    shared=(BASE, ELEMENTS),
)
