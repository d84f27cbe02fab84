"""Anthropic's requests as msgspec reads them. Unknown fields are ignored, explicit null is absence.

https://docs.anthropic.com/en/api/messages
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class TextBlock(msgspec.Struct, tag="text"):
    """Text."""

    text: str


class ThinkingBlock(msgspec.Struct, tag="thinking"):
    """What the model thought before. Its signature is of whoever served that turn."""

    thinking: str | None = None


class RedactedThinkingBlock(msgspec.Struct, tag="redacted_thinking"):
    """Thinking that only its own server can read."""


class ToolUseBlock(msgspec.Struct, tag="tool_use"):
    """A call that the model made."""

    id: str
    name: str
    input: dict[str, Any] | None = None


class ImageBlock(msgspec.Struct, tag="image"):
    """A picture, which no model here can see."""


class DocumentBlock(msgspec.Struct, tag="document"):
    """A file: only what it has as plain text can be read."""

    source: dict[str, Any] | None = None
    title: str | None = None
    context: str | None = None


class SearchResultBlock(msgspec.Struct, tag="search_result"):
    """What a search has found."""

    content: list[TextBlock] | None = None
    source: str | None = None
    title: str | None = None


class ToolReferenceBlock(msgspec.Struct, tag="tool_reference"):
    """That a search among the tools has found one. They are all told to the model anyway."""

    tool_name: str


ResultBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock


class ToolResultBlock(msgspec.Struct, tag="tool_result"):
    """What came of a call."""

    tool_use_id: str
    content: str | list[ResultBlock] | None = None
    is_error: bool | None = None


Block = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ToolResultBlock
    | ImageBlock
    | DocumentBlock
    | SearchResultBlock
)


class Turn(msgspec.Struct):
    """One message of a conversation."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block] | None = None


class OutputConfig(msgspec.Struct):
    """How the answer is to look, and how hard the model shall try."""

    format: dict[str, Any] | None = None
    effort: str | None = None


class MessagesRequest(msgspec.Struct, kw_only=True):
    """`POST /messages`, and `POST /messages/count_tokens`, which generates nothing."""

    model: str | None = None
    messages: list[Turn]
    max_tokens: int | None = None
    system: str | list[TextBlock] | None = None
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None  # the older place of `output_config.format`
    thread: dict[str, Any] | None = None  # which conversation, kept by the server, this goes on with
