"""The CUDA source of prefill_attention, and the constants that a model asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from gpu.paged_attention.source import DTYPES, HEAD_DIMS, Heads, check_served
from gpu.source import HOPPER, Constants, Source

GRANULE = 16  # tokens that surely lie in one block of the pool
QUERY_ROWS = 128  # (token, head of the group), of a tile
THREADS = 384
STAGES = 2  # of the rings of keys and of values
MOST_ROWS = 1024
ALIGNMENT = 1024  # bytes, of what the tensor cores read

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("prefill_attention",),
    variants=tuple(
        {
            "HEAD_DIM": head_dim,
            "HALF": half,
            "GROUP": group,
            "TOKENS": tokens,
            "QUERIES": queries,
            "MOST_ROWS": MOST_ROWS,
        }
        for head_dim, half, group, tokens, queries in (
            (64, 1, 7, 128, 2),
            (96, 0, 1, 128, 2),
            (128, 0, 4, 128, 2),
            (128, 1, 2, 128, 2),
            (256, 0, 2, 64, 1),
        )
    ),
    shared=HOPPER,
    architectures=("sm_90a",),
)


def constants(shape: Heads) -> Constants:
    """What kernel.cu is compiled with for these heads. `ValueError` where there is no kernel for them."""
    check_served("prefill_attention", shape, HEAD_DIMS, DTYPES)
    wide = shape.head_dim > 128  # then shared memory and registers hold half as much
    return {
        "HEAD_DIM": shape.head_dim,
        "HALF": int(shape.dtype == torch.float16),
        "GROUP": shape.group,
        "TOKENS": 64 if wide else 128,
        "QUERIES": 1 if wide else 2,
        "MOST_ROWS": MOST_ROWS,
    }


def shared_bytes(chosen: Constants) -> int:
    """Of the rings of a block: queries, keys and values, in rows of 128 bytes."""
    columns = -(-chosen["HEAD_DIM"] // 64)
    rows = chosen["QUERIES"] * QUERY_ROWS + 2 * STAGES * chosen["TOKENS"]
    return ALIGNMENT + columns * rows * 128
