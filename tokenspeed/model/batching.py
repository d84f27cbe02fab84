"""From the rows of a plan to the arrays that a decoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokenspeed.core.plan import Row
from tokenspeed.model.batch import Batch, Int32


class Layout(NamedTuple):
    """A batch, and whose its logits are.

    The first `drawn` logits are those to sample from, 1 + drafts of each row with a draw, in the order of the
    rows; behind them come those to score, one for each target, in the same order.
    """

    batch: Batch
    drawn: int


class Batcher:
    """Builds batches over blocks of `block_size` tokens.

    Block tables are the same objects from step to step, so their arrays are kept for the rows of the last
    step; that is all it remembers.
    """

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._tables: dict[int, tuple[tuple[int, ...], Int32]] = {}

    def layout(self, rows: Sequence[Row]) -> Layout:
        """The batch of one step; rows must not be empty and have their tokens on the host.

        Raises `ValueError` for a row whose blocks do not cover its tokens: writing would hit another's.
        """
        tokens: list[int] = []
        for row in rows:
            tokens += row.tokens
            tokens += row.drafts
        counts = np.array([len(row.tokens) + len(row.drafts) for row in rows], dtype=np.int32)
        starts = np.array([row.start for row in rows], dtype=np.int32)
        contexts = starts + counts
        row_starts = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(counts, out=row_starts[1:])
        owners = np.repeat(np.arange(len(rows), dtype=np.int32), counts)  # [tokens]
        positions = np.arange(len(tokens), dtype=np.int32) + (starts - row_starts[:-1])[owners]
        tables = self._block_tables(rows, contexts)
        blocks = tables[owners, positions // self._block_size]
        logit_rows, drawn = _logit_rows(rows, row_starts.tolist())
        batch = Batch(
            tokens=np.array(tokens, dtype=np.int32),
            positions=positions,
            slots=blocks * np.int32(self._block_size) + positions % self._block_size,
            row_starts=row_starts,
            contexts=contexts,
            block_tables=tables,
            logit_rows=logit_rows,
        )
        return Layout(batch, drawn)

    def _block_tables(self, rows: Sequence[Row], contexts: Int32) -> Int32:
        """int32 [rows, most blocks of a row], padded with 0."""
        known, kept = self._tables, {}
        for row in rows:
            entry = known.get(row.sequence)
            if entry is None or entry[0] is not row.blocks:
                entry = (row.blocks, np.array(row.blocks, dtype=np.int32))
            kept[row.sequence] = entry
        self._tables = kept
        lengths = np.array([len(row.blocks) for row in rows], dtype=np.int32)
        if (lengths * self._block_size < contexts).any():
            raise ValueError("a row's blocks do not cover its tokens")
        tables = np.zeros((len(rows), max(int(lengths.max()), 1)), dtype=np.int32)
        for table, row in zip(tables, rows, strict=True):
            table[: len(row.blocks)] = kept[row.sequence][1]
        return tables


def pooled_tokens(rows: Sequence[Row]) -> Int32:
    """Of the tokens of all rows, drafts included, one after the other: those that rows pool, in order."""
    found: list[int] = []
    start = 0
    for row in rows:
        end = start + len(row.tokens)
        found += range(end - row.pooled, end)
        start = end + len(row.drafts)
    return np.array(found, dtype=np.int32)


def _logit_rows(rows: Sequence[Row], row_starts: list[int]) -> tuple[Int32, int]:
    """The tokens whose logits are wanted, and how many of them are to sample from."""
    drawn: list[int] = []
    scored: list[int] = []
    for row, start in zip(rows, row_starts, strict=False):  # row_starts has one more
        last = start + len(row.tokens) - 1
        if row.draw is not None:
            drawn += range(last, last + 1 + len(row.drafts))
        if row.targets:
            scored += range(start, start + len(row.targets))
    return np.array(drawn + scored, dtype=np.int32), len(drawn)
