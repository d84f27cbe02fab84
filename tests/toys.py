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

    def fill(self, masks: NDArray[np.int32], count: int, last: int, drafts: Sequence[int]) -> str | None:
        assert self.active
        self.filled += 1
        known = count - self.before
        assert known in (len(self.taken), len(self.taken) + 1)
        ahead = [last] if known > len(self.taken) else []
        if known == self.breaks:
            return FAULT
        for row, mask in enumerate(masks):
            allowed = self.allowed([*ahead, *drafts[:row]])
            bits = np.zeros(32 * masks.shape[1], np.uint8)
            bits[list(allowed)] = 1
            mask[:] = np.packbits(bits, bitorder="little").view(np.int32)
            if row < len(drafts) and drafts[row] not in allowed:
                break  # nothing behind it is drawn
        return None
