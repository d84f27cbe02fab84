"""Anthropic's conversations as chat templates read them.

https://docs.anthropic.com/en/api/messages says what a conversation may hold. Templates know plain text, calls
beside it, and a message of role `tool` for the result of each call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenspeed.api.anthropic_types import (
    Block,
    DocumentBlock,
    MessagesRequest,
    RedactedThinkingBlock,
    ResultBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolReferenceBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from tokenspeed.api.tools import template_tools, wrong
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import ChatPrompt, ToolUse

# Some agents begin their system prompt with a line for their vendor's accounts. It tells the model nothing,
# and differs in each request, so that nothing of the prompt behind it would be remembered from the last one.
ACCOUNTING = "x-anthropic-billing-header:"
# What `thinking.type` makes of the variable that templates read; without it they do as they like.
THINKING = {"enabled": True, "adaptive": True, "disabled": False}
EFFORTS = {"xhigh": "high", "max": "high"}  # models are trained for less of a scale than Anthropic's

Message = dict[str, Any]


def chat_prompt(asked: MessagesRequest, tools: ToolUse | None) -> ChatPrompt:
    """The conversation; a last turn of the assistant is one to go on with."""
    if not asked.messages:
        raise wrong("messages", "must not be empty; send at least one")
    messages = _messages(asked)
    continue_final = messages[-1]["role"] == "assistant"
    if continue_final and "tool_calls" in messages[-1]:
        raise wrong("messages", "must not end with a tool_use block; send its tool_result behind it")
    return ChatPrompt(
        messages=messages,
        tools=None if tools is None else template_tools(tools.tools),
        add_generation_prompt=not continue_final,
        continue_final=continue_final,
        extra=_extra(asked),
    )


def _extra(asked: MessagesRequest) -> dict[str, Any]:
    extra: dict[str, Any] = {}
    if asked.thinking:
        kind = asked.thinking.get("type")
        if not isinstance(kind, str) or kind not in THINKING:
            raise wrong("thinking.type", f"must be one of {', '.join(THINKING)}")
        extra["enable_thinking"] = THINKING[kind]
    if asked.output_config is not None and (effort := asked.output_config.effort) is not None:
        extra["reasoning_effort"] = EFFORTS.get(effort, effort)
    return extra


def _messages(asked: MessagesRequest) -> list[Message]:
    """All messages; turns of the same side that follow each other are one, as the API promises."""
    messages: list[Message] = []
    names: dict[str, str] = {}  # of the tools, by the ids of their calls so far
    if system := _system(asked.system):
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(asked.messages):
        for message in _turn(f"messages[{index}]", turn, names):
            if messages and message["role"] == messages[-1]["role"] != "tool":
                messages[-1] = _joined(messages[-1], message)
            else:
                messages.append(message)
    return messages


def _system(given: str | Sequence[TextBlock] | None) -> str:
    texts = [given] if isinstance(given, str) else [block.text for block in given or ()]
    return "\n".join(filter(None, map(_without_accounting, texts)))


def _without_accounting(text: str) -> str:
    return text.partition("\n")[2] if text.startswith(ACCOUNTING) else text


def _joined(first: Message, second: Message) -> Message:
    joined = {**first, **second}
    for name in ("content", "reasoning_content"):
        if name in joined:
            joined[name] = "\n".join(filter(None, (first.get(name), second.get(name))))
    if "tool_calls" in joined:
        joined["tool_calls"] = [*first.get("tool_calls", ()), *second.get("tool_calls", ())]
    return joined


@dataclass
class _Parts:
    """The blocks of a turn by what becomes of them."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Message] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)


def _turn(path: str, turn: Turn, names: dict[str, str]) -> Iterator[Message]:
    """The results that a turn brings, then the turn itself, unless it had nothing else to say."""
    blocks = [TextBlock(turn.content)] if isinstance(turn.content, str) else turn.content or ()
    parts = _parts(f"{path}.content", blocks, names)
    for kind, found, role in (("tool_use", parts.calls, "assistant"), ("tool_result", parts.results, "user")):
        if found and turn.role != role:
            raise wrong(f"{path}.content", f"has a {kind} block, which belongs in a turn of role {role!r}")
    yield from parts.results
    if parts.results and not parts.texts:
        return
    message = {"role": turn.role, "content": "\n".join(parts.texts)}
    if turn.role == "assistant" and parts.thoughts:
        message["reasoning_content"] = "\n".join(parts.thoughts)
    yield {**message, "tool_calls": parts.calls} if parts.calls else message


def _parts(path: str, blocks: Sequence[Block], names: dict[str, str]) -> _Parts:
    parts = _Parts()
    for index, block in enumerate(blocks):
        match block:
            case ThinkingBlock():
                parts.thoughts.append(block.thinking or "")
            case RedactedThinkingBlock():
                pass
            case ToolUseBlock():
                names[block.id] = block.name
                parts.calls.append(_call(block))
            case ToolResultBlock():
                parts.results.append(_result(f"{path}[{index}]", block, names))
            case _:
                parts.texts.append(_text(f"{path}[{index}]", block))
    return parts


def _call(block: ToolUseBlock) -> Message:
    """Its arguments as an object, which templates write as they were trained on."""
    function = {"name": block.name, "arguments": block.input or {}}
    return {"id": block.id, "type": "function", "function": function}


def _result(path: str, block: ToolResultBlock, names: Mapping[str, str]) -> Message:
    """A result tells which call it is of, by its id and, as some templates have it, by the tool's name."""
    content = block.content or ""
    if not isinstance(content, str):
        content = "\n".join(_text(f"{path}.content[{i}]", part) for i, part in enumerate(content))
    # Templates know no failures, so the text must say it; tools that fail mostly do so themselves.
    if block.is_error and "error" not in content[:100].lower():
        content = f"Error: {content}" if content else "Error"
    message = {"role": "tool", "tool_call_id": block.tool_use_id, "content": content}
    name = names.get(block.tool_use_id)
    return message if name is None else {**message, "name": name}


def _text(path: str, block: ResultBlock) -> str:
    """The block as text; raises where it has none."""
    match block:
        case TextBlock():
            return block.text
        case DocumentBlock(source={"type": "text", "data": str(text)}):
            return "\n".join(filter(None, (block.title, block.context, text)))
        case SearchResultBlock():
            texts = [part.text for part in block.content or ()]
            return "\n".join(filter(None, (block.title, block.source, *texts)))
        case ToolReferenceBlock():
            return block.tool_name
    kind = type(block).__struct_config__.tag
    problem = f"{path}.type: {kind!r} is not supported: this model reads text only"
    raise RequestError(problem, param=f"{path}.type", code="unsupported_content")
