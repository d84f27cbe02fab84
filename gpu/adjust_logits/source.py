"""The CUDA source of adjust_logits."""

from __future__ import annotations

from pathlib import Path

from gpu.source import COMMON, Source

THREADS = 256
LOGITS_A_BLOCK = 32 * THREADS  # that a block masks

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("adjust_logits", "adjust_and_mask_logits"),
    variants=({},),
    shared=COMMON,
)
