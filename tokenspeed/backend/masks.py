"""The masks of a step's draws, filled while the device computes what they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tokenspeed.core.constraint import Masks
from tokenspeed.core.plan import Row

ALL = -1  # a word that allows each of its 32 tokens


class Masked(NamedTuple):
    """Masks [numbers, words] of the draws with these `numbers`; `faults` of rows, by their place."""

    numbers: list[int]
    masks: Masks
    faults: dict[int, str]


NO_MASKS = Masked([], np.zeros((0, 0), np.int32), {})


def is_masked(row: Row) -> bool:
    """Whether a grammar holds what the row draws."""
    return row.draw is not None and row.draw.held is not None


def words_of(vocab: int) -> int:
    """How many words a mask has."""
    return -(-vocab // 32)


def fill_masks(rows: Sequence[Row], firsts: Sequence[int], vocab: int) -> Masked:
    """The masks of all rows that a grammar holds; `firsts` are the numbers of their first draws, which those
    after drafts follow. Where masks cannot be told everything is allowed, and it is a fault of the row."""
    places = [place for place, row in enumerate(rows) if is_masked(row)]
    numbers = [number for place in places for number in _numbers(rows[place], firsts[place])]
    masks = np.full((len(numbers), words_of(vocab)), ALL, np.int32)
    faults: dict[int, str] = {}
    start = 0
    for place in places:
        row = rows[place]
        stop = start + 1 + len(row.drafts)
        fault = _fill(masks[start:stop], row)
        if fault is not None:
            faults[place] = fault
            masks[start:stop] = ALL
        start = stop
    return Masked(numbers, masks, faults)


def _numbers(row: Row, first: int) -> range:
    return range(first, first + 1 + len(row.drafts))


def _fill(masks: Masks, row: Row) -> str | None:
    if row.draw is None or row.draw.held is None:
        return None
    constraint, count = row.draw.held
    return constraint.fill(masks, count, row.tokens[-1], row.drafts)
