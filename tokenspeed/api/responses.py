"""`POST /responses`: items and what was answered before in, a response of items or its events out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from tokenspeed.api.body import check_writable
from tokenspeed.api.endpoint import Asking, Job, is_long, nothing
from tokenspeed.api.openai_answers import NAMES, common_fields
from tokenspeed.api.response_format import read_format, response_format
from tokenspeed.api.responses_answers import Answer
from tokenspeed.api.responses_input import Conversation
from tokenspeed.api.responses_items import (
    Item,
    as_items,
    kept_items,
    kind_of,
    new_response_id,
    response_of,
)
from tokenspeed.api.responses_store import Record, ResponseStore
from tokenspeed.api.responses_tools import Toolbox, read_toolbox
from tokenspeed.api.responses_types import ResponsesRequest, TextConfig
from tokenspeed.api.responses_writer import ResponseWriter
from tokenspeed.api.tools import template_tools, wrong
from tokenspeed.errors import ContextLengthError, RequestError
from tokenspeed.generation.request import ChatPrompt, GenerationRequest
from tokenspeed.text.formats import Format

VERBOSITIES = ("low", "medium", "high")
_SEALED, _SCORED = "reasoning.encrypted_content", "message.output_text.logprobs"  # what may be included
# Clients that hold a stream to its events, not to its status, shorten a conversation when they read of this.
_TOLD_IN_STREAM = (ContextLengthError,)
_READS_STORE = (b'"previous_response_id"', b'"item_reference"')


def is_slow(body: bytes) -> bool:
    """Whether a body is long, or names what is read from files."""
    return is_long(body) or any(name in body for name in _READS_STORE)


class ResponsesDialect:
    """Reads requests for responses, with what `store` has of those before."""

    decoder = msgspec.json.Decoder(ResponsesRequest)

    def __init__(self, store: ResponseStore | None) -> None:
        self._store = store

    def read(self, asked: ResponsesRequest, asking: Asking) -> Job:
        _refuse(asked)
        _check_told(asked)
        answer_id, account = new_response_id(), asking.caller.account
        items = self._items(asked, account)
        tools = read_toolbox(
            asked.tools or (), asked.tool_choice, parallel=asked.parallel_tool_calls is not False
        )
        prompt = _prompt(asked, tools, self._messages(asked, items, account))
        request = _request(asked, asking, answer_id, prompt, tools)
        stored = self._store is not None and asked.store is not False
        answer = Answer.now(answer_id, _told(asked, asking.model, tools, stored))
        include = asked.include or ()
        writer = ResponseWriter(answer, homes=tools.homes, sealed=_SEALED in include)
        keep = self._keeper(writer, account, kept_items(items, answer_id)) if stored else nothing
        return Job(request, writer, bool(asked.stream), keep, _TOLD_IN_STREAM)

    def _keeper(
        self, writer: ResponseWriter, account: str, items: list[dict[str, Any]]
    ) -> Callable[[], Awaitable[None]]:
        store = self._store
        assert store is not None

        async def keep() -> None:
            if writer.final is not None:
                await asyncio.to_thread(store.save, account, Record(writer.final, items))

        return keep

    def _items(self, asked: ResponsesRequest, account: str) -> list[Item]:
        """The request's own items, each reference replaced by what it means."""
        if asked.input is None:
            raise RequestError("input is required", param="input", code="missing_required_parameter")
        items = as_items(asked.input)
        return [
            self._referenced(f"input[{index}]", item, account) if kind_of(item) == "item_reference" else item
            for index, item in enumerate(items)
        ]

    def _referenced(self, path: str, item: Item, account: str) -> Item:
        item_id = item.get("id")
        if not isinstance(item_id, str):
            raise wrong(f"{path}.id", "must be the id of an item")
        response_id = response_of(item_id)
        record = self._store.load(account, response_id) if self._store and response_id else None
        found = next((each for each in record.items if each.get("id") == item_id), None) if record else None
        if found is None:
            raise RequestError(
                f"{path}.id: there is no item {item_id[:100]!r} here. Items of responses with store = false "
                "are not kept, others for a while; send the item itself.",
                param=f"{path}.id",
                code="item_not_found",
            )
        return found

    def _messages(self, asked: ResponsesRequest, items: Sequence[Item], account: str) -> list[dict[str, Any]]:
        """The whole conversation. Instructions are those of this request alone."""
        conversation = Conversation(asked.instructions)
        for record in self._before(asked.previous_response_id, account):
            for known in record.items:
                conversation.add("previous_response_id", known)
        for index, item in enumerate(items):
            conversation.add("input" if isinstance(asked.input, str) else f"input[{index}]", item)
        return conversation.messages()

    def _before(self, response_id: str | None, account: str) -> list[Record]:
        """The responses that lead to this request, oldest first."""
        records: list[Record] = []
        seen: set[str] = set()
        while response_id:
            record = self._store.load(account, response_id) if self._store else None
            if record is None or response_id in seen:
                raise self._lost(response_id, among=len(records))
            seen.add(response_id)
            records.append(record)
            response_id = record.previous
        return records[::-1]

    def _lost(self, response_id: str, *, among: int) -> RequestError:
        if self._store is None:
            why = "This server keeps no responses"
        elif among:
            why = f"It goes on from {response_id!r}, which is not kept any more"
        else:
            why = f"There is no response {response_id[:100]!r} here: not all are kept, and none for ever"
        return RequestError(
            f"previous_response_id: {why}. Send the whole conversation as input.",
            param="previous_response_id",
            code="previous_response_not_found",
        )


