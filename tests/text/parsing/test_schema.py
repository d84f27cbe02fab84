"""What a schema says of an argument is found wherever the schema says it."""

from __future__ import annotations

from typing import Any

import pytest

from tokenspeed.text.parsing.parts import Tool
from tokenspeed.text.parsing.schema import ANY, choices, properties, required, types

ROOT: dict[str, Any] = {
    "$defs": {
        "text": {"type": "string"},
        "loop": {"$ref": "#/$defs/loop"},
        "tree": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}, {"type": "array"}]},
        "a/b": {"enum": ["x", 1, None]},
    }
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"$ref": "#/$defs/text"}, {"string"}),
        ({"$ref": "#/$defs/a~1b"}, {"string", "integer", "null"}),
        ({"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/text"}]}, {"string", "integer"}),
        ({"oneOf": [{"type": "boolean"}, {"const": 1.5}]}, {"boolean", "number"}),
        ({"allOf": [{"type": ["string", "null"]}, {"type": "null"}]}, {"null"}),
        ({"type": "string", "anyOf": [{"minLength": 1}, {"pattern": "a"}]}, {"string"}),
        ({"anyOf": [{"type": "object"}, True]}, ANY),
        ({}, ANY),
        ({"$ref": "#/nowhere"}, ANY),
        ({"$ref": "https://example.com"}, ANY),
        ({"$ref": "#/$defs/loop"}, ANY),
        ({"type": "string", "allOf": [{"type": "null"}]}, ANY),  # nothing fits; then anything may be tried
    ],
)
def test_the_types_of_an_argument(schema: dict[str, Any], expected: set[str]) -> None:
    assert types(schema, ROOT) == expected


def test_a_schema_that_refers_to_itself_is_looked_at_once() -> None:
    wide = {"anyOf": [{"$ref": "#/$defs/wide"}] * 50}
    assert types(wide, {"$defs": {"wide": wide}}) == ANY
    assert types({"$ref": "#/$defs/tree"}, ROOT) >= {"null", "array"}


def test_a_schema_nested_without_end_is_not_followed_to_it() -> None:
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(5_000):
        deep = {"anyOf": [deep]}
    assert types(deep, {}) == ANY


def test_the_values_to_choose_from() -> None:
    assert choices({"enum": ["a", 1]}, ROOT) == ["a", 1]
    assert choices({"const": None}, ROOT) == [None]
    assert choices({"$ref": "#/$defs/a~1b"}, ROOT) == ["x", 1, None]
    assert choices({"type": "string"}, ROOT) is None


def test_the_arguments_of_a_tool_may_be_defined_elsewhere() -> None:
    schema = {"properties": {"a": {"type": "string"}, "b": True}, "required": ["a"]}
    tool = Tool("f", parameters={"$ref": "#/definitions/f", "definitions": {"f": schema}})
    assert properties(tool) == {"a": {"type": "string"}, "b": {}}
    assert required(tool) == {"a"}
    assert properties(Tool("f")) == {}


@pytest.mark.parametrize(
    "parameters", [{"properties": 1, "required": 2}, {"properties": [], "required": [{}]}]
)
def test_a_schema_that_is_none_says_nothing(parameters: dict[str, Any]) -> None:
    tool = Tool("f", parameters=parameters)
    assert (properties(tool), required(tool)) == ({}, frozenset())
