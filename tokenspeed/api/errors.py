"""Errors as OpenAI's clients read them: a status, and one JSON object that names the field.

Only the words of a `RequestError` are shown; whatever else goes wrong has a fixed message here and its
details in the log.
"""

from __future__ import annotations

import logging
import math

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

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


class ClientGoneError(Exception):
    """The client closed the connection; nobody reads what would be answered."""


def error_body(message: str, kind: str, *, param: str | None = None, code: str | None = None) -> bytes:
    """OpenAI's error object."""
    return orjson.dumps({"error": {"message": message, "type": kind, "param": param, "code": code}})


def status_of(error: RequestError) -> int:
    """The HTTP status that says whose turn it is."""
    match error:
        case UnauthorizedError():
            return 401
        case OverloadedError():
            return 429
        case NotFoundError():
            return 404
        case BodyTooLargeError():
            return 413
        case _:
            return 400


def describe(error: Exception) -> tuple[int, bytes]:
    """Status and body of any exception; the unexpected ones are logged here and nowhere else."""
    match error:
        case RequestError():
            status = status_of(error)
            kind = "rate_limit_error" if status == 429 else "invalid_request_error"
            return status, error_body(str(error), kind, param=error.param, code=error.code)
        case EngineStoppedError():
            return 503, error_body(STOPPING, "server_error", code="shutting_down")
        case EngineError():
            log.error("a request failed: %s", error)
        case _:
            log.error("an unexpected error ended a request", exc_info=error)
    return 500, error_body(FAILED, "server_error", code="internal_error")


def error_response(error: Exception) -> Response:
    """The whole answer to a request that failed before its answer began."""
    status, body = describe(error)
    return Response(body, status, _headers(error), media_type="application/json")


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


async def handle_error(_: Request, error: Exception) -> Response:
    """Starlette's hook for what endpoints raise."""
    if isinstance(error, ClientGoneError):
        return Response(status_code=499)
    return error_response(error)


async def handle_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own 404 and 405, in the same shape."""
    assert isinstance(error, HTTPException)
    route = f"{request.method} {request.scope['path']}"
    if error.status_code == 405:
        message, code = f"{route}: this path does not take that method.", "method_not_allowed"
    elif error.status_code == 404:
        message, code = f"{route}: there is nothing at this path.", "not_found"
    else:
        message, code = str(error.detail), "http_error"
    body = error_body(message[:500], "invalid_request_error", code=code)
    return Response(body, error.status_code, error.headers, media_type="application/json")
