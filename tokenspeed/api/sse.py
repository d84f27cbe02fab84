"""Server-sent events of bytes that are ready to send, on top of sse-starlette.

The base class sets the headers. The rest of it is replaced: it encodes and locks for every event, which costs
more than the event itself; it pings every so often, not after silence; what watches the client, or pings, may
cut off the end of a stream; and it begins four tasks in a group of anyio's, which took a third of all that a
request takes the loop, one of them to cut every stream when the process is asked to stop, where this server
lets them end (`drain_seconds`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any

from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

from tokenspeed.api.disconnect import gone

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
DIRECT_SEND = "tokenspeed.send"  # in the scope: sends a body without the layers that watch for its start


class EventStream(EventSourceResponse):
    """Sends what `events` yields, each one or more whole events; calls `close` in the end, however it ends.

    `close` is called even if the first event was never asked for, where a generator's own `finally` is not.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        *,
        headers: Mapping[str, str],
        ping_seconds: float,
        close: Callable[[], None],
        ping: Callable[[], bytes],
        media_type: str = "text/event-stream",
    ) -> None:
        """After `ping_seconds` of silence what `ping` gives is sent; where that is empty, nothing."""
        super().__init__(events, headers=headers, ping=ping_seconds, media_type=media_type)
        self._make_ping = ping
        self._events = events
        self._close = close
        self._pinging = asyncio.Lock()  # held while a ping is sent, so that the end comes after it
        self._writing = False  # a chunk is on its way, or waits for a slow client
        self._send_body: Send
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send_body = scope.get(DIRECT_SEND, send)
        try:
            await _first_ended(self._stream_response(send), gone(receive), self._ping(send))
        finally:
            self._close()

    async def _stream_response(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        self._last_sent = time()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        send_body = self._send_body
        async for chunk in self._events:
            self._writing = True
            if self._pinging.locked():
                await self._after_ping()
            await send_body({"type": "http.response.body", "body": chunk, "more_body": True})
            self._writing = False
            self._last_sent = time()
        self.active = False
        await self._after_ping()
        await send_body({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        while True:  # were it to end by itself, it would cut off an end that waits for a slow client
            await asyncio.sleep(self._last_sent + self.ping_interval - time())
            if time() - self._last_sent < self.ping_interval:
                continue
            if self.active and not self._writing and (event := self._make_ping()):
                async with self._pinging:
                    await self._send_body({"type": "http.response.body", "body": event, "more_body": True})
            self._last_sent = time()

    async def _after_ping(self) -> None:
        async with self._pinging:
            pass


async def _first_ended(*work: Coroutine[Any, Any, None]) -> None:
    """Run all at once until one of them ends, and raise what it raised; the others are cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()
