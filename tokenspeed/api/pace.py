"""Requests that come at once are read a few at a time, so that steps begin amid them."""

from __future__ import annotations

import asyncio
from collections import deque

AT_ONCE = 8  # about as many as take the loop as long as a short step


class Pace:
    """Lets so many through for each turn of the event loop.

    Reading a request and beginning its answer takes the loop a millisecond or so. The loop is first come,
    first served: without this, 256 that come together would all be read before the first step is planned,
    and before the end of one is noticed, while the device waits.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Wait until it is one's turn: first come, first served."""
        loop = asyncio.get_running_loop()
        if not self._left or self._waiting:
            mine = loop.create_future()
            self._waiting.append(mine)
            await mine
            return
        if self._left == self._at_once:
            loop.call_soon(self._next)
        self._left -= 1

    def _next(self) -> None:
        """The loop has turned."""
        self._left = self._at_once
        while self._waiting and self._left:
            first = self._waiting.popleft()
            if not first.done():  # else its client has left meanwhile
                first.set_result(None)
                self._left -= 1
        if self._left < self._at_once:
            asyncio.get_running_loop().call_soon(self._next)
