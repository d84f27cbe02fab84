"""The CUDA source of paged_attention, and the constants that a model and a device ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from gpu.source import COMMON, Constants, Source

HEAD_DIMS = (64, 96, 128, 256)
DTYPES = (torch.bfloat16, torch.float16)
TILE = 16  # tokens of context, and rows of queries, that a warp multiplies at once
WARPS, BLOCKS = 4, 2  # of a block, and blocks that share a multiprocessor: two of 4 read faster than one of 8
MOST_WARPS = 8  # of a block, for many query rows
LEAST_RING, MOST_RING = 3, 24  # half tiles on their way to a team of warps
MOST_ROWS = 1024
STATIC_BYTES = 4 * MOST_ROWS + 1024  # of shared memory besides the rings

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("paged_attention_read", "paged_attention_join"),
    variants=tuple(
        {
            "HEAD_DIM": head_dim,
            "HALF": half,
            "TILES": tiles,
            "WARPS": warps,
            "RING": ring,
            "MOST_ROWS": MOST_ROWS,
            "BLOCKS": BLOCKS if warps == WARPS else 1,
        }
        for head_dim, half, tiles, warps, ring in (
            (64, 0, 1, 4, 13),
            (96, 1, 1, 4, 9),
            (128, 0, 1, 4, 6),
            (128, 1, 4, 4, 24),
            (128, 0, 8, 8, 24),
            (256, 0, 1, 4, 3),
        )
    ),
    shared=COMMON,
)


@dataclass(frozen=True, slots=True)
class Heads:
    """What attention knows of a model: `head_dim` wide, `heads` of queries sharing `kv_heads` evenly."""

    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads


def check_served(op: str, shape: Heads, head_dims: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """`ValueError` where the CUDA kernel of `op`, which takes these, has nothing for a model's heads."""
    if shape.head_dim not in head_dims:
        raise ValueError(f"{op}: head_dim is {shape.head_dim}; the CUDA kernel takes one of {head_dims}")
    if shape.dtype not in dtypes:
        raise ValueError(f"{op}: dtype is {shape.dtype}; the CUDA kernel takes one of {dtypes}")
    if shape.heads % shape.kv_heads:
        raise ValueError(f"{op}: {shape.heads} heads are no multiple of {shape.kv_heads} kv heads")


def most_tokens(group: int) -> int:
    """Of a row, for which there is a kernel, where so many heads share keys and values."""
    return TILE * MOST_WARPS // group


def constants(shape: Heads, most_tokens: int, shared_bytes: int) -> Constants:
    """For rows of up to `most_tokens`, on a device whose blocks may have `shared_bytes` of shared memory."""
    check_served("paged_attention", shape, HEAD_DIMS, DTYPES)
    tiles = 1 << (-(-shape.group * most_tokens // TILE) - 1).bit_length()
    if tiles > MOST_WARPS:
        raise ValueError(
            f"paged_attention: {most_tokens} tokens x {shape.group} heads of a group exceed"
            f" {TILE * MOST_WARPS}; verify fewer tokens at once"
        )
    half = 2 * TILE * shape.head_dim
    warps = max(WARPS, tiles)
    blocks = BLOCKS if warps == WARPS else 1
    room = shared_bytes // blocks - STATIC_BYTES
    while warps > tiles and room // (warps // tiles * half) < LEAST_RING:
        warps //= 2
    ring = min(room // (warps // tiles * half), MOST_RING)
    if ring < LEAST_RING:
        raise ValueError(
            f"paged_attention: {shared_bytes} bytes of shared memory are too few; use the reference"
        )
    return {
        "HEAD_DIM": shape.head_dim,
        "HALF": int(shape.dtype == torch.float16),
        "TILES": tiles,
        "WARPS": warps,
        "RING": ring,
        "MOST_ROWS": MOST_ROWS,
        "BLOCKS": blocks,
    }
