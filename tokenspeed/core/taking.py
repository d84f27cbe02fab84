"""What a sequence makes of a row's result: tokens, events, and perhaps its end."""

from __future__ import annotations

from typing import NamedTuple

from tokenspeed.core.plan import Row, RowResult
from tokenspeed.core.request import Event, FinishReason, Pooled, PromptScored, TokenDelta
from tokenspeed.core.sequence import Sequence

Happening = tuple[Sequence, Event]


class Ending(NamedTuple):
    """Why a sequence ends."""

    reason: FinishReason
    stop_id: int | None = None
    error: str | None = None


def take_allowed(sequence: Sequence, given: RowResult) -> RowResult:
    """Of what the row gave that which a grammar lets stand; the grammar goes on with it."""
    constraint = sequence.constraint
    if constraint is None or not given.tokens:
        return given
    kept = constraint.take(given.tokens)
    if kept == len(given.tokens):
        return given
    return given._replace(tokens=given.tokens[:kept], logprobs=given.logprobs and given.logprobs[:kept])


def take_drafts(sequence: Sequence, given: RowResult) -> int:
    """Drafts that held are tokens, and computed; their number. What follows a stop id is nothing."""
    drafts, stops = given.tokens[:-1], sequence.request.stop_ids
    if not stops.isdisjoint(drafts):
        drafts = drafts[: next(n for n, token in enumerate(drafts) if token in stops)]
    sequence.tokens += drafts
    sequence.computed += len(drafts)
    sequence.planned += len(drafts)
    return len(drafts)


def take_asked(sequence: Sequence, row: Row, given: RowResult, events: list[Happening]) -> None:
    """What was asked of the prompt itself."""
    if row.targets or sequence.wants_scores:
        _take_scores(sequence, given, events)
    if row.pooled:
        _take_pooled(sequence, given, events)


def _take_scores(sequence: Sequence, given: RowResult, events: list[Happening]) -> None:
    """Log-probabilities of the prompt, which are told once they are all there."""
    sequence.scoring += given.scored
    if sequence.computed >= sequence.prompt_length and given.error is None:
        sequence.scores = sequence.scoring
        events.append((sequence, PromptScored(tuple(sequence.scores))))


def _take_pooled(sequence: Sequence, given: RowResult, events: list[Happening]) -> None:
    """Sums of hidden states; what they come to is told once the prompt is computed."""
    if given.pooled is None:
        return  # the row failed, and its sequence ends with it
    sequence.summed = given.pooled if sequence.summed is None else sequence.summed + given.pooled
    if sequence.computed >= sequence.prompt_length:
        count = sequence.prompt_length if sequence.pooling == "mean" else 1
        sequence.pooling = None
        events.append((sequence, Pooled(sequence.summed / count)))


def take_token(
    sequence: Sequence, row: Row, given: RowResult, held: int, events: list[Happening]
) -> Ending | None:
    """The token that was sampled, behind the drafts that `held`; whether that is the end."""
    if given.error is not None:
        return Ending(FinishReason.ERROR, error=given.error)
    if row.draw is None:  # perhaps only a prompt was asked to be computed
        return Ending(FinishReason.LENGTH) if sequence.computed >= sequence.limit else None
    token = given.tokens[held]
    sequence.in_flight -= 1
    if token in sequence.request.stop_ids:
        if held:
            logprobs = given.logprobs and given.logprobs[:held]
            events.append((sequence, TokenDelta(sequence.choice, given.tokens[:held], logprobs, held)))
        return Ending(FinishReason.STOP, stop_id=token)
    sequence.tokens.append(token)
    events.append((sequence, TokenDelta(sequence.choice, given.tokens, given.logprobs, held)))
    return Ending(FinishReason.LENGTH) if len(sequence.tokens) >= sequence.limit else None
