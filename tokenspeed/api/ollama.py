"""`POST /api/chat` and `POST /api/generate`: Ollama's messages and prompts in, its lines out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import orjson
from starlette.responses import Response

from tokenspeed.api.chat import ROLES
from tokenspeed.api.endpoint import Asking, Job, new_id
from tokenspeed.api.llama_options import names_of, sampling_fields, stops_of, unsupported
from tokenspeed.api.media import JSON, NDJSON
from tokenspeed.api.ollama_answers import (
    OllamaWriter,
    Words,
    chat_words,
    generate_words,
    loaded,
)
from tokenspeed.api.ollama_types import OllamaChat, OllamaGenerate, OllamaMessage, OllamaRequest, Options
from tokenspeed.api.tools import openai_tool_use, read_openai_tools, template_tools, wrong
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import (
    ChatPrompt,
    FillPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    ToolUse,
)
from tokenspeed.generation.wording import Wording
from tokenspeed.text.formats import AnyJson, Format, JsonSchema
from tokenspeed.text.template import parse_arguments

EFFORTS = ("low", "medium", "high")  # of thinking


class OllamaChatDialect:
    """Reads conversations."""

    decoder = msgspec.json.Decoder(OllamaChat)

    def __init__(self, wording: Wording) -> None:
        self._wording = wording

    def read(self, asked: OllamaChat, asking: Asking) -> Job | Response:
        if not asked.messages:
            return _only_loaded(asked, asking.model, chat_words)
        tools = openai_tool_use(read_openai_tools(asked.tools or (), nested=True), None, parallel=True)
        prompt = ChatPrompt(
            messages=parse_arguments(
                [_message(f"messages[{i}]", message) for i, message in enumerate(asked.messages)]
            ),
            tools=None if tools is None else template_tools(tools.tools),
            extra=_thinking(asked, asking.model, self._wording),
        )
        return _job(asked, asking, prompt, chat_words, "messages", tools)


class OllamaGenerateDialect:
    """Reads prompts."""

    decoder = msgspec.json.Decoder(OllamaGenerate)

    def __init__(self, wording: Wording) -> None:
        self._wording = wording

    def read(self, asked: OllamaGenerate, asking: Asking) -> Job | Response:
        _no_images("images", asked.images)
        if asked.template:
            raise unsupported("template", "the model's own is used; for none at all send raw")
        if asked.context:
            raise unsupported("context", "continue a conversation at /api/chat")
        if not asked.prompt and not asked.suffix:
            return _only_loaded(asked, asking.model, generate_words)
        prompt = self._prompt(asked, asking.model)
        return _job(asked, asking, prompt, generate_words, "prompt", None)

    def _prompt(self, asked: OllamaGenerate, model: str) -> Prompt:
        """The text as it is, the gap in it, or a message in the model's own template."""
        text, system = asked.prompt or "", asked.system
        if system and (asked.raw or asked.suffix):
            other = "raw" if asked.raw else "suffix"
            raise wrong("system", f"cannot be combined with {other}: there is no place for it")
        if asked.suffix:
            return FillPrompt(text, asked.suffix)
        if asked.raw:
            return TextPrompt(text)
        if not self._wording.has_template:
            return TextPrompt(f"{system}\n\n{text}" if system else text)
        messages = [{"role": "system", "content": system}] if system else []
        extra = _thinking(asked, model, self._wording)
        return ChatPrompt([*messages, {"role": "user", "content": text}], extra=extra)


def _job(
    asked: OllamaRequest, asking: Asking, prompt: Prompt, words: Words, field: str, tools: ToolUse | None
) -> Job:
    """The prompt, which `field` holds, with all that both endpoints spell alike."""
    options = asked.options or Options()
    most = options.num_predict
    logprobs = _logprobs(asked)
    request = GenerationRequest(
        id=new_id("ollama-"),
        prompts=(prompt,),
        sampling=sampling_fields(options, "options."),
        most_tokens=most if most is not None and most > 0 else None,
        stops=stops_of(options),
        logprobs=logprobs,
        priority=asking.caller.priority,
        account=asking.caller.account,
        format=_format(asked.format),
        tools=tools,
        names=names_of("options.", prompts=field, logprobs="top_logprobs"),
    )
    writer = OllamaWriter(asking.model, words, scored=logprobs is not None)
    return Job(request, writer, asked.stream is not False)


def _only_loaded(asked: OllamaRequest, model: str, words: Words) -> Response:
    """At once: the model is there."""
    unloaded = asked.keep_alive in (0, "0", "0s")
    answer = orjson.dumps(loaded(model, words, "unload" if unloaded else "load"))
    if asked.stream is False:
        return Response(answer, media_type=JSON)
    return Response(answer + b"\n", media_type=NDJSON)


def _message(path: str, message: OllamaMessage) -> dict[str, Any]:
    """A message as templates read it."""
    role = ROLES.get(message.role)
    if role is None:
        raise wrong(f"{path}.role", f"{message.role[:40]!r} is not one of {', '.join(ROLES)}")
    _no_images(f"{path}.images", message.images)
    calls = [{"type": "function", **call} for call in message.tool_calls or ()]
    fields = {
        "role": role,
        "content": message.content or "",
        "name": message.tool_name,
        "tool_calls": calls or None,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.thinking or None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def _no_images(path: str, images: list[Any] | None) -> None:
    """Clients send an empty list where there are none."""
    if images:
        raise RequestError(
            f"{path} is not supported: this model reads text only", param=path, code="unsupported_content"
        )


def _thinking(asked: OllamaRequest, model: str, wording: Wording) -> Mapping[str, Any]:
    """What the template is told of the thinking, if the client says anything of it."""
    think = asked.think
    if think is None or think == "":
        return {}
    if isinstance(think, str) and think not in EFFORTS:
        raise wrong("think", f"must be true, false, or one of {', '.join(EFFORTS)}")
    if think and not wording.thinks:
        raise wrong("think", f'cannot be asked for: "{model}" does not support thinking')
    effort = {"reasoning_effort": think} if isinstance(think, str) else {}
    return {"enable_thinking": bool(think), **effort}


def _logprobs(asked: OllamaRequest) -> int | None:
    if asked.logprobs:
        return asked.top_logprobs or 0
    if asked.top_logprobs:
        raise wrong("top_logprobs", "needs logprobs to be true")
    return None


def _format(given: Any) -> Format | None:
    match given:
        case None | "":
            return None
        case "json":
            return AnyJson()
        case dict():
            return JsonSchema(given)
    raise wrong("format", 'must be "json" or a JSON schema, which is an object')
