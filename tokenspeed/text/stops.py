"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tokenspeed.errors import RequestError


class StopStrings:
    """Lets text through up to the first stop string, holding back what might become one.

    The stop string that is complete first wins, and of two that end together the longer one; so the
    outcome does not depend on how the text is cut into pieces. `hit` is the one that was found; its text is
    passed on only if `include`.
    """

    __slots__ = ("_held", "_include", "_matchers", "_starts", "hit")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        if "" in stops:
            raise RequestError("a stop string may not be empty", param="stop")
        # Longest first: of equal ends, `min` then finds the longest.
        self._matchers = [_Matcher(stop) for stop in sorted(set(stops), key=len, reverse=True)]
        starts = "".join(sorted({stop[0] for stop in stops}))
        self._starts = re.compile(f"[{re.escape(starts)}]") if starts else None
        self._include = include
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """The part of all text so far that is safe to pass on now. Nothing after a hit."""
        if self._starts is None:
            return text
        if self.hit is not None:
            return ""
        if not self._held and self._starts.search(text) is None:
            return text  # most text has no place where a stop string could start
        found = [(end, matcher.stop) for matcher in self._matchers if (end := matcher.feed(text)) >= 0]
        known = self._held + text
        if found:
            return self._stop(known, *min(found, key=_end))
        keep = max(matcher.matched for matcher in self._matchers)
        safe = len(known) - keep
        self._held = known[safe:]
        return known[:safe]

    def flush(self) -> str:
        """What was held back, once no more text comes."""
        held, self._held = self._held, ""
        return held

    def _stop(self, known: str, end: int, stop: str) -> str:
        end += len(self._held)
        self._held = ""
        self.hit = stop
        return known[:end] if self._include else known[: end - len(stop)]


def _end(found: tuple[int, str]) -> int:
    return found[0]


class _Matcher:
    """Knuth-Morris-Pratt over a text in pieces: `matched` characters of `stop` end the text so far."""

    __slots__ = ("_shorter", "matched", "stop")

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self._shorter = _borders(stop)
        self.matched = 0

    def feed(self, text: str) -> int:
        """The index in `text` behind the first whole match; -1 if there is none."""
        stop, shorter, matched = self.stop, self._shorter, self.matched
        index = 0
        while index < len(text):
            if matched == 0:  # leap to where a match can start
                index = text.find(stop[0], index)
                if index < 0:
                    break
            while matched and text[index] != stop[matched]:
                matched = shorter[matched]
            matched += text[index] == stop[matched]
            index += 1
            if matched == len(stop):
                return index
        self.matched = matched
        return -1


def _borders(stop: str) -> list[int]:
    """For every n: the longest proper prefix of `stop[:n]` that also ends it."""
    borders = [0, 0]
    for character in stop[1:]:
        border = borders[-1]
        while border and stop[border] != character:
            border = borders[border]
        borders.append(border + (stop[border] == character))
    return borders
