"""An asyncio loop in virtual time: it never waits, so real engine code runs as a deterministic simulation."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LostWakeUpError(RuntimeError):
    """Every task waits and no timer is set: in real time this would hang for ever."""


class _JumpingSelector(selectors.SelectSelector):
    """Polls its files (the loop's own wake-up pipe) without waiting, and moves the clock by the timeout."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise LostWakeUpError("every task waits for something that nothing will do")
            self.now += max(0.0, timeout)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """`time()` starts at 0 and jumps to the next timer whenever nothing can run."""

    def __init__(self) -> None:
        self._clock = _JumpingSelector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in virtual time. Raises `LostWakeUpError` instead of hanging."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)
