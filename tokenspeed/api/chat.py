"""`POST /chat/completions`: OpenAI's messages in, messages and their chunks out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from tokenspeed.api.keys import Caller
from tokenspeed.api.openai_answers import NAMES, Whole, common_fields
from tokenspeed.api.openai_types import ChatRequest, Message, Part
from tokenspeed.errors import RequestError
from tokenspeed.generation.generator import Delta, Ended
from tokenspeed.generation.request import ChatPrompt, GenerationRequest
from tokenspeed.generation.text import Alternative, ScoredToken
from tokenspeed.text.template import parse_arguments

# Each role that a client may write, and the one that templates know.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
TEXT_PARTS = ("text", "input_text", "output_text")


class ChatDialect:
    """The chat endpoint's own part."""

    decoder = msgspec.json.Decoder(ChatRequest)
    id_prefix = "chatcmpl-"
    kind = "chat.completion"

    def generation_request(self, asked: ChatRequest, request_id: str, caller: Caller) -> GenerationRequest:
        names = {**NAMES, "prompts": "messages", "logprobs": "top_logprobs"}
        common = common_fields(asked, caller)
        if asked.max_completion_tokens is not None:
            common["max_tokens"] = asked.max_completion_tokens
            names["max_tokens"] = "max_completion_tokens"
        if common.get("max_tokens") == 0:
            name = names.get("max_tokens", "max_tokens")
            raise RequestError(f"{name} must be at least 1, not 0", param=name, code="invalid_value")
        return GenerationRequest(
            id=request_id, prompts=(_prompt(asked),), logprobs=_logprobs(asked), names=names, **common
        )

    def chunk_shape(self, choices: int) -> ChatChunks:
        return ChatChunks(choices)

    def choice(self, index: int, whole: Whole, scored: bool) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": whole.text, "refusal": None},
            "logprobs": _scores_object(whole.scores) if scored else None,
            "finish_reason": whole.reason,
        }


class ChatChunks:
    """The choices of chunks. The role comes with a choice's first text, never before it."""

    kind = "chat.completion.chunk"

    def __init__(self, choices: int) -> None:
        self._first = [b'{"index":%d,"delta":{"role":"assistant","content":' % i for i in range(choices)]
        self._later = [b'{"index":%d,"delta":{"content":' % i for i in range(choices)]
        self._start = list(self._first)  # what a choice's next chunk starts with

    def delta(self, delta: Delta) -> bytes:
        choice = delta.choice
        start = self._start[choice]
        self._start[choice] = self._later[choice]
        if not delta.scores:
            return start + orjson.dumps(delta.text) + b'},"logprobs":null,"finish_reason":null}'
        scores = orjson.dumps(_scores_object(delta.scores))
        return start + orjson.dumps(delta.text) + b'},"logprobs":' + scores + b',"finish_reason":null}'

    def end(self, ended: Ended) -> bytes:
        choice = ended.choice
        if self._start[choice] is self._first[choice]:
            start = self._first[choice] + b'""}'
        else:
            start = b'{"index":%d,"delta":{}' % choice
        return start + b',"logprobs":null,"finish_reason":"' + ended.reason.encode() + b'"}'


def _prompt(asked: ChatRequest) -> ChatPrompt:
    if not asked.messages:
        raise RequestError(
            "messages must not be empty; send at least one", param="messages", code="invalid_value"
        )
    extra = dict(asked.chat_template_kwargs or {})
    if asked.reasoning_effort is not None:
        extra.setdefault("reasoning_effort", asked.reasoning_effort)
    messages = [_message(f"messages[{i}]", message) for i, message in enumerate(asked.messages)]
    continue_final = bool(asked.continue_final_message)
    return ChatPrompt(
        messages=parse_arguments(messages),
        tools=_tools(asked),
        add_generation_prompt=asked.add_generation_prompt is not False and not continue_final,
        continue_final=continue_final,
        extra=extra,
    )


def _message(path: str, message: Message) -> dict[str, Any]:
    """A message as templates read it: plain text, and only the fields that it has."""
    role = ROLES.get(message.role)
    if role is None:
        known = ", ".join(ROLES)
        raise RequestError(
            f"{path}.role: {message.role[:40]!r} is not a role; roles are {known}",
            param=f"{path}.role",
            code="invalid_value",
        )
    content = message.content
    fields = {
        "role": role,
        "content": _text(f"{path}.content", content) if isinstance(content, list) else content or "",
        "name": message.name,
        "tool_calls": message.tool_calls or None,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content or message.reasoning,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _text(path: str, parts: Sequence[Part]) -> str:
    texts = []
    for index, part in enumerate(parts):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*TEXT_PARTS, "refusal"):
            problem = f"{part.type[:40]!r} is not supported: this model reads text only"
            where = f"{path}[{index}].type"
            raise RequestError(f"{where}: {problem}", param=where, code="unsupported_content")
        if text is None:
            where = f"{path}[{index}].text"
            raise RequestError(f"{where} is required", param=where, code="missing_required_parameter")
        texts.append(text)
    return "\n".join(texts)


def _tools(asked: ChatRequest) -> list[dict[str, Any]] | None:
    """The functions that the template tells the model of; other types of tools are for other servers."""
    if not asked.tools or asked.tool_choice == "none":
        return None
    tools = []
    for index, tool in enumerate(asked.tools):
        if tool.get("type", "function") != "function":
            continue
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            where = f"tools[{index}].function"
            raise RequestError(f"{where} must be an object with a name", param=where, code="invalid_value")
        tools.append(tool)
    return tools or None


def _logprobs(asked: ChatRequest) -> int | None:
    if asked.logprobs:
        return asked.top_logprobs or 0
    if asked.top_logprobs:
        raise RequestError(
            "top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_value"
        )
    return None


def _scores_object(scores: Sequence[ScoredToken]) -> dict[str, Any]:
    content = [
        {**_score(score.token, score.data, score.logprob), "top_logprobs": _alternatives(score.top)}
        for score in scores
    ]
    return {"content": content, "refusal": None}


def _alternatives(top: Sequence[Alternative]) -> list[dict[str, Any]]:
    return [_score(*alternative) for alternative in top]


def _score(token: str, data: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(data)}
