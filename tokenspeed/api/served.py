"""One row of the table of routes: what answers there, what it takes, and what it gives."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokenspeed.api.media import JSON
from tokenspeed.api.middleware import normal_path
from tokenspeed.api.shapes import Shape

Handler = Callable[[Request], Awaitable[Response]]
Parameters = Mapping[str, Mapping[str, Any]]  # the schema of each, by its name

CONVERTED = re.compile(r"\{(\w+)(?::\w+)?\}")  # a part of a path that varies, and how Starlette reads it


@dataclass(frozen=True, slots=True)
class Served:
    """A method at a path, which is as clients write it: with `/v1` in front where their protocol has it.

    The body is what `takes` decodes. An answer is one of the media types of `gives`, which has none where all
    that is asked for is refused; `also` are answers in JSON with another status that are no errors.
    """

    method: str
    path: str
    endpoint: Handler
    summary: str
    takes: msgspec.json.Decoder[Any] | None = None
    gives: Mapping[str, Shape] = field(default_factory=dict)
    also: Mapping[int, Shape] = field(default_factory=dict)
    query: Parameters = field(default_factory=dict)
    headers: Parameters = field(default_factory=dict)

    @property
    def varying(self) -> list[str]:
        """The names of the parts of the path that vary."""
        return CONVERTED.findall(self.path)

    @property
    def plain_path(self) -> str:
        """The path with nothing but names where it varies."""
        return CONVERTED.sub(r"{\1}", self.path)


def routes_of(table: Iterable[Served]) -> list[Route]:
    """A route for each path, so that it knows all its methods; their order is that of the table."""
    by_path: dict[str, dict[str, Handler]] = {}
    for row in table:
        by_path.setdefault(normal_path(row.path), {})[row.method] = row.endpoint
    return [Route(path, _dispatched(handlers), methods=list(handlers)) for path, handlers in by_path.items()]


def _dispatched(handlers: Mapping[str, Handler]) -> Handler:
    """What answers each method; whoever asks for the head alone gets that of the whole."""
    if len(handlers) == 1:
        (only,) = handlers.values()
        return only

    async def by_method(http: Request) -> Response:
        method = http.method
        return await handlers["GET" if method == "HEAD" and method not in handlers else method](http)

    return by_method


def get(path: str, endpoint: Handler, summary: str, gives: Shape, **more: Any) -> Served:
    """What is only looked up, and answered as JSON."""
    return Served("GET", path, endpoint, summary, gives={JSON: gives}, **more)


def post(
    path: str,
    endpoint: Handler,
    summary: str,
    takes: msgspec.json.Decoder[Any],
    gives: Shape,
    streams: Mapping[str, Shape] | None = None,
) -> Served:
    """What has a body, and is answered as JSON, or as a stream of some media type."""
    return Served("POST", path, endpoint, summary, takes=takes, gives={JSON: gives, **(streams or {})})
