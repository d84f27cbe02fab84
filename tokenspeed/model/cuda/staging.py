"""What a step is told and what it gives, each in one piece of memory: one copy, however many arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu.driver import Driver

WORD = 4  # bytes
ALIGNED = 4  # words; arrays begin at a multiple


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
Copy = Callable[[int, int, int], object]  # to an address, from an address, so many bytes


def copies_of(device: torch.device) -> Copy:
    """How memory of the host and of the device is copied: enqueued, if the device works on its own."""
    return Driver(device).copy if device.type == "cuda" else ctypes.memmove


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
        self._host = _buffers(device, words, buffers)
        self._arrays = [buffer.numpy() for buffer in self._host]
        self._addresses = [buffer.data_ptr() for buffer in self._host]
        self._device = torch.zeros(words, dtype=torch.int32, device=device)
        self._target = self._device.data_ptr()
        self._copy = copies_of(device)
        self._next = 0
        self.tensors = lru_cache(maxsize=128)(self._tensors)
        self._views = lru_cache(maxsize=384)(self._viewed)

    def begin(self, size: Size, tables: tuple[int, ...]) -> Staged:
        """The next buffer, as arrays to fill and `tables` [rows, width]; it holds what it held before."""
        turn, self._next = self._next, (self._next + 1) % len(self._host)
        arrays, end = self._views(size, turn)
        words = end + tables[0] * tables[1]
        return Staged(arrays, self._arrays[turn][end:words].reshape(tables), words, turn)

    def send(self, staged: Staged) -> None:
        """Enqueue the copy."""
        self._copy(self._target, self._addresses[staged.buffer], WORD * staged.words)

    def tables(self, staged: Staged) -> Tensor:
        """The block tables [rows, width] on the device, until others are sent."""
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


class Returned:
    """Buffers on the host, used in turn, that words of the device are copied to.

    `buffers` must exceed the copies that are still to be read.
    """

    def __init__(self, source: Tensor, *, buffers: int) -> None:
        """`source` is int32 and contiguous."""
        self._source = source
        self._host = _buffers(source.device, source.numel(), buffers)
        self._turns = [(buffer.numpy(), buffer.data_ptr()) for buffer in self._host]
        self._copy = copies_of(source.device)
        self._next = 0

    def fetch(self, words: int) -> NDArray[np.int32]:
        """Enqueue a copy of the first `words`; they are there once the device has come so far."""
        array, address = self._turns[self._next]
        self._next = (self._next + 1) % len(self._turns)
        if words:
            self._copy(address, self._source.data_ptr(), WORD * words)
        return array[:words]


class Turns:
    """Rows of words on the host, used in turn; `buffers` must exceed the passes that still read theirs."""

    def __init__(self, words: int, *, buffers: int, pinned: bool) -> None:
        """Made when they are needed: most servers never do. Copies to a device need `pinned` ones."""
        self._words, self._pinned = words, pinned
        self._kept = [torch.empty((0, words), dtype=torch.int32)] * buffers
        self._next = 0

    def take(self, rows: int) -> Tensor:
        """int32 [rows, words], of whatever was there."""
        turn, self._next = self._next, (self._next + 1) % len(self._kept)
        if len(self._kept[turn]) < rows:
            shape = (1 << (rows - 1).bit_length(), self._words)
            self._kept[turn] = torch.empty(shape, dtype=torch.int32, pin_memory=self._pinned)
        return self._kept[turn][:rows]


def _buffers(device: torch.device, words: int, count: int) -> list[Tensor]:
    """On the host; copies between them and the device need not be waited for."""
    pinned = device.type == "cuda"
    return [torch.zeros(words, dtype=torch.int32, pin_memory=pinned) for _ in range(count)]
