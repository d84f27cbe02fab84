"""Who may use the server: API keys, and whose request it is."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenspeed.api.errors import UnauthorizedError, error_response
from tokenspeed.api.options import KeyOptions
from tokenspeed.generation.request import MOST_URGENT

OPEN = frozenset({"/health", "/ready"})  # what asks these has no key, and learns nothing
CALLER = "tokenspeed.caller"  # in the scope: whose request it is


class Caller(NamedTuple):
    """Whose request it is, the class that it gets, and the most urgent class that it may ask for."""

    account: str
    priority: int
    most_urgent: int


ANYONE = Caller("", 0, MOST_URGENT)


class Keys:
    """Lets in who has a key, or everybody where there are none, and notes in the scope who it is."""

    def __init__(self, app: ASGIApp, *, keys: Mapping[str, KeyOptions]) -> None:
        self._app = app
        self._known = [
            (_digest(options.secret), Caller(name, options.priority, options.priority))
            for name, options in keys.items()
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        try:
            caller = self._caller(scope)
        except UnauthorizedError as error:
            await error_response(error, scope)(scope, receive, send)
        else:
            await self._app({**scope, CALLER: caller}, receive, send)

    def _caller(self, scope: Scope) -> Caller:
        if not self._known:
            return ANYONE
        presented = list(_presented(Headers(scope=scope)))
        for secret in presented:
            if caller := self._find(secret):
                return caller
        problem = "The API key is not one of this server's" if presented else "An API key is required"
        raise UnauthorizedError(
            f"{problem}; send yours as the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'.",
            code="invalid_api_key",
        )

    def _find(self, secret: str) -> Caller | None:
        """Compares digests with all keys in turn, so that the time it takes tells nothing of any of them."""
        digest, found = _digest(secret), None
        for known, caller in self._known:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def caller_of(request: Request) -> Caller:
    """Whose request it is, by the key that let it in."""
    caller: Caller = request.scope[CALLER]
    return caller


def _presented(headers: Headers) -> Iterator[str]:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield credentials.strip()
    if key := headers.get("x-api-key"):
        yield key.strip()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
