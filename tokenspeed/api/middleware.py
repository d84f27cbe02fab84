"""What wraps every route: paths as clients really write them, and the last resort for exceptions."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenspeed.api.errors import error_response
from tokenspeed.api.sse import DIRECT_SEND

SLASHES = re.compile("/{2,}")


def normal_path(path: str) -> str:
    """One route for `/v1/x`, `/x`, `//x` and `/x/`."""
    path = SLASHES.sub("/", path).rstrip("/")
    if path == "/v1" or path.startswith("/v1/"):
        path = path[3:]
    return path or "/"


class DirectSend:
    """Lets long streams send past the layers that only watch for the start of an answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app({**scope, DIRECT_SEND: send}, receive, send)


class Boundary:
    """Normalises the path, and answers 500 for what nothing inside has caught."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        inner = {**scope, "path": normal_path(scope["path"])}

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(inner, receive, watched)
        except Exception as error:
            response = error_response(error, inner)  # also logs
            if not started:
                await response(scope, receive, send)
