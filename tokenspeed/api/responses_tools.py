"""The tools of a request for a response: functions, alone or in namespaces; what else there is is ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tokenspeed.api.tools import check_count, openai_tool_use, read_tool, wrong
from tokenspeed.generation.request import ToolUse
from tokenspeed.text.parsing.parts import Tool


class Home(NamedTuple):
    """Where a function is found: its namespace, and its own name in there."""

    namespace: str
    name: str


class Toolbox(NamedTuple):
    """The functions that the model is told of, as `use` has them, and the homes of those with a namespace
    by the name that the model knows. `told` are the request's tools that they come from, to be echoed."""

    use: ToolUse | None
    homes: Mapping[str, Home]
    told: Sequence[Mapping[str, Any]]


def flat_name(namespace: str, name: str) -> str:
    """A function's name for the model, which knows no namespaces: `files__read`."""
    return f"{namespace}{'' if namespace.endswith('__') else '__'}{name}"


def called_name(item: Mapping[str, Any]) -> Any:
    """The name, as the model knows it, of the function that a call or a choice names."""
    name, namespace = item.get("name"), item.get("namespace")
    if isinstance(name, str) and isinstance(namespace, str) and namespace:
        return flat_name(namespace, name)
    return name


def read_toolbox(tools: Sequence[Mapping[str, Any]], choice: Any, *, parallel: bool) -> Toolbox:
    """Raises for what is wrong with a function; tools of other types are for servers that have them, and
    clients send those along."""
    check_count(tools)
    functions: list[Tool] = []
    homes: dict[str, Home] = {}
    told: list[Mapping[str, Any]] = []
    for index, tool in enumerate(tools):
        path = f"tools[{index}]"
        match tool.get("type", "function"):
            case "function":
                functions.append(read_tool(path, tool))
                told.append(_echo(tool))
            case "namespace":
                for function, home in _inside(path, tool):
                    functions.append(function)
                    homes[function.name] = home
                told.append(tool)
    check_count(functions)
    if isinstance(choice, dict) and "namespace" in choice:
        choice = {**choice, "name": called_name(choice)}
    return Toolbox(openai_tool_use(functions, choice, parallel=parallel), homes, told)


def _inside(path: str, namespace: Mapping[str, Any]) -> Iterator[tuple[Tool, Home]]:
    """The functions of a namespace, by their flat names."""
    name, tools = namespace.get("name"), namespace.get("tools") or []
    if not isinstance(name, str) or not name:
        raise wrong(f"{path}.name", "must be a text that is not empty")
    if not isinstance(tools, list):
        raise wrong(f"{path}.tools", "must be a list")
    for index, tool in enumerate(tools):
        inner = f"{path}.tools[{index}]"
        if not isinstance(tool, dict):
            raise wrong(inner, "must be an object")
        if tool.get("type", "function") == "function":
            home = Home(name, read_tool(inner, tool).name)
            yield read_tool(inner, {**tool, "name": flat_name(*home)}), home


def _echo(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function with the fields that clients hold an answer's tools to."""
    return {"type": "function", "strict": None, "parameters": None, **tool}
