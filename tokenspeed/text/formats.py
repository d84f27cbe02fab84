"""What a whole answer may be held to, in the words of no protocol."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class JsonSchema:
    """JSON that this schema describes; `strict`: a keyword that cannot be held to is refused."""

    schema: Mapping[str, Any] | bool
    strict: bool = True


@dataclass(frozen=True, slots=True)
class AnyJson:
    """Any JSON object."""


@dataclass(frozen=True, slots=True)
class Regex:
    """Text that matches a regular expression as a whole."""

    pattern: str


@dataclass(frozen=True, slots=True)
class Lark:
    """Text of a grammar in the Lark syntax of llguidance, from its rule `start` on."""

    grammar: str


@dataclass(frozen=True, slots=True)
class Choices:
    """One of these texts."""

    options: tuple[str, ...]


Format = JsonSchema | AnyJson | Regex | Lark | Choices
