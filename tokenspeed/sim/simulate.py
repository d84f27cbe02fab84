"""Runs the real scheduler and engine in virtual time over jobs, and keeps what each of them felt."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Draw, StepPlan
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Finished, FinishReason, Request, TokenDelta
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.core.taking import Happening
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.observer import Observer, Step
from tokenspeed.engine.streams import Stream
from tokenspeed.errors import RequestError
from tokenspeed.sim.backend import SimBackend, token
from tokenspeed.sim.clock import run
from tokenspeed.sim.device import Device


class Leave(NamedTuple):
    """When a client gives its choice up: once it has so many tokens; with 0 at the time `at`, in any case."""

    tokens: int
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Job:
    """A request that is sent at `at` seconds; `leaves` are the choices that end because their client goes."""

    at: float
    kind: str
    request: Request
    leaves: Mapping[int, Leave] = field(default_factory=dict)  # by choice


def own_token(draw: Draw) -> int:
    """No two draws give the same."""
    return token(draw.seed, draw.position)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Jobs, the token that each draw of theirs gives, and what of the server belongs to them."""

    jobs: Sequence[Job]
    says: Callable[[Draw], int] = own_token
    accounts: Mapping[str, Account] = field(default_factory=dict)
    prefix_cache: bool = True


@dataclass(slots=True)
class Outcome:
    """What one choice of a job felt. Times are in virtual seconds."""

    kind: str
    request: Request
    choice: int
    predicted: float = 0.0  # seconds from its arrival to its first token
    times: list[float] = field(default_factory=list)  # of its tokens
    ended: float = 0.0
    reason: FinishReason | None = None
    refused: str | None = None
    cached: int = 0  # tokens of the prompt that were not computed

    @property
    def wait(self) -> float | None:
        """Seconds to its first token."""
        return self.times[0] - self.request.arrival if self.times else None


class Taken(NamedTuple):
    """What a step was predicted to take, and took, in seconds; `mixed`: it decoded and prefilled."""

    predicted: float
    seconds: float
    mixed: bool


@dataclass(slots=True)
class Trace:
    """One simulated run. `steps` are in order."""

    options: SchedulerOptions
    device: Device
    outcomes: list[Outcome]
    steps: list[Taken]
    preemptions: int
    prompt_tokens: int
    cached_tokens: int
    span: float  # seconds from the first arrival to the last end

    @property
    def busy(self) -> float:
        """Seconds in which the device worked."""
        return sum(step.seconds for step in self.steps)


class _Watcher:
    """The observer that fills outcomes, and the clients that leave."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, int], Outcome] = {}
        self.leaves: dict[tuple[str, int], Leave] = {}
        self.streams: dict[str, Stream] = {}
        self.steps: list[Taken] = []
        self.unfinished = 0
        self.changed = asyncio.Event()

    def submitted(self, request: Request, predicted: float, now: float) -> None:
        for choice in range(request.n):
            self.outcomes[request.id, choice].predicted = predicted

    def refused(self, request: Request, error: RequestError, now: float) -> None:
        for choice in range(request.n):
            self.outcomes[request.id, choice].refused = str(error)

    def stepped(self, step: Step) -> None:
        rows = step.plan.rows  # those that decode come first
        mixed = len(rows[0].tokens) == 1 < len(rows[-1].tokens)
        self.steps.append(Taken(step.plan.seconds, step.result.seconds, mixed))

    def step_failed(self, plan: StepPlan, now: float) -> None:
        """The simulated device does not fail here."""

    def delivered(self, happenings: Sequence[Happening], now: float) -> None:
        for sequence, event in happenings:
            key = (sequence.request.id, sequence.choice)
            if type(event) is TokenDelta:
                times = self.outcomes[key].times
                times += [now] * len(event.tokens)
                leave = self.leaves.get(key)
                if leave is not None and len(times) == leave.tokens:
                    self._leave(key, leave)
            elif type(event) is Finished:
                outcome = self.outcomes[key]
                outcome.reason, outcome.cached, outcome.ended = event.reason, event.cached_tokens, now
                self.unfinished -= 1
                self.changed.set()

    def expect(self, key: tuple[str, int], leave: Leave) -> None:
        """Someone will leave."""
        if leave.tokens:
            self.leaves[key] = leave
        else:
            self._leave(key, leave)

    def _leave(self, key: tuple[str, int], leave: Leave) -> None:
        loop = asyncio.get_running_loop()
        request_id, choice = key
        # By a timer even if it is now: the engine is in the middle of a turn.
        loop.call_at(max(leave.at, loop.time()), self.streams[request_id].cancel, choice)


def simulate(
    traffic: Traffic,
    device: Device,
    options: SchedulerOptions,
    *,
    prior: Costs | None = None,
    observers: Iterable[Observer] = (),
) -> Trace:
    """Send jobs to an engine over `device`, in virtual time, until all have ended.

    The scheduler's cost model begins with `prior`, by default the device's own coefficients. A refused job is
    an outcome, no error.
    """
    costs = device.costs if prior is None else prior
    scheduler = Scheduler(
        device.capacity, options, prefix_cache=traffic.prefix_cache, accounts=traffic.accounts, prior=costs
    )
    backend = SimBackend(device.capacity, costs=device.costs, says=traffic.says)
    return run(_simulate(traffic.jobs, device, scheduler, backend, tuple(observers)))


async def _simulate(
    jobs: Sequence[Job],
    device: Device,
    scheduler: Scheduler,
    backend: SimBackend,
    observers: tuple[Observer, ...],
) -> Trace:
    watcher = _Watcher()
    engine = Engine(scheduler, backend, (watcher, *observers))
    engine.start()
    ordered = sorted(jobs, key=lambda job: job.at)
    for job in ordered:
        if job.at > engine.now():
            await asyncio.sleep(job.at - engine.now())
        _send(job, engine, watcher)
    while watcher.unfinished:
        watcher.changed.clear()
        await watcher.changed.wait()
    span = engine.now() - (ordered[0].at if ordered else 0.0)
    await engine.stop()
    return Trace(
        scheduler.options,
        device,
        list(watcher.outcomes.values()),
        watcher.steps,
        scheduler.preemptions,
        scheduler.prompt_tokens,
        scheduler.cached_tokens,
        span,
    )


def _send(job: Job, engine: Engine, watcher: _Watcher) -> None:
    # A timer may ring a rounding early or late: who is sent at a time has arrived at that time.
    request = replace(job.request, arrival=engine.now())
    made = [Outcome(job.kind, request, choice) for choice in range(request.n)]
    watcher.outcomes |= {(request.id, outcome.choice): outcome for outcome in made}
    try:
        watcher.streams[request.id] = engine.submit(request)
    except RequestError:
        return  # the watcher was told
    watcher.unfinished += request.n
    for choice, leave in job.leaves.items():
        watcher.expect((request.id, choice), leave)
