"""verify in Numba CUDA; see the package for the contract. The CUDA simulator runs it on CPU tensors."""

from __future__ import annotations

from typing import Any

import torch
from numba import cuda
from torch import Tensor

from gpu.numba_launch import enqueue

THREADS = 128


@cuda.jit
def _verify(sampled: Any, starts: Any, drafts: Any, accepted: Any) -> None:
    """One thread a row: drafts are few."""
    row = cuda.grid(1)
    if row < accepted.size:
        first = starts[row]
        last = starts[row + 1] - 1
        place = first
        while place < last and sampled[place] == drafts[place]:
            place += 1
        accepted[row] = place - first + 1 if last >= first else 0


def verify(sampled: Tensor, starts: Tensor, drafts: Tensor, accepted: Tensor) -> None:
    """sampled, drafts [places]; starts [rows + 1]; accepted [rows]."""
    if {tensor.dtype for tensor in (sampled, starts, drafts, accepted)} != {torch.int32}:
        raise ValueError("sampled, starts, drafts and accepted are to be torch.int32")
    rows, places = len(accepted), len(sampled)
    if len(starts) != rows + 1 or len(drafts) != places:
        raise ValueError(
            f"{len(starts)} starts of {rows} rows, {len(drafts)} drafts at {places} places;"
            " there must be a start more than rows, and as many drafts as places"
        )
    if rows and places:
        enqueue(_verify, (-(-rows // THREADS),), THREADS, sampled, starts, drafts, accepted)
    elif rows:
        accepted.zero_()
