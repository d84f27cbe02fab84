"""Who goes first: pure functions of sequences and time, and the options that tune them."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from dataclasses import dataclass

from tokenspeed.core.request import Request
from tokenspeed.core.sequence import Sequence
from tokenspeed.options import option


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """`[scheduler]`. Tokens count rows of work for the device; seconds are the engine's clock."""

    max_running: int = option(256, at_least=1, at_most=4096)
    max_waiting: int = option(1024, at_least=0, at_most=1_000_000)
    step_tokens: int = option(256, at_least=16, at_most=1_048_576)
    eldest_share: float = option(0.25, at_least=0.01, at_most=1.0)
    ageing_seconds: float = option(2.0, at_least=0.0, at_most=3600.0)
    run_ahead: int = option(1, at_least=0, at_most=1)


def due(request: Request, ageing_seconds: float) -> float:
    """A request's place in the order of age, in seconds: a level of priority is worth so much waiting.

    It does not move with time, so the eldest stays the eldest until it is served: nothing starves.
    """
    return request.arrival + request.priority * ageing_seconds


def urgency(sequence: Sequence, remaining: int) -> tuple[int, int, float, int]:
    """The order in which prefills are served: priority class, then least remaining work, then age."""
    return (sequence.request.priority, remaining, sequence.due, sequence.id)


def split(budget: int, wants: ListOf[tuple[Sequence, int]], share: float) -> list[int]:
    """Divide a step's `budget` of tokens over (sequence, tokens it could use), most urgent first.

    The eldest of them is certain of `share` of the budget (of one token at least), so that it always
    progresses; the rest goes in order of urgency, which lets a short prompt finish in this very step.
    """
    if not wants or budget <= 0:
        return [0] * len(wants)
    eldest = min(range(len(wants)), key=lambda i: (wants[i][0].due, wants[i][0].id))
    reserved = min(wants[eldest][1], max(1, int(budget * share)))
    left = budget - reserved
    given = []
    for i, (_, want) in enumerate(wants):
        base = reserved if i == eldest else 0
        more = min(want - base, left)
        left -= more
        given.append(base + more)
    return given
