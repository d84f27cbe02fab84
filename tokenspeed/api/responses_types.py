"""OpenAI's requests for responses as msgspec reads them. Unknown fields are ignored, null is absence."""

from __future__ import annotations

from typing import Any

import msgspec

from tokenspeed.api.openai_types import CommonRequest


class ReasoningConfig(msgspec.Struct):
    """How much the model shall think. A summary is given in any case: the thinking itself."""

    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None  # what `summary` was called before


class TextConfig(msgspec.Struct):
    """What the text is to look like."""

    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesRequest(CommonRequest, kw_only=True):
    """`POST /responses`. The fields of `CommonRequest` that OpenAI does not have here may be sent as well."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: ReasoningConfig | None = None
    text: TextConfig | None = None
    top_logprobs: int | None = None
    include: list[str] | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    truncation: str | None = None
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
