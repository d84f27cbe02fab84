"""Tools as clients send them: what may be called, and as chat templates are told of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from tokenspeed.errors import RequestError
from tokenspeed.generation.request import ToolUse
from tokenspeed.text.parsing.parts import Tool

NAME = re.compile(r"[\w.:/@-]{1,256}")
MOST_TOOLS = 1024


def read_tool(path: str, function: Any, parameters: str = "parameters") -> Tool:
    """One function; `path` is where it stands in the body, `parameters` how the protocol calls its schema."""
    if not isinstance(function, dict):
        raise wrong(path, "must be an object with a name")
    name, schema = function.get("name"), function.get(parameters)
    description = function.get("description")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise wrong(f"{path}.name", "must be 1 to 256 letters, digits, or any of _ . : / @ -")
    if schema is not None and not isinstance(schema, dict):
        raise wrong(f"{path}.{parameters}", "must be a JSON schema, which is an object")
    if description is not None and not isinstance(description, str):
        raise wrong(f"{path}.description", "must be a text")
    given = {} if not schema else {"parameters": schema}
    return Tool(name, description, strict=function.get("strict") is True, **given)


def template_tools(tools: Sequence[Tool]) -> list[dict[str, Any]] | None:
    """The tools as chat templates read them."""
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                **({} if tool.description is None else {"description": tool.description}),
                "parameters": tool.parameters,
            },
        }
        for tool in tools
    ] or None


def read_openai_tools(tools: Sequence[Any], *, nested: bool) -> list[Tool]:
    """The functions among a request's `tools`; `nested` as chat has them, or flat as responses do.

    Tools of other types are for servers that have them, and clients send those along.
    """
    check_count(tools)
    read = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        if not isinstance(tool, dict):
            raise wrong(path, "must be an object")
        if tool.get("type", "function") == "function":
            inner = nested and "function" in tool
            if nested and not inner:
                raise wrong(f"{path}.function", "must be an object with a name")
            read.append(read_tool(f"{path}.function" if inner else path, tool["function"] if inner else tool))
    return read


def check_count(tools: Sequence[Any]) -> None:
    """Raise where there are too many of them."""
    if len(tools) > MOST_TOOLS:
        raise wrong("tools", f"has {len(tools)} entries; the most is {MOST_TOOLS}")


def openai_tool_use(tools: list[Tool], choice: Any, *, parallel: bool) -> ToolUse | None:
    """What `tool_choice` makes of the tools: a word, a function's name in an object, or a part of them.

    None where the model shall not call any.
    """
    match choice:
        case None | "auto":
            return ToolUse(tuple(tools), parallel=parallel) if tools else None
        case "none":
            return None
        case "required":
            return tool_use(tools, required=True, parallel=parallel)
        case {"type": "allowed_tools"}:
            return _allowed(tools, choice, parallel)
        case {"function": {"name": str(name)}} | {"type": "function", "name": str(name)}:
            return tool_use(tools, only=name, parallel=False)  # the API promises exactly one call
    raise wrong("tool_choice", 'must be "auto", "none", "required" or name a function')


def _allowed(tools: list[Tool], choice: dict[str, Any], parallel: bool) -> ToolUse:
    allowed = choice.get("allowed_tools", choice)
    listed = allowed.get("tools") if isinstance(allowed, dict) else None
    if not isinstance(listed, list):
        raise wrong("tool_choice", "must list the allowed tools")
    names = {name for each in listed if (name := _name(each)) is not None}
    kept = [tool for tool in tools if tool.name in names]
    return tool_use(kept, required=allowed.get("mode") == "required", parallel=parallel)


def _name(tool: Any) -> Any:
    """The name in a reference to a function, nested or flat."""
    if not isinstance(tool, dict):
        return None
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("name")


def tool_use(
    tools: Sequence[Tool],
    *,
    required: bool = False,
    only: str | None = None,
    parallel: bool = True,
    param: str = "tool_choice",
) -> ToolUse:
    """Raises where a call is asked for that no tool can take."""
    if only is not None and only not in {tool.name for tool in tools}:
        raise wrong(param, f"names the function {only[:100]!r}, which is not among the tools")
    if not tools:
        raise wrong(param, "asks for a call, but there is no tool to call")
    return ToolUse(tuple(tools), required or only is not None, only, parallel)


def wrong(path: str, problem: str) -> RequestError:
    """That field `path` has a `problem`, which reads on from its name."""
    return RequestError(f"{path} {problem}", param=path, code="invalid_value")
