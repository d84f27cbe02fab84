"""Drafts out of a draft model on the model's own device: they stay there, and the model's pass reads them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed.backend.guessing import UNKNOWN
from tokenspeed.backend.packing import Guessed, columns_of
from tokenspeed.backend.passes import Pass, Passes
from tokenspeed.core.plan import Draw, Row
from tokenspeed.core.request import Sampling
from tokenspeed.model.cuda.staging import WORD, Returned, copies_of

logger = logging.getLogger(__name__)


class Guesses(NamedTuple):
    """Drafts that the device was told to find, and what it found once it has come so far."""

    guessed: list[Guessed]  # by place in the plan
    first: int  # place of `drawn` within all that is drawn
    drawn: NDArray[np.int32]

    def found(self) -> dict[int, tuple[int, ...]]:
        """By place in the plan."""
        drawn = self.drawn.tolist()
        return {row: tuple([drawn[place - self.first] for place in places]) for row, places in self.guessed}


class DeviceGuesser:
    """Enqueues the passes of the draft model that find the drafts of rows which ask for them.

    Its pool has a block for each of the model's, under the same number, so block tables lead to its keys and
    values as well. A draft is drawn as the model will draw there, with the same random number. What passes
    draw is kept in `kept`, which begins at place `first` of all that is drawn.
    """

    def __init__(self, passes: Passes, kept: Tensor, *, first: int, max_context: int, in_flight: int) -> None:
        """The draft model serves sequences of up to `max_context` tokens."""
        self.passes = passes
        self._kept, self._first = kept.data_ptr(), first
        self._copy = copies_of(kept.device)
        self._returned = Returned(kept, buffers=in_flight + 1)
        self._max_context = max_context
        self._failed = False

    def guess(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Guesses | None]:
        """The rows, with a draft 0 for each that the device will find; None where there are none.

        A failure of the draft model costs drafts and nothing else.
        """
        if self._failed:
            return rows, None
        try:
            guesses = self._enqueue(rows)
        except Exception as error:
            self._failed = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            logger.warning("the draft model failed and is not used any more: %s", reason, exc_info=error)
            return rows, None
        drafted = list(rows)
        for row, places in guesses.guessed:
            drafted[row] = drafted[row]._replace(drafts=(0,) * len(places))
        return drafted, guesses

    def warm_up(self, tokens: int) -> None:
        """Run every kind of pass once, one with so many tokens, over blocks that nobody has. Raises what is
        wrong with any."""
        blocks = tuple(range(-(-tokens // self.passes.network.block_size)))
        known = tokens - 2  # and two that it guesses behind
        for lacking in (known, 1, 0):
            draw = Draw(Sampling(temperature=0.0), 0, known + 1)
            self._enqueue([Row(0, known, (0,), blocks, draw, guess=2, behind=(0,) * lacking)])

    def _enqueue(self, rows: Sequence[Row]) -> Guesses:
        """One draft for all of them, then the next. The last ones are not computed."""
        wanted = [max(0, min(row.guess, self._max_context - row.start)) for row in rows]
        asking = [place for place, row in enumerate(rows) if wanted[place] or self._catches_up(row)]
        asking.sort(key=lambda place: -wanted[place])  # those that are done early come last
        found: list[list[int]] = [[] for _ in asking]
        words = 0
        for ahead in range(max((wanted[place] for place in asking), default=0) or bool(asking)):
            if not ahead:
                made = self._begin([self._first_turn(rows[place], wanted[place]) for place in asking])
            else:
                going = [rows[place] for place in asking if wanted[place] > ahead]
                turns = [self._turn(row, ahead, number) for number, row in enumerate(going)]
                sources = {number: places[-1] for number, places in enumerate(found) if places}
                made = self.passes.decode(turns, columns_of(turns), sources)
            words = self._keep(made, found, words)
        guessed = [Guessed(place, places) for place, places in zip(asking, found, strict=True) if places]
        return Guesses(guessed, self._first, self._returned.fetch(words))

    def _catches_up(self, row: Row) -> bool:
        return bool(row.behind) and row.start <= self._max_context

    def _first_turn(self, row: Row, wanted: int) -> Row:
        """What the draft model lacks, and a draw behind it where drafts are wanted."""
        vocab = self.passes.network.spec.vocab_size
        tokens = row.behind + row.tokens if wanted else row.behind
        if max(tokens) >= vocab:  # a prompt given as ids may name rows that pad the model's embedding alone
            tokens = tuple([token if token < vocab else UNKNOWN for token in tokens])
        draw = _plain(row.draw) if wanted and row.draw is not None else None
        return Row(row.sequence, row.start - len(row.behind), tokens, self._blocks(row), draw)

    def _turn(self, row: Row, ahead: int, source: int) -> Row:
        """The next pass, after `ahead` drafts of the row, behind row `source` of the pass before."""
        draw = None if row.draw is None else _plain(row.draw)._replace(position=row.draw.position + ahead)
        return Row(row.sequence, row.start + ahead, (0,), self._blocks(row), draw, source=source)

    def _blocks(self, row: Row) -> tuple[int, ...]:
        """As many as the draft model has places for: a longer model's tables may be longer."""
        return row.blocks[: self.passes.network.table_width]

    def _begin(self, turns: Sequence[Row]) -> Pass:
        columns = columns_of(turns)
        if all(columns.draw) and max(map(len, columns.tokens)) == 1:
            return self.passes.decode(turns, columns, {})
        if self.passes.takes_few(columns):
            return self.passes.verify(turns, {})
        return self.passes.mixed(turns, columns, {})

    def _keep(self, made: Pass, found: list[list[int]], words: int) -> int:
        """Copy what a pass draws behind the `words` that are kept, and note where each row's is."""
        ends = [first + count for first, count in zip(made.firsts, made.counts, strict=True)]
        for place, end, count in zip(made.order.places, ends, made.counts, strict=True):
            if count:
                found[place].append(self._first + words + end - 1)
        size = max(ends)
        if size:
            self._copy(self._kept + WORD * words, self.passes.own.data_ptr(), WORD * size)
        return words + size


def _plain(draw: Draw) -> Draw:
    """Without what draws from logits as they are have no use for: drafts need be no better."""
    return Draw(_plainly(draw.sampling), draw.seed, draw.position)


@lru_cache(maxsize=1024)
def _plainly(sampling: Sampling) -> Sampling:
    return Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
    )


def kept_words(tokens: int, logits: int) -> int:
    """Of what a step keeps of its draft model's draws, where it has so many tokens, drafts included."""
    return tokens + logits
