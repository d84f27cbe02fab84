"""Who goes first: policies as data, and the options that tune them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, inf
from typing import NamedTuple

from tokenspeed.core.costs import Costs
from tokenspeed.core.request import Request
from tokenspeed.core.sequence import Sequence
from tokenspeed.options import option

Order = tuple[float, ...]
# A step that ends early lasts so much of a whole one at least. Less lets short prompts have their first token
# sooner, and costs more steps than the long ones bear; bench/simulate.py shows both.
HURRIED = 0.5
FOREVER = 1e9  # seconds; more than any server waits


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """`[scheduler]`. Times are of the device's steps, and of the engine's clock."""

    policy: str = option("short-first", choices=("short-first", "first-come", "priority", "shortest-first"))
    max_running: int = option(256, at_least=1, at_most=4096)
    max_waiting: int = option(1024, at_least=0, at_most=1_000_000)
    target_step_ms: float = option(55.0, at_least=0.0, at_most=60_000.0)  # 0: step_tokens alone bounds a step
    step_tokens: int = option(8192, at_least=16, at_most=1_048_576)
    lone_overhead: float = option(0.05, at_least=0.001, at_most=0.9)
    eldest_share: float = option(0.25, at_least=0.01, at_most=0.9)
    ageing_seconds: float = option(2.0, at_least=0.0, at_most=3600.0)
    run_ahead: int = option(1, at_least=0, at_most=1)


class Policy(NamedTuple):
    """How prefills are served.

    `order` of a sequence, with `left` brought up to date: the lowest is the most urgent. Its first member
    is the class; within a class, accounts over their fair share go last. `level` is what one level
    of priority is worth in seconds of waiting, in the order of age. `shares` says whether the prompt due
    first is certain of `eldest_share` of every step, and of the next place once it is overdue; steps then
    `hurry` for the others.
    """

    order: Callable[[Sequence], Order]
    level: Callable[[SchedulerOptions], float]
    shares: bool


POLICIES: Mapping[str, Policy] = {
    "short-first": Policy(
        lambda s: (s.request.priority, s.left, s.due, s.id), lambda options: options.ageing_seconds, True
    ),
    "first-come": Policy(lambda s: (0, s.request.arrival, s.id), lambda options: 0.0, False),
    "priority": Policy(
        lambda s: (s.request.priority, s.request.arrival, s.id), lambda options: FOREVER, False
    ),
    "shortest-first": Policy(lambda s: (0, s.left, s.request.arrival, s.id), lambda options: 0.0, False),
}


def due(request: Request, level_seconds: float) -> float:
    """A request's place in the order of age, in seconds: a level of priority is worth so much waiting.

    It does not move with time, so the eldest stays the eldest until it is served: nothing starves.
    """
    return request.arrival + request.priority * level_seconds


class Budget(NamedTuple):
    """What a step has for prefills: seconds and tokens, and how much of both is certain for the eldest."""

    seconds: float
    tokens: int
    certain_seconds: float = 0.0
    certain_tokens: int = 0

    def spent_by(self, seconds: float, tokens: int) -> bool:
        """Whether so much prefill takes all of it."""
        return seconds >= self.seconds or tokens >= self.tokens

    def certain_spent_by(self, seconds: float, tokens: int) -> bool:
        """Whether so much prefill takes all that is certain."""
        return seconds >= self.certain_seconds or tokens >= self.certain_tokens


def step_budget(
    options: SchedulerOptions, costs: Costs, *, decodes: float, rows: int, alone: bool, shares: bool
) -> Budget:
    """The budget of a step whose base and `rows` decode rows cost `decodes` seconds already.

    The target bounds the whole step. Where decodes alone use it up, prefills get `eldest_share` of a step
    that is longer by that much. Who is `alone` gets as long a step as throughput gains by.
    """
    share = options.eldest_share
    tokens = max(options.step_tokens - rows, int(options.step_tokens * share), 1)
    if options.target_step_ms == 0.0:
        return Budget(inf, tokens, *((inf, int(tokens * share)) if shares else (0.0, 0)))
    whole = options.target_step_ms / 1000.0
    if alone:
        whole = max(whole, costs.base / options.lone_overhead)
    whole = max(whole, decodes / (1.0 - share))
    return Budget(whole - decodes, tokens, share * whole if shares else 0.0, tokens if shares else 0)


def split(budget: Budget, prefills: list[Sequence], costs: Costs) -> list[int]:
    """How many tokens of each of `prefills`, the most urgent first, a step computes.

    What is certain goes to the eldest; the rest goes in order of urgency, which lets a short prompt finish in
    this very step. However small the budget, one token is computed.
    """
    given = _for_the_eldest(budget.certain_seconds, budget.certain_tokens, prefills, costs)
    spent = (costs.prefill(s.planned, count) for s, count in zip(prefills, given, strict=True) if count)
    seconds, tokens = budget.seconds - sum(spent), budget.tokens - sum(given)
    for i, sequence in enumerate(prefills):
        start, before = sequence.planned, given[i]
        had = costs.prefill(start, before) if before else 0.0
        fitting = min(costs.tokens_within(seconds + had, start), before + tokens, sequence.pending)
        if fitting > before:
            given[i] = int(fitting)
            seconds -= costs.prefill(start, given[i]) - had
            tokens -= given[i] - before
        if given[i] < sequence.pending:
            break
    if prefills and not any(given):
        given[0] = 1
    return given


def hurry(
    given: list[int], prefills: list[Sequence], costs: Costs, *, decodes: float, whole: float, share: float
) -> list[int]:
    """Cut a step of `whole` seconds short in which prompts finish: their first tokens come at its end.

    What is left is what they need, and for the eldest its `share` of the step, or what makes the step last
    `HURRIED` of the whole. Who has more to prefill makes up for it in the longer steps between. `decodes` is
    as for `step_budget`.
    """
    done = [count == s.pending for s, count in zip(prefills, given, strict=True)]
    needed = sum(costs.prefill(s.planned, s.pending) for s, ends in zip(prefills, done, strict=True) if ends)
    if not needed:
        return given
    spent = decodes + needed
    certain = hurried(spent, whole=whole, share=share) - spent
    least = _for_the_eldest(certain, sum(given), prefills, costs)
    return [count if ends else min(count, few) for count, few, ends in zip(given, least, done, strict=True)]


def hurried(spent: float, *, whole: float, share: float) -> float:
    """Seconds of a step that ends early, if decodes and the prompts that finish in it take `spent`."""
    return max(spent / (1.0 - share), HURRIED * whole)


def yields(prefills: list[Sequence], given: list[int]) -> int:
    """How many prefills in progress were cut short for one that is more urgent and due later."""
    count = 0
    latest = -inf  # due, of those more urgent
    for sequence, tokens in zip(prefills, given, strict=True):
        count += sequence.planned > 0 and tokens < sequence.pending and sequence.due < latest
        if tokens:
            latest = max(latest, sequence.due)
    return count


def _for_the_eldest(seconds: float, tokens: int, prefills: list[Sequence], costs: Costs) -> list[int]:
    """So much for the prompt due first; what it does not need goes to the next, so that all progress.

    Rounded up, and without the rows themselves: their part of the time is spent on tokens.
    """
    given = [0] * len(prefills)
    for i in sorted(range(len(prefills)), key=lambda i: (prefills[i].due, prefills[i].id)):
        if seconds <= 0.0 or tokens <= 0:
            break
        start, pending = prefills[i].planned, prefills[i].pending
        fitting = costs.tokens_within(seconds + costs.row, start)
        given[i] = min(pending, tokens, pending if fitting >= pending else max(1, ceil(fitting)))
        seconds -= costs.prefill(start, given[i]) - costs.row
        tokens -= given[i]
    return given
