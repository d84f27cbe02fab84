"""DeepSeek: a section of calls between marks; arguments are fenced JSON at first, plain JSON since V3.1."""

from __future__ import annotations

from collections.abc import Sequence

from tokenspeed.text.parsing import jsontext
from tokenspeed.text.parsing.family import Family
from tokenspeed.text.parsing.lark import Mark, json_object, quote, repeat, rule
from tokenspeed.text.parsing.parts import Parser, Tool
from tokenspeed.text.parsing.reader import CallParser, Output, Reader, Steps, ignore

OPEN, CLOSE = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
ONE, NAME, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
MARKS = (OPEN, CLOSE, ONE, NAME, END)
FENCE = "```json"


def parser(tools: Sequence[Tool]) -> Parser:
    """Text with calls of `tools` in it, in either form."""
    heads = {tool.name + NAME: tool.name for tool in tools}
    fenced = {f"function{NAME}{tool.name}\n{FENCE}": tool.name for tool in tools}
    heads |= fenced

    def calls(reader: Reader, output: Output) -> Steps[bool]:
        yield from reader.take(OPEN)
        yield from reader.space()
        one = yield from reader.take(ONE)
        head = (yield from reader.take(*heads)) if one else None
        if head is None or (yield from reader.space()) != "{":
            return False
        output.call(heads[head])
        yield from jsontext.stream(reader, output.arguments)
        yield from reader.until(END, ONE, CLOSE, show=ignore)
        yield from reader.take(END)
        yield from reader.space()
        yield from reader.take(CLOSE)
        return True

    return CallParser([OPEN, ONE], calls)


def detects_fenced(template: str) -> bool:
    """Its marks, and the fence."""
    return OPEN in template and FENCE in template


def detects(template: str) -> bool:
    """Its marks alone."""
    return OPEN in template and FENCE not in template


def _rules(bodies: Sequence[str], separator: str, most: int | None, mark: Mark) -> str:
    return (
        rule("calls", f"{mark(OPEN)} {repeat('call_one', separator, most)} {mark(CLOSE)}")
        + rule("call_one", f"{mark(ONE)} call_body {mark(END)}")
        + rule("call_body", *bodies)
    )


def rules_fenced(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """Calls of the kind `function`, the only one there is, on lines of their own."""
    heads = {f"{tool.name}\n{FENCE}\n": tool for tool in tools}
    bodies = [
        rf'"function" {mark(NAME)} {quote(head)} {json_object(tool.parameters)} "\n```"'
        for head, tool in heads.items()
    ]
    return _rules(bodies, r'"\n"', most, mark)


def rules(tools: Sequence[Tool], *, most: int | None, mark: Mark) -> str:
    """Calls directly behind each other."""
    bodies = [f"{quote(tool.name)} {mark(NAME)} {json_object(tool.parameters)}" for tool in tools]
    return _rules(bodies, "", most, mark)


DEEPSEEK_FENCED = Family("deepseek_fenced", MARKS, (OPEN, ONE), detects_fenced, parser, rules_fenced)
DEEPSEEK = Family("deepseek", MARKS, (OPEN, ONE), detects, parser, rules)
