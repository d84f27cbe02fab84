"""A step's rows, flattened into the arrays that a decoder reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Int32 = NDArray[np.int32]
NO_ROWS: Int32 = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of all rows, one after the other; row r is [row_starts[r], row_starts[r + 1]).

    Token t sits at `positions[t]` of its sequence, and its key and value go to slot `slots[t]` =
    block * block_size + offset of the pool. Row r attends its first `contexts[r]` tokens (its own new ones
    included, causally) through `block_tables[r]`, padded with 0. Logits are wanted after the tokens
    `logit_rows`, in that order.
    """

    tokens: Int32  # [tokens]
    positions: Int32  # [tokens]
    slots: Int32  # [tokens]
    row_starts: Int32  # [rows + 1]
    contexts: Int32  # [rows]
    block_tables: Int32  # [rows, most blocks of a row]
    logit_rows: Int32  # [logits]


class Decoder(Protocol):
    """The whole network over paged KV, which it owns the memory of.

    A token's logits are a function of its own sequence alone: the same bits whatever else is in the batch
    and however its prompt was cut into chunks.
    """

    @property
    def block_bytes(self) -> int:
        """Bytes of KV memory that one block takes over all layers."""
        ...

    def allocate(self, blocks: int) -> None:
        """Make the KV memory of `blocks` blocks; once, before the first forward."""
        ...

    def forward(self, batch: Batch) -> Tensor:
        """Write the batch's keys and values to their slots and return float32 logits [logits, vocab]."""
        ...

    def forward_states(self, batch: Batch, rows: Int32) -> tuple[Tensor, Tensor]:
        """As `forward`, and the hidden states after the final norm that follow the tokens `rows`, which
        differ: float32 [rows, hidden]."""
        ...

    def warm_up(self) -> None:
        """Do what the first forward would otherwise wait for; after `allocate`."""
        ...

    def close(self) -> None:
        """End what computes; no forward comes after it. Closing twice is fine."""
        ...
