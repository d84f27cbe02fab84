"""A step's rows, packed as the device reads them and sent: of block tables only what it does not have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tokenspeed.core.plan import Draw, Row
from tokenspeed.model.batch import Int32
from tokenspeed.model.batching import Batcher
from tokenspeed.model.cuda.drawing import DrawParameters
from tokenspeed.model.cuda.network import PADDED_ROWS, Bounds, Network, Shape
from tokenspeed.model.cuda.staging import Size, Staging, StepTensors, words_needed

NOT_COVERED = "a row's blocks do not cover its tokens"


class Packer:
    """Packs rows into a buffer of the host, pads them to a shape, and enqueues the copy to the device.

    `buffers` must exceed the steps in flight. `sources` is, for each row of the plan before, the logit that
    it draws from.
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
        """The arrays of a step that decodes, on the device: the same memory for every one of that shape."""
        return self._staging.tensors(Size(shape.tokens, shape.rows, shape.rows))

    def decode(
        self, rows: Sequence[Row], shape: Shape, draws: Sequence[Draw | None], sources: dict[int, int]
    ) -> StepTensors:
        """Rows of one token each, with a logit after every row."""
        count, size = len(rows), self._network.block_size
        try:
            blocks = [row.blocks[row.start // size] for row in rows]
        except IndexError:
            raise ValueError(NOT_COVERED) from None
        first, last, width = self._changed(rows)
        staged = self._staging.begin(Size(shape.tokens, shape.rows, shape.rows), (last - first, width))
        arrays = staged.arrays
        positions = np.array([row.start for row in rows], np.int32)
        arrays["tokens"][:count] = [row.tokens[0] for row in rows]
        arrays["sources"][:count] = [-1 if row.source < 0 else sources[row.source] for row in rows]
        arrays["positions"][:count] = positions
        arrays["slots"][:count] = np.array(blocks, np.int32) * size + positions % size
        arrays["contexts"][:count] = positions + 1
        np.minimum(self._counting[: shape.rows + 1], count, out=arrays["row_starts"])
        if count < shape.rows:
            self._pad_tokens(arrays, count)
            arrays["contexts"][count:] = 0
        self._parameters.fill(arrays, draws)
        staged.tables[:] = self._entries[first:last, :width]
        self._staging.send(staged)
        if last > first:
            self._network.set_tables(first, self._staging.tables(staged))
            self._tables[first:last] = [row.blocks for row in rows[first:last]]
        return self.tensors(shape)

    def mixed(
        self,
        rows: Sequence[Row],
        singles: int,
        shape: Shape,
        draws: Sequence[Draw | None],
        sources: dict[int, int],
    ) -> tuple[StepTensors, Int32]:
        """Rows of any number of tokens, the `singles` of one token first. Also the tokens whose targets are
        to be scored."""
        layout = self._batcher.layout(rows)
        batch, count, others = layout.batch, len(layout.batch.tokens), len(rows) - singles
        size = Size(shape.tokens, shape.rows, len(draws))
        staged = self._staging.begin(size, batch.block_tables.shape)
        arrays = staged.arrays
        arrays["tokens"][:count] = batch.tokens
        arrays["sources"][:] = -1
        arrays["sources"][:singles] = [
            -1 if row.source < 0 else sources[row.source] for row in rows[:singles]
        ]
        arrays["positions"][:count] = batch.positions
        arrays["slots"][:count] = batch.slots
        self._pad_tokens(arrays, count)
        _spread(arrays["row_starts"], batch.row_starts, singles, shape)
        contexts = arrays["contexts"]
        contexts[:] = 0
        contexts[:singles] = batch.contexts[:singles]
        contexts[shape.singles : shape.singles + others] = batch.contexts[singles:]
        arrays["logit_rows"][:] = batch.logit_rows[: layout.drawn]
        self._parameters.fill(arrays, draws)
        staged.tables[:] = batch.block_tables
        self._tables = []  # others are there now
        self._staging.send(staged)
        tables = self._staging.tables(staged)
        if singles:
            self._network.set_tables(0, tables[:singles])
        if others:
            self._network.set_tables(shape.singles, tables[singles:])
        return self._staging.tensors(size), batch.logit_rows[layout.drawn :]

    @property
    def plain(self) -> bool:
        """Whether the draws of the last step are from the logits as they are, and nothing is asked but the
        tokens."""
        return self._parameters.plain

    def _changed(self, rows: Sequence[Row]) -> tuple[int, int, int]:
        """The rows, from the first to the last, whose tables the device has not, and how wide these are."""
        known = self._tables
        known += [()] * (len(rows) - len(known))
        changed = [at for at, row in enumerate(rows) if row.blocks is not known[at]]
        if not changed:
            return 0, 0, 0
        for at in changed:
            table = rows[at].blocks
            self._entries[at, : len(table)] = table
        first, last = changed[0], changed[-1] + 1
        return first, last, max([len(row.blocks) for row in rows[first:last]])

    def _pad_tokens(self, arrays: dict[str, Int32], count: int) -> None:
        """Tokens from `count` on belong to no row, and write to the spare block."""
        arrays["tokens"][count:] = 0
        arrays["sources"][count:] = -1
        arrays["positions"][count:] = 0
        arrays["slots"][count:] = self._network.spare_block * self._network.block_size


def most_words(bounds: Bounds, table_width: int) -> int:
    """Of the largest step: 4 bytes each."""
    return words_needed(Size(bounds.tokens, bounds.rows + PADDED_ROWS, bounds.tokens), table_width)


def _spread(starts: Int32, real: Int32, singles: int, shape: Shape) -> None:
    """Into `starts` [shape.rows + 1] those of the real rows, and of rows without tokens between and after."""
    starts[:singles] = real[:singles]
    starts[singles : shape.singles] = real[singles]
    others = len(real) - 1 - singles
    starts[shape.singles : shape.singles + others] = real[singles:-1]
    starts[shape.singles + others :] = real[-1]
