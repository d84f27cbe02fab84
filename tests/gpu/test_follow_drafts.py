"""The reference of follow_drafts against its definition, row by row."""

from __future__ import annotations

import pytest

import gpu.follow_drafts
from gpu.follow_drafts.reference import follow_drafts
from tests.gpu.follow_cases import BLOCK_SIZE, SPARE, VOCAB, followed


@pytest.mark.parametrize("seed", range(8))
def test_rows_go_on_behind_the_drafts_that_hold(seed: int) -> None:
    given = followed(20, 4, seed=seed)
    verified, drawn, rows, tables = (tensor.tolist() for tensor in given[:4])
    before = [tensor.clone() for tensor in given[7:]]
    follow_drafts(*given)
    tokens, positions, slots, contexts, draw_positions = given[7:]
    helds = set()
    for row, (first, drafts, start, room) in enumerate(rows):
        held = 0
        while held < drafts and verified[first + held + 1] == drawn[first + held]:
            held += 1
        helds.add((held == drafts, held))
        position = start + 1 + held

        def slot(at: int, table: list[int] = tables[row], room: int = room) -> int:
            inside = at < room
            return table[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE if inside else SPARE * BLOCK_SIZE

        both = [drawn[first + held - 1] if held == drafts else 0, drawn[first + held]]
        assert tokens[2 * row : 2 * row + 2].tolist() == [one if one < VOCAB else 0 for one in both]
        assert positions[2 * row : 2 * row + 2].tolist() == [position - 1, position]
        earlier = slot(position - 1) if held == drafts else SPARE * BLOCK_SIZE
        assert slots[2 * row : 2 * row + 2].tolist() == [earlier, slot(position)]
        assert contexts[row] == min(position + 1, room)
        moved = draw_positions - before[4]
        assert moved[2 * row : 2 * row + 2].tolist() == [0, held]
    assert len(helds) > 3
    for tensor, was in zip(given[7:], before, strict=True):
        assert tensor[-1] == was[-1]  # of no row


def test_it_has_a_contract() -> None:
    assert (gpu.follow_drafts.__doc__ or "").startswith("follow_drafts(")
