"""Server-sent events of bytes that are ready to send, on top of sse-starlette.

The base class sets the headers and watches for a client that vanishes, also while no event comes. Three of
its parts are replaced: it encodes and locks for every event, which costs more than the event itself; it
pings every so often, not after silence; and it cuts every stream when the process is asked to stop, where
this server lets them end (`drain_seconds`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

from sse_starlette.sse import EventSourceResponse
from starlette.types import Receive, Scope, Send

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


class EventStream(EventSourceResponse):
    """Sends what `events` yields, each one or more whole events; calls `close` in the end, however it ends.

    `close` is called even if the first event was never asked for, where a generator's own `finally` is not.
    """

    def __init__(
        self, events: AsyncGenerator[bytes, None], *, ping_seconds: float, close: Callable[[], None]
    ) -> None:
        super().__init__(events, ping=ping_seconds)
        self._events = events
        self._close = close
        self._writing = asyncio.Lock()  # a ping never falls behind the end of the body
        self._last_sent = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()

    async def _stream_response(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        self._last_sent = time()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for chunk in self._events:
            async with self._writing:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._last_sent = time()
        async with self._writing:
            self.active = False
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self, send: Send) -> None:
        time = asyncio.get_running_loop().time
        while self.active:
            await asyncio.sleep(self._last_sent + self.ping_interval - time())
            async with self._writing:
                if self.active and time() - self._last_sent >= self.ping_interval:
                    await send({"type": "http.response.body", "body": PING, "more_body": True})
                    self._last_sent = time()

    async def _listen_for_exit_signal_with_grace(self) -> None:
        await asyncio.get_running_loop().create_future()  # until the stream itself ends
