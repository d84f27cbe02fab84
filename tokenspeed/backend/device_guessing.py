"""Drafts out of a draft model on the model's own device: they stay there, and the model's pass reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed.backend.guessing import UNKNOWN, readable, tell_of_failure
from tokenspeed.backend.packing import Guessed, columns_of
from tokenspeed.backend.passes import Pass, Passes
from tokenspeed.core.plan import Draw, Row, RowResult
from tokenspeed.core.request import Sampling
from tokenspeed.model.cuda.drawing import to_device
from tokenspeed.model.cuda.staging import WORD, Returned, StepTensors, copies_of


class Guesses(NamedTuple):
    """Drafts that the device was told to find, and what it found once it has come so far."""

    guessed: list[Guessed]  # by place in the plan
    first: int  # place of `drawn` within all that is drawn
    drawn: NDArray[np.int32]

    def found(self) -> dict[int, tuple[int, ...]]:
        """By place in the plan."""
        drawn = self.drawn.tolist()
        return {row: tuple([drawn[place - self.first] for place in places]) for row, places in self.guessed}


@dataclass(slots=True)
class Next:
    """The first draft of a sequence's next row, which the device finds while nobody has asked for it yet."""

    row: Row  # that it follows
    place: int  # of the draft in all that is drawn
    start: int = -1  # where that next row starts, once it is known
    token: int = -1  # of that next row

    def suits(self, row: Row, block_size: int) -> bool:
        """Whether it is the first draft of that very row."""
        before = self.row.blocks
        return (
            (self.start, self.token) == (row.start, row.tokens[0])
            and row.start < len(before) * block_size
            and len(row.behind) <= 1
            and (row.blocks is before or row.blocks[: len(before)] == before)
        )


