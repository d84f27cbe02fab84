"""Mistral: behind a mark, at first one list of JSON objects, later a name and its arguments each time."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenspeed.text.parsing import jsontext
from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.lark import Mark, json_call, json_object, quote, repeat, rule
from tokenspeed.text.parsing.parts import Parser, Tool
from tokenspeed.text.parsing.reader import CallParser, Output, Reader, Steps

OPEN, ID, ARGUMENTS = "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"
_ID = "/[a-zA-Z0-9]{9}/"


def parser(tools: Sequence[Tool]) -> Parser:
    """Text with calls of `tools` in it, in either form."""
    names = {tool.name for tool in tools}

    def calls(reader: Reader, output: Output) -> Steps[bool]:
        yield from reader.take(OPEN)
        first = yield from reader.space()
        if first == "[":
            return (yield from _list(reader, output, names))
        if first == "{":
            return (yield from jsontext.call(reader, output, names))
        return (yield from _named(reader, output, names))

    return CallParser([OPEN], calls)


def _list(reader: Reader, output: Output, names: Collection[str]) -> Steps[bool]:
    yield from reader.take("[")
    yield from reader.space()
    if not (yield from jsontext.call(reader, output, names)):
        return False
    last = True
    while last:
        reader.forget()
        if (yield from reader.space()) == "]":
            reader.at += 1
            return True
        yield from reader.take(",")
        yield from reader.space()
        last = yield from jsontext.call(reader, output, names)
    reader.undo()
    return True


def _named(reader: Reader, output: Output, names: Collection[str]) -> Steps[bool]:
    """`f[ARGS]{...}`, with an id in between or without the mark."""
    heads = {name + end: name for name in names for end in (ARGUMENTS, ID, "{")}
    head = yield from reader.take(*heads)
    if head is None:
        return False
    if head.endswith(ID):
        while (yield from reader.peek()).isalnum():
            reader.at += 1
        yield from reader.take(ARGUMENTS)
    reader.at -= head.endswith("{")
    if (yield from reader.space()) != "{":
        return False
    output.call(heads[head])
    yield from jsontext.stream(reader, output.arguments)
    return True


def detects(template: str) -> bool:
    """The mark alone, without the later one."""
    return OPEN in template and ARGUMENTS not in template


def detects_named(template: str) -> bool:
    """Both marks."""
    return OPEN in template and ARGUMENTS in template


def rules(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """One list of objects, which may have ids."""
    end = rf'("}}" | ", \"id\": \"" {_ID} "\"}}")'
    objects = [json_call(tool.name, tool.parameters, key="arguments", end=end) for tool in tools]
    calls = f'{mark(OPEN)} " "? "[" {repeat("call_one", quote(", "), most)} "]"'
    return rule("calls", calls) + rule("call_one", *objects)


def rules_named(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """The mark, a name and its arguments each time; there may be an id between them."""
    named = [
        f"{quote(tool.name)} call_id? {mark(ARGUMENTS)} {json_object(tool.parameters)}" for tool in tools
    ]
    return (
        rule("calls", repeat("call_one", "", most))
        + rule("call_one", f"{mark(OPEN)} call_named")
        + rule("call_id", f"{mark(ID)} {_ID}")
        + rule("call_named", *named)
    )


MISTRAL = Family("mistral", (OPEN,), (OPEN,), detects, parser, rules)
MISTRAL_NAMED = Family("mistral_named", (OPEN, ID, ARGUMENTS), (OPEN,), detects_named, parser, rules_named)
