"""Ollama's requests as msgspec reads them. Unknown fields are ignored, explicit null is absence.

https://docs.ollama.com/api
"""

from __future__ import annotations

from typing import Any

import msgspec

from tokenspeed.api.llama_options import LlamaOptions


class Options(LlamaOptions, kw_only=True):
    """`num_predict` tokens at most; none, or a number below 1, is to the end of the context. `num_ctx` is how
    much context to make room for: here that is always all that the model has, so it does nothing."""

    num_predict: int | None = None
    num_ctx: int | None = None


class OllamaRequest(msgspec.Struct, kw_only=True):
    """What both ways to generate take. `keep_alive` matters only where nothing else is asked for: the model
    stays loaded as long as the server runs."""

    model: str | None = None
    stream: bool | None = None
    options: Options | None = None
    format: Any = None
    keep_alive: str | float | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class OllamaMessage(msgspec.Struct, kw_only=True):
    """One message of a conversation."""

    role: str
    content: str | None = None
    thinking: str | None = None
    images: list[Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChat(OllamaRequest, kw_only=True):
    """`POST /api/chat`."""

    messages: list[OllamaMessage] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(OllamaRequest, kw_only=True):
    """`POST /api/generate`."""

    prompt: str | None = None
    suffix: str | None = None
    system: str | None = None
    raw: bool | None = None
    images: list[Any] | None = None
    template: str | None = None
    context: list[Any] | None = None


class Named(msgspec.Struct, kw_only=True):
    """A request that is about a model; older clients call it `name`."""

    model: str | None = None
    name: str | None = None
    stream: bool | None = None


class EmbedRequest(msgspec.Struct, kw_only=True):
    """`POST /api/embed`. An input that is too long is cut unless `truncate` is false."""

    input: str | list[str] | None = None
    model: str | None = None
    truncate: bool | None = None
    dimensions: int | None = None


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """`POST /api/embeddings`, which is older."""

    model: str | None = None
    prompt: str | None = None
