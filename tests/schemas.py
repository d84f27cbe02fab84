"""A few hundred JSON schemas made of parts. What they describe is bounded, so that answers come to an end."""

from __future__ import annotations

import ipaddress
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import date, time
from typing import Any
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker

Schema = dict[str, Any]
WORD: Schema = {"type": "string", "maxLength": 8}
DIGIT: Schema = {"type": "integer", "minimum": 0, "maximum": 9}

SCALARS: dict[str, Schema] = {
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "word": WORD,
    "exact length": {"type": "string", "minLength": 3, "maxLength": 3},
    "at least": {"type": "string", "minLength": 5, "maxLength": 9},
    "empty": {"type": "string", "maxLength": 0},
    "between": {"type": "integer", "minimum": -5, "maximum": 1200},
    "negative": {"type": "integer", "minimum": -300, "maximum": -17},
    "one integer": {"type": "integer", "minimum": 42, "maximum": 42},
    "above": {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
    "number": {"type": "number", "minimum": -1.5, "maximum": 2.25},
    "positive": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "strictly between": {"type": "number", "exclusiveMinimum": -3, "exclusiveMaximum": 0.125},
    "integers of a number": {"type": "number", "minimum": 3, "maximum": 5},
    "float bounds": {"type": "integer", "minimum": 0.5, "maximum": 99.5},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
    "multiple of a part": {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 50},
    "const": {"const": "only this"},
    "const number": {"const": -12.5},
    "const object": {"const": {"a": [1, {"b": None}], "c": "é"}},
    "enum": {"enum": ["red", "green", "blue"]},
    "enum of all types": {"enum": [None, True, 0, -1.5, "text", [], [1, "two"], {"k": {}}]},
    "enum with a type": {"type": "integer", "enum": [1, 2, 30, 300]},
    "enum of escapes": {"enum": ['a"b', "a\\b", "a\nb", "a/b", "\u0001", "\u2028"]},
    "enum beyond ascii": {"enum": ["größe", "你好", "🙂", "é"]},
    "pattern": {"type": "string", "pattern": "^[a-f]{2,6}$"},
    "pattern of digits": {"type": "string", "pattern": "^\\d{3}-\\d{2}$"},
    "pattern with ways": {"type": "string", "pattern": "^(cat|dog|cow)s?$"},
    "pattern within": {"type": "string", "pattern": "xy", "maxLength": 12},
    "pattern at the start": {"type": "string", "pattern": "^ab", "maxLength": 10},
    "pattern at the end": {"type": "string", "pattern": "yz$", "maxLength": 10},
    "pattern beyond ascii": {"type": "string", "pattern": "^[äöü]{1,4}$"},
    "pattern with escapes": {"type": "string", "pattern": '^["\\\\/]{1,3}$'},
    "pattern and lengths": {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 5},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "time", "maxLength": 20},
    "date-time": {"type": "string", "format": "date-time", "maxLength": 40},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "ipv6": {"type": "string", "format": "ipv6"},
    "email": {"type": "string", "format": "email", "maxLength": 30},
    "hostname": {"type": "string", "format": "hostname", "maxLength": 30},
    "uri": {"type": "string", "format": "uri", "maxLength": 30},
    "duration": {"type": "string", "format": "duration", "maxLength": 20},
    "null or word": {"type": ["null", "string"], "maxLength": 6},
    "types": {"type": ["integer", "boolean"], "minimum": 1, "maximum": 3},
    "titled": {"title": "T", "description": "D", "default": 1, "examples": [2], "$comment": "c", **DIGIT},
    "deprecated": {"deprecated": True, "readOnly": True, "writeOnly": False, **DIGIT},
}


def _object(*required: str, **properties: Any) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


