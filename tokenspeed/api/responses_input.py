"""The items of a conversation to messages as chat templates read them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from tokenspeed.api.responses_items import Item, kind_of
from tokenspeed.api.responses_tools import called_name
from tokenspeed.api.tools import wrong
from tokenspeed.errors import RequestError
from tokenspeed.text.template import parse_arguments

# Each role that a client may write, and the one that templates know.
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# By type of a part, the field that holds its text.
_TEXTS: Mapping[str, str] = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "summary_text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}
_NOT_TEXT = ("input_image", "input_file", "input_audio", "input_video", "computer_screenshot", "image_url")


class _Call(NamedTuple):
    """How a kind of call is written as that of a function: its name, None where the item has one, and which
    of the item's fields are the arguments."""

    name: str | None
    arguments: str


_CALLS: Mapping[str, _Call] = {
    "function_call": _Call(None, "arguments"),
    "custom_tool_call": _Call(None, "input"),
    "local_shell_call": _Call("local_shell", "action"),
    "shell_call": _Call("shell", "action"),
    "apply_patch_call": _Call("apply_patch", "operation"),
    "tool_search_call": _Call("tool_search", "arguments"),
    "mcp_call": _Call(None, "arguments"),
}
_OUTPUTS: Mapping[str, str] = {  # and the field that holds what came out
    "function_call_output": "output",
    "custom_tool_call_output": "output",
    "local_shell_call_output": "output",
    "shell_call_output": "output",
    "apply_patch_call_output": "output",
    "tool_search_output": "tools",
}
# Traces of what other servers did by themselves: the answer that follows has what was made of it.
_SILENT = frozenset(
    {
        "web_search_call",
        "file_search_call",
        "image_generation_call",
        "code_interpreter_call",
        "mcp_list_tools",
        "mcp_approval_request",
        "mcp_approval_response",
    }
)
_SEALED = "tokenspeed:"


def seal(thinking: str) -> str:
    """Thinking as `encrypted_content` carries it for clients that give back nothing else. It is no secret:
    it was told to the client beside this."""
    return _SEALED + base64.b64encode(thinking.encode()).decode()


