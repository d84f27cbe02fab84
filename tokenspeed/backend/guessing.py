"""Drafts out of a draft model, on the CPU: a smaller one finds what the model will probably draw."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import torch
from torch import Tensor

from tokenspeed.backend.results import draw_after
from tokenspeed.core.plan import Row
from tokenspeed.model.batching import Batcher
from tokenspeed.model.draft import Draft
from tokenspeed.model.sampler import Sampled, sample

logger = logging.getLogger(__name__)

UNKNOWN = 0  # what the draft model reads in the place of a token that its embedding lacks


class Guesser:
    """Finds the drafts of rows that ask for them.

    The draft model's pool has a block for each of the model's, under the same number, so block tables lead
    to its keys and values as well. A draft is drawn as the model will draw there, with the same random
    number: where their distributions overlap, the two mostly agree, and the model's own draws are what they
    are without drafts.
    """

    def __init__(self, draft: Draft, *, block_size: int, vocab_size: int) -> None:
        self._draft = draft
        self._batcher = Batcher(block_size)
        self._vocab_size = vocab_size  # the model's
        self._failed = False

    @property
    def failed(self) -> bool:
        """Whether the draft model has failed, after which it is left alone."""
        return self._failed

    def guess(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, with `drafts` in those that ask: as many as they ask for, unless a draw cannot be made
        or the draft model's context ends. It catches up with others as they say.

        A failure of the draft model costs drafts and nothing else.
        """
        asking = [number for number, row in enumerate(rows) if row.guess or row.behind]
        drafted = list(rows)
        if not asking or self._failed:
            return drafted
        try:
            found = self._find([rows[number] for number in asking])
        except Exception as error:
            self._failed = True
            tell_of_failure(error)
            return drafted
        for number, drafts in zip(asking, found, strict=True):
            if rows[number].guess:
                drafted[number] = rows[number]._replace(drafts=drafts)
        return drafted

    def _find(self, rows: Sequence[Row]) -> list[tuple[int, ...]]:
        """The drafts of each row: one for all of them, then the next. The last ones are not computed.

        Rows of which it only catches up take part in the first pass, which draws nothing for them.
        """
        rows = [_silent(row) for row in rows]
        wanted = [min(row.guess, self._draft.max_context - row.start) for row in rows]
        found: list[tuple[int, ...]] = [()] * len(rows)
        going = [number for number, count in enumerate(wanted) if count > 0]
        others = [row for row, count in zip(rows, wanted, strict=True) if count <= 0]
        late = [turn for row in others if (turn := self._late(row)) is not None]
        while going or late:
            turns = [self._turn(rows[number], found[number]) for number in going]
            drawn, late = self._drawn(turns + late), []
            for number, sampled in zip(going, drawn, strict=True):
                if sampled.error is None:
                    found[number] += (sampled.token,)
                else:
                    wanted[number] = 0
            going = [number for number in going if len(found[number]) < wanted[number]]
        return found

    def _turn(self, row: Row, drafts: tuple[int, ...]) -> Row:
        """What the draft model computes, and draws, to continue `row` and the `drafts` it has found."""
        draw = None if row.draw is None else draw_after(row.draw, drafts)
        if drafts:
            return Row(row.sequence, row.start + len(drafts), drafts[-1:], row.blocks, draw)
        known = self._readable(row.behind + row.tokens)
        return Row(row.sequence, row.caught, known, row.blocks, draw)

    def _late(self, row: Row) -> Row | None:
        """What the draft model computes of a row that has no guesses, up to where its context ends."""
        known = row.behind[: max(0, self._draft.max_context - row.caught)]
        return Row(row.sequence, row.caught, self._readable(known), row.blocks, None) if known else None

    def _drawn(self, turns: Sequence[Row]) -> list[Sampled]:
        """The draft behind each row."""
        layout = self._batcher.layout(turns)
        logits = self._widened(self._draft.decoder.forward(layout.batch))
        return sample(logits, [turn.draw for turn in turns if turn.draw is not None])

    def _readable(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        return readable(tokens, self._draft.vocab_size)

    def _widened(self, logits: Tensor) -> Tensor:
        """[rows, the draft's vocabulary] -> [rows, the model's]; what the draft lacks is never drawn."""
        missing = self._vocab_size - logits.shape[1]
        if missing <= 0:
            return logits[:, : self._vocab_size]
        return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf)


def readable(tokens: tuple[int, ...], vocab: int) -> tuple[int, ...]:
    """The tokens, as far as a draft model of that vocabulary has them: a prompt given as ids may name rows
    that pad the model's embedding alone."""
    if max(tokens) < vocab:
        return tokens
    return tuple([token if token < vocab else UNKNOWN for token in tokens])


def tell_of_failure(error: Exception) -> None:
    """Once: the draft model is left alone from then on."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    logger.warning("the draft model failed and is not used any more: %s", reason, exc_info=error)


def _silent(row: Row) -> Row:
    """The row without log-probabilities, which are slow, and which nobody reads of a draft."""
    draw = row.draw
    if draw is None or draw.sampling.logprobs is None:
        return row
    return row._replace(draw=draw._replace(sampling=dataclasses.replace(draw.sampling, logprobs=None)))
