"""`GET /openapi.json`: what the table of routes says, as OpenAPI 3.1.

https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed import __version__
from tokenspeed.api.error_shapes import ANTHROPIC_VERSION, anthropic_error, shape_of
from tokenspeed.api.keys import OPEN
from tokenspeed.api.media import JSON
from tokenspeed.api.middleware import normal_path
from tokenspeed.api.served import Served, get
from tokenspeed.api.shapes import ANY_OBJECT, ERRORS, Shape

Table = Mapping[str, Sequence[Served]]  # by the protocol that the rows belong to

ABOUT = (
    "Paths are the same with and without `/v1` in front. Whoever sends the header `anthropic-version` gets "
    "errors in Anthropic's shape, wherever it is. Fields that are not described are ignored, and null is as "
    "good as absent."
)
OWN = "TokenSpeed"  # what is no other's protocol
COMPONENT = "#/components/schemas/{name}"
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
# Why a request is refused, by the status that says so.
ANYWHERE = {403: "It comes from where this server takes no requests from.", 500: "The server failed."}
REFUSALS = {400: "It is not as it should be.", 404: "There is no such thing, or model, here."}
WITH_BODY = {
    **REFUSALS,
    413: "Its body is too long.",
    429: "There is too much to do.",
    503: "The server is shutting down.",
}
LOCKED = {401: "It has no API key that the server knows."}
HEADERS = {
    401: {"www-authenticate": {"required": True, "schema": {"type": "string"}}},
    429: {"retry-after": {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}},
}


class DescriptionEndpoint:
    """Written when somebody asks for it first."""

    def __init__(self, table: Table, *, keyed: bool) -> None:
        """`keyed` servers want an API key."""
        self._table = table
        self._keyed = keyed
        self._written: bytes | None = None

    async def get(self, _: Request) -> Response:
        if self._written is None:
            self._written = await asyncio.to_thread(self._write)
        return Response(self._written, media_type=JSON)

    def _write(self) -> bytes:
        return orjson.dumps(describe(self._table, keyed=self._keyed), option=orjson.OPT_NON_STR_KEYS)


def describe(table: Table, *, keyed: bool) -> dict[str, Any]:
    """The whole description."""
    rows = [row for rows in table.values() for row in rows]
    bodies, schemas = _bodies(rows)
    paths: dict[str, dict[str, Any]] = {}
    for protocol, served in table.items():
        for row in served:
            path = paths.setdefault(row.plain_path, {})
            path[row.method.lower()] = _operation(row, protocol, bodies, keyed)
    return {
        "openapi": "3.1.0",
        "info": {"title": OWN, "version": __version__, "description": ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": protocol} for protocol in table],
        "security": [*({name: []} for name in SCHEMES), *([] if keyed else [{}])],
        "paths": paths,
        "components": {"schemas": schemas | _answers(rows), "securitySchemes": SCHEMES},
    }


def _bodies(rows: Iterable[Served]) -> tuple[dict[type, Any], dict[str, Any]]:
    """What stands for each type that a decoder reads, and the schemas behind it, by name."""
    types = list(dict.fromkeys(row.takes.type for row in rows if row.takes is not None))
    references, schemas = msgspec.json.schema_components(types, ref_template=COMPONENT)
    return dict(zip(types, references, strict=True)), schemas


def _answers(rows: Iterable[Served]) -> dict[str, Any]:
    shapes = [shape for row in rows for shape in (*row.gives.values(), *row.also.values())]
    return dict([*ERRORS.values(), *shapes])


def _operation(row: Served, protocol: str, bodies: Mapping[type, Any], keyed: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{row.method} {row.plain_path}").strip("_").lower(),
        "summary": row.summary,
        "tags": [protocol],
        "parameters": _parameters(row),
        "responses": _responses(row),
    }
    if row.takes is not None:
        body = {JSON: {"schema": bodies[row.takes.type]}}
        operation["requestBody"] = {"required": True, "content": body}
    if row.path in OPEN:
        operation["security"] = []
    return operation


def _parameters(row: Served) -> list[dict[str, Any]]:
    given: list[tuple[str, str, Mapping[str, Any]]] = [
        ("path", name, {"type": "string"}) for name in row.varying
    ]
    given += [("query", *each) for each in row.query.items()]
    given += [("header", *each) for each in row.headers.items()]
    return [
        {"in": place, "name": name, "required": place == "path", "schema": schema}
        for place, name, schema in given
    ]


def _responses(row: Served) -> dict[str, Any]:
    """What it answers, and each way in which it may be refused."""
    reasons = dict(ANYWHERE) if row.path in OPEN else LOCKED | ANYWHERE
    if row.takes is not None:
        reasons |= WITH_BODY
    elif row.varying or not row.gives:
        reasons |= REFUSALS
    error = _error(row)
    responses = {
        str(status): {
            "description": why,
            "content": {JSON: {"schema": error}},
            **({"headers": HEADERS[status]} if status in HEADERS else {}),
        }
        for status, why in reasons.items()
    }
    answers = {200: row.gives} if row.gives else {}
    for status, given in {**answers, **{status: {JSON: shape} for status, shape in row.also.items()}}.items():
        content = {media: {"schema": _reference(shape)} for media, shape in given.items()}
        responses[str(status)] = {"description": "The answer.", "content": content}
    return dict(sorted(responses.items()))


def _error(row: Served) -> dict[str, Any]:
    """The error of the protocol, or of both where a header says which it is."""
    kind = shape_of({"path": normal_path(row.path)})
    if ANTHROPIC_VERSION in row.headers:
        return {"anyOf": [_reference(ERRORS[kind]), _reference(ERRORS[anthropic_error])]}
    return _reference(ERRORS[kind])


def _reference(shape: Shape) -> dict[str, str]:
    return {"$ref": COMPONENT.format(name=shape.name)}


def described(table: Table, *, keyed: bool) -> Table:
    """The table with a row for what describes all of it."""
    whole = {protocol: list(rows) for protocol, rows in table.items()}
    endpoint = DescriptionEndpoint(whole, keyed=keyed)
    whole[OWN].append(get("/openapi.json", endpoint.get, "Describes all of this", ANY_OBJECT))
    return whole
