"""gather_ids in Numba CUDA; see the package for the contract. The CUDA simulator runs it on CPU tensors."""

from __future__ import annotations

from typing import Any

import torch
from numba import cuda
from torch import Tensor

from gpu.numba_launch import enqueue

THREADS = 128


@cuda.jit
def _gather(sampled: Any, sources: Any, tokens: Any) -> None:
    token = cuda.grid(1)
    if token < tokens.size and sources[token] >= 0:
        tokens[token] = sampled[sources[token]]


def gather_ids(sampled: Tensor, sources: Tensor, tokens: Tensor) -> None:
    """sampled [rows]; sources, tokens [tokens]."""
    if {sampled.dtype, sources.dtype, tokens.dtype} != {torch.int32} or len(sources) != len(tokens):
        raise ValueError("sampled, sources and tokens are to be torch.int32, the last two equally many")
    if len(tokens) and len(sampled):
        enqueue(_gather, (-(-len(tokens) // THREADS),), THREADS, sampled, sources, tokens)
