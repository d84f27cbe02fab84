"""Reading a text that arrives in pieces.

A reader's methods are generators that wait for more text at every `yield`, so the grammar of an answer is
written as if all of it were there; where the text is cut cannot matter. Nothing a method leaves unread is
lost, and what it read can be undone, up to what was last forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from typing import TypeAlias, TypeVar

from tokenspeed.text.parsing.parts import Arguments, Call, Part, Text

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]
Show: TypeAlias = Callable[[str], None]


class Reader:
    """The text that has arrived; `at` is the next character to be read."""

    __slots__ = ("_start", "at", "ended", "text")

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False  # no more text comes
        self._start = 0

    def forget(self) -> None:
        """What was read until now cannot be undone. Places in the text are others afterwards."""
        if 2 * self.at >= len(self.text):  # so that dropping it costs no more than reading it
            self.text = self.text[self.at :]
            self.at = 0
        self._start = self.at

    def undo(self) -> None:
        """Nothing was read since the last time it was forgotten."""
        self.at = self._start

    def peek(self) -> Steps[str]:
        """The next character, left unread; nothing at the end."""
        while self.at == len(self.text):
            if self.ended:
                return ""
            yield
        return self.text[self.at]

    def space(self) -> Steps[str]:
        """Reads over white space; the character behind it, left unread."""
        while (next_one := (yield from self.peek())).isspace():
            self.at += 1
        return next_one

    def take(self, *spellings: str) -> Steps[str | None]:
        """Reads the first of `spellings` that stands here, if one does. None may begin another."""
        longest = max(map(len, spellings), default=0)
        while True:
            for spelling in spellings:
                if self.text.startswith(spelling, self.at):
                    self.at += len(spelling)
                    return spelling
            rest = self.text[self.at : self.at + longest]
            if self.ended or not any(spelling.startswith(rest) for spelling in spellings):
                return None
            yield

    def until(self, *marks: str, show: Show) -> Steps[str | None]:
        """Shows what stands before the first of `marks`, and forgets it; the mark is left unread.

        None at the end of all text. No mark may be within another.
        """
        pattern = re.compile("|".join(map(re.escape, marks)))
        while True:
            self.forget()
            found = pattern.search(self.text, self.at)
            if found is not None:
                end = found.start()
            elif self.ended:
                end = len(self.text)
            else:
                end = len(self.text) - max(overlap(self.text, self.at, mark) for mark in marks)
            if end > self.at:
                show(self.text[self.at : end])
                self.at = end
            if found is not None or self.ended:
                self.forget()
                return None if found is None else found[0]
            yield


def overlap(text: str, at: int, mark: str) -> int:
    """How many characters at the end of `text`, from `at` on, begin `mark`, short of all of it."""
    place = text.find(mark[0], max(at, len(text) - len(mark) + 1))
    while place >= 0 and not mark.startswith(text[place:]):
        place = text.find(mark[0], place + 1)
    return len(text) - place if place >= 0 else 0


def ignore(text: str) -> None:
    """Shows nothing of it."""


class Held:
    """Shows text but for `characters` at its end, which it holds until more follows them."""

    __slots__ = ("_characters", "_show", "held")

    def __init__(self, show: Show, characters: str | None = None) -> None:
        self._show = show
        self._characters = characters  # None: all white space
        self.held = ""

    def __call__(self, text: str) -> None:
        text = self.held + text
        shown = text.rstrip(self._characters)
        self.held = text[len(shown) :]
        if shown:
            self._show(shown)


class Output:
    """Collects the parts of an answer, without the white space directly around its calls."""

    __slots__ = ("_after_call", "_parts", "_text")

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._text = Held(lambda text: self._parts.append(Text(text)))
        self._after_call = False

    def text(self, text: str) -> None:
        """More text. White space is held back while a call may follow it."""
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            self._text(text)

    def call(self, name: str) -> None:
        """A call begins."""
        self._text.held = ""
        self._after_call = True
        self._parts.append(Call(name))

    def arguments(self, text: str) -> None:
        """More of its arguments."""
        if text:
            self._parts.append(Arguments(text))

    def end(self) -> None:
        """No more follows: the white space at the end belongs to the text."""
        if self._text.held:
            self._parts.append(Text(self._text.held))
            self._text.held = ""

    def take(self) -> list[Part]:
        """The parts since the last time."""
        parts, self._parts = self._parts, []
        return parts


# Reads what stands here, a call or several, and tells of it; False, and of nothing, if it is none after all.
Calls: TypeAlias = Callable[[Reader, Output], Steps[bool]]


class CallParser:
    """A parser of text with calls in it.

    A call begins with one of `openers`, or stands at the very `start` of the answer. One that turns out to be
    none is text, like its opener; the search goes on directly behind that.
    """

    __slots__ = ("_output", "_reader", "_steps")

    def __init__(self, openers: Iterable[str], calls: Calls, *, start: Calls | None = None) -> None:
        self._reader = Reader()
        self._output = Output()
        self._steps = _answer(self._reader, self._output, tuple(openers), calls, start)

    def push(self, text: str) -> list[Part]:
        """What has become certain."""
        self._reader.text += text
        next(self._steps)
        return self._output.take()

    def flush(self) -> list[Part]:
        """What was held back, once no more text comes."""
        self._reader.ended = True
        next(self._steps, None)
        return self._output.take()


def _answer(
    reader: Reader, output: Output, openers: tuple[str, ...], calls: Calls, start: Calls | None
) -> Steps[None]:
    if start is not None and not (yield from start(reader, output)):
        reader.undo()
    while (opener := (yield from reader.until(*openers, show=output.text))) is not None:
        if not (yield from calls(reader, output)):
            reader.undo()
            reader.at += len(opener)
            output.text(opener)
    output.end()
