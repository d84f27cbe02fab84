"""Puts the drafts that pay on the rows of a step."""

from __future__ import annotations

from math import inf

from tokenspeed.core.costs import Costs, Work
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.rows import Planning
from tokenspeed.core.sequence import Sequence
from tokenspeed.core.speculation import Carried, Room, Speculation
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
    """Let rows carry the drafts that pay; the work that it makes then. Nobody loses blocks for them."""
    ready = [sequence for sequence, _ in planning.owners]
    for sequence, wanted in speculation.choose(ready, costs, work, room):
        carried = _with_blocks(tables, sequence, wanted)
        if carried.drafts or carried.guess:
            planning.carry(sequence, carried)
            work = work.with_drafts(len(carried.drafts), carried.guess, len(carried.behind))
    return work


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
