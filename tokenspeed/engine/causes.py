"""Who a step's time was spent on: what prefill rows cost the others in their step, and a log of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenspeed.core import sequence as core
from tokenspeed.core.plan import Row
from tokenspeed.engine.observer import Step

HIDDEN = "another key's request"  # what a key reads in place of an id that is not its own
NAMED = 8  # requests that are named beside a chunk, a gap, or for the whole wait; the rest is summed up


class Part(NamedTuple):
    """What one request prefilled. `seconds` are measured ones, divided as the cost model predicts."""

    request: str
    account: str
    tokens: int
    seconds: float


class Prefills(NamedTuple):
    """A step that prefilled, and for whom. `began` and `ended` in seconds of the engine's clock."""

    serial: int  # in the log
    number: int  # of the step's plan
    began: float
    ended: float
    parts: tuple[Part, ...]

    def overlap(self, since: float) -> float:
        """The share of the step, 0 to 1, that ran after `since`."""
        return after(self.began, self.ended, since)


def after(began: float, ended: float, since: float) -> float:
    """The share of a step, 0 to 1, that ran after `since`."""
    if since <= began:
        return 1.0
    return max(0.0, ended - since) / (ended - began) if ended > began else 0.0


def prefilling(step: Step) -> list[tuple[core.Sequence, Row, float]]:
    """The rows that prefill, with their sequence and the seconds of the step that they took.

    As for the cost model, a row of one token decodes. The step's measured seconds are divided in the
    proportion of what it predicts; the step's base belongs to nobody.
    """
    rows = step.plan.rows
    places = [i for i, row in enumerate(rows) if len(row.tokens) > 1]
    if not places:
        return []
    predicted = step.plan.seconds
    pace = step.result.seconds / predicted if predicted > 0.0 else 1.0
    found = []
    for i in places:
        row = rows[i]
        seconds = pace * step.costs.prefill(row.start, len(row.tokens))
        found.append((step.sequences[i], row, seconds))
    return found


class PrefillLog:
    """The latest steps that prefilled, at most `parts` parts in all; what is older is forgotten."""

    def __init__(self, parts: int) -> None:
        self._room = parts
        self._steps: dict[int, Prefills] = {}  # by serial number, the oldest first
        self.next = 0  # serial number of the next step
        self.oldest = 0  # serial number of the oldest step that is kept

    def add(self, number: int, began: float, ended: float, parts: tuple[Part, ...]) -> Prefills:
        step = Prefills(self.next, number, began, ended, parts)
        self._steps[self.next] = step
        self.next += 1
        self._room -= len(parts)
        while self._room < 0:
            self._room += len(self._steps.pop(self.oldest).parts)
            self.oldest += 1
        return step

    def between(self, first: int, stop: int) -> Iterator[Prefills]:
        """Steps `first` to `stop` (exclusive), without those that are forgotten."""
        return (self._steps[serial] for serial in range(max(first, self.oldest), stop))

    def back(self, step: Prefills | None, since: float) -> Iterator[Prefills]:
        """`step` and those before it that ended after `since`, as far as the log reaches."""
        while step is not None and step.ended > since:
            yield step
            step = self._steps.get(step.serial - 1)


@dataclass(frozen=True, slots=True)
class Others:
    """What other requests prefilled: the largest parts by request, and the sum of the rest."""

    named: tuple[Part, ...] = ()
    more: int = 0  # requests that are not named
    tokens: int = 0  # in all
    seconds: float = 0.0  # in all

    def to_dict(self, account: str | None) -> dict[str, Any]:
        return {
            "ms": milliseconds(self.seconds),
            "tokens": self.tokens,
            "requests": [
                {
                    "request": part.request if account in (None, part.account) else HIDDEN,
                    "tokens": part.tokens,
                    "ms": milliseconds(part.seconds),
                }
                for part in self.named
            ],
            "more_requests": self.more,
        }


def others(steps: Iterable[Prefills], request: str, since: float) -> Others:
    """What requests other than `request` prefilled in `steps`, after `since`."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for step in steps:
        share = step.overlap(since)
        for name, account, tokens, seconds in step.parts:
            if name != request:
                so_far = found.get((name, account), (0, 0.0))
                found[name, account] = (so_far[0] + tokens, so_far[1] + share * seconds)
    parts = [Part(*key, *spent) for key, spent in found.items()]
    parts.sort(key=lambda part: part.seconds, reverse=True)
    return Others(
        tuple(parts[:NAMED]),
        max(0, len(parts) - NAMED),
        sum(part.tokens for part in parts),
        sum(part.seconds for part in parts),
    )


def milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
