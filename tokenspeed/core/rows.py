"""The rows of a step: what each sequence asks of the device."""

from __future__ import annotations

from typing import NamedTuple

from tokenspeed.core.costs import Costs, Work
from tokenspeed.core.plan import Draw, Held, Row
from tokenspeed.core.sequence import Sequence
from tokenspeed.core.speculation import Carried

# A named tuple's own constructor takes twice as long, and this is done for every row of every step.
_new = tuple.__new__


class Flight(NamedTuple):
    """A planned step: whose its rows are, each with the epoch it was in, and the work they make."""

    owners: list[tuple[Sequence, int]]
    work: Work

    @property
    def verifies(self) -> bool:
        """Whether rows carry drafts, so that what follows them is not known before the step has ended."""
        return self.work.verifies > 0


class Planning:
    """A step while it is planned."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.owners: list[tuple[Sequence, int]] = []
        self.planned: set[int] = set()  # sequences that have a row

    def add(self, sequence: Sequence, count: int) -> None:
        """A row for the next `count` tokens of a sequence, whose blocks are there."""
        self.planned.add(sequence.id)
        self.owners.append((sequence, sequence.epoch))
        self.rows.append(next_row(sequence, count, len(self.rows)))

    def carry(self, sequence: Sequence, carried: Carried) -> None:
        """Let a sequence's row carry drafts, for which there are blocks, or let the draft model catch up."""
        row = self.rows[sequence.row]
        drafts, guess, behind = carried
        self.rows[sequence.row] = row._replace(
            blocks=sequence.table, drafts=drafts, guess=guess, behind=behind, caught=sequence.caught
        )
        sequence.caught += len(behind)

    def carries(self, sequence: Sequence) -> bool:
        """Whether a sequence's row carries drafts, or is to guess some."""
        row = self.rows[sequence.row]
        return bool(row.drafts or row.guess)

    def used(self, costs: Costs) -> dict[str, float]:
        """Seconds that the rows of each account add to the step."""
        used: dict[str, float] = {}
        for row, (sequence, _) in zip(self.rows, self.owners, strict=True):
            account = sequence.request.account
            used[account] = used.get(account, 0.0) + costs.prefill(row.start, len(row.tokens))
        return used


def may_run_ahead(sequence: Sequence) -> bool:
    """Whether the next row can be planned before the token in flight is known."""
    if sequence.penalised:
        return False  # a draw that looks at the tokens before it needs them all
    return len(sequence.tokens) + sequence.in_flight < sequence.limit


def next_row(sequence: Sequence, count: int, index: int) -> Row:
    """Plan the next `count` tokens of a sequence as row `index` of the step."""
    start = sequence.planned
    stop = start + count
    known = len(sequence.tokens)
    sequence.planned = stop
    source = -1
    if start >= known:
        tokens: tuple[int, ...] = (0,)
        source = sequence.row
    else:
        tokens = (sequence.tokens[start],) if count == 1 else tuple(sequence.tokens[start:stop])
    draw = None
    if stop == known + sequence.in_flight and stop < sequence.limit:
        draw = _draw(sequence, stop)
        sequence.in_flight += 1
        sequence.row = index
    pooled = 0 if sequence.pooling is None else _pooled(sequence, start, stop)
    if not sequence.wants_scores:
        return _new(
            Row, (sequence.id, start, tokens, sequence.table, draw, (), source, (), 0, 0, (), 0, pooled)
        )
    targets = sequence.request.prompt[start + 1 : stop + 1]
    wanted = sequence.request.prompt_logprobs or 0
    return Row(sequence.id, start, tokens, sequence.table, draw, (), source, targets, wanted, pooled=pooled)


def _pooled(sequence: Sequence, start: int, stop: int) -> int:
    """How many of the last tokens from `start` to `stop` are pooled; none that are not of the prompt."""
    if sequence.pooling == "last":
        return int(stop == sequence.prompt_length)
    return max(0, min(stop, sequence.prompt_length) - start)


def _draw(sequence: Sequence, position: int) -> Draw:
    request = sequence.request
    sampling = request.sampling
    early = position < sequence.prompt_length + request.min_tokens
    if not (early or sequence.penalised or sequence.constraint):
        return _new(Draw, (sampling, sequence.seed, position, (), (), (), None))
    held = None
    if sequence.constraint is not None and sequence.held:
        held = Held(sequence.constraint, position - sequence.prompt_length)
    banned = tuple(sorted(request.stop_ids)) if early and held is None else ()
    if not sequence.penalised:
        return Draw(sampling, sequence.seed, position, banned=banned, held=held)
    generated = tuple(sequence.tokens[sequence.prompt_length :])
    return Draw(sampling, sequence.seed, position, request.prompt, generated, banned, held)