STRUCTURES: dict[str, Schema] = {
    "empty object": _object(),
    "empty list": {"type": "array", "maxItems": 0},
    "optional": _object(a=WORD, b=DIGIT, c=WORD),
    "one of three required": _object("b", a=WORD, b=DIGIT, c=WORD),
    "required out of order": _object("c", "a", a=WORD, b=DIGIT, c=WORD),
    "required but not described": {
        "type": "object",
        "properties": {"a": DIGIT},
        "required": ["a", "z"],
        "additionalProperties": WORD,
        "maxProperties": 3,
    },
    "keys to be escaped": _object('q"', "b\\", "n\n", **{'q"': DIGIT, "b\\": DIGIT, "n\n": DIGIT}),
    "keys beyond ascii": _object("größe", "你", größe=DIGIT, 你=WORD),
    "empty key": _object("", **{"": DIGIT}),
    "schema of the rest": {
        "type": "object",
        "properties": {"a": DIGIT},
        "additionalProperties": {"type": "boolean"},
        "maxProperties": 3,
    },
    "names by pattern": {
        "type": "object",
        "patternProperties": {"^x_[a-z]{1,3}$": DIGIT},
        "additionalProperties": False,
        "maxProperties": 3,
    },
    "names by patterns": {
        "type": "object",
        "properties": {"id": DIGIT},
        "required": ["id"],
        "patternProperties": {"^s_[a-z]{1,3}$": WORD, "^n_[a-z]{1,3}$": DIGIT},
        "additionalProperties": False,
        "maxProperties": 4,
    },
    "some properties": {
        "type": "object",
        "additionalProperties": DIGIT,
        "minProperties": 1,
        "maxProperties": 2,
    },
    "list": {"type": "array", "items": DIGIT, "maxItems": 5},
    "list of at least": {"type": "array", "items": WORD, "minItems": 2, "maxItems": 3},
    "list of exactly": {"type": "array", "items": {"type": "boolean"}, "minItems": 4, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [DIGIT, WORD, {"type": "null"}], "items": False, "minItems": 3},
    "short tuple": {"type": "array", "prefixItems": [DIGIT, WORD], "items": False},
    "tuple and rest": {"type": "array", "prefixItems": [WORD], "items": DIGIT, "minItems": 2, "maxItems": 4},
    "list of lists": {
        "type": "array",
        "items": {"type": "array", "items": DIGIT, "maxItems": 2},
        "maxItems": 3,
    },
    "list of objects": {"type": "array", "items": _object("a", a=DIGIT, b=WORD), "maxItems": 2},
    "any of": {"anyOf": [WORD, DIGIT, {"type": "null"}]},
    "any of objects": {"anyOf": [_object("a", a=DIGIT), _object("b", b=WORD)]},
    "any of that overlap": {"anyOf": [{"type": "integer", "maximum": 5, "minimum": 0}, DIGIT]},
    "any of beside properties": {
        **_object("a", a=DIGIT, b=WORD),
        "anyOf": [{"required": ["b"]}, {"properties": {"a": {"const": 3}}}],
    },
    "one of that differ in type": {"oneOf": [DIGIT, WORD, {"type": "array", "maxItems": 1, "items": DIGIT}]},
    "one of by a tag": {
        "oneOf": [
            _object("kind", "r", kind={"const": "circle"}, r=DIGIT),
            _object("kind", "w", "h", kind={"const": "box"}, w=DIGIT, h=DIGIT),
        ]
    },
    "one of constants": {"oneOf": [{"const": "a"}, {"const": "b"}, {"const": 3}]},
    "all of": {
        "allOf": [{"type": "integer", "minimum": 3}, {"maximum": 12, "type": "integer"}, {"multipleOf": 2}]
    },
    "all of objects": {
        "allOf": [
            {"type": "object", "properties": {"a": DIGIT}, "required": ["a"]},
            {"type": "object", "properties": {"b": WORD}, "required": ["b"]},
        ],
        "maxProperties": 2,
    },
    "all of with a reference": {
        "$defs": {"base": {"type": "object", "properties": {"a": DIGIT}, "required": ["a"]}},
        "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"b": DIGIT}, "required": ["b"]}],
        "maxProperties": 2,
    },
    "reference": {
        "$defs": {"d": DIGIT},
        **_object("a", "b", a={"$ref": "#/$defs/d"}, b={"$ref": "#/$defs/d"}),
    },
    "reference with siblings": {
        "$defs": {"d": DIGIT},
        **_object("a", a={"$ref": "#/$defs/d", "minimum": 5, "description": "x"}),
    },
    "reference through another": {
        "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/c"}, "c": WORD},
        "$ref": "#/$defs/a",
    },
    "reference to a property": {
        **_object("a", "b", a=_object("x", x=DIGIT), b={"$ref": "#/properties/a"}),
    },
    "older definitions": {"definitions": {"d": DIGIT}, **_object("a", a={"$ref": "#/definitions/d"})},
    "tree": {
        "$defs": {
            "node": _object(
                "value",
                value=DIGIT,
                children={"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
            )
        },
        "$ref": "#/$defs/node",
    },
    "chain": {
        "$defs": {"link": {"anyOf": [{"type": "null"}, _object("next", next={"$ref": "#/$defs/link"})]}},
        "$ref": "#/$defs/link",
    },
    "recursion to the root": _object("v", v=DIGIT, next={"$ref": "#"}),
    "bounds without a type": {"minimum": 0, "maximum": 9, "type": ["integer", "string"], "maxLength": 3},
    "enum that a type cuts": {"type": "string", "enum": ["a", 1, None, "b"]},
    "const that fits": {"type": "integer", "const": 7, "minimum": 5},
    "id and schema": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "https://example.org/thing",
        **_object("a", a=DIGIT),
    },
    "nested": _object("a", a=_object("b", b=_object("c", c=_object("d", d=WORD)))),
    "sibling unions": _object(
        "a", "b", a={"type": ["string", "null"], "maxLength": 4}, b={"anyOf": [DIGIT, {"type": "null"}]}
    ),
    "nullable enum": _object("a", a={"enum": ["x", "y", None]}),
    "many properties": _object(
        *(f"field_{n}" for n in range(0, 12, 2)), **{f"field_{n}": DIGIT for n in range(12)}
    ),
    "similar names": _object("a", "ab", "abc", a=DIGIT, ab=DIGIT, abc=DIGIT),
    "tuple of objects": {
        "type": "array",
        "prefixItems": [_object("a", a=DIGIT), _object("b", b=WORD)],
        "items": False,
        "minItems": 2,
    },
}


