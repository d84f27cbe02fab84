"""Those who watch the engine: metrics, timelines, recordings. They are told, never asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tokenspeed.core import sequence as core
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import StepPlan, StepResult
from tokenspeed.core.request import Request
from tokenspeed.core.taking import Happening
from tokenspeed.errors import RequestError


class Step(NamedTuple):
    """A step that was executed. Times are of the engine's clock, in seconds.

    `sequences` are those of the plan's rows, in their order. A row whose sequence has ended, or lost its
    blocks, while the step ran is there as well. `began` is when the device could begin, `ended` when the
    result was taken in. `costs` are the coefficients that the plan was made with. `rested`: the engine had
    nothing to do before it planned the step.
    """

    plan: StepPlan
    result: StepResult
    sequences: Sequence[core.Sequence]
    began: float
    ended: float
    costs: Costs
    rested: bool = False


class Observer(Protocol):
    """Called by the engine, in its loop; must be quick."""

    def submitted(self, request: Request, predicted: float, now: float) -> None:
        """A request was queued; its first token is predicted `predicted` seconds after its arrival."""
        ...

    def refused(self, request: Request, error: RequestError, now: float) -> None:
        """A request was not taken."""
        ...

    def stepped(self, step: Step) -> None:
        """A step's result is here; it is about to be applied."""
        ...

    def step_failed(self, plan: StepPlan, now: float) -> None: ...

    def delivered(self, happenings: Sequence[Happening], now: float) -> None:
        """These events were pushed to their streams."""
        ...
