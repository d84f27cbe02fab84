"""What the tokens of an answer are held to: the seam between the scheduler and whoever knows grammars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.int32]  # [draws, words]: bit i % 32 of word i // 32 allows token i


class Constraint(Protocol):
    """One answer's. What it says depends on the tokens that it has taken, and on nothing else.

    Until it is `active` anything may follow; from then on the draws of the answer are held to it. Only the
    loop calls it, but for `choose` and `fill`, which the device's threads call while a row of the answer is
    in a step; the loop calls nothing but `take` meanwhile. In both `count` tokens of the answer are there,
    and `last` is the last of them; of none it means nothing. They have been taken, or followed in this step,
    but for `last` itself.
    """

    @property
    def active(self) -> bool: ...

    def take(self, tokens: Sequence[int]) -> int:
        """Go on with tokens that were drawn; how many of them may stand. Those behind the one that makes it
        active may not: they were drawn from everything."""
        ...

    def fitting(self, drafts: Sequence[int]) -> int:
        """How many of these may be verified: none behind one that is forbidden, or that makes it active."""
        ...

    def choose(self, count: int, last: int, tries: Sequence[int]) -> int | None:
        """The first of these tokens that may follow, which is followed then; None for none of them, or where
        that cannot be told, which `fill` explains. It may be more generous than `fill`: where only one text
        can follow, any token that begins it may."""
        ...

    def fill(self, masks: Masks, count: int, last: int, drafts: Sequence[int]) -> str | None:
        """Write what may follow, and what may follow after each of the drafts, into the rows of `masks`
        [1 + drafts, words]; or say why that cannot be told."""
        ...
