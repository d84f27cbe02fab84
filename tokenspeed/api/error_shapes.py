"""The error object of each protocol, and which paths speak which."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import orjson
from starlette.types import Scope


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


# The code at which Anthropic's clients send a conversation as a whole instead of going on with a kept one.
THREAD_UNSUPPORTED = "thread_unsupported_request"


def anthropic_error(problem: Problem) -> bytes:
    """`{"type": "error", "error": {type, message}}`, with `details` where a client acts on them."""
    kind = _ANTHROPIC_TYPES.get(problem.status, "invalid_request_error")
    error: dict[str, Any] = {"type": kind, "message": _too_long(problem) or problem.message}
    if problem.code == THREAD_UNSUPPORTED:
        error["details"] = {"error_code": problem.code}
    return orjson.dumps({"type": "error", "error": error})


def _too_long(problem: Problem) -> str | None:
    """Of a prompt that is, in the words by which agents know that they must shorten the conversation."""
    details = problem.details or {}
    length, context = details.get("n_prompt_tokens", 0), details.get("n_ctx", 1)
    if length < context:
        return None
    # A prompt as long as the context is too long as well: it leaves no room for a single token.
    return f"prompt is too long: {length} tokens > {min(context, length - 1)} maximum"


def ollama_error(problem: Problem) -> bytes:
    """`{"error": message}`."""
    return orjson.dumps({"error": problem.message})


# llama.cpp's types of errors.
_LLAMACPP_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "unavailable_error",
    500: "server_error",
    503: "unavailable_error",
}


def llamacpp_error(problem: Problem) -> bytes:
    """`{"error": {code, message, type}}`, with both numbers where a prompt is too long."""
    kind = _LLAMACPP_TYPES.get(problem.status, "invalid_request_error")
    if problem.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    error = {"code": problem.status, "message": problem.message, "type": kind, **(problem.details or {})}
    return orjson.dumps({"error": error})


_LLAMACPP_PATHS = ("completion", "infill", "tokenize", "detokenize", "apply-template", "props", "slots")
# By the first segment of a path; everything else is OpenAI's.
_SHAPES: Mapping[str, ErrorShape] = {
    "messages": anthropic_error,
    "api": ollama_error,
    **dict.fromkeys(_LLAMACPP_PATHS, llamacpp_error),
}


ANTHROPIC_VERSION = (
    "anthropic-version"  # the header that tells Anthropic's clients on paths that others share
)


def shape_of(scope: Scope) -> ErrorShape:
    """The shape of errors for a request, whose path begins with a slash and has no `/v1` in front."""
    if any(name == ANTHROPIC_VERSION.encode() for name, _ in scope.get("headers", ())):
        return anthropic_error
    return _SHAPES.get(scope["path"].split("/", 2)[1], openai_error)
