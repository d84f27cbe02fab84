"""Qwen3-Coder: a function between tags, and a tag for each argument, which is written as plain text.

Its schema says what JSON the text stands for. Models may leave out the outer tags.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import orjson

from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.lark import Mark, free_of, json_value, quote, repeat, rule
from tokenspeed.text.parsing.literals import escaped
from tokenspeed.text.parsing.parts import Parser, Tool
from tokenspeed.text.parsing.reader import CallParser, Held, Output, Reader, Show, Steps, ignore
from tokenspeed.text.parsing.schema import (
    ANY,
    STRING,
    Schema,
    choices,
    properties,
    required,
    resolve,
    standalone,
    types,
)

OPEN, CLOSE = "<tool_call>", "</tool_call>"
FUNCTION, END = "<function=", "</function>"
PARAMETER, VALUE_END = "<parameter=", "</parameter>"
# Templates write words as Python does.
_WORDS = {"true": True, "false": False, "null": None, "none": None}

_DELIMITERS = re.compile(r"\\.|/|\n", re.DOTALL)  # or an escape, which is left as it is


def detects(template: str) -> bool:
    """Only this family writes functions so."""
    return FUNCTION in template and PARAMETER in template


def parser(tools: Sequence[Tool]) -> Parser:
    """Text with calls of `tools` in it."""
    heads = {f"{FUNCTION}{tool.name}>": tool for tool in tools}

    def calls(reader: Reader, output: Output) -> Steps[bool]:
        tagged = yield from reader.take(OPEN)
        yield from reader.space()
        head = yield from reader.take(*heads)
        if head is None:
            return False
        output.call(heads[head].name)
        yield from _arguments(reader, output.arguments, heads[head])
        if tagged:
            yield from reader.until(CLOSE, OPEN, FUNCTION, show=ignore)
        else:
            yield from reader.space()
        yield from reader.take(CLOSE)
        return True

    return CallParser([OPEN, FUNCTION], calls)


def _arguments(reader: Reader, show: Show, tool: Tool) -> Steps[None]:
    """From behind the function's tag to its end; as JSON."""
    rows = properties(tool)
    separator = "{"
    ends = (END, CLOSE, OPEN, FUNCTION)  # but for the first, the function's own tag was left out
    while (mark := (yield from reader.until(PARAMETER, *ends, show=ignore))) == PARAMETER:
        yield from reader.take(PARAMETER)
        key: list[str] = []
        if (yield from reader.until(">", show=key.append)) is None:
            return
        yield from reader.take(">")
        name = "".join(key)
        show(f"{separator}{json.dumps(name, ensure_ascii=False)}: ")
        separator = ", "
        schema = rows.get(name)
        yield from _value(reader, show, STRING if schema is None else types(schema, tool.parameters))
    if mark is not None:
        show("{}" if separator == "{" else "}")
        yield from reader.take(END)


def _value(reader: Reader, show: Show, admitted: frozenset[str]) -> Steps[None]:
    """An argument and its closing tag. What can only be a string is shown as it comes."""
    yield from reader.take("\n")
    if admitted in (STRING, ANY):
        show('"')
        text = Held(lambda piece: show(escaped(piece)), "\n")
        mark = yield from reader.until(VALUE_END, show=text)
        show(escaped(text.held[:-1] if mark else text.held))
        if mark:
            show('"')
    else:
        pieces: list[str] = []
        mark = yield from reader.until(VALUE_END, show=pieces.append)
        if mark:
            show(_to_json("".join(pieces).removesuffix("\n"), admitted))
    yield from reader.take(VALUE_END)


def _to_json(text: str, admitted: frozenset[str]) -> str:
    """The JSON that the text stands for; a string where it is none that is admitted."""
    word = text.strip()
    try:
        found = _WORDS[word.lower()] if word.lower() in _WORDS else orjson.loads(word)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    if isinstance(found, str) or ("string" in admitted and not _fits(found, admitted)):
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(found) if word.lower() in _WORDS else word


def _fits(value: object, admitted: frozenset[str]) -> bool:
    match value:
        case None:
            return "null" in admitted
        case bool():
            return "boolean" in admitted
        case int():
            return bool(admitted & {"integer", "number"})
        case float():
            return "number" in admitted
        case list():
            return "array" in admitted
    return "object" in admitted


def rules(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """The calls as the family's templates write them."""
    lines = [
        rule("calls", repeat("call_one", r'"\n"', most)),
        rule("call_one", rf'{mark(OPEN)} "\n" call_function "\n" {mark(CLOSE)}'),
        rule("call_function", *(f"call_{index}" for index in range(len(tools)))),
        rule("CALL_FREE", free_of(quote(VALUE_END))),
    ]
    for index, tool in enumerate(tools):
        lines += _function(f"call_{index}", tool)
    return "".join(lines)


def _function(name: str, tool: Tool) -> list[str]:
    """The rules of one function; its arguments in the schema's order."""
    needed = required(tool)
    terms = [quote(f"{FUNCTION}{tool.name}>\n")]
    lines = []
    for index, (key, schema) in enumerate(properties(tool).items()):
        terms.append(f"{name}_{index}" + ("" if key in needed else "?"))
        value, own = _value_rules(f"{name}_{index}".upper(), schema, tool)
        lines += [rule(f"{name}_{index}", rf'{quote(f"{PARAMETER}{key}>")} "\n" {value} "\n"'), *own]
    return [rule(name, " ".join([*terms, quote(END)])), *lines]


def _value_rules(terminal: str, schema: Schema, tool: Tool) -> tuple[str, list[str]]:
    """The term for a value and its closing tag, and the rules it needs.

    A string of a given format, and one that may be something else as well, may be any text.
    """
    end = quote(f"\n{VALUE_END}")
    values = choices(schema, tool.parameters)
    admitted = types(schema, tool.parameters)
    if values is not None:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return f"({' | '.join(map(quote, texts))}) {end}", []
    if "string" not in admitted:
        return f"{json_value(standalone(schema, tool))} {end}", []
    bounds = _bounds(resolve(schema, tool.parameters)) if admitted == STRING else []
    return terminal, [rule(terminal, f"({' & '.join(['CALL_FREE', *bounds])}) {end}")]


def _bounds(schema: Schema) -> list[str]:
    """Terminals that a string's text must match as well."""
    least, most = schema.get("minLength"), schema.get("maxLength")
    bounds = []
    if isinstance(least, int) or isinstance(most, int):
        bounds.append(f"/(?s:.{{{least or 0},{'' if most is None else most}}})/")
    if isinstance(pattern := schema.get("pattern"), str):
        front = "" if pattern.startswith("^") else "(?s:.*)"
        back = "" if pattern.endswith("$") else "(?s:.*)"
        body = _DELIMITERS.sub(_delimited, pattern.removeprefix("^").removesuffix("$"))
        bounds.append(f"/{front}({body}){back}/")
    return bounds


def _delimited(match: re.Match[str]) -> str:
    """A character of a regular expression that may not stand between slashes."""
    return {"/": r"\/", "\n": r"\n"}.get(match[0], match[0])


QWEN3_CODER = Family("qwen3_coder", (OPEN, CLOSE), (OPEN, FUNCTION), detects, parser, rules)
