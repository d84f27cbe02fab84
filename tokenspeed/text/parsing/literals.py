"""Python literals to JSON text, as they arrive."""

from __future__ import annotations

import json
import re

from tokenspeed.text.parsing.reader import Reader, Show, Steps

_WORDS = {"True": "true", "False": "false", "None": "null", "true": "true", "false": "false", "null": "null"}
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")
_OPEN = {"[": "[", "{": "{", "(": "["}
_CLOSE = {"]": "]", "}": "}", ")": "]"}
# Escapes that both languages write alike, then Python's own; one that is neither's is a backslash.
_SAME = frozenset('"\\/bfnrt')
_OTHER = {"'": "'", "a": r"\u0007", "v": r"\u000b", "0": r"\u0000", "\n": ""}
_DIGITS = {"x": 2, "u": 4, "U": 8}
_RUN = re.compile(r"""[^"'\\]*""")


def escaped(text: str) -> str:
    """The text as it is written within a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def literal(reader: Reader, show: Show) -> Steps[bool]:
    """Shows the literal that stands here as JSON, and forgets it; whether it came to its end.

    JSON's words and lists of JSON are understood as well; a word that is neither's becomes a string.
    """
    depth = 0
    comma = False  # read, but not shown: a bracket may follow
    while True:
        character = yield from reader.space()
        if comma and character not in _CLOSE:
            show(", ")
        comma = False
        if character in ("'", '"'):
            if not (yield from _string(reader, show)):
                return False
        elif character in _OPEN:
            depth += 1
            _pass(reader, show, _OPEN[character])
            continue
        elif depth and character in _CLOSE:
            depth -= 1
            _pass(reader, show, _CLOSE[character])
        elif not (yield from _word(reader, show)):
            return False
        if not depth:
            return True
        following = yield from reader.space()
        if following == ",":
            comma = True
            reader.at += 1
        elif following == ":":
            _pass(reader, show, ": ")
        elif following not in _CLOSE:
            return False


def _pass(reader: Reader, show: Show, text: str) -> None:
    """Shows `text` for the next character."""
    show(text)
    reader.at += 1
    reader.forget()


def _string(reader: Reader, show: Show) -> Steps[bool]:
    quote = yield from reader.peek()
    _pass(reader, show, '"')
    end = quote * 3 if (yield from reader.take(quote * 2)) else quote
    while character := (yield from reader.peek()):
        if character == "\\":
            reader.at += 1
            yield from _escape(reader, show)
        elif character == quote and (yield from reader.take(end)):
            show('"')
            reader.forget()
            return True
        elif character in "'\"":
            _pass(reader, show, escaped(character))
        else:
            run = _RUN.match(reader.text, reader.at)
            assert run is not None  # it matches nothing, too
            show(escaped(run[0]))
            reader.at = run.end()
            reader.forget()
    return False


def _escape(reader: Reader, show: Show) -> Steps[None]:
    """What stands behind a backslash."""
    character = yield from reader.peek()
    if character in _SAME and character:
        _pass(reader, show, "\\" + character)
    elif character in _OTHER:
        _pass(reader, show, _OTHER[character])
    elif character in _DIGITS:
        while len(reader.text) <= reader.at + _DIGITS[character] and not reader.ended:
            yield
        digits = reader.text[reader.at + 1 :][: _DIGITS[character]]
        try:
            show(escaped(chr(int(digits, 16))) if character != "u" else rf"\u{int(digits, 16):04x}")
            reader.at += len(digits)
        except ValueError:  # no such number, or no such character
            show(r"\\" + character)
        reader.at += 1
    elif character:
        show(r"\\")


def _word(reader: Reader, show: Show) -> Steps[bool]:
    """A number or a word; False if there is none, or all text ends before it surely does."""
    start = reader.at
    while (character := (yield from reader.peek())).isalnum() or (character and character in "_+-."):
        reader.at += 1
    word = reader.text[start : reader.at]
    if not word or not character:
        return False
    show(_WORDS.get(word) or (word if _NUMBER.fullmatch(word) else _unusual(word)))
    reader.forget()
    return True


def _unusual(word: str) -> str:
    """A number as only Python writes it, or a string."""
    for read in (lambda: int(word, 0), lambda: float(word)):
        try:
            return json.dumps(read(), allow_nan=False)
        except ValueError:  # no number, or none that JSON has
            continue
    return json.dumps(word, ensure_ascii=False)
