"""The CUDA source of rms_norm."""

from __future__ import annotations

from pathlib import Path

from gpu.elements import DTYPES, ELEMENTS
from gpu.source import BASE, Source

CHUNKS_A_THREAD = (1, 2)  # one function each, of every kind
KINDS = ("rms_norm", "add_rms_norm", "wide_rms_norm")

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=tuple(f"{name}_{each}" for name in KINDS for each in CHUNKS_A_THREAD),
    variants=tuple({"DTYPE": dtype} for dtype in DTYPES.values()),
    shared=(BASE, ELEMENTS),
)
