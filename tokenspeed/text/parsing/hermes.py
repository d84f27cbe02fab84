"""Hermes, and Qwen up to its third generation: a JSON object between tags, one for each call."""

from __future__ import annotations

from collections.abc import Sequence

from tokenspeed.text.parsing import jsontext
from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.lark import Mark, json_call, repeat, rule
from tokenspeed.text.parsing.parts import Parser, Tool
from tokenspeed.text.parsing.reader import CallParser, Output, Reader, Steps, ignore

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def detects(template: str) -> bool:
    """Others put something else between the same tags."""
    return OPEN in template and "<function=" not in template and "<arg_key>" not in template


def parser(tools: Sequence[Tool]) -> Parser:
    """Text with calls of `tools` in it."""
    names = {tool.name for tool in tools}

    def calls(reader: Reader, output: Output) -> Steps[bool]:
        yield from reader.take(OPEN)
        yield from reader.space()
        if not (yield from jsontext.call(reader, output, names)):
            return False
        yield from reader.until(CLOSE, OPEN, show=ignore)
        yield from reader.take(CLOSE)
        return True

    return CallParser([OPEN], calls)


def rules(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """The calls as the family's templates write them."""
    one = rf'{mark(OPEN)} "\n" call_object "\n" {mark(CLOSE)}'
    objects = [json_call(tool.name, tool.parameters, key="arguments") for tool in tools]
    return (
        rule("calls", repeat("call_one", r'"\n"', most))
        + rule("call_one", one)
        + rule("call_object", *objects)
    )


HERMES = Family("hermes", (OPEN, CLOSE), (OPEN,), detects, parser, rules)
