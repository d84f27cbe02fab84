"""Holds what was felt against what the default policy promises at worst."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokenspeed.core.forecast import longest_wait
from tokenspeed.core.policy import POLICIES, due
from tokenspeed.sim.simulate import Outcome, Trace


class Wait(NamedTuple):
    """A choice that got a first token: how long that took, and the bound of it. In seconds."""

    outcome: Outcome
    felt: float
    bound: float


def waits(trace: Trace) -> list[Wait]:
    """Every wait of a run beside its bound; none where the policy promises no bound.

    The bound of a request counts the prefill of all that were due before it and had not had their first token
    when it arrived.
    """
    options, costs = trace.options, trace.device.costs
    if not POLICIES[options.policy].shares:
        return []
    came = [outcome for outcome in trace.outcomes if outcome.refused is None]
    level = POLICIES[options.policy].level(options)
    dues = np.array([due(outcome.request, level) for outcome in came])
    ready = np.array([outcome.times[0] if outcome.times else outcome.ended for outcome in came])
    work = np.array(
        [costs.prefill(outcome.cached, len(outcome.request.prompt) - outcome.cached) for outcome in came]
    )
    step = max((step.seconds for step in trace.steps), default=0.0)
    found = []
    for index, outcome in enumerate(came):
        if outcome.wait is None:
            continue
        before = (dues < dues[index]) | ((dues == dues[index]) & (np.arange(len(came)) <= index))
        ahead = float(work[before & (ready > outcome.request.arrival)].sum())
        bound = longest_wait(options, priority=outcome.request.priority, work=ahead, step=step)
        found.append(Wait(outcome, outcome.wait, bound))
    return found
