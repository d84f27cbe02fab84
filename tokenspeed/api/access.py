"""From where the server may be used: not by pages of other sites, nor under names that only lead here."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from tokenspeed.api.errors import ForbiddenError, error_response
from tokenspeed.api.options import ServerOptions

WEB = ("http", "https")  # what a web page's origin begins with; editors and desktop programs have their own


class Origins:
    """Refuses what another web site's page sends, and what reaches a loopback address under a foreign name.

    A browser lets any page send requests to a server on the same machine, and a page whose name is made to
    resolve to 127.0.0.1 could read the answers as well. Programs that are no browsers send no `Origin`.
    """

    def __init__(self, app: ASGIApp, *, options: ServerOptions) -> None:
        self._app = app
        self._hosts = frozenset(host.lower() for host in options.allowed_hosts)
        self._checks_host = is_loopback(options.host) and "*" not in self._hosts
        self._origins = frozenset(origin.rstrip("/").lower() for origin in options.cors_origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (problem := self._problem(Headers(scope=scope))) is not None:
            await error_response(problem, scope)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, headers: Headers) -> ForbiddenError | None:
        host, origin = headers.get("host"), headers.get("origin")
        if self._checks_host and host is not None and not self._is_ours(_name(f"//{host}")):
            return ForbiddenError(
                f"This server is on a loopback address and is not called {host[:100]!r}; if it should be, "
                "add that to [server] allowed_hosts.",
                code="host_not_allowed",
            )
        if origin is not None and not self._may_ask(origin.lower(), host):
            return ForbiddenError(
                f"Pages of {origin[:100]!r} may not use this server; if they should, add that to [server] "
                "cors_origins.",
                code="origin_not_allowed",
            )
        return None

    def _is_ours(self, name: str) -> bool:
        return is_loopback(name) or name in self._hosts

    def _may_ask(self, origin: str, host: str | None) -> bool:
        if "*" in self._origins or origin in self._origins:
            return True
        if origin == "null":  # a page that hides where it is from
            return False
        scheme, _, rest = origin.partition("://")
        return scheme not in WEB or rest == host or self._is_ours(_name(origin))


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this machine's own, seen from itself."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _name(url: str) -> str:
    """The host of a URL, without its port; nothing where there is none to be read."""
    try:
        return (urlsplit(url).hostname or "").lower()
    except ValueError:
        return ""


def cors(options: ServerOptions) -> list[Middleware]:
    """What tells browsers that pages of the configured origins may use the server; nothing where none are."""
    if not options.cors_origins:
        return []
    readable = ("x-request-id", "request-id", "retry-after", "retry-after-ms")
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=readable,
            max_age=86_400,
        )
    ]
