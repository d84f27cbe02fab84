"""The CUDA source of decode_attention, and the constants that a model asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from gpu.paged_attention.source import DTYPES, Heads, check_served
from gpu.source import COMMON, Constants, Source

HEAD_DIMS = (64, 128)
TILE = 16  # tokens
WARPS, RING = 8, 2  # of a block; tiles of keys and values that a warp has on their way
MOST_ROWS, MOST_GROUP, MOST_SPLITS = 32, 16, 16

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("decode_attention",),
    variants=tuple(
        {"HEAD_DIM": head_dim, "PAIRS": pairs, "HALF": half, "NORMED": normed}
        for head_dim, pairs, half, normed in (
            (128, 64, 0, 0),
            (128, 64, 0, 1),
            (64, 32, 1, 0),
            (128, 32, 1, 1),
        )
    ),
    shared=COMMON,
)


def constants(shape: Heads, pairs: int, normed: bool) -> Constants:
    """For a model; `ValueError` where the kernel does not take it."""
    check_served("decode_attention", shape, HEAD_DIMS, DTYPES)
    if shape.group > MOST_GROUP:
        raise ValueError(
            f"decode_attention: {shape.heads} heads over {shape.kv_heads} kv heads;"
            f" the CUDA kernel takes up to {MOST_GROUP} to each"
        )
    each = shape.head_dim // 32  # elements of a head, for a lane
    if not 0 < 2 * pairs <= shape.head_dim or pairs % each:
        raise ValueError(
            f"decode_attention: {pairs} pairs turn in heads of {shape.head_dim}; the CUDA kernel takes"
            f" multiples of {each} up to {shape.head_dim // 2}"
        )
    half = int(shape.dtype == torch.float16)
    return {"HEAD_DIM": shape.head_dim, "PAIRS": pairs, "HALF": half, "NORMED": int(normed)}
