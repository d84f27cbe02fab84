"""adjust_logits in CUDA C++; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.adjust_logits.source import LOGITS_A_BLOCK, SOURCE, THREADS
from gpu.launch import Kernels

MOST_ROWS = 65_535  # of a grid's second extent
MOST_PARTS = 16  # blocks for the entries of a row


class AdjustLogits:
    """Any rows, on the current device."""

    def __init__(self) -> None:
        """Compiles for the current device."""
        self._kernels = Kernels(SOURCE, {})

    def __call__(
        self,
        logits: Tensor,
        starts: Tensor,
        tokens: Tensor,
        counts: Tensor,
        biases: Tensor,
        repetition: Tensor,
        frequency: Tensor,
        presence: Tensor,
        mask: Tensor | None,
        kept: Tensor,
    ) -> None:
        """See the package."""
        rows, vocab = logits.shape
        if rows > MOST_ROWS:
            raise ValueError(f"adjust_logits: {rows} rows exceed {MOST_ROWS}; adjust them in two calls")
        entries = len(tokens)
        _check_dense("starts", starts, torch.int32, rows + 1)
        _check_dense("tokens", tokens, torch.int32, entries)
        _check_dense("counts", counts, torch.int32, entries)
        _check_dense("biases", biases, torch.float32, entries)
        _check_dense("repetition", repetition, torch.float32, rows)
        _check_dense("frequency", frequency, torch.float32, rows)
        _check_dense("presence", presence, torch.float32, rows)
        _check_dense("kept", kept, torch.float32, entries)
        _check_rows("logits", logits, torch.float32, (rows, vocab))
        if mask is not None:
            _check_rows("mask", mask, torch.int32, (rows, -(-vocab // 32)))
        if rows and vocab:
            self.enqueue(logits, starts, tokens, counts, biases, repetition, frequency, presence, mask, kept)

    def enqueue(
        self,
        logits: Tensor,
        starts: Tensor,
        tokens: Tensor,
        counts: Tensor,
        biases: Tensor,
        repetition: Tensor,
        frequency: Tensor,
        presence: Tensor,
        mask: Tensor | None,
        kept: Tensor,
    ) -> None:
        """The call, unchecked, for one row or more."""
        rows, vocab = logits.shape
        penalties = (repetition, frequency, presence)
        arguments = (logits, starts, tokens, counts, biases, *penalties, kept, vocab, logits.stride(0))
        if mask is None:
            # As many as the entries fill if spread evenly; a row with more of them walks over them.
            parts = min(-(-len(tokens) // (rows * THREADS)), MOST_PARTS)
            if parts:
                self._kernels.launch_early("adjust_logits", (parts, rows), (THREADS,), *arguments)
        else:
            grid = (-(-vocab // LOGITS_A_BLOCK), rows)
            more = (mask, mask.stride(0))
            self._kernels.launch_early("adjust_and_mask_logits", grid, (THREADS,), *arguments, *more)


def _check_dense(name: str, tensor: Tensor, dtype: torch.dtype, size: int) -> None:
    if tensor.dtype != dtype or tensor.shape != (size,) or not tensor.is_contiguous():
        found = f"{tensor.dtype}{list(tensor.shape)}"
        raise ValueError(f"adjust_logits: {name} is {found}; make it a contiguous {dtype}[{size}]")


def _check_rows(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape or (shape[1] > 1 and tensor.stride(1) != 1):
        found = f"{tensor.dtype}{list(tensor.shape)}"
        raise ValueError(f"adjust_logits: {name} is {found}; make it {dtype}{list(shape)}, rows contiguous")
