"""A conversation to the text of a prompt, by the chat template that the checkpoint brings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson
from jinja2 import Template, TemplateSyntaxError

from tokenspeed.errors import ModelError, RequestError
from tokenspeed.text.files import named_tokens, read_text, read_tokenizer_config
from tokenspeed.text.sandbox import MOST_CHARS, environment

Message = Mapping[str, Any]

# A message's reasoning goes by several names; templates read the first, older ones the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_RESERVED = ("messages", "tools", "add_generation_prompt")
# Marks where the text of a message to be continued ends; the space lets a template's `trim` show itself.
_HERE = "TOKENSPEED_CONTINUES_HERE "


def _local_time() -> datetime:
    return datetime.now().astimezone()


class ChatTemplate:
    """The named templates of a checkpoint; it may have none, and then every `render` is refused."""

    def __init__(
        self,
        templates: Mapping[str, str],
        tokens: Mapping[str, str] | None = None,
        *,
        source: str = "chat template",
        now: Callable[[], datetime] = _local_time,
    ) -> None:
        env = environment(now)
        self._templates: dict[str, Template] = {}
        for name, text in templates.items():
            try:
                self._templates[name] = env.from_string(text)
            except TemplateSyntaxError as error:
                reason = f"line {error.lineno}: {_one_line(error)}"
                raise ModelError(f"{source}: the chat template {name!r} is broken, {reason}") from None
        self.source = templates.get("default", "")  # for those that read off it what a model can do
        self._tokens = dict(tokens or {})

    @classmethod
    def load(cls, folder: Path) -> ChatTemplate:
        """The templates of the checkpoint in `folder`: files of their own, else the tokenizer's config."""
        config = read_tokenizer_config(folder)
        files = {"default": folder / "chat_template.jinja"}
        files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
        templates = {name: read_text(path) for name, path in files.items() if path.exists()}
        return cls(
            templates or _configured(config.get("chat_template"), folder),
            named_tokens(config),
            source=str(folder),
        )

    @property
    def exists(self) -> bool:
        """Whether the checkpoint has a template at all."""
        return bool(self._templates)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt, byte for byte as `transformers` renders it.

        `extra` are variables for the template (`enable_thinking`, say). With `continue_final` the prompt ends
        inside the last message, for the model to go on with.
        """
        template = self._choose(tools)
        if not messages:
            raise RequestError("messages is empty; send at least one", param="messages")
        if reserved := [name for name in _RESERVED if name in (extra or {})]:
            raise RequestError(
                f"the chat template's {reserved[0]!r} cannot be set here", param="chat_template_kwargs"
            )
        chat = [
            _with_reasoning({key: value for key, value in m.items() if value is not None}) for m in messages
        ]
        if continue_final:
            chat[-1] = _marked(chat[-1])
        variables = {"documents": None, **self._tokens, **(extra or {})}
        variables |= {
            "messages": chat,
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt and not continue_final,
        }
        text = _run(template, variables)
        return _up_to_mark(text) if continue_final else text

    def _choose(self, tools: Sequence[Mapping[str, Any]] | None) -> Template:
        name = "tool_use" if tools is not None and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise RequestError("this model has no chat template; use /v1/completions", param="messages")
        return self._templates[name]


def parse_arguments(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages with the arguments of their tool calls as objects.

    Clients send them as JSON text, and templates write them with `tojson`: text would be quoted twice.
    What is no JSON object stays as it is; some templates print it.
    """
    return [{**message, **_parsed_calls(message)} for message in messages]


def _parsed_calls(message: Message) -> dict[str, Any]:
    calls = message.get("tool_calls")
    return {"tool_calls": [_parsed_call(call) for call in calls]} if isinstance(calls, list) else {}


def _parsed_call(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        parsed = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return call
    return {**call, "function": {**function, "arguments": parsed}} if isinstance(parsed, dict) else call


def _configured(value: Any, folder: Path) -> dict[str, str]:
    """The templates in a tokenizer's config: none, one, or several with names."""
    named = {"default": value} if isinstance(value, str) else value
    if isinstance(named, list):
        named = {row.get("name"): row.get("template") for row in named if isinstance(row, dict)}
    if named is None:
        return {}
    if not isinstance(named, dict) or not all(
        isinstance(text, str) for item in named.items() for text in item
    ):
        raise ModelError(
            f"{folder}: chat_template in tokenizer_config.json is neither a text nor named texts"
        )
    return named


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under both names that templates read."""
    reasoning = next((message[name] for name in _REASONING if name in message), None)
    return (
        message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
    )


def _marked(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a mark behind its text."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + _HERE}
    parts = list(content) if isinstance(content, list) else []
    for index in reversed(range(len(parts))):
        if isinstance(parts[index], dict) and isinstance(text := parts[index].get("text"), str):
            parts[index] = {**parts[index], "text": text + _HERE}
            return {**message, "content": parts}
    raise RequestError("the last message has no text to continue", param="messages")


def _up_to_mark(text: str) -> str:
    mark = _HERE.rstrip()
    place = text.rfind(mark)
    if place < 0:
        raise RequestError(
            "the chat template leaves out the last message; it cannot be continued", param="messages"
        )
    trimmed = not text.startswith(_HERE, place)  # then the template trims messages, and so must we
    return text[:place].rstrip() if trimmed else text[:place]


def _run(template: Template, variables: Mapping[str, Any]) -> str:
    pieces: list[str] = []
    room = MOST_CHARS
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise RequestError("the chat template writes too long a prompt", param="messages")
    except RequestError:
        raise
    except Exception as error:  # a template may fail in any way that Python can; none of them is our fault
        reason = f"the chat template does not take these messages: {_one_line(error)}"
        raise RequestError(reason, param="messages") from error
    return "".join(pieces)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
