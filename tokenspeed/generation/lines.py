"""An answer that is lines of code, ended by its lines."""

from __future__ import annotations

from tokenspeed.generation.request import LineBounds


class Lines:
    """Lets the text of one choice through up to where its bounds end it: then it is `over`.

    What comes before the first line break belongs to a line that the reader has begun, so only the lines
    after it are bound to be indented. A break and what is white behind it are held back until the line shows
    itself; empty lines have no indentation to be judged by.
    """

    __slots__ = ("_bounds", "_broken", "_held", "over")

    def __init__(self, bounds: LineBounds) -> None:
        self._bounds = bounds
        self._held = ""  # a line break and what is white behind it
        self._broken = False  # the text shown so far has a line break
        self.over = False

    def push(self, text: str, seconds: float, *, ended: bool) -> str:
        """The part of all text so far that may be shown, `seconds` after its first token; all of it where the
        choice has `ended` by itself."""
        if self.over:
            return ""
        shown = self._indented(self._held + text)
        if ended and not self.over:
            shown, self._held = shown + self._held, ""
        return self._in_time(shown, seconds)

    def _indented(self, known: str) -> str:
        """Up to the first line that is not indented enough, or whose indentation is not known yet."""
        self._held = ""
        least = self._bounds.indent
        if not least:
            return known
        start = known.find("\n")
        while start >= 0:
            line = known[start:].lstrip()
            if not line:
                self._held = known[start:]
                return known[:start]
            first = len(known) - len(line)  # where the line's text begins
            if first - 1 - known.rfind("\n", start, first) < least:
                self.over = True
                return known[:start]
            start = known.find("\n", first)
        return known

    def _in_time(self, shown: str, seconds: float) -> str:
        self._broken = self._broken or "\n" in shown
        self.over = self.over or (self._broken and seconds > self._bounds.seconds)
        return shown
