"""Drafts hold as coins fall: of models with random weights, which never agree, none would."""

from __future__ import annotations

from collections.abc import Awaitable
from random import Random

from tokenspeed.core.plan import Backend, Capacity, Row, RowResult, StepPlan, StepResult

SEED = 1


class Forced:
    """A backend whose draft model is right by chance. All of its steps run as they are: drafts are found and
    verified on the device, and only then it is decided how many of them were right.

    Drafts that were looked up hold where they do. The token behind those that hold is one that the model drew
    somewhere in the row, so answers mean nothing. Log-probabilities would not be those of the tokens; there
    are none in a row whose drafts are decided.
    """

    def __init__(self, backend: Backend, chance: float = 0.0) -> None:
        """`chance`, which may be changed between steps: that a draft holds if those before it do."""
        self.chance = chance
        self._backend = backend
        self._coins = Random(SEED)

    @property
    def capacity(self) -> Capacity:
        return self._backend.capacity

    def submit(self, plan: StepPlan) -> Awaitable[StepResult]:
        result = self._backend.submit(plan)
        return self._decided(plan, result) if any(row.guess for row in plan.rows) else result

    async def close(self) -> None:
        await self._backend.close()

    async def _decided(self, plan: StepPlan, result: Awaitable[StepResult]) -> StepResult:
        given = await result
        rows = tuple(self._row(row, one) for row, one in zip(plan.rows, given.rows, strict=True))
        return given._replace(rows=rows)

    def _row(self, row: Row, given: RowResult) -> RowResult:
        if not row.guess or not given.guessed or not given.tokens:
            return given  # what it gave is all that there is, or why there is nothing
        held = 0
        while held < len(given.guessed) and self._coins.random() < self.chance:
            held += 1
        return given._replace(tokens=given.guessed[:held] + given.tokens[-1:], logprobs=None)
