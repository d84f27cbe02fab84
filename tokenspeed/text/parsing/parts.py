"""placeholder of the seam; the parsers' own file replaces it"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol


class Text(NamedTuple):
    text: str


class Reasoning(NamedTuple):
    text: str


class Call(NamedTuple):
    name: str


class Arguments(NamedTuple):
    text: str


Part = Text | Reasoning | Call | Arguments


class Parser(Protocol):
    def push(self, text: str) -> list[Part]: ...

    def flush(self) -> list[Part]: ...


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call, with the JSON schema of its arguments."""

    name: str
    description: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False
