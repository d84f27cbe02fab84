"""Llama 3.2 and 4 as they are also taught: all of the answer is a list of Python calls, `[f(a=1), g()]`.

A mark may stand in front; without it only the start of the answer can be a call. Argument values are Python
literals, and become JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.lark import Mark, is_text, json_value, quote, repeat, rule
from tokenspeed.text.parsing.literals import literal
from tokenspeed.text.parsing.parts import Parser, Tool
from tokenspeed.text.parsing.reader import CallParser, Output, Reader, Steps, ignore
from tokenspeed.text.parsing.schema import Schema, choices, properties, required, standalone, types

OPEN, CLOSE = "<|python_start|>", "<|python_end|>"
_EXAMPLE = re.compile(r"\[func(tion)?_?name\w*\(")
_PARAMETERS = re.compile(r"""["']"parameters": ["']""")  # a template that writes calls as JSON


def detects(template: str) -> bool:
    """Its marks, or the example that templates show the model; but not if they write JSON between them."""
    shown = OPEN in template or _EXAMPLE.search(template) is not None
    return shown and _PARAMETERS.search(template) is None


def parser(tools: Sequence[Tool]) -> Parser:
    """Text with calls of `tools` in it."""
    heads = {f"{tool.name}(": tool for tool in tools}

    def calls(reader: Reader, output: Output) -> Steps[bool]:
        yield from reader.space()
        yield from reader.take(OPEN)
        yield from reader.space()
        if not (yield from reader.take("[")) or not (yield from _call(reader, output, heads)):
            return False
        last = True
        while last:
            reader.forget()
            if (yield from reader.space()) == "]":
                reader.at += 1
                yield from reader.space()
                yield from reader.take(CLOSE)
                return True
            last = bool((yield from reader.take(","))) and (yield from _call(reader, output, heads))
        reader.undo()
        return True

    return CallParser([OPEN], calls, start=calls)


def _call(reader: Reader, output: Output, heads: Mapping[str, Tool]) -> Steps[bool]:
    """Reads `f(a=1, b="x")`; False if it is no call. It is one as soon as its bracket is there."""
    yield from reader.space()
    head = yield from reader.take(*heads)
    if head is None:
        return False
    output.call(heads[head].name)
    known = {f"{key}=": key for key in properties(heads[head])}
    keys = list(known.values())  # those not yet given, which arguments without a name go by
    show = output.arguments
    separator = "{"
    while (character := (yield from reader.space())) not in (")", ""):
        if character == ",":
            reader.at += 1
            continue
        key = (yield from _key(reader, known)) or (keys[0] if keys else None)
        if key is not None:
            keys = [other for other in keys if other != key]
            show(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
            separator = ", "
        whole = yield from literal(reader, ignore if key is None else show)
        if not whole or (yield from reader.space()) not in (",", ")"):  # no literal: a sum, say
            yield from reader.until(",", ")", show=ignore)
    if character:
        show("{}" if separator == "{" else "}")
        reader.at += 1
    return True


def _key(reader: Reader, known: Mapping[str, str]) -> Steps[str | None]:
    """The name of an argument with its equals sign; None for one without, which goes by its place."""
    if found := (yield from reader.take(*known)):  # a property's name may be more than Python allows
        return known[found]
    start = reader.at
    while (character := (yield from reader.peek())).isalnum() or character == "_":
        reader.at += 1
    key = reader.text[start : reader.at]
    yield from reader.space()
    if key and (yield from reader.take("=")):
        yield from reader.space()
        return key
    reader.at = start
    return None


def rules(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """One list of calls; between the marks or not, if the vocabulary has them."""
    calls = f'"[" {repeat("call_one", quote(", "), most)} "]"'
    marked = [] if is_text(mark(OPEN)) else [f"{mark(OPEN)} {calls} {mark(CLOSE)}"]
    lines = [
        rule("calls", calls, *marked),
        rule("call_one", *(f"call_{index}" for index in range(len(tools)))),
    ]
    for index, tool in enumerate(tools):
        lines += _function(f"call_{index}", tool)
    return "".join(lines)


def _function(name: str, tool: Tool) -> list[str]:
    """The rules of one function: its needed arguments and then the others, each in the schema's order."""
    rows = {key: f"{name}_{index}" for index, key in enumerate(properties(tool))}
    first = [row for key, row in rows.items() if key in required(tool)]
    others = [row for key, row in rows.items() if key not in required(tool)]
    if first:
        body = ' ", " '.join(first) + "".join(f' (", " {row})?' for row in others)
    else:  # the first that is there has no comma
        leads = [
            row + "".join(f' (", " {later})?' for later in others[at + 1 :]) for at, row in enumerate(others)
        ]
        body = f"({' | '.join(leads)})?" if leads else ""
    lines = [
        rule(rows[key], f"{quote(f'{key}=')} {_value(schema, tool)}")
        for key, schema in properties(tool).items()
    ]
    return [rule(name, f'{quote(f"{tool.name}(")} {body} ")"'), *lines]


def _value(schema: Schema, tool: Tool) -> str:
    """JSON, but for single words: they are Python's."""
    values = choices(schema, tool.parameters)
    admitted = types(schema, tool.parameters)
    if values is None and admitted == {"boolean"}:
        return '("True" | "False")'
    return json_value(standalone(schema, tool))


def starts(tools: Sequence[Tool]) -> tuple[str, ...]:
    """A list that begins with a call of a tool."""
    return tuple(f"[{tool.name}(" for tool in tools)


PYTHONIC = Family("pythonic", (OPEN, CLOSE), (OPEN,), detects, parser, rules, starts)
