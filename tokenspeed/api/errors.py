"""What went wrong, in words for a client: a status, and fields that each protocol writes in its own shape.

Only the words of a `RequestError` are shown; whatever else goes wrong has a fixed message here and its
details in the log.
"""

from __future__ import annotations

import logging
import math
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from tokenspeed.api.error_shapes import Problem, shape_of
from tokenspeed.api.media import JSON
from tokenspeed.errors import (
    EngineError,
    EngineStoppedError,
    NotFoundError,
    OverloadedError,
    RequestError,
)

log = logging.getLogger(__name__)

FAILED = "The server failed on this request. It was not at fault and may be sent again."
STOPPING = "The server is shutting down and takes no more requests."


class BodyTooLargeError(RequestError):
    """The body is longer than this server reads.

    The connection stays open and the HTTP server throws the rest away as it arrives: to close it amid the
    client's sending would reset it, and the client would never read why.
    """


class UnauthorizedError(RequestError):
    """The request has no API key that this server knows."""


class ForbiddenError(RequestError):
    """The request comes from where this server does not take requests from."""


class ClientGoneError(Exception):
    """The client closed the connection; nobody reads what would be answered."""


class _Row(NamedTuple):
    """One kind of error: the status that says whose turn it is, and OpenAI's type of it."""

    kind: type[RequestError]
    status: int
    type: str = "invalid_request_error"


_ROWS = (
    _Row(UnauthorizedError, 401),
    _Row(ForbiddenError, 403),
    _Row(OverloadedError, 429, "rate_limit_error"),
    _Row(NotFoundError, 404),
    _Row(BodyTooLargeError, 413),
    _Row(RequestError, 400),
)


def problem_of(error: Exception) -> Problem:
    """What a client is told of any exception; the unexpected ones are logged here and nowhere else."""
    match error:
        case RequestError():
            row = next(row for row in _ROWS if isinstance(error, row.kind))
            return Problem(row.status, str(error), row.type, error.param, error.code, error.details)
        case EngineStoppedError():
            return Problem(503, STOPPING, "server_error", code="shutting_down")
        case EngineError():
            log.error("a request failed: %s", error)
        case _:
            log.error("an unexpected error ended a request", exc_info=error)
    return Problem(500, FAILED, "server_error", code="internal_error")


def error_response(error: Exception, scope: Scope) -> Response:
    """The whole answer to a request that failed before it began; its path is as `normal_path` has it."""
    problem = problem_of(error)
    return Response(shape_of(scope)(problem), problem.status, _headers(error), media_type=JSON)


def _headers(error: Exception) -> dict[str, str]:
    """What else tells a client what to do next: when to come back, in whole seconds and exactly, and how."""
    match error:
        case OverloadedError():
            milliseconds = max(1, math.ceil(error.retry_after * 1000.0))
            return {"retry-after": str(math.ceil(milliseconds / 1000)), "retry-after-ms": str(milliseconds)}
        case UnauthorizedError():
            return {"www-authenticate": "Bearer"}
        case _:
            return {}


async def handle_error(request: Request, error: Exception) -> Response:
    """Starlette's hook for what endpoints raise."""
    if isinstance(error, ClientGoneError):
        return Response(status_code=499)
    return error_response(error, request.scope)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the shape of whatever protocol the path belongs to."""
    assert isinstance(error, HTTPException)
    route = f"{request.method} {request.scope['path']}"
    if error.status_code == 405:
        message, code = f"{route}: this path does not take that method.", "method_not_allowed"
    elif error.status_code == 404:
        message, code = f"{route}: there is nothing at this path.", "not_found"
    else:
        message, code = str(error.detail), "http_error"
    problem = Problem(error.status_code, message[:500], "invalid_request_error", code=code)
    body = shape_of(request.scope)(problem)
    return Response(body, error.status_code, error.headers, media_type=JSON)
