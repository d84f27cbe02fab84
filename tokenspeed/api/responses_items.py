"""The items of a conversation as they are listed and kept: each has an id that tells its response."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

RESPONSE_ID = re.compile("resp_[0-9a-f]{24}")
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{24})[io][0-9]{1,9}")

Item = Mapping[str, Any]

# What the ids of items begin with, where it is not the first letters of their type.
_PREFIXES: Mapping[str, str] = {
    "message": "msg",
    "reasoning": "rs",
    "function_call": "fc",
    "function_call_output": "fco",
}


def new_response_id() -> str:
    """An id that nobody guesses."""
    return f"resp_{secrets.token_hex(12)}"


def output_id(response_id: str, kind: str, index: int) -> str:
    """The id of the item of type `kind` at `index` of an answer."""
    return f"{_PREFIXES[kind]}_{response_id[5:]}o{index}"


def response_of(item_id: str) -> str | None:
    """The id of the response that has the item, if the item is one of ours."""
    found = _ITEM_ID.fullmatch(item_id)
    return f"resp_{found.group(1)}" if found else None


def as_items(given: str | Sequence[Item]) -> list[Item]:
    """A request's input as a list. None at all is an empty message: clients warm a server up with it."""
    if isinstance(given, str) or not given:
        text = given if isinstance(given, str) else ""
        return [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}]
    return list(given)


def kept_items(items: Sequence[Item], response_id: str) -> list[dict[str, Any]]:
    """A request's input, whose conversion succeeded, with the fields that clients expect of a list of it."""
    return [_kept(item, response_id, index) for index, item in enumerate(items)]


def _kept(item: Item, response_id: str, index: int) -> dict[str, Any]:
    kind, own_id = kind_of(item), item.get("id")
    named = isinstance(own_id, str) and own_id
    item_id = own_id if named else f"{_PREFIXES.get(kind, 'item')}_{response_id[5:]}i{index}"
    kept = {**item, "type": kind, "id": item_id}
    if kind == "message":
        part = "output_text" if item.get("role") == "assistant" else "input_text"
        content = item.get("content") or ""
        kept["content"] = [{"type": part, "text": content}] if isinstance(content, str) else content
    if kind not in ("item_reference", "reasoning"):
        kept["status"] = item.get("status") or "completed"
    return kept


def kind_of(item: Item) -> Any:
    """An item's type. Messages and references may leave it out."""
    kind = item.get("type")
    if kind is not None:
        return kind
    return "item_reference" if "role" not in item and isinstance(item.get("id"), str) else "message"
