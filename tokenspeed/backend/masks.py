"""The masks of a step's draws, filled while the device computes what they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokenspeed.core.constraint import Masks
from tokenspeed.core.plan import Row

ALL = -1  # a word that allows each of its 32 tokens


class Masked(NamedTuple):
    """Masks [draws, words], of which those with these `numbers` are held to something; `faults` of rows, by
    their place."""

    numbers: list[int]
    masks: Masks
    faults: dict[int, str]


NOTHING_MASKED = Masked([], np.empty((0, 0), np.int32), {})


def is_masked(row: Row) -> bool:
    """Whether a grammar holds what the row draws."""
    return row.draw is not None and row.draw.held is not None


def words_of(vocab: int) -> int:
    """How many words a mask has."""
    return -(-vocab // 32)


def fill_masks(rows: Sequence[Row], places: Sequence[int], firsts: Sequence[int], masks: Masks) -> Masked:
    """Fill the masks [draws, words] of a step's rows at `places`. `firsts` are the numbers of rows' first
    draws, which those after drafts follow. Where masks cannot be told everything is allowed, and it is a
    fault of the row."""
    masks[:] = ALL
    numbers: list[int] = []
    faults: dict[int, str] = {}
    for place in places:
        row = rows[place]
        some = slice(firsts[place], firsts[place] + 1 + len(row.drafts))
        fault = fill(row, masks[some])
        if fault is not None:
            faults[place] = fault
            masks[some] = ALL
        numbers += range(some.start, some.stop)
    return Masked(numbers, masks, faults)


def fill(row: Row, masks: Masks, ahead: int = 0) -> str | None:
    """Fill the masks [draws, words] of what a held row draws, from behind its first `ahead` drafts on. Tells
    what is wrong with the row, if anything is: others in its step have nothing to do with that."""
    assert row.draw is not None
    assert row.draw.held is not None
    constraint, behind = row.draw.held
    last = row.drafts[ahead - 1] if ahead else row.tokens[-1]
    try:
        return constraint.fill(masks, behind + ahead, last, row.drafts[ahead : ahead + len(masks) - 1])
    except Exception as error:
        return failed(error)


def failed(error: Exception) -> str:
    return f"the grammar failed: {error}"
