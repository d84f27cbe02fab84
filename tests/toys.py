"""A constraint that is no grammar: what it allows is easily told, and depends on all that was taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FAULT = "the toy is broken"


class Toy:
    """Of each draw it allows every `part`th token, which ones depends on the sum of those taken, and `stop`
    wherever that is even. With an `opener` it is active only behind the first one."""

    def __init__(
        self,
        vocabulary: int,
        *,
        part: int = 3,
        opener: int | None = None,
        stop: int | None = None,
        breaks: int = -1,
    ) -> None:
        """It `breaks` once so many were taken."""
        self.vocabulary, self.part, self.opener, self.stop, self.breaks = (
            vocabulary,
            part,
            opener,
            stop,
            breaks,
        )
        self.active = opener is None
        self.before = 0  # tokens of the answer, up to the opener
        self.taken: list[int] = []
        self.followed: list[int] = []  # behind those taken
        self.filled = 0

    def allowed(self, more: Sequence[int] = ()) -> set[int]:
        """What may follow the tokens taken and these."""
        state = sum((*self.taken, *more)) + len(self.taken) + len(more)
        some = {token for token in range(self.vocabulary) if token % self.part == state % self.part}
        return some | ({self.stop} if self.stop is not None and state % 2 == 0 else set())

    def take(self, tokens: Sequence[int]) -> int:
        if not self.active:
            self.active = self.opener in tokens
            kept = list(tokens).index(self.opener) + 1 if self.active else len(tokens)
            self.before += kept
            return kept
        self.followed = []
        for token in tokens:
            assert token in self.allowed(), "a token was drawn that was forbidden"
            self.taken.append(token)
        return len(tokens)

    def fitting(self, drafts: Sequence[int]) -> int:
        if not self.active:
            return list(drafts).index(self.opener) if self.opener in drafts else len(drafts)
        return next(
            (n for n, draft in enumerate(drafts) if draft not in self.allowed(drafts[:n])), len(drafts)
        )

    def choose(self, count: int, last: int, tries: Sequence[int]) -> int | None:
        ahead = self.ahead(count, last)
        may = [] if count - self.before == self.breaks else self.allowed(ahead)
        chosen = next((token for token in tries if token in may), None)
        self.followed = ahead if chosen is None else [*ahead, chosen]
        return chosen

    def ahead(self, count: int, last: int) -> list[int]:
        """Of the answer's first `count` tokens, those not yet taken."""
        assert self.active
        more = count - self.before - len(self.taken)
        assert 0 <= more <= len(self.followed) + 1
        return [*self.followed[: more - 1], last] if more else []

    def fill(self, masks: NDArray[np.int32], count: int, last: int, drafts: Sequence[int]) -> str | None:
        self.filled += 1
        ahead = self.ahead(count, last)
        if count - self.before == self.breaks:
            return FAULT
        for row, mask in enumerate(masks):
            allowed = self.allowed([*ahead, *drafts[:row]])
            bits = np.zeros(32 * masks.shape[1], np.uint8)
            bits[list(allowed)] = 1
            mask[:] = np.packbits(bits, bitorder="little").view(np.int32)
            if row < len(drafts) and drafts[row] not in allowed:
                break  # nothing behind it is drawn
        return None
