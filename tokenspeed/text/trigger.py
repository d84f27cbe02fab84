"""Where in a free answer a grammar begins to hold: behind its thinking, or where it opens a tool call."""

from __future__ import annotations

from collections.abc import Sequence

from tokenspeed.text.vocabulary import ByteTable


class Trigger:
    """Looks for an opener in the tokens of an answer, outside of its thinking.

    That is one of `openers` anywhere, or one of `starts` at the beginning or directly behind the thinking,
    white space aside. With neither it is the end of the thinking itself.
    """

    __slots__ = (
        "_begun",
        "_close",
        "_longest",
        "_open",
        "_openers",
        "_starts",
        "_table",
        "_tail",
        "_thinking",
        "_thought",
    )

    def __init__(
        self,
        table: ByteTable,
        *,
        openers: Sequence[str] = (),
        starts: Sequence[str] = (),
        think: tuple[str, str] | None = None,
        thinking: bool = False,
    ) -> None:
        """`think` are the marks around the thinking that an answer may begin with; `thinking`: it begins amid
        it."""
        self._table = table
        self._openers = [opener.encode() for opener in openers]
        self._starts = [start.encode() for start in starts]
        self._open, self._close = (mark.encode() for mark in think or ("", ""))
        self._longest = max(map(len, (*self._openers, self._close)), default=1)
        self._thinking = thinking
        self._thought = thinking  # there is one thinking at most
        self._begun = not (self._starts or self._open) or (thinking and not self._starts)
        self._tail = b""

    @property
    def final(self) -> bool:
        """Whether what triggers is what the grammar must follow, and not only looks as if."""
        return not (self._openers or self._starts)

    def push(self, token: int) -> bytes | None:
        """What the grammar is to follow first, the opener and whatever came with it in the same token; None
        where the answer is still free."""
        text = self._tail + self._table[token]
        if not (self._begun or self._thought) and self._open:
            front = text.lstrip()
            if front.startswith(self._open):
                self._thinking, self._thought, text = True, True, front[len(self._open) :]
        if self._thinking:
            _, mark, rest = text.partition(self._close)
            if not mark:
                self._tail = text[-self._longest + 1 :]
                return None
            self._thinking, text = False, rest
            if self.final:
                return text
        if not self._begun:
            return self._begin(text)
        self._tail = text[-self._longest + 1 :] if self._longest > 1 else b""
        return self._opened(text)

    def before(self, tokens: Sequence[int]) -> int:
        """How many of these can follow before one triggers."""
        kept = (self._tail, self._thinking, self._thought, self._begun)
        count = next(
            (index for index, token in enumerate(tokens) if self.push(token) is not None), len(tokens)
        )
        self._tail, self._thinking, self._thought, self._begun = kept
        return count

    def _begin(self, text: bytes) -> bytes | None:
        """All of the answer is `text`, or all behind its thinking."""
        front = text.lstrip()
        expected = [*self._starts, *([] if self._thought or not self._open else [self._open])]
        self._begun = not any(each.startswith(front) for each in expected)
        self._tail = text[-self._longest + 1 :] if self._begun and self._longest > 1 else text
        return front if front.startswith(tuple(self._starts)) else self._opened(text)

    def _opened(self, text: bytes) -> bytes | None:
        places = [place for opener in self._openers if (place := text.find(opener)) >= 0]
        return text[min(places) :] if places else None
