"""What an answer is made of: text, thinking and tool calls, as they become certain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias


class Text(NamedTuple):
    """More of the answer that a reader sees."""

    text: str


class Reasoning(NamedTuple):
    """More of the thinking before it."""

    text: str


class Call(NamedTuple):
    """A tool call begins; its arguments follow."""

    name: str


class Arguments(NamedTuple):
    """More of the last call's arguments, as JSON text: together they are one JSON object.

    They may fall short of that where the model's own text does: it ended amid the call, or is no JSON.
    """

    text: str


Part: TypeAlias = Text | Reasoning | Call | Arguments


class Parser(Protocol):
    """Tells the parts of an answer apart while it is written.

    What it tells does not depend on how the text is cut; only where a part is cut into several does.
    """

    def push(self, text: str) -> list[Part]:
        """What has become certain."""

    def flush(self) -> list[Part]:
        """What was held back, once no more text comes."""


class PlainText:
    """The parser of an answer in which nothing has a meaning."""

    def push(self, text: str) -> list[Part]:
        """All of it."""
        return [Text(text)] if text else []

    def flush(self) -> list[Part]:
        """Nothing: nothing was held back."""
        return []


def _no_parameters() -> Mapping[str, Any]:
    return {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the client offers to the model.

    `parameters` is the JSON schema of its arguments; `strict` asks that every call fits it.
    """

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=_no_parameters)
    strict: bool = False
