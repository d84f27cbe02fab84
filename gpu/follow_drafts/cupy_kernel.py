"""follow_drafts in CUDA C++; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.follow_drafts.source import SOURCE, THREADS
from gpu.launch import Kernels


class FollowDrafts:
    """Any rows, on the current device. A row has one draft at least, and one place more."""

    def __init__(self) -> None:
        """Compiles for the current device."""
        self._kernels = Kernels(SOURCE, {})

    def __call__(
        self,
        verified: Tensor,
        drawn: Tensor,
        rows: Tensor,
        tables: Tensor,
        block_size: int,
        spare_block: int,
        vocab: int,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        contexts: Tensor,
        draw_positions: Tensor,
    ) -> None:
        """See the package."""
        count = len(rows)
        given = {"verified": verified, "drawn": drawn, "rows": rows, "tables": tables}
        written = {"tokens": tokens, "positions": positions, "slots": slots, "draw_positions": draw_positions}
        for name, tensor in (given | written | {"contexts": contexts}).items():
            if tensor.dtype != torch.int32 or not tensor.is_contiguous():
                raise ValueError(f"follow_drafts: {name} is {tensor.dtype}; make it a contiguous torch.int32")
        if rows.shape[1:] != (4,) or len(tables) < count or len(contexts) < count:
            raise ValueError(f"follow_drafts: rows are {list(rows.shape)}; each has 4 numbers and a table")
        for name, tensor in written.items():
            if len(tensor) < 2 * count:
                raise ValueError(
                    f"follow_drafts: {name} has {len(tensor)} places; {count} rows need two each"
                )
        if count:
            sizes = (block_size, spare_block, vocab)
            outputs = (tokens, positions, slots, contexts, draw_positions)
            self.enqueue(verified, drawn, rows, tables, *sizes, *outputs)

    def enqueue(
        self,
        verified: Tensor,
        drawn: Tensor,
        rows: Tensor,
        tables: Tensor,
        block_size: int,
        spare_block: int,
        vocab: int,
        tokens: Tensor,
        positions: Tensor,
        slots: Tensor,
        contexts: Tensor,
        draw_positions: Tensor,
    ) -> None:
        """The call, unchecked, for one row or more."""
        count = len(rows)
        self._kernels.launch(
            "follow_drafts",
            (-(-count // THREADS),),
            (THREADS,),
            verified,
            drawn,
            rows,
            tables,
            tokens,
            positions,
            slots,
            contexts,
            draw_positions,
            count,
            tables.stride(0),
            block_size,
            spare_block * block_size,
            vocab,
        )