class DeviceGuesser:
    """Enqueues the passes of the draft model that find the drafts of rows which ask for them.

    Its pool has a block for each of the model's, under the same number, so block tables lead to its keys and
    values as well. A draft is drawn as the model will draw there, with the same random number. What passes
    draw is kept in `kept`, which begins at place `first` of all that is drawn.

    The device would have nothing to do between a step that verifies and the next, which depends on how its
    drafts did. So the first draft of the next step is looked for at once, wherever that will begin.
    """

    def __init__(self, passes: Passes, kept: Tensor, *, first: int, max_context: int, in_flight: int) -> None:
        """The draft model serves sequences of up to `max_context` tokens."""
        self.passes = passes
        self._kept, self._first = kept.data_ptr(), first
        self._copy = copies_of(kept.device)
        self._returned = Returned(kept, buffers=in_flight + 1)
        self._max_context = max_context
        self._failed = False
        self._next: dict[int, Next] = {}  # by sequence
        self._kept_ahead = 0  # words of what is kept that these have

    def guess(self, rows: Sequence[Row]) -> tuple[Sequence[Row], Guesses | None]:
        """The rows, with a draft 0 for each that the device will find; None where there are none.

        A failure of the draft model costs drafts and nothing else.
        """
        if self._failed:
            return rows, None
        try:
            guesses = self._enqueue(rows)
        except Exception as error:
            self._fail(error)
            return rows, None
        drafted = list(rows)
        for row, places in guesses.guessed:
            drafted[row] = drafted[row]._replace(drafts=(0,) * len(places))
        return drafted, guesses

    def run_ahead(self, rows: Sequence[Row], guesses: Guesses, made: Pass, drawn: Tensor) -> None:
        """Enqueue the first drafts behind these rows, whose drafts are verified by a pass that draws after
        every token, and drew `drawn`."""
        bounds = self.passes.network.bounds
        asking = [row for row, places in guesses.guessed if self._reaches(rows[row], len(places))]
        if self._failed or bounds.few < 2 or not 0 < 2 * len(asking) <= bounds.logits:
            return
        try:
            self._enqueue_ahead(
                [rows[row] for row in asking], [made.firsts[row] for row in asking], made, drawn
            )
        except Exception as error:
            self._fail(error)

    def settle(self, guesses: Guesses, rows: Sequence[Row], results: Sequence[RowResult]) -> None:
        """What rows gave, so that it is known what follows them."""
        for place, _ in guesses.guessed:
            row, given = rows[place], results[place]
            if given.tokens and (following := self._next.get(row.sequence)) is not None:
                following.start, following.token = row.start + len(given.tokens), given.tokens[-1]

    def warm_up(self, tokens: int) -> None:
        """Run every kind of pass once, one with so many tokens, over blocks that nobody has. Raises what is
        wrong with any."""
        blocks = tuple(range(-(-tokens // self.passes.network.block_size)))
        known = tokens - 2  # and two that it guesses behind
        for lacking in (known, 1, 0):
            draw = Draw(Sampling(temperature=0.0), 0, known + 1)
            behind = (0,) * lacking
            row = Row(0, known, (0,), blocks, draw, guess=2, behind=behind, caught=known - lacking)
            self._enqueue([row])

    def _enqueue(self, rows: Sequence[Row]) -> Guesses:
        """One draft for all of them, then the next. The last ones are not computed."""
        wanted = [max(0, min(row.guess, self._max_context - row.start)) for row in rows]
        asking = [place for place, row in enumerate(rows) if wanted[place] or self._late(row)]
        asking.sort(key=lambda place: -wanted[place])  # those that are done early come last
        found = [self._found_ahead(rows[place]) if wanted[place] else [] for place in asking]
        words, self._kept_ahead, self._next = self._kept_ahead, 0, {}
        late = [number for number, places in enumerate(found) if not places]
        if late:
            turns = [self._first_turn(rows[asking[number]], wanted[asking[number]]) for number in late]
            words = self._keep(self._begin(turns), [found[number] for number in late], words)
        for ahead in range(1, max((wanted[place] for place in asking), default=0)):
            going = [rows[place] for place in asking if wanted[place] > ahead]
            turns = [self._turn(row, ahead, number) for number, row in enumerate(going)]
            sources = {number: places[-1] for number, places in enumerate(found) if places}
            words = self._keep(self.passes.decode(turns, columns_of(turns), sources), found, words)
        guessed = [Guessed(place, places) for place, places in zip(asking, found, strict=True) if places]
        return Guesses(guessed, self._first, self._returned.fetch(words))

    def _enqueue_ahead(self, rows: Sequence[Row], firsts: Sequence[int], made: Pass, drawn: Tensor) -> None:
        """Two tokens each, as if no draft had held, moved on by what did."""
        network = self.passes.network
        size = network.block_size
        turns, verified = [], []
        for row, first in zip(rows, firsts, strict=True):
            draw = None if row.draw is None else _plain(row.draw)._replace(position=row.draw.position + 1)
            blocks = self._blocks(row)
            turns.append(Row(row.sequence, row.start, (UNKNOWN, UNKNOWN), blocks, draw))
            verified.append((first, len(row.drafts), row.start, len(blocks) * size))
        sent = to_device(np.array(verified, np.int32), network.device)

        def move_on(step: StepTensors) -> None:
            self.passes.ops.follow_drafts(
                made.step.tokens,
                drawn,
                sent,
                network.tables,
                size,
                network.spare_block,
                network.spec.vocab_size,
                step.tokens,
                step.positions,
                step.slots,
                step.contexts,
                step.draw_positions,
            )

        ahead = self.passes.verify(turns, {}, prepare=move_on)
        found: list[list[int]] = [[] for _ in rows]
        self._kept_ahead = self._keep(ahead, found, 0)
        self._next = {row.sequence: Next(row, place) for row, [place] in zip(rows, found, strict=True)}

    def _found_ahead(self, row: Row) -> list[int]:
        """The places of the drafts that the device has found for a row already."""
        following = self._next.get(row.sequence)
        suits = following is not None and following.suits(row, self.passes.network.block_size)
        return [following.place] if following is not None and suits else []

    def _reaches(self, row: Row, drafts: int) -> bool:
        """Whether the draft model serves whatever follows a row, too."""
        return row.start + drafts + 2 <= self._max_context

    def _fail(self, error: Exception) -> None:
        self._failed = True
        tell_of_failure(error)

    def _late(self, row: Row) -> tuple[int, ...]:
        """What the draft model lacks, up to where its context ends."""
        return row.behind[: max(0, self._max_context - row.caught)]

    def _first_turn(self, row: Row, wanted: int) -> Row:
        """What the draft model lacks, and a draw behind it where drafts are wanted."""
        lacking = row.behind + row.tokens if wanted else self._late(row)
        tokens = readable(lacking, self.passes.network.spec.vocab_size)
        draw = _plain(row.draw) if wanted and row.draw is not None else None
        start = row.caught if row.behind else row.start
        return Row(row.sequence, start, tokens, self._blocks(row), draw)

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
    """Of what a step keeps of its draft model's draws, where it has so many tokens, drafts included: first
    drafts that were found ahead and others, then those behind them."""
    return tokens + 2 * logits
