"""The rows of a pass, packed as the device reads them and sent: of block tables only what it has not."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, count
from operator import getitem, is_not
from typing import NamedTuple

import numpy as np

from tokenspeed.core.plan import Draw, Row
from tokenspeed.model.batch import Int32
from tokenspeed.model.batching import Batcher
from tokenspeed.model.cuda.drawing import DrawParameters
from tokenspeed.model.cuda.network import PADDED_ROWS, Bounds, Network, Shape
from tokenspeed.model.cuda.staging import Size, Staged, Staging, StepTensors, words_needed

NOT_COVERED = "a row's blocks do not cover its tokens"


class Columns(NamedTuple):
    """Rows, field by field: walking a field of all rows takes a fraction of what walking rows takes."""

    sequence: tuple[int, ...]
    start: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    blocks: tuple[tuple[int, ...], ...]
    draw: tuple[Draw | None, ...]
    drafts: tuple[tuple[int, ...], ...]
    source: tuple[int, ...]
    targets: tuple[tuple[int, ...], ...]
    score: tuple[int, ...]
    guess: tuple[int, ...]
    behind: tuple[tuple[int, ...], ...]
    caught: tuple[int, ...]
    pooled: tuple[int, ...]


def columns_of(rows: Sequence[Row]) -> Columns:
    """Of one row or more."""
    return Columns._make(zip(*rows, strict=True))


class Guessed(NamedTuple):
    """Drafts that are on the device alone: of row `row`, in these places of what was drawn."""

    row: int
    places: Sequence[int]


class Packed(NamedTuple):
    """A step that is still to be sent."""

    step: StepTensors  # as they will be on the device
    staged: Staged
    tables: tuple[tuple[int, int, int], ...]  # their parts: the row it goes to, its first and its last


class Packer:
    """Packs rows into a buffer of the host, pads them to a shape, and enqueues the copy to the device.

    `buffers` must exceed the passes in flight. `sources` is, for each row that `Row.source` may name, where
    in what was drawn its token is.
    """

    def __init__(self, network: Network, *, buffers: int) -> None:
        bounds = network.bounds
        self._network = network
        self._batcher = Batcher(network.block_size)
        words = most_words(bounds, network.table_width)
        self._staging = Staging(network.device, words, buffers=buffers)
        self._parameters = DrawParameters()
        # What the device has as the tables of a step that decodes: the very objects, and their entries.
        self._tables: list[tuple[int, ...]] = []
        self._entries = np.zeros((bounds.rows, network.table_width), np.int32)
        self._counting = np.arange(bounds.rows + 1, dtype=np.int32)

    def tensors(self, shape: Shape) -> StepTensors:
        """The arrays of a step with a draw after every token, on the device: the same memory for every one of
        that shape. They begin like those of any step with as many tokens and rows."""
        return self._staging.tensors(Size(shape.tokens, shape.rows, shape.tokens))

    def send(self, packed: Packed) -> None:
        """Enqueue the copy."""
        self._staging.send(packed.staged)
        if packed.tables:
            tables = self._staging.tables(packed.staged)
            for row, first, last in packed.tables:
                self._network.set_tables(row, tables[first:last])

    def decode(self, columns: Columns, shape: Shape, sources: dict[int, int]) -> Packed:
        """Rows of one token each, with a logit after every row."""
        rows, size = len(columns.start), self._network.block_size
        positions = np.array(columns.start, np.int32)
        try:
            blocks = list(map(getitem, columns.blocks, (positions // size).tolist()))
        except IndexError:
            raise ValueError(NOT_COVERED) from None
        first, last, width = self._changed(columns.blocks)
        staged = self._staging.begin(Size(shape.tokens, shape.rows, shape.rows), (last - first, width))
        arrays = staged.arrays
        arrays["tokens"][:rows] = [token for (token,) in columns.tokens]
        arrays["sources"][:rows] = [sources[source] if source >= 0 else -1 for source in columns.source]
        arrays["positions"][:rows] = positions
        arrays["slots"][:rows] = np.array(blocks, np.int32) * size + positions % size
        arrays["contexts"][:rows] = positions + 1
        np.minimum(self._counting[: shape.rows + 1], rows, out=arrays["row_starts"])
        if rows < shape.rows:
            self._pad_tokens(arrays, rows)
            arrays["contexts"][rows:] = 0
        self._parameters.fill(arrays, columns.draw)
        if last == first:
            return Packed(self.tensors(shape), staged, ())
        staged.tables[:] = self._entries[first:last, :width]
        self._tables[first:last] = columns.blocks[first:last]
        return Packed(self.tensors(shape), staged, ((first, 0, last - first),))

    def mixed(
        self,
        rows: Sequence[Row],
        singles: int,
        shape: Shape,
        draws: Sequence[Draw | None],
        sources: dict[int, int],
        guessed: Sequence[Guessed] = (),
    ) -> tuple[Packed, Int32]:
        """Rows of any number of tokens, of which the shape's `singles` have one and come first. Also the
        tokens whose targets are to be scored."""
        layout = self._batcher.layout(rows)
        batch, count, others = layout.batch, len(layout.batch.tokens), len(rows) - singles
        size = Size(shape.tokens, shape.rows, shape.tokens if shape.draws else len(draws))
        staged = self._staging.begin(size, batch.block_tables.shape)
        arrays = staged.arrays
        arrays["tokens"][:count] = batch.tokens
        arrays["sources"][:] = -1
        for row, first in zip(rows, batch.row_starts.tolist(), strict=False):  # row_starts has one more
            if row.source >= 0:
                arrays["sources"][first] = sources[row.source]
        for drafts in guessed:
            end = batch.row_starts[drafts.row + 1]
            arrays["sources"][end - len(drafts.places) : end] = drafts.places
        arrays["positions"][:count] = batch.positions
        arrays["slots"][:count] = batch.slots
        self._pad_tokens(arrays, count)
        _spread(arrays["row_starts"], batch.row_starts, singles, shape)
        contexts = arrays["contexts"]
        contexts[:] = 0
        contexts[:singles] = batch.contexts[:singles]
        contexts[shape.singles : shape.singles + others] = batch.contexts[singles:]
        if not shape.draws:
            drawn = _drawing(rows, singles, shape) if shape.narrow else batch.logit_rows[: layout.drawn]
            arrays["logit_rows"][:] = drawn
        self._parameters.fill(arrays, draws)
        staged.tables[:] = batch.block_tables
        self._tables = []  # others are there now
        parts = ((0, 0, singles), (shape.singles, singles, len(rows)))
        tables = tuple(part for part in parts if part[1] < part[2])
        return Packed(self._staging.tensors(size), staged, tables), batch.logit_rows[layout.drawn :]

    @property
    def plain(self) -> bool:
        """Whether the draws of the last step are from the logits as they are, and nothing is asked but the
        tokens."""
        return self._parameters.plain

    def _changed(self, tables: Sequence[tuple[int, ...]]) -> tuple[int, int, int]:
        """The rows, from the first to the last, whose tables the device has not, and how wide these are."""
        known = self._tables
        known += [()] * (len(tables) - len(known))
        changed = list(compress(count(), map(is_not, tables, known)))
        if not changed:
            return 0, 0, 0
        for at in changed:
            table, before = tables[at], known[at]
            kept = len(before) if table[: len(before)] == before else 0  # most have grown
            self._entries[at, kept : len(table)] = table[kept:]
        first, last = changed[0], changed[-1] + 1
        return first, last, max(map(len, tables[first:last]))

    def _pad_tokens(self, arrays: dict[str, Int32], count: int) -> None:
        """Tokens from `count` on belong to no row, and write to the spare block."""
        arrays["tokens"][count:] = 0
        arrays["sources"][count:] = -1
        arrays["positions"][count:] = 0
        arrays["slots"][count:] = self._network.spare_block * self._network.block_size


def most_words(bounds: Bounds, table_width: int) -> int:
    """Of the largest step: 4 bytes each."""
    return words_needed(Size(bounds.tokens, bounds.rows + PADDED_ROWS, bounds.tokens), table_width)


def _drawing(rows: Sequence[Row], singles: int, shape: Shape) -> list[int]:
    """The rows of the shape that draw."""
    others = shape.singles - singles  # further on, behind rows without tokens
    return [at if at < singles else at + others for at, row in enumerate(rows) if row.draw is not None]


def _spread(starts: Int32, real: Int32, singles: int, shape: Shape) -> None:
    """Into `starts` [shape.rows + 1] those of the real rows, and of rows without tokens between and after."""
    starts[:singles] = real[:singles]
    starts[singles : shape.singles] = real[singles]
    others = len(real) - 1 - singles
    starts[shape.singles : shape.singles + others] = real[singles:-1]
    starts[shape.singles + others :] = real[-1]
