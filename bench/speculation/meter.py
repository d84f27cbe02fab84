"""Counts the tokens of a play, and apart from that those of the time in which all that runs decodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(slots=True)
class Amount:
    """Tokens that came, in so many seconds and steps."""

    tokens: int = 0
    seconds: float = 0.0
    steps: int = 0

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def a_step(self) -> float:
        """Tokens of all streams that a step gave."""
        return self.tokens / self.steps if self.steps else 0.0


class _Reading(NamedTuple):
    tokens: int
    seconds: float
    steps: int


class Meter:
    """`decode` is counted while answers are written and nobody waits for a first token; `whole` is all."""

    def __init__(self, steps: Callable[[], int], clock: Callable[[], float] = time.perf_counter) -> None:
        """`steps` tells how many the server has done."""
        self.decode = Amount()
        self._steps, self._clock = steps, clock
        self._tokens = 0
        self._waiting = 0  # requests without a first token
        self._writing = 0  # answers that have begun and not ended
        self._since = self._began = self._read()

    @property
    def whole(self) -> Amount:
        """From the beginning until now."""
        whole = Amount()
        _add(whole, self._began, self._read())
        return whole

    def asked(self) -> None:
        self._mark()
        self._waiting += 1

    def came(self, tokens: int, *, first: bool) -> None:
        self._tokens += tokens
        if first:
            self._mark()
            self._waiting -= 1
            self._writing += 1

    def ended(self, *, begun: bool) -> None:
        """An answer is over, or was cut off; some are before they have begun."""
        self._mark()
        if begun:
            self._writing -= 1
        else:
            self._waiting -= 1

    def _mark(self) -> None:
        """Who waits or writes is about to change."""
        now = self._read()
        if self._writing and not self._waiting:
            _add(self.decode, self._since, now)
        self._since = now

    def _read(self) -> _Reading:
        return _Reading(self._tokens, self._clock(), self._steps())


def _add(amount: Amount, since: _Reading, now: _Reading) -> None:
    amount.tokens += now.tokens - since.tokens
    amount.seconds += now.seconds - since.seconds
    amount.steps += now.steps - since.steps
