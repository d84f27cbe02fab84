"""Drafts hold as coins fall: of models with random weights, which never agree, none would."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from random import Random
from typing import Any

import numpy as np

from tokenspeed.backend.packing import Guessed
from tokenspeed.backend.passes import Pass, Passes
from tokenspeed.core.plan import Backend, Capacity, Row, RowResult, StepPlan, StepResult
from tokenspeed.model.cuda.drawing import to_device

SEED = 1


class Verdicts:
    """Of coins: how many drafts of a row hold."""

    def __init__(self, chance: float) -> None:
        """`chance`, which may be changed at any time: that a draft holds if those before it do."""
        self.chance = chance
        self._coins = Random(SEED)

    def held(self, drafts: int) -> int:
        held = 0
        while held < drafts and self._coins.random() < self.chance:
            held += 1
        return held


def decide(passes: Passes, verdicts: Verdicts) -> None:
    """Let coins decide of the drafts of a draft model on a device, before anything there looks at them: what
    the model draws is replaced by the drafts that are to hold, and by another token than the next one."""
    verify = passes.verify

    def decided(
        rows: Sequence[Row], sources: dict[int, int], guessed: Sequence[Guessed] = (), **options: Any
    ) -> Pass:
        made = verify(rows, sources, guessed, **options)
        for row, places in guessed:
            held = verdicts.held(len(places))
            kept = passes.drawn[to_device(np.array(places), passes.drawn.device)]
            first = made.firsts[row]
            passes.own[first : first + held] = kept[:held]
            if held < len(places):
                passes.own[first + held] = kept[held] == 0  # token 1, or else 0
        return made

    passes.verify = decided  # type: ignore[method-assign]


class Forced:
    """A backend whose draft model is right by chance. All of its steps run as they are: drafts are found and
    verified on the device, and only then it is decided how many of them were right.

    Drafts that were looked up hold where they do. The token behind those that hold is one that the model drew
    somewhere in the row, so answers mean nothing. Log-probabilities would not be those of the tokens; there
    are none in a row whose drafts are decided.
    """

    def __init__(self, backend: Backend, verdicts: Verdicts) -> None:
        self._backend = backend
        self._verdicts = verdicts

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
        held = self._verdicts.held(len(given.guessed))
        return given._replace(tokens=given.guessed[:held] + given.tokens[-1:], logprobs=None)