def unseal(sealed: Any) -> str:
    """The thinking, "" where another server sealed it."""
    if not isinstance(sealed, str) or not sealed.startswith(_SEALED):
        return ""
    try:
        return base64.b64decode(sealed.removeprefix(_SEALED), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""


class Conversation:
    """Messages, item by item. What an assistant thinks, says and calls in a row is one message; what the
    system says in front of everybody else as well, as templates expect no second one."""

    def __init__(self, instructions: str | None = None) -> None:
        self._messages: list[dict[str, Any]] = []
        self._called: dict[str, str] = {}  # names of functions by the ids of their calls
        if instructions:
            self._messages.append({"role": "system", "content": instructions})

    def messages(self) -> list[dict[str, Any]]:
        return parse_arguments(self._messages)

    def add(self, path: str, item: Item) -> None:
        """Raises where the item, which stands at `path`, says what cannot be told in text."""
        kind = kind_of(item)
        if not isinstance(kind, str):
            raise wrong(f"{path}.type", "must be a text")
        if kind in _SILENT:
            return
        if kind in _CALLS:
            self._call(path, item, _CALLS[kind])
        elif kind in _OUTPUTS:
            self._output(path, item, _OUTPUTS[kind])
        elif kind in _OTHERS:
            _OTHERS[kind](self, path, item)
        else:
            raise RequestError(
                f"{path}.type: {kind[:40]!r} is not a type of item that this server reads",
                param=f"{path}.type",
                code="invalid_value",
            )

    def _message(self, path: str, item: Item) -> None:
        written = item.get("role")
        role = ROLES.get(written) if isinstance(written, str) else None
        if role is None:
            found = "is required" if written is None else f"{str(written)[:40]!r} is not a role"
            raise wrong(f"{path}.role", f"{found}; roles are {', '.join(ROLES)}")
        text = _text(f"{path}.content", item.get("content"))
        if role == "assistant":
            _append(self._assistant(), "content", text, "\n")
        elif role == "system" and [message["role"] for message in self._messages] == ["system"]:
            _append(self._messages[0], "content", text, "\n\n")
        else:
            self._messages.append({"role": role, "content": text})

    def _reasoning(self, path: str, item: Item) -> None:
        """All of the thinking where it is there, else its summary."""
        told = _text(f"{path}.content", item.get("content")) or _text(f"{path}.summary", item.get("summary"))
        if thinking := told or unseal(item.get("encrypted_content")):
            _append(self._assistant(), "reasoning_content", thinking, "\n")

    def _call(self, path: str, item: Item, kind: _Call) -> None:
        name = kind.name or called_name(item)
        if not isinstance(name, str) or not name:
            raise wrong(f"{path}.name", "must be the name of a function")
        call_id = _call_id(path, item)
        arguments = _arguments(f"{path}.{kind.arguments}", kind, item.get(kind.arguments))
        call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        self._assistant().setdefault("tool_calls", []).append(call)
        self._called[call_id] = name
        if item.get("type") == "mcp_call":  # the server that called has the output as well
            self._add_output(call_id, _output_text(f"{path}.output", item.get("output")))

    def _output(self, path: str, item: Item, field: str) -> None:
        text = _output_text(f"{path}.{field}", item.get(field))
        self._add_output(_call_id(path, item), text or str(item.get("status") or ""))

    def _add_output(self, call_id: str, text: str) -> None:
        message = {"role": "tool", "tool_call_id": call_id, "content": text}
        if name := self._called.get(call_id):
            message["name"] = name
        self._messages.append(message)

    def _assistant(self) -> dict[str, Any]:
        """The assistant's message that is being put together, a new one after anybody else's."""
        if not self._messages or self._messages[-1]["role"] != "assistant":
            self._messages.append({"role": "assistant", "content": ""})
        return self._messages[-1]


_OTHERS: Mapping[str, Callable[[Conversation, str, Item], None]] = {
    "message": Conversation._message,
    "reasoning": Conversation._reasoning,
}


def _append(message: dict[str, Any], field: str, text: str, between: str) -> None:
    before = message.get(field)
    message[field] = f"{before}{between}{text}" if before and text else before or text


def _call_id(path: str, item: Item) -> str:
    """What joins a call to its output; some kinds have the item's id for it."""
    call_id = item.get("call_id") or item.get("id")
    if not isinstance(call_id, str):
        raise wrong(f"{path}.call_id", "must be the id of a call")
    return call_id


def _arguments(path: str, kind: _Call, given: Any) -> str | Mapping[str, Any]:
    """As JSON text or as an object; a custom tool has text of any kind, which is its one argument."""
    if given is None:
        return "{}"
    if kind.arguments == "input":
        if not isinstance(given, str):
            raise wrong(path, "must be a text")
        return {"input": given}
    if not isinstance(given, (str, dict)):
        raise wrong(path, "must be a JSON object or the text of one")
    return given or "{}"


def _text(path: str, content: Any) -> str:
    """A text or the texts of parts, by lines."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise wrong(path, "must be a text or a list of parts")
    return "\n".join([_part(f"{path}[{index}]", part) for index, part in enumerate(content)])


def _part(path: str, part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise wrong(path, "must be a part, which is an object with a type")
    field = _TEXTS.get(kind)
    if field is None:
        problem = "this model reads text only" if kind in _NOT_TEXT else f"there are {', '.join(_TEXTS)}"
        raise RequestError(
            f"{path}.type: {kind[:40]!r} is not supported: {problem}",
            param=f"{path}.type",
            code="unsupported_content",
        )
    text = part.get(field)
    if not isinstance(text, str):
        raise wrong(f"{path}.{field}", "must be a text")
    return text


def _output_text(path: str, output: Any) -> str:
    """What a tool gave: text, parts of text, what a shell printed, or JSON of any kind."""
    if output is None or isinstance(output, str):
        return output or ""
    if isinstance(output, list) and any(isinstance(part, dict) and "type" in part for part in output):
        return _text(path, output)
    if isinstance(output, (list, dict)):
        return "\n".join(_printed(output)) or orjson.dumps(output).decode()
    raise wrong(path, "must be a text or a list of parts")


def _printed(output: Sequence[Any] | Mapping[str, Any]) -> list[str]:
    """What the commands of a shell wrote, both ways."""
    pieces = [each for each in output if isinstance(each, dict)] if isinstance(output, list) else []
    found = [each.get(stream) for each in pieces for stream in ("stdout", "stderr")]
    return [text for text in found if isinstance(text, str) and text]
