"""The CUDA source of follow_drafts."""

from __future__ import annotations

from pathlib import Path

from gpu.source import COMMON, Source

THREADS = 64

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("follow_drafts",),
    variants=({},),
    shared=COMMON,
)
