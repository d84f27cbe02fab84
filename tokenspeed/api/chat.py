"""`POST /chat/completions`: OpenAI's messages in, messages and their chunks out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import orjson

from tokenspeed.api.endpoint import Asking, Job, new_id
from tokenspeed.api.openai_answers import NAMES, CompletionWriter, Heading, common_fields
from tokenspeed.api.openai_types import ChatRequest, Message, Part
from tokenspeed.api.response_format import read_format
from tokenspeed.api.tools import openai_tool_use, read_openai_tools, read_tool, template_tools, wrong
from tokenspeed.api.unsupported import refuse_unsupported
from tokenspeed.errors import RequestError
from tokenspeed.generation.outputs import CallDelta, CallStart, Delta, Ended, Output, ReasoningDelta, Whole
from tokenspeed.generation.request import ChatPrompt, GenerationRequest, ToolUse
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
    """Reads chat requests."""

    decoder = msgspec.json.Decoder(ChatRequest)

    def read(self, asked: ChatRequest, asking: Asking) -> Job:
        refuse_unsupported(asking.body)
        heading = Heading.now(new_id("chatcmpl-"), asking.model)
        legacy = bool(asked.functions) and not asked.tools
        tools = _functions(asked) if legacy else _tools(asked)
        names = {**NAMES, "prompts": "messages", "logprobs": "top_logprobs"}
        names["format"], wanted = read_format(asked)
        common = common_fields(asked, asking.caller)
        if asked.max_completion_tokens is not None:
            common["max_tokens"] = asked.max_completion_tokens
            names["max_tokens"] = "max_completion_tokens"
        if "max_tokens" not in common and asked.n_predict is not None:
            common |= _predicted(asked.n_predict)
        elif common.get("max_tokens") == 0:
            name = names.get("max_tokens", "max_tokens")
            raise RequestError(f"{name} must be at least 1, not 0", param=name, code="invalid_value")
        request = GenerationRequest(
            id=heading.id,
            prompts=(_prompt(asked, tools),),
            logprobs=_logprobs(asked),
            format=wanted,
            tools=tools,
            names=names,
            **common,
        )
        shape = ChatShape(legacy=legacy, scored=request.logprobs is not None)
        return Job(request, CompletionWriter(heading, shape, asked.stream_options), bool(asked.stream))


class ChatShape:
    """Messages and the pieces of them. The role comes with a choice's first piece, never before it.

    `legacy` calls are those of a request that had `functions`: one of them, outside of `tool_calls`.
    """

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def __init__(self, *, legacy: bool, scored: bool) -> None:
        self._later: dict[int, bytes] = {}  # what the chunks of a choice start with, once it has begun
        self._legacy = legacy
        self._scored = scored

    def chunk(self, output: Output) -> bytes:
        start, first = self._later.get(output.choice), False
        if start is None:
            start, first = self._begin(output.choice), True
        match output:
            case Delta():
                piece = start + b'"content":' + orjson.dumps(output.text)
                if output.scores:
                    scores = orjson.dumps(_scores_object(output.scores))
                    return piece + b'},"logprobs":' + scores + b',"finish_reason":null}'
            case ReasoningDelta():
                piece = start + b'"reasoning_content":' + orjson.dumps(output.text)
            case CallStart():
                piece = start + (b'"content":null,' if first else b"")
                piece += self._call_start(output)
            case CallDelta():
                piece = start + self._call_delta(output)
            case Ended():
                reason = self._reason(output.reason).encode()
                empty = b'"content":""' if first else b""
                return start + empty + b'},"logprobs":null,"finish_reason":"' + reason + b'"}'
        return piece + b'},"logprobs":null,"finish_reason":null}'

    def choices(self, wholes: list[Whole]) -> list[dict[str, Any]]:
        return [
            {
                "index": index,
                "message": self._message(whole),
                "logprobs": _scores_object(whole.scores) if self._scored else None,
                "finish_reason": self._reason(whole.reason),
            }
            for index, whole in enumerate(wholes)
        ]

    def _message(self, whole: Whole) -> dict[str, Any]:
        text: str | None = whole.text
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if whole.reasoning:
            message["reasoning_content"] = whole.reasoning
        if whole.calls:
            message["content"] = text or None
            calls = [{"name": call.name, "arguments": call.arguments} for call in whole.calls]
            if self._legacy:
                message["function_call"] = calls[0]
            else:
                message["tool_calls"] = [
                    {"id": call.id, "type": "function", "function": function}
                    for call, function in zip(whole.calls, calls, strict=True)
                ]
        return message

    def _reason(self, reason: str) -> str:
        return "function_call" if self._legacy and reason == "tool_calls" else reason

    def _call_start(self, output: CallStart) -> bytes:
        function = {"name": output.name, "arguments": ""}
        if self._legacy:
            return b'"function_call":' + orjson.dumps(function)
        call = {"index": output.call, "id": output.id, "type": "function", "function": function}
        return b'"tool_calls":[' + orjson.dumps(call) + b"]"

    def _call_delta(self, output: CallDelta) -> bytes:
        arguments = orjson.dumps(output.arguments)
        if self._legacy:
            return b'"function_call":{"arguments":' + arguments + b"}"
        return b'"tool_calls":[{"index":%d,"function":{"arguments":' % output.call + arguments + b"}}]"

    def _begin(self, choice: int) -> bytes:
        """What the first chunk of a choice starts with."""
        self._later[choice] = later = b'{"index":%d,"delta":{' % choice
        return later + b'"role":"assistant",'


def _prompt(asked: ChatRequest, tools: ToolUse | None) -> ChatPrompt:
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
        tools=None if tools is None else template_tools(tools.tools),
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
    calls = message.tool_calls
    if not calls and message.function_call is not None:
        calls = [{"type": "function", "function": message.function_call}]
    fields = {
        "role": role,
        "content": _text(f"{path}.content", content) if isinstance(content, list) else content or "",
        "name": message.name,
        "tool_calls": calls or None,
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


def _predicted(most: int) -> dict[str, int]:
    """llama.cpp's number of tokens, cut to what there is room for; below 0 is all of that."""
    if most == 0:
        return {"max_tokens": 0}
    return {"most_tokens": most} if most > 0 else {}


def _tools(asked: ChatRequest) -> ToolUse | None:
    tools = read_openai_tools(asked.tools or (), nested=True)
    if not asked.tools and asked.tool_choice in ("auto", "none"):
        return None
    parallel = asked.parallel_tool_calls is not False
    return openai_tool_use(tools, asked.tool_choice, parallel=parallel)


def _functions(asked: ChatRequest) -> ToolUse | None:
    """The older way to say the same, with one call at most."""
    tools = [read_tool(f"functions[{index}]", each) for index, each in enumerate(asked.functions or ())]
    match asked.function_call:
        case None | "auto" | "none":
            return openai_tool_use(tools, asked.function_call, parallel=False)
        case {"name": str()}:
            return openai_tool_use(tools, {"function": asked.function_call}, parallel=False)
    raise wrong("function_call", 'must be "auto", "none" or an object with a name')


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
