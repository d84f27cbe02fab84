"""What is known of drafts: where those of a sequence come from, and how often drafts of a kind have held."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

KEPT = 1.0 - 1.0 / 500  # of what one draft counts, after another: 1/e after 500
PRIOR_DRAFTS = 10.0  # what is expected before is worth so many
OWN_KEPT = 1.0 - 1.0 / 40  # of a sequence
OWN_PRIOR = 3.0
PATIENCE, MOST_PATIENCE = 32, 1024  # tokens


class Source(Protocol):
    """Where the drafts of one sequence are looked up; `Lookup` is one."""

    @property
    def common(self) -> int:
        """How much speaks for what it proposes: 0 to `LONGEST`; 0: it proposes nothing."""
        ...

    def extend(self, tokens: Sequence[int]) -> list[tuple[int, bool]]:
        """These tokens came; for each that it foretold, `common` before it and whether it came true."""
        ...

    def propose(self, most: int) -> tuple[int, ...]: ...


class Outcome:
    """How often drafts of some class held, the older the lighter."""

    __slots__ = ("_held", "_tried", "chance")

    def __init__(self, expected: float) -> None:
        self._held = expected * PRIOR_DRAFTS
        self._tried = PRIOR_DRAFTS
        self.chance = expected

    def learn(self, held: bool) -> None:
        self._held = KEPT * self._held + held
        self._tried = KEPT * self._tried + 1.0
        self.chance = self._held / self._tried


class Luck:
    """How drafts of one sequence held, beside what was expected of them."""

    __slots__ = ("_expected", "_held", "factor")

    def __init__(self) -> None:
        self._held = 0.0
        self._expected = 0.0
        self.factor = 1.0

    def learn(self, held: bool, chance: float) -> None:
        self._held = OWN_KEPT * self._held + held
        self._expected = OWN_KEPT * self._expected + chance
        self.factor = (self._held + OWN_PRIOR) / (self._expected + OWN_PRIOR)


class Prospects:
    """What one sequence's drafts come from, and how they did."""

    __slots__ = ("found", "guessed", "patience", "source", "tried_at")

    def __init__(self) -> None:
        self.source: Source | None = None
        self.found = Luck()
        self.guessed = Luck()
        self.tried_at = 0  # tokens that there were when the draft model last guessed
        self.patience = 1  # tokens until it guesses again where its guesses have not paid

    def guesses_held(self, tokens: int, held: int) -> None:
        """Of guesses behind so many tokens. The more often none holds, the rarer they get; one that does is a
        reason to go on."""
        self.tried_at = tokens
        self.patience = 1 if held else min(max(2 * self.patience, PATIENCE), MOST_PATIENCE)
