"""The batches of one engine stream, or of several as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from tokenspeed.core.request import Event
from tokenspeed.engine.streams import Stream

Batch = tuple[int, Sequence[Event]]  # the index of its stream, and the events


class Batches(Protocol):
    """Where the next events come from."""

    async def next(self) -> Batch | None:
        """The next batch; None once every stream has ended."""
        ...

    def close(self) -> None:
        """Wait for nothing any more."""
        ...


class Single:
    """One stream, with nothing in between."""

    def __init__(self, stream: Stream) -> None:
        self._batches = aiter(stream)

    async def next(self) -> Batch | None:
        try:
            return 0, await anext(self._batches)
        except StopAsyncIteration:
            return None

    def close(self) -> None:
        pass


class Merged:
    """Several streams, each read by a task of its own."""

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._queue: asyncio.Queue[Batch | BaseException | None] = asyncio.Queue()
        self._open = len(streams)
        self._tasks = [asyncio.create_task(self._read(index, s)) for index, s in enumerate(streams)]

    async def next(self) -> Batch | None:
        while self._open:
            item = await self._queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is not None:
                return item
            self._open -= 1
        return None

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _read(self, index: int, stream: Stream) -> None:
        try:
            async for events in stream:
                self._queue.put_nowait((index, events))
        except Exception as error:  # handed to whoever reads the merged stream
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)
