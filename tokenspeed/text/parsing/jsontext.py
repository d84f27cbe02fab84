"""JSON in a text that arrives in pieces: where a value ends, and calls written as JSON objects."""

from __future__ import annotations

import re
from collections.abc import Collection

import orjson

from tokenspeed.text.parsing.reader import Output, Reader, Show, Steps, ignore

# Up to the next character that has a meaning: in a string, and outside of strings.
_QUOTED = re.compile(r'[^"\\]*')
_PLAIN = re.compile(r"[\sA-Za-z0-9+\-.,:]*")
_CLOSERS = {"{": "}", "[": "]"}


class JsonScanner:
    """Follows one JSON object, array or string to its end, by strings, escapes and nesting alone.

    It does not hold the value to JSON's grammar, except that nothing outside of strings may be foreign to it.
    """

    __slots__ = ("_closers", "_escaped", "_quoted", "broken", "ended")

    def __init__(self, inside: str = "") -> None:
        self._closers = list(inside)
        self._quoted = False
        self._escaped = False
        self.ended = False
        self.broken = False  # by a character that cannot be there

    def feed(self, text: str, at: int) -> int:
        """The place in `text` behind the value, or where it breaks; the text's end if it goes on.

        `at` is where this piece of the value begins.
        """
        while at < len(text) and not self.ended and not self.broken:
            if self._escaped:
                self._escaped = False
                at += 1
                continue
            match = (_QUOTED if self._quoted else _PLAIN).match(text, at)
            assert match is not None  # both match nothing, too
            at = match.end()
            if at < len(text):
                self._step(text[at])
                at += not self.broken
        return at

    def _step(self, character: str) -> None:
        if character == '"':
            self._quoted = not self._quoted
            self.ended = not self._quoted and not self._closers
        elif self._quoted:  # a backslash
            self._escaped = True
        elif character in _CLOSERS:
            self._closers.append(_CLOSERS[character])
        elif self._closers and character == self._closers[-1]:
            self._closers.pop()
            self.ended = not self._closers
        else:
            self.broken = True


def value(reader: Reader) -> Steps[str | None]:
    """Reads an object, an array or a string; None if it breaks or the text ends before."""
    start = reader.at
    scanner = JsonScanner()
    while True:
        reader.at = scanner.feed(reader.text, reader.at)
        if scanner.ended:
            return reader.text[start : reader.at]
        if scanner.broken or reader.ended:
            return None
        yield


def stream(reader: Reader, show: Show, *, inside: str = "") -> Steps[bool]:
    """Shows a value as it comes, and forgets it; whether it came to its end.

    `inside` closes the value if its beginning was read already.
    """
    scanner = JsonScanner(inside)
    while True:
        reader.forget()
        start = reader.at
        reader.at = scanner.feed(reader.text, start)
        if reader.at > start:
            show(reader.text[start : reader.at])
        reader.forget()
        if scanner.ended or scanner.broken or reader.ended:
            return scanner.ended
        yield


def call(reader: Reader, output: Output, names: Collection[str]) -> Steps[bool]:
    """Reads `{"name": "f", "arguments": {...}}` to its end, in any order; False if it is no call.

    It is one as soon as its name, which must be one of `names`, and the brace of its arguments are there.
    Without arguments, or with null for them, it is a call with none.
    """
    name: str | None = None
    given: str | None = None  # arguments that came before the name, or none at all
    if not (yield from reader.take("{")):
        return False
    while (yield from reader.space()) != "}":
        key = yield from _key(reader)
        if key == "name" and name is None:
            name = yield from _string(reader)
            if name not in names:
                return False
        elif key in ("arguments", "parameters") and given is None:
            if name is not None and (yield from reader.peek()) == "{":
                output.call(name)
                if (yield from stream(reader, output.arguments)):
                    yield from stream(reader, ignore, inside="}")
                return True
            given = yield from _object(reader)
            if given is None:
                return False
        elif key not in ("id", "type", "index") or not (yield from _scalar(reader)):
            return False
        if name is not None and given is not None:
            break
        if (yield from reader.space()) != "}" and not (yield from reader.take(",")):
            return False
    if name is None:
        return False
    output.call(name)
    output.arguments(given or "{}")
    yield from stream(reader, ignore, inside="}")
    return True


def _key(reader: Reader) -> Steps[str | None]:
    """A key with its colon; None if there is none."""
    key = yield from _string(reader)
    yield from reader.space()
    if not (yield from reader.take(":")):
        return None
    yield from reader.space()
    return key


def _string(reader: Reader) -> Steps[str | None]:
    if (yield from reader.peek()) != '"':
        return None
    written = yield from value(reader)
    try:
        return None if written is None else str(orjson.loads(written))
    except ValueError:
        return None


def _object(reader: Reader) -> Steps[str | None]:
    if (yield from reader.take("null")):
        return "{}"
    return (yield from value(reader)) if (yield from reader.peek()) == "{" else None


def _scalar(reader: Reader) -> Steps[bool]:
    """Reads over a string, a number or a word; False if there is none."""
    start = reader.at
    if (yield from reader.peek()) == '"':
        return (yield from value(reader)) is not None
    while (yield from reader.peek()).isalnum():
        reader.at += 1
    return reader.at > start
