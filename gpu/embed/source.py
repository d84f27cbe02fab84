"""The CUDA source of embed."""

from __future__ import annotations

from pathlib import Path

from gpu.source import COMMON, Source

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("embed_copied", "embed_widened"),
    variants=({"HALF": 0}, {"HALF": 1}),  # which 16 bits are widened
    shared=COMMON,
)
