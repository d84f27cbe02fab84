"""Llama 3: a JSON object that is all of the answer, or several with `;` between them.

A mark may stand in front; without it only the start of the answer can be a call, for JSON further on may be
anything. An answer that starts with JSON is held back until its first key and the name in it are known.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenspeed.text.parsing import jsontext
from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.lark import Mark, is_text, json_call, repeat, rule
from tokenspeed.text.parsing.parts import Parser, Tool
from tokenspeed.text.parsing.reader import CallParser, Output, Reader, Steps

MARK = "<|python_tag|>"
# Llama 4 has its own, of which the second closes.
OPEN, CLOSE = "<|python_start|>", "<|python_end|>"


def detects(template: str) -> bool:
    """Its templates call the arguments parameters."""
    return '"parameters": ' in template and (
        "<|start_header_id|>" in template or "<|header_start|>" in template
    )


def parser(tools: Sequence[Tool]) -> Parser:
    """Text with calls of `tools` in it."""
    names = {tool.name for tool in tools}

    def calls(reader: Reader, output: Output) -> Steps[bool]:
        yield from reader.take(MARK, OPEN)
        yield from reader.space()
        if not (yield from jsontext.call(reader, output, names)):
            return False
        last = True
        while last:
            reader.forget()
            yield from reader.space()
            yield from reader.take(";")
            yield from reader.space()
            yield from reader.take(MARK)
            last = yield from jsontext.call(reader, output, names)
        reader.undo()
        yield from reader.space()
        yield from reader.take(CLOSE)
        return True

    return CallParser([MARK, OPEN], calls, start=calls)


def rules(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """The calls as the family's templates write them; with the mark in front if the vocabulary has it."""
    front = "" if is_text(mark(MARK)) else f"{mark(MARK)}? "
    objects = [json_call(tool.name, tool.parameters, key="parameters") for tool in tools]
    return rule("calls", front + repeat("call_one", '"; "', most)) + rule("call_one", *objects)


def starts(tools: Sequence[Tool]) -> tuple[str, ...]:
    """An object whose first key is the name."""
    return ('{"name"',)


LLAMA3_JSON = Family("llama3_json", (MARK, OPEN, CLOSE), (MARK, OPEN), detects, parser, rules, starts)
