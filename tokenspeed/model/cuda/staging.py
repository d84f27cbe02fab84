"""What a step is told, packed into one piece of memory: one copy to the device, however many arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNED = 4  # words of 4 bytes; arrays begin at a multiple


class Size(NamedTuple):
    """How many tokens, rows and logits a step has."""

    tokens: int
    rows: int
    logits: int


class _Array(NamedTuple):
    """Where an array lies, in words of 4 bytes, and what it holds."""

    start: int
    words: int
    numpy: Any
    torch: torch.dtype


Layout = dict[str, _Array]


@lru_cache(maxsize=256)
def layout_of(size: Size) -> tuple[Layout, int]:
    """The arrays of a step of that size, and the words that they take together; tables come after them."""
    of_tokens, of_logits = size.tokens, size.logits
    counts = {
        "tokens": (of_tokens, np.int32, torch.int32),
        "sources": (of_tokens, np.int32, torch.int32),
        "positions": (of_tokens, np.int32, torch.int32),
        "slots": (of_tokens, np.int32, torch.int32),
        "row_starts": (size.rows + 1, np.int32, torch.int32),
        "contexts": (size.rows, np.int32, torch.int32),
        "logit_rows": (of_logits, np.int32, torch.int32),
        "draw_positions": (of_logits, np.int32, torch.int32),
        "top_k": (of_logits, np.int32, torch.int32),
        "temperature": (of_logits, np.float32, torch.float32),
        "top_p": (of_logits, np.float32, torch.float32),
        "min_p": (of_logits, np.float32, torch.float32),
        "seeds": (2 * of_logits, np.int64, torch.int64),
    }
    arrays: Layout = {}
    start = 0
    for name, (words, numpy, kind) in counts.items():
        arrays[name] = _Array(start, words, numpy, kind)
        start += -(-words // ALIGNED) * ALIGNED
    return arrays, start


def words_needed(size: Size, width: int) -> int:
    """Words of a step of that size, with block tables of `width`."""
    return layout_of(size)[1] + size.rows * width


@dataclass(frozen=True, slots=True)
class StepTensors:
    """A step on the device. Tables are a view of the network's own, with a fixed stride."""

    tokens: Tensor  # int32 [tokens]
    sources: Tensor  # int32 [tokens]: the logit of the step before that draws it; -1: as given
    positions: Tensor  # int32 [tokens]
    slots: Tensor  # int32 [tokens]
    row_starts: Tensor  # int32 [rows + 1]
    contexts: Tensor  # int32 [rows]
    logit_rows: Tensor  # int32 [logits]: tokens after which logits are wanted
    draw_positions: Tensor  # int32 [logits]
    top_k: Tensor  # int32 [logits]
    temperature: Tensor  # float32 [logits]
    top_p: Tensor  # float32 [logits]
    min_p: Tensor  # float32 [logits]
    seeds: Tensor  # int64 [logits]


class Staged(NamedTuple):
    """A buffer on the host while it is filled: its arrays by name, and the block tables of its rows."""

    arrays: dict[str, NDArray[Any]]
    tables: NDArray[np.int32]
    words: int
    buffer: int


class Staging:
    """Buffers on the host, used in turn, and the one on the device that they are sent to.

    `buffers` must exceed the steps in flight: a buffer is filled again only when the step that was sent from
    it has ended.
    """

    def __init__(self, device: torch.device, words: int, *, buffers: int = 3) -> None:
        pinned = device.type == "cuda"
        self._host = [torch.zeros(words, dtype=torch.int32, pin_memory=pinned) for _ in range(buffers)]
        self._arrays = [buffer.numpy() for buffer in self._host]
        self._device = torch.zeros(words, dtype=torch.int32, device=device)
        self._next = 0
        self.tensors = lru_cache(maxsize=128)(self._tensors)
        self._views = lru_cache(maxsize=384)(self._viewed)

    def begin(self, size: Size, tables: tuple[int, ...]) -> Staged:
        """The next buffer, as arrays to fill and `tables` [rows, width]; it holds what it held before."""
        turn, self._next = self._next, (self._next + 1) % len(self._host)
        arrays, end = self._views(size, turn)
        words = end + tables[0] * tables[1]
        return Staged(arrays, self._arrays[turn][end:words].reshape(tables), words, turn)

    def send(self, staged: Staged) -> Tensor:
        """Enqueue the copy; the tables [rows, width] on the device."""
        self._device[: staged.words].copy_(self._host[staged.buffer][: staged.words], non_blocking=True)
        rows, width = staged.tables.shape
        return self._device[staged.words - rows * width : staged.words].view(rows, width)

    def _viewed(self, size: Size, turn: int) -> tuple[dict[str, NDArray[Any]], int]:
        """The arrays of a step of that size in one buffer, and where they end."""
        layout, end = layout_of(size)
        memory = self._arrays[turn]
        arrays = {
            name: memory[array.start : array.start + array.words].view(array.numpy)
            for name, array in layout.items()
        }
        return arrays, end

    def _tensors(self, size: Size) -> StepTensors:
        """The arrays of a step of that size on the device: the same memory for every such step."""
        layout, _ = layout_of(size)
        return StepTensors(
            **{
                name: self._device[array.start : array.start + array.words].view(array.torch)
                for name, array in layout.items()
            }
        )
