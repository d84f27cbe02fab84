"""The error object of each protocol, and which paths speak which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson


class Problem(NamedTuple):
    """What went wrong. `type`, `param` and `code` are as OpenAI's API has them; `details` are figures that
    some client reads beside the message."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None
    details: Mapping[str, Any] | None = None


ErrorShape = Callable[[Problem], bytes]


def openai_error(problem: Problem) -> bytes:
    """`{"error": {message, type, param, code}}`."""
    error = {
        "message": problem.message,
        "type": problem.type,
        "param": problem.param,
        "code": problem.code,
        **(problem.details or {}),
    }
    return orjson.dumps({"error": error})


# https://docs.anthropic.com/en/api/errors
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def anthropic_error(problem: Problem) -> bytes:
    """`{"type": "error", "error": {type, message}}`."""
    kind = _ANTHROPIC_TYPES.get(problem.status, "invalid_request_error")
    return orjson.dumps({"type": "error", "error": {"type": kind, "message": problem.message}})


def ollama_error(problem: Problem) -> bytes:
    """`{"error": message}`."""
    return orjson.dumps({"error": problem.message})


# By the first segment of a path; everything else is OpenAI's.
_SHAPES: Mapping[str, ErrorShape] = {
    "messages": anthropic_error,
    "api": ollama_error,
}


def shape_of(path: str) -> ErrorShape:
    """The shape of errors at `path`, which begins with a slash and has no `/v1` in front."""
    return _SHAPES.get(path.split("/", 2)[1], openai_error)
