"""The thinking that some models write down before they answer."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.text.parsing.lark import Mark, rule, text_before
from tokenspeed.text.parsing.parts import Parser, Part, Reasoning
from tokenspeed.text.parsing.reader import Held, Reader, Steps

_NEWLINES = "\r\n"


@dataclass(frozen=True, slots=True)
class Think:
    """The marks around the thinking; they may be special tokens, and must then be shown in the text."""

    open: str
    close: str

    @property
    def marks(self) -> tuple[str, str]:
        """Both."""
        return self.open, self.close

    def opened(self, prompt: str) -> bool:
        """Whether the prompt ends with the opening mark, so that the answer starts within the thinking."""
        return prompt.rstrip().endswith(self.open)


THINKS = (Think("<think>", "</think>"), Think("[THINK]", "[/THINK]"))


def find_think(template: str) -> Think | None:
    """The marks that a chat template knows of; None if its model does not think aloud."""
    return next((think for think in THINKS if think.close in template), None)


class Thinking:
    """Parses the thinking in front of an answer, and leaves the answer to another parser.

    There is at most one block of it, with nothing but white space before; if the prompt has `opened` it, the
    answer starts within. Line breaks directly around the marks are not shown. Nothing in the block is a call.
    """

    __slots__ = ("_answer", "_parts", "_reader", "_steps", "_think")

    def __init__(self, think: Think, answer: Parser, *, opened: bool) -> None:
        self._think = think
        self._answer = answer
        self._parts: list[Part] = []
        self._reader = Reader()
        self._steps = self._block(opened)

    def push(self, text: str) -> list[Part]:
        """What has become certain."""
        self._reader.text += text
        next(self._steps)
        return self._take()

    def flush(self) -> list[Part]:
        """What was held back, once no more text comes."""
        self._reader.ended = True
        next(self._steps, None)
        return [*self._take(), *self._answer.flush()]

    def _take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    def _block(self, opened: bool) -> Steps[None]:
        reader, think = self._reader, self._think
        yield from reader.space()
        marked = yield from reader.take(think.open)  # models may repeat what the prompt has opened
        if not marked:
            reader.undo()
        if marked or opened:
            yield from _skip_newlines(reader)
            text = Held(self._show, _NEWLINES)
            mark = yield from reader.until(think.close, show=text)
            if mark is None and text.held:
                self._show(text.held)
            yield from reader.take(think.close)
            yield from _skip_newlines(reader)
        while (yield from reader.peek()):
            self._parts += self._answer.push(reader.text[reader.at :])
            reader.at = len(reader.text)
            reader.forget()

    def _show(self, text: str) -> None:
        self._parts.append(Reasoning(text))


def _skip_newlines(reader: Reader) -> Steps[None]:
    while (character := (yield from reader.peek())) and character in _NEWLINES:
        reader.at += 1


def think_rules(think: Think, *, opened: bool, mark: Mark) -> str:
    """Lark rules, of which `think` matches the block: what is left of one that the prompt has `opened`,
    else all of one or nothing. Other rules' names begin with `think_` or `THINK_`.
    """
    text, rules = text_before(mark(think.close), "THINK_TEXT")
    body = rule("think_body", rf'{text} ("\n" | "\n\n")?')
    block = "think_body" if opened else rf'({mark(think.open)} "\n"? think_body)?'
    return rule("think", block) + body + rules
