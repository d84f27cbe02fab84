"""Drafts by looking up: what followed the last tokens where they occurred before, in the same text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

LEAST = 3  # tokens that an occurrence has in common with the end of the text
LONGEST = 32  # tokens in common beyond which occurrences are not told apart
CANDIDATES = 8  # occurrences that are compared, the latest first
BITS = 21  # of a token in a key; the few vocabularies that need more share keys, which only costs comparisons
MASK = (1 << BITS) - 1
NOWHERE = -1


def key_of(text: Sequence[int], end: int) -> int:
    """Of the `LEAST` tokens before `end`."""
    first, second, third = text[end - LEAST : end]
    return (first & MASK) << (2 * BITS) | (second & MASK) << BITS | third & MASK


def agreement(other: Sequence[int], place: int, text: Sequence[int]) -> int:
    """Tokens before `place` in `other` that are those at the end of `text`, at most `LONGEST`."""
    end = len(text)
    most = min(LONGEST, place, end)
    for back in range(1, most + 1):
        if other[place - back] != text[end - back]:
            return back - 1
    return most


class Lookup:
    """An index over a text that grows, and the occurrence of its end that agrees furthest back.

    A token takes constant time on average: while the text goes on as after that occurrence, this remains
    the one that agrees furthest; it is looked for again, among the latest with the same `LEAST` tokens, only
    when the text takes another turn.
    """

    def __init__(self, text: Iterable[int]) -> None:
        self._text = list(text)
        self._last: dict[int, int] = {}  # the last `LEAST` tokens, as a key -> where the text went on
        self._before: list[int] = []  # for each such place, from `LEAST` on: the one before it with that key
        self._next = NOWHERE  # where the text went on after the occurrence that is followed
        self._common = 0  # tokens that this has in common with the end, at most `LONGEST`
        self._index()
        self._find()

    def __len__(self) -> int:
        """Tokens of the text."""
        return len(self._text)

    @property
    def common(self) -> int:
        """How far back the occurrence that is followed agrees with the end of the text; 0: there is none."""
        return self._common if self._next != NOWHERE else 0

    def extend(self, tokens: Sequence[int]) -> list[tuple[int, bool]]:
        """Add to the text; for each token that was foretold, `common` before it and whether it came true."""
        foretold: list[tuple[int, bool]] = []
        text, lost = self._text, self._next == NOWHERE
        for token in tokens:
            if not lost:
                held = text[self._next] == token
                foretold.append((self._common, held))
                if held:
                    self._next += 1
                    self._common = min(self._common + 1, LONGEST)
                else:
                    self._next, lost = NOWHERE, True
            text.append(token)
            if len(text) > LEAST:
                self._enter(len(text) - 1)
        if lost:
            self._find()
        return foretold

    def propose(self, most: int) -> tuple[int, ...]:
        """What follows, if the text goes on as after the occurrence that is followed."""
        start = self._next
        if start == NOWHERE:
            return ()
        drafts = self._text[start : start + most]
        period = len(drafts)  # less than is wanted where the occurrence reaches into the end: it repeats
        while len(drafts) < most:
            drafts.append(drafts[-period])
        return tuple(drafts)

    def _enter(self, end: int) -> None:
        """Let the tokens before `end` be found; the text goes on there."""
        key = key_of(self._text, end)
        self._before.append(self._last.get(key, NOWHERE))
        self._last[key] = end

    def _find(self) -> None:
        """The occurrence of the end, among the latest ones, that agrees furthest back."""
        self._next = NOWHERE
        if len(self._text) < LEAST:
            return
        place, longest = self._last.get(key_of(self._text, len(self._text)), NOWHERE), 0
        for _ in range(CANDIDATES):
            if place == NOWHERE or longest == LONGEST:
                break
            common = self._agreement(place)
            if common > longest:
                self._next, longest = place, common
            place = self._before[place - LEAST]
        self._common = longest
        if longest < LEAST:  # keys of a large vocabulary may be equal where tokens are not
            self._next = NOWHERE

    def _agreement(self, place: int) -> int:
        return agreement(self._text, place, self._text)

    def _index(self) -> None:
        """What `_enter` does, for all places of the first text at once: ten times as fast."""
        count = len(self._text) - LEAST
        if count <= 0:
            return
        tokens = np.array(self._text, np.int64) & MASK
        keys = tokens[:count] << (2 * BITS) | tokens[1 : count + 1] << BITS | tokens[2 : count + 2]
        order = np.argsort(keys, kind="stable")
        ranked = keys[order]
        again = np.flatnonzero(ranked[1:] == ranked[:-1])
        before = np.full(count, NOWHERE)
        before[order[again + 1]] = order[again] + LEAST
        last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), count - 1)
        self._before = before.tolist()
        self._last = dict(zip(ranked[last].tolist(), (order[last] + LEAST).tolist(), strict=True))
