"""Held draws where logits are at hand: from everything first, and asked about afterwards.

A token that may not follow is drawn again, after some tries from what may follow. That is distributed as if
it had been drawn from what may follow at once (rejection sampling). To ask about a token takes a fraction of
what it takes to find out which may follow, and what a model draws mostly may.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tokenspeed.backend.masks import failed, fill, words_of
from tokenspeed.core.plan import Draw, Row
from tokenspeed.model.sampler import TRIES, Sampled, instead, is_unfiltered, sample_some


def may_redraw(draw: Draw) -> bool:
    """Whether a held draw can be asked about afterwards. Filters must know before: they keep the best of what
    may follow."""
    return draw.sampling.temperature == 0.0 or is_unfiltered(draw.sampling)


class Drawn(NamedTuple):
    """What rows drew: row n from `firsts[n]` on, behind its last token and behind each of its drafts."""

    rows: Sequence[Row]
    firsts: Sequence[int]
    logits: Tensor  # [draws, vocab]
    draws: Sequence[Draw]
    sampled: list[Sampled]

    def redraw(self, places: Iterable[int]) -> dict[int, str]:
        """Draw again what may not follow, in the rows at `places`; what is wrong with which."""
        faults: dict[int, str] = {}
        asked = [(place, 0) for place in places]
        while asked:
            refused = []
            for place, ahead in asked:
                try:
                    stop = self._ask(place, ahead)
                except Exception as error:
                    faults[place] = failed(error)
                else:
                    if stop is not None:
                        refused.append((place, stop))
            self._draw_again(refused, faults)
            asked = [(place, stop + 1) for place, stop in refused if self._goes_on(place, stop, faults)]
        return faults

    def _ask(self, place: int, ahead: int) -> int | None:
        """Ask about what was drawn behind the row's first `ahead` drafts, and further as long as drafts hold.
        Tells behind how many drafts no token was drawn that may follow."""
        row, first = self.rows[place], self.firsts[place]
        assert row.draw is not None
        assert row.draw.held is not None
        constraint, behind = row.draw.held
        last = row.drafts[ahead - 1] if ahead else row.tokens[-1]
        while True:
            token, _, error, others = self.sampled[first + ahead]
            if error is not None:
                return None
            chosen = constraint.choose(behind + ahead, last, (token, *others))
            if chosen is None:
                return ahead
            if chosen != token:
                number = first + ahead
                self.sampled[number] = instead(self.logits, number, self.draws[number], chosen)
            if ahead == len(row.drafts) or chosen != row.drafts[ahead]:
                return None
            ahead, last = ahead + 1, chosen

    def _draw_again(self, refused: Sequence[tuple[int, int]], faults: dict[int, str]) -> None:
        """From what may follow."""
        masks = np.empty((len(refused), words_of(self.logits.shape[1])), np.int32)
        draws, allowed = {}, {}
        for index, (place, ahead) in enumerate(refused):
            if (fault := fill(self.rows[place], masks[index : index + 1], ahead)) is not None:
                faults[place] = fault
                continue
            number = self.firsts[place] + ahead
            draws[number], allowed[number] = self.draws[number], masks[index]
        for number, sampled in sample_some(self.logits, draws, allowed, again=TRIES).items():
            self.sampled[number] = sampled

    def _goes_on(self, place: int, ahead: int, faults: dict[int, str]) -> bool:
        """Whether what was drawn again is the next draft, so that what was drawn behind it counts."""
        again, drafts = self.sampled[self.firsts[place] + ahead], self.rows[place].drafts
        return (
            ahead < len(drafts) and place not in faults and not again.error and again.token == drafts[ahead]
        )
