"""`POST /messages` and `POST /messages/count_tokens`: Anthropic's messages in and out.

https://docs.anthropic.com/en/api/messages and https://docs.anthropic.com/en/api/messages-count-tokens
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.anthropic_answers import MessageWriter, Terms
from tokenspeed.api.anthropic_prompt import chat_prompt
from tokenspeed.api.anthropic_types import MessagesRequest
from tokenspeed.api.body import parse
from tokenspeed.api.disconnect import unless_gone
from tokenspeed.api.endpoint import Asking, Job, Service, new_id, read_request
from tokenspeed.api.error_shapes import THREAD_UNSUPPORTED
from tokenspeed.api.keys import Caller
from tokenspeed.api.media import JsonResponse
from tokenspeed.api.response_format import as_schema
from tokenspeed.api.tools import check_count, read_tool, tool_use, wrong
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import GenerationRequest, SamplingFields, ToolUse
from tokenspeed.text.formats import Format, JsonSchema
from tokenspeed.text.parsing.parts import Tool

NAMES = {"prompts": "messages", "stops": "stop_sequences"}
DECODER = msgspec.json.Decoder(MessagesRequest)


class MessagesDialect:
    """Reads requests for a message."""

    decoder = DECODER

    def __init__(self, max_context: int) -> None:
        """`max_context` tokens are in a prompt and its answer at most."""
        self._max_context = max_context

    def read(self, asked: MessagesRequest, asking: Asking) -> Job:
        if asked.max_tokens is None:
            raise RequestError(
                "max_tokens is required", param="max_tokens", code="missing_required_parameter"
            )
        if asked.max_tokens < 0:
            raise wrong("max_tokens", "must not be negative")
        request = _neutral(asked, asking.caller)
        terms = Terms(
            id=request.id,
            model=asking.model,
            max_tokens=asked.max_tokens,
            max_context=self._max_context,
            show_thinking=(asked.thinking or {}).get("display") != "omitted",
        )
        return Job(request, MessageWriter(terms), bool(asked.stream))


class CountTokensEndpoint:
    """Counts what a message's prompt would have."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def create(self, http: Request) -> Response:
        request, _ = await read_request(http, self._service, self._read)
        count = await unless_gone(http.receive, self._service.generator.count(request))
        return JsonResponse({"input_tokens": count})

    def _read(self, body: bytes, caller: Caller) -> GenerationRequest:
        asked = parse(body, DECODER)
        self._service.model.resolve(asked.model)
        return _neutral(asked, caller)


def _neutral(asked: MessagesRequest, caller: Caller) -> GenerationRequest:
    """The request in neutral words.

    Agents ask for as many tokens as hosted models have, and read off the stop reason what it came to. None at
    all is to remember the prompt for the requests that follow.
    """
    if asked.thread is not None:  # ignored, the next request would have nothing but its own part
        raise RequestError(
            "thread is not supported: no conversation is kept here; send the whole of it without thread",
            param="thread",
            code=THREAD_UNSUPPORTED,
        )
    tools = _tools(asked)
    return GenerationRequest(
        id=new_id("msg_"),
        prompts=(chat_prompt(asked, tools),),
        sampling=SamplingFields(temperature=asked.temperature, top_k=asked.top_k, top_p=asked.top_p),
        max_tokens=0 if asked.max_tokens == 0 else None,
        most_tokens=asked.max_tokens,
        stops=tuple(asked.stop_sequences or ()),
        priority=caller.priority,
        account=caller.account,
        format=_format(asked),
        tools=tools,
        names={**NAMES, "format": _format_field(asked)[0]},
    )


def _tools(asked: MessagesRequest) -> ToolUse | None:
    """What may be called, by https://docs.anthropic.com/en/docs/agents-and-tools/tool-use/implement-tool-use.

    Tools of other types than `custom` are Anthropic's own, and agents send those along.
    """
    given = asked.tools or ()
    check_count(given)
    tools = [
        read_tool(f"tools[{index}]", tool, "input_schema")
        for index, tool in enumerate(given)
        if tool.get("type") in (None, "custom")
    ]
    return _chosen(tools, asked.tool_choice or {"type": "auto"})


def _chosen(tools: list[Tool], choice: dict[str, Any]) -> ToolUse | None:
    single = choice.get("disable_parallel_tool_use")
    if not isinstance(single, bool | None):
        raise wrong("tool_choice.disable_parallel_tool_use", "must be true or false")
    match choice:
        case {"type": "auto"}:
            return ToolUse(tuple(tools), parallel=not single) if tools else None
        case {"type": "none"}:
            return None
        case {"type": "any"}:
            return tool_use(tools, required=True, parallel=not single)
        case {"type": "tool", "name": str(name)}:
            return tool_use(tools, only=name, parallel=not single)
        case {"type": "tool"}:
            raise wrong("tool_choice.name", "must be the name of a tool")
    raise wrong("tool_choice.type", "must be one of auto, any, tool, none")


def _format_field(asked: MessagesRequest) -> tuple[str, dict[str, Any] | None]:
    """Where the request says what its answer is held to, and what it says there."""
    if asked.output_config is not None and asked.output_config.format is not None:
        return "output_config.format", asked.output_config.format
    return "output_format", asked.output_format


def _format(asked: MessagesRequest) -> Format | None:
    """What the answer is held to, by https://docs.anthropic.com/en/docs/build-with-claude/structured-outputs."""
    path, given = _format_field(asked)
    if given is None:
        return None
    if given.get("type") != "json_schema":
        raise wrong(f"{path}.type", "must be json_schema")
    return JsonSchema(as_schema(f"{path}.schema", given.get("schema")))
