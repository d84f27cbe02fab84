"""copy_blocks in Numba CUDA; see the package for the contract. The CUDA simulator runs it on CPU tensors."""

from __future__ import annotations

from typing import Any

import torch
from numba import cuda
from torch import Tensor

from gpu.numba_launch import enqueue

THREADS = 256
WORDS_A_THREAD = 4  # loads in flight
MOST_PLANES = 65_535  # of a grid's second and third extents


@cuda.jit
def _copy(pool: Any, sources: Any, targets: Any) -> None:
    """Block (x, y, z): a tile of a block in plane y, of copy z."""
    source = sources[cuda.blockIdx.z]
    if source < 0:
        return
    target = targets[cuda.blockIdx.z]
    plane = cuda.blockIdx.y
    first = cuda.blockIdx.x * THREADS * WORDS_A_THREAD + cuda.threadIdx.x
    for each in range(WORDS_A_THREAD):
        word = first + each * THREADS
        if word < pool.shape[2]:
            pool[plane, target, word] = pool[plane, source, word]


def copy_blocks(pool: Tensor, sources: Tensor, targets: Tensor) -> None:
    """pool [planes, blocks, size], sources and targets [copies]."""
    planes, _, size = pool.shape
    copies = len(sources)
    if pool.dtype != torch.int64:
        raise ValueError(f"pool is {pool.dtype}; view it as torch.int64")
    if sources.dtype != torch.int32 or targets.dtype != torch.int32 or len(targets) != copies:
        raise ValueError("sources and targets are to be torch.int32 and equally many")
    if max(planes, copies) > MOST_PLANES:
        raise ValueError(f"{copies} copies in {planes} planes; at most {MOST_PLANES} of each")
    if copies and pool.numel():
        tiles = -(-size // (THREADS * WORDS_A_THREAD))
        enqueue(_copy, (tiles, planes, copies), THREADS, pool, sources, targets)