def _refuse(asked: ResponsesRequest) -> None:
    """Raise for what would change the answer, and cannot be had here."""
    unsupported = {
        "background": bool(asked.background),
        "conversation": asked.conversation is not None,
        "prompt": asked.prompt is not None,
        # A conversation is read as a whole or refused.
        "truncation": asked.truncation not in (None, "disabled"),
    }
    for name, found in unsupported.items():
        if found:
            raise RequestError(
                f"{name} is not supported; leave it out", param=name, code="unsupported_parameter"
            )
    if asked.n not in (None, 1):
        raise wrong("n", "must be 1: a response is one")


def _check_told(asked: ResponsesRequest) -> None:
    """Raise for what could not be repeated in the answer, or kept."""
    check_writable(
        {
            "input": asked.input,
            "tools": asked.tools,
            "tool_choice": asked.tool_choice,
            "text.format": asked.text and asked.text.format,
        }
    )


def _request(
    asked: ResponsesRequest, asking: Asking, answer_id: str, prompt: ChatPrompt, tools: Toolbox
) -> GenerationRequest:
    names = {**NAMES, "prompts": "input", "logprobs": "top_logprobs", "format": "text.format"}
    common = common_fields(asked, asking.caller) | {"n": 1}
    if asked.max_output_tokens is not None:
        common["max_tokens"] = asked.max_output_tokens
    if asked.max_output_tokens is not None or asked.max_tokens is None:
        names["max_tokens"] = "max_output_tokens"
    if common.get("max_tokens") == 0:
        raise wrong(names.get("max_tokens", "max_tokens"), "must be at least 1, not 0")
    scored = bool(asked.top_logprobs) or _SCORED in (asked.include or ())
    return GenerationRequest(
        id=answer_id,
        prompts=(prompt,),
        logprobs=asked.top_logprobs or 0 if scored else None,
        format=_format(asked),
        tools=tools.use,
        names=names,
        **common,
    )


def _prompt(asked: ResponsesRequest, tools: Toolbox, messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
    extra: dict[str, Any] = {}
    effort = None if asked.reasoning is None else asked.reasoning.effort
    if effort == "none":
        extra["enable_thinking"] = False
    elif effort is not None:
        extra["reasoning_effort"] = effort
    return ChatPrompt(
        messages=messages,
        tools=None if tools.use is None else template_tools(tools.use.tools),
        extra=extra | (asked.chat_template_kwargs or {}),
    )


def _format(asked: ResponsesRequest) -> Format | None:
    """OpenAI's way to say what the answer is to look like, or one of those that other servers have."""
    given = asked.text.format if asked.text else None
    own, (_, other) = response_format("text.format", given) if given else None, read_format(asked)
    if own is not None and other is not None:
        raise wrong("text.format", "cannot be combined with another format: they hold the same answer")
    return other if own is None else own


def _told(asked: ResponsesRequest, model: str, tools: Toolbox, stored: bool) -> dict[str, Any]:
    """What the answer repeats of the request, in the way of its clients; null is the model's own default."""
    reasoning = asked.reasoning
    return {
        "model": model,
        "instructions": asked.instructions,
        "previous_response_id": asked.previous_response_id or None,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": None,
        "metadata": asked.metadata or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "prompt_cache_key": asked.prompt_cache_key,
        "reasoning": {
            "effort": reasoning and reasoning.effort,
            "summary": reasoning and (reasoning.summary or reasoning.generate_summary),
        },
        "safety_identifier": asked.safety_identifier,
        "service_tier": "default",
        "store": stored,
        "temperature": asked.temperature,
        "text": _told_text(asked.text or TextConfig()),
        "tool_choice": "auto" if asked.tool_choice is None else asked.tool_choice,
        "tools": list(tools.told),
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": asked.top_p,
        "truncation": "disabled",
        "user": asked.user,
    }


def _told_text(text: TextConfig) -> dict[str, Any]:
    verbosity = text.verbosity if text.verbosity in VERBOSITIES else "medium"
    return {"format": text.format or {"type": "text"}, "verbosity": verbosity}
