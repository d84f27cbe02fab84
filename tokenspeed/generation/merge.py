"""The events of several engine streams as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tokenspeed.core.request import Event
from tokenspeed.engine.streams import Stream

Batch = tuple[int, list[Event]]  # the index of its stream, and the events


class Merged:
    """An async iterator over the batches of several streams, each read by a task of its own.

    The tasks end with their streams; cancelling those is enough.
    """

    def __init__(self, streams: Sequence[Stream]) -> None:
        self._queue: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()
        self._open = len(streams)
        self._tasks = [asyncio.create_task(self._read(index, s)) for index, s in enumerate(streams)]

    def __aiter__(self) -> Merged:
        return self

    async def __anext__(self) -> Batch:
        while self._open:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is not None:
                return item
            self._open -= 1
        raise StopAsyncIteration

    async def _read(self, index: int, stream: Stream) -> None:
        try:
            async for events in stream:
                self._queue.put_nowait((index, events))
        except Exception as error:  # handed to whoever reads the merged stream
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)
