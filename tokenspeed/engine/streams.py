"""How the events of one request reach the one who asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tokenspeed.core.request import Event, Finished, Request


class Stream:
    """An async iterator over batches of events; it ends once every choice has had its `Finished`.

    A slow reader gets larger batches, never a longer queue of small ones.
    """

    def __init__(self, request: Request, cancel: Callable[[str, int | None], None], predicted: float) -> None:
        """`predicted` is in seconds, from the request's arrival to its first token."""
        self.request = request
        self.predicted = predicted
        self._cancel = cancel
        self._events: list[Event] = []
        self.open = request.n  # choices that are not finished
        self._reader: asyncio.Future[None] | None = None
        self._new_reader = asyncio.get_running_loop().create_future
        self.begun = False  # it has had an event

    def push(self, event: Event) -> bool:
        """Called by the engine, in its loop: whether the reader is to be woken at once."""
        self._events.append(event)
        urgent = not self.begun
        self.begun = True
        if type(event) is Finished:
            self.open -= 1
            return True
        return urgent

    def wake(self) -> None:
        """Let the reader have what was pushed."""
        reader = self._reader
        if reader is not None:
            self._reader = None
            if not reader.done():
                reader.set_result(None)

    def cancel(self, choice: int | None = None) -> None:
        """End one choice, or all; blocks come back at once. A finished choice is left as it is."""
        if self.open:
            self._cancel(self.request.id, choice)

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Event]:
        while not self._events:
            if not self.open:
                raise StopAsyncIteration
            self._reader = self._new_reader()
            await self._reader
        events, self._events = self._events, []
        return events
