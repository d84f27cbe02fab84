"""When a first token will come: what is predicted at admission, and what is promised at worst."""

from __future__ import annotations

from math import floor
from typing import NamedTuple

from tokenspeed.core.policy import Budget, SchedulerOptions, hurried


class Outlook(NamedTuple):
    """What stands between a request and its first token. Times in seconds."""

    busy: float  # until the device has done what it was given
    blocked: float  # until a slot and blocks are free for it
    decodes: float  # what a step costs without any prefill
    budget: Budget  # of its steps
    ahead: float  # prefill that is served before it
    own: float  # its prefill
    behind: bool  # whether less urgent prefills fill up its steps
    hurried: bool  # whether its last step ends early

    @property
    def step(self) -> float:
        """A whole one, filled up."""
        return self.decodes + self.budget.seconds


def first_token(outlook: Outlook) -> float:
    """Seconds until the first token, if nobody more urgent comes."""
    served = _served(outlook, outlook.ahead + outlook.own)
    if outlook.blocked:
        served = max(served, outlook.blocked + _served(outlook, outlook.own))
    return outlook.busy + served


def _served(outlook: Outlook, work: float) -> float:
    """Seconds until so much prefill is done, the last step included."""
    budget, whole = outlook.budget, outlook.step
    certain = budget.certain_seconds if outlook.behind else 0.0  # goes to the eldest of those behind
    mine = max(budget.seconds - certain, 0.1 * budget.seconds)
    steps = floor(work / mine)
    last = outlook.decodes + work - steps * mine
    if outlook.behind:
        early = hurried(last, whole=whole, share=certain / whole)
        last = min(whole, early) if outlook.hurried else whole
    return steps * whole + last


def longest_wait(options: SchedulerOptions, *, priority: int, work: float, step: float) -> float:
    """The bound on the time to first token under the default policy, as long as slots and blocks suffice.

    `work` is the prefill, in seconds, of the request itself and of all that were due before it and had not
    finished theirs; `step` is the longest step. Until it is overdue a request may be passed by; then it is
    started, and all who are due before it, one after the other, have `eldest_share` of every step. One step
    may run and one be queued when it comes or becomes overdue, and its last chunk rounds up to a third.
    """
    overdue = max(0.0, options.ageing_seconds * (1 + priority))
    return overdue + work / options.eldest_share + 3 * step
