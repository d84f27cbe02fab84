"""Puts the drafts that pay on the rows of a step."""

from __future__ import annotations

from math import inf

from tokenspeed.core.choosing import Room, reach
from tokenspeed.core.costs import Costs, Work
from tokenspeed.core.plan import Row, RowResult
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.rows import Planning
from tokenspeed.core.sequence import Sequence
from tokenspeed.core.speculation import Carried, Speculation
from tokenspeed.core.tables import BlockTables


def room_for_drafts(options: SchedulerOptions, rows: int, *, beside: bool) -> Room:
    """For drafts in a step that `rows` decode in: prompts `beside` them are to have their share of it without
    making it longer."""
    rest = 1.0 - options.eldest_share
    target = (rest if beside else 1.0) * options.target_step_ms / 1e3
    return Room(target or inf, rest * options.step_tokens - rows)


def carry_drafts(
    planning: Planning, work: Work, speculation: Speculation, tables: BlockTables, costs: Costs, room: Room
) -> Work:
    """Let rows, whose tokens are all on the host, carry the drafts that pay, and let the draft model catch up
    with others; the work that it makes then. Nobody loses blocks for them."""
    ready = [sequence for sequence, _ in planning.owners]
    if speculation.guesses:
        for sequence in ready:
            tables.follow(sequence)
    for sequence, wanted in speculation.choose(ready, costs, work, room):
        carried = _with_blocks(tables, sequence, _fitting(sequence, wanted))
        if carried.drafts or carried.guess:
            planning.carry(sequence, carried)
            work = work.with_drafts(len(carried.drafts), carried.guess, len(carried.behind))
    return let_catch_up(planning, work, speculation, tables, costs, room)


def let_catch_up(
    planning: Planning, work: Work, speculation: Speculation, tables: BlockTables, costs: Costs, room: Room
) -> Work:
    """Let the draft model compute what it lacks of sequences whose guesses will pay, as much as the step has
    room for; the work that it makes then. Nothing of that depends on tokens in flight."""
    late = [s for s in speculation.left_behind() if s.id in planning.planned and not planning.carries(s)]
    left = reach(costs, work, room) if late else 0
    for sequence in late:
        if left <= 0:
            break
        tables.follow(sequence)
        behind = tuple(sequence.tokens[sequence.caught : min(sequence.caught + left, sequence.planned - 1)])
        if behind:
            planning.carry(sequence, Carried(behind=behind))
            work = work.with_drafts(0, 0, len(behind))
            left -= len(behind)
    return work


def take_carried(
    sequence: Sequence, row: Row, given: RowResult, held: int, speculation: Speculation, tables: BlockTables
) -> None:
    """What became of what a row carried: so many drafts held, and the draft model has computed more."""
    if row.drafts or row.guess:
        speculation.count(row, given.guessed, held)
    until = row.caught + len(row.behind)
    if given.guessed:
        until = row.start + 1 + min(held, len(given.guessed) - 1)  # it has not computed its last guess
    if until > row.caught:
        tables.caught_up(sequence, row.caught, until)


def _fitting(sequence: Sequence, carried: Carried) -> Carried:
    """What a grammar lets follow of the drafts; what is guessed is seen only as it is verified."""
    if sequence.constraint is None or not carried.drafts:
        return carried
    return carried._replace(drafts=carried.drafts[: sequence.constraint.fitting(carried.drafts)])


def _with_blocks(tables: BlockTables, sequence: Sequence, carried: Carried) -> Carried:
    """As many of the drafts as there are blocks for, which the sequence then has."""
    wanted = len(carried.drafts) or carried.guess
    blocks = min(tables.missing(sequence, wanted), tables.pool.available)
    if blocks > 0:
        tables.extend(sequence, blocks)
    room = len(sequence.blocks) * tables.block_size - sequence.planned
    if room >= wanted:
        return carried
    return Carried(carried.drafts[:room], min(carried.guess, room), carried.behind if room else ())
