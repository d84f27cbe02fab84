"""The CUDA source of silu_mul."""

from __future__ import annotations

from pathlib import Path

from gpu.elements import DTYPES, ELEMENTS
from gpu.source import BASE, Source

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("silu_mul",),
    variants=tuple({"DTYPE": dtype} for dtype in DTYPES.values()),
    shared=(BASE, ELEMENTS),
)