def deep(levels: int) -> Schema:
    """Lists and objects within each other."""
    schema = DIGIT
    for level in range(levels):
        schema = (
            _object("down", down=schema)
            if level % 2
            else {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}
        )
    return schema


WRAPPERS: dict[str, Callable[[Schema], Schema]] = {
    "an argument": lambda inner: _object("value", value=inner),
    "perhaps one": lambda inner: _object(value=inner, other=DIGIT),
    "a list of up to two": lambda inner: {"type": "array", "items": inner, "maxItems": 2},
    "or null": lambda inner: {"anyOf": [inner, {"type": "null"}]},
    "behind a reference": lambda inner: {
        "$defs": {"it": inner},
        **_object("a", a={"$ref": "#/$defs/it"}, b={"$ref": "#/$defs/it"}),
    },
    "first of a tuple": lambda inner: {
        "type": "array",
        "prefixItems": [inner, DIGIT],
        "items": False,
        "minItems": 2,
    },
}


def _moved(schema: Schema) -> bool:
    """Whether it can stand within another: its references do not begin at the root."""
    return "$ref" not in str(schema)


def schemas() -> Iterator[tuple[str, Schema]]:
    """Each with a name of its own."""
    parts = {**SCALARS, **STRUCTURES, **{f"{levels} deep": deep(levels) for levels in (4, 12, 24)}}
    yield from parts.items()
    for wrapper, wrap in WRAPPERS.items():
        for name, part in parts.items():
            if _moved(part):
                yield f"{wrapper}: {name}", wrap(part)


_formats = FormatChecker()
_TIME = re.compile(r"(\d\d:\d\d:\d\d)(\.\d+)?(Z|[+-]\d\d:\d\d)", re.IGNORECASE)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_DURATION = re.compile(r"P(?!$)(\d+W|(\d+Y)?(\d+M)?(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)")


def _checks(name: str) -> Callable[[Callable[[str], object]], Callable[[str], object]]:
    """A check of strings: what it raises a ValueError for, or calls false, is wrong."""

    def register(check: Callable[[str], object]) -> Callable[[str], object]:
        _formats.checks(name, raises=ValueError)(lambda text: not isinstance(text, str) or bool(check(text)))
        return check

    return register


@_checks("date")
def _is_date(text: str) -> bool:
    return bool(date.fromisoformat(text)) and len(text) == 10


@_checks("time")
def _is_time(text: str) -> bool:
    found = _TIME.fullmatch(text)
    if found is None:
        return False
    clock = found[1].replace(":60", ":59") if found[1].endswith(":60") else found[1]  # leap seconds
    return time.fromisoformat(clock) is not None and (
        found[3] in "Zz" or time.fromisoformat(found[3][1:]) is not None
    )


@_checks("date-time")
def _is_date_time(text: str) -> bool:
    return text[10:11] in ("T", "t", " ") and _is_date(text[:10]) and _is_time(text[11:])


@_checks("uuid")
def _is_uuid(text: str) -> bool:
    return bool(uuid.UUID(text)) and len(text) == 36


@_checks("ipv4")
def _is_ipv4(text: str) -> bool:
    return bool(ipaddress.IPv4Address(text).packed)


@_checks("ipv6")
def _is_ipv6(text: str) -> bool:
    return bool(ipaddress.IPv6Address(text).packed)


@_checks("hostname")
def _is_hostname(text: str) -> bool:
    return 0 < len(text) < 254 and all(map(_LABEL.fullmatch, text.split(".")))


@_checks("email")
def _is_email(text: str) -> bool:
    return "@" in text[1:-1]


@_checks("uri")
def _is_uri(text: str) -> bool:
    return bool(urlsplit(text).scheme) and not re.search(r"[\s<>\"{}|\\^`]", text)


@_checks("duration")
def _is_duration(text: str) -> bool:
    return _DURATION.fullmatch(text) is not None


def validator(schema: Schema) -> Draft202012Validator:
    """Checks formats as well."""
    return Draft202012Validator(schema, format_checker=_formats)
