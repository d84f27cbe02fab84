"""Plans become the arrays that a decoder reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.core.plan import Draw, Row
from tokenspeed.core.request import Sampling
from tokenspeed.model.batching import Batcher, pooled_tokens

DRAW = Draw(Sampling(), 0, 0)


def test_rows_of_every_kind_are_laid_out_one_after_the_other() -> None:
    rows = (
        Row(0, 0, (10, 11, 12), (5, 2), None, targets=(11, 12, 13), score=0),  # a scored chunk
        Row(1, 6, (20,), (7, 1, 3), DRAW),  # a decode
        Row(2, 2, (30,), (4, 6), DRAW, drafts=(31, 32)),  # a speculation
        Row(3, 4, (40, 41), (0, 9), None),  # a chunk
        Row(4, 0, (50, 51), (8,), DRAW, targets=(51,)),  # the end of a scored prompt
    )
    batch, drawn = Batcher(block_size=4).layout(rows)
    assert batch.tokens.tolist() == [10, 11, 12, 20, 30, 31, 32, 40, 41, 50, 51]
    assert batch.positions.tolist() == [0, 1, 2, 6, 2, 3, 4, 4, 5, 0, 1]
    assert batch.slots.tolist() == [20, 21, 22, 6, 18, 19, 24, 36, 37, 32, 33]
    assert batch.row_starts.tolist() == [0, 3, 4, 7, 9, 11]
    assert batch.contexts.tolist() == [3, 7, 5, 6, 2]
    assert batch.block_tables.tolist() == [[5, 2, 0], [7, 1, 3], [4, 6, 0], [0, 9, 0], [8, 0, 0]]
    assert batch.logit_rows[:drawn].tolist() == [3, 4, 5, 6, 10]
    assert batch.logit_rows[drawn:].tolist() == [0, 1, 2, 9]
    assert {array.dtype for array in (batch.tokens, batch.positions, batch.slots, batch.contexts)} == {
        np.dtype(np.int32)
    }


@given(
    data=st.data(),
    block_size=st.sampled_from([1, 4, 16]),
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 20)), min_size=1, max_size=6),
)
def test_every_token_has_the_slot_of_its_position(
    data: st.DataObject, block_size: int, lengths: list[tuple[int, int]]
) -> None:
    batcher = Batcher(block_size)
    pool = iter(data.draw(st.permutations(range(6 * 90))))
    tables = [tuple(next(pool) for _ in range(-(-(start + count) // block_size))) for start, count in lengths]
    rows = [
        Row(number, start, (1,) * count, tables[number], None)
        for number, (start, count) in enumerate(lengths)
    ]
    batch, drawn = batcher.layout(rows)
    slots = iter(batch.slots.tolist())
    for row in rows:
        for position in range(row.start, row.start + len(row.tokens)):
            block, offset = divmod(position, block_size)
            assert next(slots) == row.blocks[block] * block_size + offset
    assert (drawn, len(batch.logit_rows)) == (0, 0)


def test_the_tokens_that_rows_pool_are_the_last_before_their_drafts() -> None:
    rows = (
        Row(0, 0, (10, 11, 12), (5,), None, pooled=3),
        Row(1, 6, (20,), (7, 1), DRAW),
        Row(2, 2, (30,), (4, 6), DRAW, drafts=(31, 32), pooled=1),
        Row(3, 0, (40, 41), (0,), None, pooled=1),
    )
    assert pooled_tokens(rows).tolist() == [0, 1, 2, 4, 8]
    assert pooled_tokens(rows[1:2]).tolist() == []


def test_a_table_that_grows_or_is_replaced_is_read_anew() -> None:
    batcher = Batcher(block_size=2)
    for blocks in ((3,), (3, 4), (8, 9)):
        batch, _ = batcher.layout([Row(0, len(blocks), (1,), blocks, DRAW)])
        assert batch.block_tables.tolist() == [list(blocks)]


def test_blocks_that_do_not_cover_the_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        Batcher(block_size=2).layout([Row(0, 1, (1,), (3,), DRAW, drafts=(1,))])
