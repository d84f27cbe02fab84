"""Answers and events held to the types of Anthropic's own client: nothing wrong, nothing unknown."""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import ErrorResponse, Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from pydantic import BaseModel, TypeAdapter

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
MESSAGE, ERROR, COUNT, MODEL = map(TypeAdapter, (Message, ErrorResponse, MessageTokensCount, ModelInfo))
USAGE = {
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
}


def checked(adapter: TypeAdapter[Any], raw: bytes) -> dict[str, Any]:
    """The object, which must be of the type to the letter."""
    _refuse_extras(adapter.validate_json(raw, strict=True))
    found: dict[str, Any] = json.loads(raw)
    return found


def checked_message(raw: bytes) -> dict[str, Any]:
    message = checked(MESSAGE, raw)
    fields = {"id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "usage"}
    assert message.keys() == fields
    assert message["usage"].keys() == USAGE
    assert message["stop_reason"] is not None
    return message


def checked_events(raw: bytes) -> list[dict[str, Any]]:
    """All events of a stream but its pings; each is of its type, and they come in the order that the API
    promises."""
    events = []
    assert raw.endswith(b"\n\n")
    for piece in raw.decode().removesuffix("\n\n").split("\n\n"):
        name, data = piece.split("\n")
        kind = json.loads(data.removeprefix("data: "))["type"]
        assert name == f"event: {kind}"
        if kind == "ping":
            assert data == 'data: {"type":"ping"}'
            continue
        events.append(checked(ERROR if kind == "error" else EVENT, data.removeprefix("data: ").encode()))
    _check_order(events)
    return events


def told(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content that a stream's events make."""
    content: list[dict[str, Any]] = []
    for event in events:
        match event:
            case {"type": "content_block_start", "content_block": block}:
                content.append(dict(block) | ({"input": ""} if block["type"] == "tool_use" else {}))
            case {
                "type": "content_block_delta",
                "delta": {"type": "input_json_delta", "partial_json": json_},
            }:
                content[-1]["input"] += json_
            case {"type": "content_block_delta", "delta": {"type": _, **grown}}:
                for name, text in grown.items():
                    content[-1][name] += text
    for block in content:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"] or "{}")
    return content


def _check_order(events: list[dict[str, Any]]) -> None:
    kinds = [event["type"] for event in events]
    assert kinds[0] == "message_start"
    assert events[0]["message"]["content"] == []
    if kinds[-1] != "error":
        assert kinds[-2:] == ["message_delta", "message_stop"]
        assert events[-2]["usage"].keys() == USAGE
        assert events[-2]["delta"].keys() == {"stop_reason", "stop_sequence"}
    blocks = 0
    is_open = False
    for event in events[1 : -1 if kinds[-1] == "error" else -2]:
        match event["type"]:
            case "content_block_start":
                assert (event["index"], is_open) == (blocks, False)
                is_open = True
            case "content_block_delta":
                assert (event["index"], is_open) == (blocks, True)
            case "content_block_stop":
                assert (event["index"], is_open) == (blocks, True)
                is_open = False
                blocks += 1
            case other:
                raise AssertionError(f"{other} amid the blocks")
    assert not is_open or kinds[-1] == "error"


def _refuse_extras(value: Any) -> None:
    match value:
        case BaseModel():
            assert not value.model_extra, value.model_extra
            for name in type(value).model_fields:
                _refuse_extras(getattr(value, name))
        case list():
            for each in value:
                _refuse_extras(each)
