"""What a tool's JSON schema says of single arguments, for formats that write them one by one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenspeed.text.parsing.parts import Tool

Schema = Mapping[str, Any]
ANY = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
STRING = frozenset({"string"})
_DEEPEST = 16  # references followed, and unions within unions
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def properties(tool: Tool) -> Mapping[str, Schema]:
    """The schemas of the tool's arguments, in order. A schema that is no object admits anything."""
    found = resolve(tool.parameters, tool.parameters).get("properties")
    rows = found.items() if isinstance(found, Mapping) else ()
    return {str(name): row if isinstance(row, Mapping) else {} for name, row in rows}


def required(tool: Tool) -> frozenset[str]:
    """The arguments that may not be absent."""
    names = resolve(tool.parameters, tool.parameters).get("required")
    return (
        frozenset(name for name in names if isinstance(name, str)) if isinstance(names, list) else frozenset()
    )


def standalone(schema: Schema, tool: Tool) -> Schema:
    """The schema of one argument with the definitions that it may refer to."""
    shared = {key: tool.parameters[key] for key in ("$defs", "definitions") if key in tool.parameters}
    return {**shared, **schema}


def types(schema: Schema, root: Schema) -> frozenset[str]:
    """The JSON types that `schema`, which may refer into `root`, admits."""
    return _types(schema, root, {}, 0)


def _types(schema: Any, root: Schema, known: dict[int, frozenset[str]], depth: int) -> frozenset[str]:
    """`known` are the types of the schemas met, by identity: each is looked at once, whoever refers to it."""
    if not isinstance(schema, Mapping) or depth > _DEEPEST:
        return ANY
    if id(schema) in known:
        return known[id(schema)]
    known[id(schema)] = ANY  # for one that leads back to itself
    resolved = resolve(schema, root)
    admitted = _stated(resolved)
    for key in ("anyOf", "oneOf"):
        if isinstance(rows := resolved.get(key), list):
            admitted &= frozenset[str]().union(*[_types(row, root, known, depth + 1) for row in rows])
    if isinstance(rows := resolved.get("allOf"), list):
        admitted = admitted.intersection(*[_types(row, root, known, depth + 1) for row in rows])
    known[id(schema)] = admitted or ANY
    return known[id(schema)]


def choices(schema: Schema, root: Schema) -> list[Any] | None:
    """The values to choose from, where the schema lists them."""
    schema = resolve(schema, root)
    if "const" in schema:
        return [schema["const"]]
    return list(schema["enum"]) if isinstance(schema.get("enum"), list) else None


def _stated(schema: Schema) -> frozenset[str]:
    """The types that a schema names, or those of the values that it lists."""
    match schema.get("type"):
        case str(name):
            return frozenset({name})
        case list(names):
            return frozenset(str(name) for name in names)
    values = choices(schema, schema)
    return ANY if values is None else frozenset(_TYPES.get(type(value), "null") for value in values)


def resolve(schema: Schema, root: Schema) -> Schema:
    """The schema that a local reference leads to, with what stands beside the reference."""
    for _ in range(_DEEPEST):
        reference = schema.get("$ref")
        if not isinstance(reference, str) or not isinstance(target := _follow(reference, root), Mapping):
            break
        schema = {**target, **{key: row for key, row in schema.items() if key != "$ref"}}
    return schema


def _follow(reference: str, root: Schema) -> Any:
    """What `#/a/b` stands for; None if there is no such place here."""
    if not reference.startswith("#"):
        return None
    target: Any = root
    for step in filter(None, reference[1:].split("/")):
        if not isinstance(target, Mapping):
            return None
        target = target.get(step.replace("~1", "/").replace("~0", "~"))
    return target
