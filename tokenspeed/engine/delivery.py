"""When readers of streams are woken: at once, or together a little later where writing takes too long."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from tokenspeed.engine.streams import Stream

# What writing to all streams took is what they rest before the next time: at most half of the loop's time.
REST = 1.0
AT_ONCE = 32  # readers woken before the loop looks at anything else, such as the end of a step


class Delivery:
    """Wakes those who read streams.

    A round of writing to every stream takes the loop some 30 microseconds for each. As long as rounds are
    shorter than steps, every token goes out as it comes. Where they are not, planning would wait for
    writing, and so would the device: then tokens gather, and go out in one event. First tokens and ends of
    answers never wait.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` is the engine's clock, in seconds."""
        self._now = now
        self._held: dict[Stream, None] = {}
        self._writing: deque[Stream] = deque()  # those of the round that are still to be woken
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, stream: Stream) -> None:
        """Wake its reader with the next round."""
        self._held[stream] = None

    def wake(self, stream: Stream) -> None:
        """Wake its reader at once."""
        self._held.pop(stream, None)
        stream.wake()

    def settle(self) -> None:
        """Begin a round if it is due; else see to it that it begins when it is."""
        if not self._held or self._writing:
            return
        rest = self._due - self._now()
        if rest <= 0.0:
            self._round()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(rest, self._late)

    def _late(self) -> None:
        """No step ended meanwhile."""
        self._timer = None
        self.settle()

    def _round(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._writing.extend(self._held)
        self._held = {}
        self._wake_some(0.0)

    def _wake_some(self, spent: float) -> None:
        """Wake the next of the round; writing took `spent` seconds so far."""
        began = self._now()
        for _ in range(min(AT_ONCE, len(self._writing))):
            self._writing.popleft().wake()
        # The loop is first come, first served: by then all of them have written.
        asyncio.get_running_loop().call_soon(self._written, spent, began)

    def _written(self, spent: float, began: float) -> None:
        now = self._now()
        spent += now - began
        if self._writing:
            self._wake_some(spent)
            return
        self._due = now + REST * spent
        self.settle()
