"""The masks of a step's draws, filled while the device computes what they are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tokenspeed.core.constraint import Masks
from tokenspeed.core.plan import Held, Row

ALL = -1  # a word that allows each of its 32 tokens


class Masked(NamedTuple):
    """Masks [draws, words], of which those with these `numbers` are held to something; `faults` of rows, by
    their place."""

    numbers: list[int]
    masks: Masks
    faults: dict[int, str]


def is_masked(row: Row) -> bool:
    """Whether a grammar holds what the row draws."""
    return row.draw is not None and row.draw.held is not None


def words_of(vocab: int) -> int:
    """How many words a mask has."""
    return -(-vocab // 32)


def fill_masks(rows: Sequence[Row], firsts: Sequence[int], masks: Masks) -> Masked:
    """Fill the masks [draws, words] of a step. `firsts` are the numbers of the rows' first draws, which those
    after drafts follow. Where masks cannot be told everything is allowed, and it is a fault of the row."""
    masks[:] = ALL
    numbers: list[int] = []
    faults: dict[int, str] = {}
    for place, row in enumerate(rows):
        if row.draw is None or row.draw.held is None:
            continue
        some = slice(firsts[place], firsts[place] + 1 + len(row.drafts))
        fault = _fill(row.draw.held, masks[some], row)
        if fault is not None:
            faults[place] = fault
            masks[some] = ALL
        numbers += range(some.start, some.stop)
    return Masked(numbers, masks, faults)


def _fill(held: Held, masks: Masks, row: Row) -> str | None:
    """What is wrong with the row, if anything is: others in its step have nothing to do with that."""
    try:
        return held.constraint.fill(masks, held.behind, row.tokens[-1], row.drafts)
    except Exception as error:
        return f"the grammar failed: {error}"
