"""Pieces of grammars in the Lark dialect of llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

# The Lark term for a mark: a quoted string, or a reference where the vocabulary has it as a special token,
# which never appears as text.
Mark: TypeAlias = Callable[[str], str]

# As templates write JSON, or without the spaces. No more white space than that: a model that may write any
# amount of it can get stuck writing nothing else.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ?", "key_separator": ": ?"}


def quote(text: str) -> str:
    """The term that matches exactly this."""
    return json.dumps(text, ensure_ascii=False)


def is_text(term: str) -> bool:
    """Whether a mark's term is a quoted string; only those may be part of a terminal."""
    return term.startswith('"')


def json_value(schema: Mapping[str, Any]) -> str:
    """The term that matches the JSON values which `schema` admits."""
    return f"%json {json.dumps({**schema, 'x-guidance': {**_SPACING, **schema.get('x-guidance', {})}})}"


def json_object(schema: Mapping[str, Any]) -> str:
    """The same, but objects only: arguments are, though a schema need not say so."""
    return json_value({**schema, "type": "object"})


def json_call(name: str, schema: Mapping[str, Any], *, key: str, end: str = quote("}")) -> str:
    """The term that matches a call as a JSON object, as templates write it: `end` follows its arguments."""
    head = f'{{"name": {quote(name)}, "{key}": '
    return f"{quote(head)} {json_object(schema)} {end}"


def rule(name: str, *alternatives: str) -> str:
    """A line that says what `name` matches."""
    return f"{name}: {' | '.join(alternatives)}\n"


def repeat(name: str, separator: str, most: int | None) -> str:
    """One `name` or more, at most `most`, with the term `separator` between two."""
    if most == 1:
        return name
    limit = "*" if most is None else f"{{0,{most - 1}}}"
    return f"{name} ({separator} {name}){limit}"


def text_before(term: str, terminal: str) -> tuple[str, str]:
    """Free text and the mark behind it, which the text may not contain: a term, and the rules it needs.

    A special token ends the text by being none. A spelling must be one terminal with it: of two, the first
    would take in the beginning of the second.
    """
    if not is_text(term):
        return f"{terminal} {term}", rule(terminal, "/(?s:.*)/")
    return terminal, rule(terminal, f"{terminal}_FREE {term}") + rule(f"{terminal}_FREE", free_of(term))


def free_of(term: str) -> str:
    """The terminal of text that does not contain `term`, a quoted string."""
    return f"/(?s:.*)/ & ~(/(?s:.*)/ {term} /(?s:.*)/)"
