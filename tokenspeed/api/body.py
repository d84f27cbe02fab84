"""A request's body: bounded while it arrives, then parsed once, strictly, with errors that name the field."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import orjson
from starlette.requests import Request

from tokenspeed.api.errors import BodyTooLargeError, ClientGoneError
from tokenspeed.errors import RequestError

T = TypeVar("T")

PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`")
MISSING = re.compile(r"^Object missing required field `([^`]+)`")


async def read_body(request: Request, most: int) -> bytes:
    """The whole body, or `BodyTooLargeError` as soon as it is known to exceed `most` bytes."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and (len(announced) > 18 or int(announced) > most):
        raise _too_large(most)
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise _too_large(most)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _too_large(most: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is too large; the most is {most} bytes.", code="body_too_large")


def parse(body: bytes, decoder: msgspec.json.Decoder[T], *, part: bytes | None = None) -> T:
    """The body, or a part of it, as the decoder's type, whatever its Content-Type says."""
    try:
        return decoder.decode(body if part is None else part)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error)) from None
    except RecursionError:
        raise _not_json("it is nested too deeply") from None
    except ValueError as error:  # malformed JSON or UTF-8
        raise _diagnose(body, str(error)) from None


def check_writable(fields: Mapping[str, Any]) -> None:
    """Raise for the first field that an answer could not repeat: it is nested more deeply than JSON is
    written, with room for what is around it there, or has an integer of more than 64 bits."""
    if _is_writable(fields):
        return
    name = next((name for name, value in fields.items() if not _is_writable({name: value})), "the body")
    problem = "is nested too deeply, or has a number of more than 64 bits"
    raise RequestError(f"{name} {problem}", param=name, code="invalid_value")


def _is_writable(value: Mapping[str, Any]) -> bool:
    try:
        orjson.dumps([[[[[[[[value]]]]]]]])
    except TypeError:
        return False
    return True


def _wrong_type(message: str) -> RequestError:
    """msgspec's `Expected int, got str - at $.field` as an error of that field."""
    found = PATH.search(message)
    path = found.group(1) if found else ""
    problem = PATH.sub("", message)
    if missing := MISSING.match(problem):
        path = f"{path}.{missing.group(1)}".lstrip(".")
        return RequestError(f"{path} is required", param=path, code="missing_required_parameter")
    where = path or "the body"
    return RequestError(f"{where}: {problem}", param=path or None, code="invalid_type")


def _not_json(why: str) -> RequestError:
    return RequestError(f"The body is not valid JSON: {why}", code="invalid_json")


def _diagnose(body: bytes, complaint: str) -> RequestError:
    """Name the field that holds what JSON or Unicode does not allow, if the rest can be read.

    Python's own parser lets NaN and lone surrogates pass, and surrogateescape turns bytes that are not UTF-8
    into lone surrogates, so a walk over what it reads finds the field. Only broken bodies come here.
    """
    try:
        value = json.loads(body.decode("utf-8", errors="surrogateescape"))
        for path, problem in _faults(value, ""):
            return RequestError(f"{path or 'the body'} {problem}", param=path or None, code="invalid_value")
    except (ValueError, RecursionError) as error:
        complaint = str(error)
    return _not_json(complaint[:200])


def _faults(value: Any, path: str) -> Iterator[tuple[str, str]]:
    match value:
        case float() if not math.isfinite(value):
            yield path, "must be a finite number"
        case str() if not _encodable(value):
            yield path, "must be valid Unicode: it has a lone surrogate or bytes that are not UTF-8"
        case dict():
            for key, inner in value.items():
                if not _encodable(key):
                    yield path, "has a key that is not valid Unicode"
                yield from _faults(inner, f"{path}.{key}" if path else key)
        case list():
            for index, inner in enumerate(value):
                yield from _faults(inner, f"{path}[{index}]")
        case _:
            pass


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
