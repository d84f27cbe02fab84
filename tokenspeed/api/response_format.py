"""What OpenAI's clients, and those of other servers, hold an answer to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from tokenspeed.api.openai_types import CommonRequest
from tokenspeed.api.tools import wrong
from tokenspeed.errors import RequestError
from tokenspeed.text.formats import AnyJson, Choices, Format, JsonSchema, Lark, Regex

# vLLM's names for each kind; the older ones have `guided_` in front and stand in the body itself.
_KINDS = ("json", "regex", "choice", "grammar", "json_object")


def read_format(asked: CommonRequest) -> tuple[str, Format | None]:
    """How a request says its answer is to look, and the field in which it does."""
    found = dict(_formats(asked))
    if len(found) > 1:
        raise wrong(next(iter(found)), f"cannot be combined with {list(found)[1]}: they hold the same answer")
    return next(iter(found.items()), ("response_format", None))


def _formats(asked: CommonRequest) -> Iterator[tuple[str, Format]]:
    """Every way that the request uses, by its name."""
    if asked.response_format and (found := response_format("response_format", asked.response_format)):
        yield "response_format", found
    named = {f"guided_{kind}": (kind, getattr(asked, f"guided_{kind}")) for kind in _KINDS[:-1]}
    for kind, value in (asked.structured_outputs or {}).items():
        named[f"structured_outputs.{kind}"] = (kind, value)
    for name, (kind, value) in named.items():
        if (found := _kind(name, kind, value)) is not None:
            yield name, found


def response_format(path: str, given: Mapping[str, Any]) -> Format | None:
    """`{"type": "text" | "json_object" | "json_schema" | "grammar" | ...}`."""
    kind = given.get("type")
    match kind:
        case "text" | None:
            return None
        case "json_object":
            schema = given.get("schema")  # llama.cpp's addition
            return AnyJson() if schema is None else JsonSchema(as_schema(f"{path}.schema", schema))
        case "json_schema":
            wrapped = given.get("json_schema", given)
            where = f"{path}.json_schema" if "json_schema" in given else path
            if not isinstance(wrapped, dict):
                raise wrong(where, "must be an object with a schema")
            if wrapped.get("schema") is None:
                raise RequestError(
                    f"{where}.schema is required", param=f"{where}.schema", code="missing_required_parameter"
                )
            schema = as_schema(f"{where}.schema", wrapped["schema"])
            return JsonSchema(schema, strict=wrapped.get("strict") is not False)
        case "regex" | "grammar":
            return _kind(f"{path}.{kind}", kind, given.get(kind) or given.get("pattern"))
    raise wrong(f"{path}.type", f"{str(kind)[:40]!r} is not one of text, json_object, json_schema")


def as_schema(path: str, schema: Any) -> Mapping[str, Any] | bool:
    if not isinstance(schema, (dict, bool)):
        raise wrong(path, "must be a JSON schema, which is an object")
    return schema


def _kind(path: str, kind: str, value: Any) -> Format | None:
    """One of vLLM's kinds of structure."""
    if value is None:
        return None
    match kind, value:
        case "json", str():
            return JsonSchema(_parsed(path, value))
        case "json", _:
            return JsonSchema(as_schema(path, value))
        case "json_object", bool():
            return AnyJson() if value else None
        case "regex", str():
            return Regex(value)
        case "grammar", str():
            return Lark(value)
        case "choice", list() if value and all(isinstance(option, str) and option for option in value):
            return Choices(tuple(value))
        case (("regex" | "grammar"), _):
            raise wrong(path, "must be a text")
        case "choice", _:
            raise wrong(path, "must be a list of texts, none of them empty")
    raise wrong(path, f"is not known; there are {', '.join(_KINDS)}")


def _parsed(path: str, text: str) -> Mapping[str, Any] | bool:
    """A schema that was sent as text."""
    try:
        return as_schema(path, orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise wrong(path, f"is not JSON: {error}") from None
