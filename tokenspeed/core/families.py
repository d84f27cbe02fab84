"""Drafts out of other answers: requests that begin alike are often answered alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from tokenspeed.core import sequence as core
from tokenspeed.core.lookup import CANDIDATES, LEAST, LONGEST, agreement, key_of
from tokenspeed.core.prospects import Source

# First tokens that the prompts of a family have in common; of shorter ones, all. More than what a chat
# template puts before everything, less than most instructions that agents repeat.
BEGINNING = 64
# Bounds of memory: where all families are full, what is remembered takes some 100 MB.
FAMILIES = 64  # the one that no request began with for longest is forgotten
TOKENS = 4096  # the latest of a family that are found at least; up to twice as many are


class Place(NamedTuple):
    """Where a text went on after the tokens of a key, and where one did so before."""

    text: list[int]
    end: int
    before: Place | None


class Family:
    """An index over the answers of requests that begin alike, of those that are still written as well.

    It keeps two generations: once the younger is full it becomes the elder, and what that was is forgotten.
    So a token takes constant time.
    """

    def __init__(self) -> None:
        self._young: dict[int, Place] = {}  # the last `LEAST` tokens, as a key -> the latest place
        self._old: dict[int, Place] = {}
        self._count = 0  # places of the younger

    def enter(self, text: list[int], end: int) -> None:
        """Let the tokens of `text` before `end` be found; it goes on there."""
        if self._count == TOKENS:
            self._old, self._young, self._count = self._young, {}, 0
        key = key_of(text, end)
        self._young[key] = Place(text, end, self._young.get(key))
        self._count += 1

    def find(self, text: list[int]) -> tuple[int, Place] | None:
        """The place in another text, among the latest, that agrees furthest back with the end of this one,
        behind how far; None: none has `LEAST` tokens in common with it."""
        if len(text) < LEAST:
            return None
        found, longest = None, LEAST - 1
        for place in islice(self._places(key_of(text, len(text))), CANDIDATES):
            if place.text is text:
                continue
            common = agreement(place.text, place.end, text)
            if common > longest:
                found, longest = place, common
                if common == LONGEST:
                    break
        return None if found is None else (longest, found)

    def _places(self, key: int) -> Iterator[Place]:
        """The latest first."""
        for generation in (self._young, self._old):
            place = generation.get(key)
            while place is not None:
                yield place
                place = place.before


class Beside:
    """A source that proposes what is in other answers of its family, where these agree further than its own.

    What others said is followed like an occurrence in the own text, until it says something else, or has
    been followed to its end; only then is it looked for again.
    """

    def __init__(self, own: Source, family: Family, text: list[int], answer: int) -> None:
        """`text` is what others may find: the answer so far, from the index `answer` on, behind the last
        tokens of its prompt."""
        self._own, self._family, self._text = own, family, text
        self._followed: list[int] = []
        self._next = 0  # where that text goes on
        self._common = 0  # tokens that it has in common with the end; 0: none is followed
        for end in range(max(answer, LEAST), len(text)):
            family.enter(text, end)
        self._find()

    @property
    def common(self) -> int:
        return max(self._own.common, self._others)

    def extend(self, tokens: Sequence[int]) -> list[tuple[int, bool]]:
        """What is told is what came of those that would have been proposed."""
        others = self._others > self._own.common
        own, foretold = self._own.extend(tokens), self._follow(tokens)
        self._enter(tokens)
        if not self._others:
            self._find()
        return foretold if others else own

    def propose(self, most: int) -> tuple[int, ...]:
        """Fewer where another answer ends, or has not come any further."""
        if self._own.common >= self._others:
            return self._own.propose(most)
        return tuple(self._followed[self._next : self._next + most])

    @property
    def _others(self) -> int:
        """`common` of the answer that is followed, as long as there is more of it."""
        return self._common if self._next < len(self._followed) else 0

    def _follow(self, tokens: Sequence[int]) -> list[tuple[int, bool]]:
        foretold: list[tuple[int, bool]] = []
        for token in tokens:
            common = self._others
            if not common:
                self._common = 0
                break
            held = self._followed[self._next] == token
            foretold.append((common, held))
            self._next += 1
            self._common = min(common + 1, LONGEST) if held else 0
        return foretold

    def _enter(self, tokens: Sequence[int]) -> None:
        text = self._text
        if len(text) > TOKENS:  # what is forgotten of a long answer is not to be kept for what is not
            text = self._text = text[-LONGEST:]
        for token in tokens:
            text.append(token)
            if len(text) > LEAST:
                self._family.enter(text, len(text) - 1)

    def _find(self) -> None:
        found = self._family.find(self._text)
        if found is not None:
            self._common, place = found
            self._followed, self._next = place.text, place.end


class Families:
    """The families of all accounts. What one account was answered is never found by another."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, tuple[int, ...]], Family] = {}  # the one used last is the last

    def beside(self, own: Source, sequence: core.Sequence) -> Source:
        """`own`, and what else its family was answered; which finds this sequence's answer from now on."""
        request = sequence.request
        named = (request.account, request.prompt[:BEGINNING])
        family = self._known.pop(named, None) or Family()
        self._known[named] = family
        if len(self._known) > FAMILIES:
            del self._known[next(iter(self._known))]
        prompt = sequence.prompt_length
        start = max(0, prompt - LONGEST, len(sequence.tokens) - TOKENS)
        return Beside(own, family, sequence.tokens[start:], max(0, prompt - start))
