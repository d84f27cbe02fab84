"""What the engine itself costs: planning, the books, watching and delivering, without any model.

    python -m bench.engine [--rows 256] [--waiting 1000] [--steps 400]

Prints the least, the median and the 99th percentile in microseconds; on a machine that does something else as
well the least says most. A turn is all of it for one decode step, with and
without waiting requests behind the running ones; events are pushed to real streams, metrics and timelines are
kept as in the server. `plan` is the scheduler's part alone: while all decode, and at its worst, where answers
end and prompts of all lengths start and prefill in every step.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import time
from collections.abc import Sequence

from tokenspeed.core.plan import NOTHING, Capacity, RowResult, StepPlan, StepResult
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Request, Sampling
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import EngineMetrics
from tokenspeed.engine.observer import Observer
from tokenspeed.engine.timeline import Timelines
from tokenspeed.sim.device import DEVICES

BLOCK_SIZE = 16
PROMPT = 512  # tokens
SAMPLED = RowResult((7,))
GREEDY = Sampling(temperature=0.0)
PROMPTS = (32, 64, 64, 128, 128, 256, 512, 4096)  # tokens, in the mixed load
ANSWER = 800  # tokens at most, there


def answered(plan: StepPlan, seconds: float) -> StepResult:
    """A result for every row, without a model."""
    return StepResult(tuple([SAMPLED if row.draw else NOTHING for row in plan.rows]), seconds)


class HeldBackend:
    """Answers a step when the bench says so; with `run_ahead` 0 there is one at a time."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity = capacity
        self.plan: StepPlan | None = None
        self._future: asyncio.Future[StepResult] | None = None

    def submit(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        self.plan = plan
        self._future = asyncio.get_running_loop().create_future()
        return self._future

    async def close(self) -> None:
        """Nothing runs."""

    async def turn(self) -> float:
        """Answer the step in flight; the seconds until the next one is submitted and all is delivered."""
        assert self.plan is not None
        assert self._future is not None
        result = answered(self.plan, 0.01)
        begun = time.perf_counter()
        self._future.set_result(result)
        await asyncio.sleep(0)  # the engine's task runs its whole turn before this one resumes
        return time.perf_counter() - begun


def prompt(number: int, length: int) -> tuple[int, ...]:
    return tuple((number * 31 + j) % 1000 for j in range(length))


async def turns(rows: int, waiting: int, steps: int, *, watched: bool = True) -> list[float]:
    """Seconds of the engine's part of each decode step with `rows` running and `waiting` queued."""
    blocks = rows * (-(-(PROMPT + 2 * steps) // BLOCK_SIZE)) + 64
    capacity = Capacity(blocks, BLOCK_SIZE, max_context=1 << 20)
    options = SchedulerOptions(
        max_running=rows,
        max_waiting=waiting,
        target_step_ms=0.0,  # all prompts fit into the first steps
        step_tokens=PROMPT * rows,
        ageing_seconds=3600.0,
        run_ahead=0,
    )
    scheduler = Scheduler(capacity, options)
    backend = HeldBackend(capacity)
    observers: list[Observer] = [EngineMetrics(scheduler), Timelines()] if watched else []
    engine = Engine(scheduler, backend, observers)
    engine.start()
    streams = [
        engine.submit(Request(f"r{i}", prompt(i, PROMPT), 2 * steps - 8, GREEDY, arrival=engine.now()))
        for i in range(rows + waiting)
    ]
    await asyncio.sleep(0)
    for _ in range(4):  # prefill, and the first decodes
        await backend.turn()
    assert backend.plan is not None
    assert len(backend.plan.rows) == rows
    times = []
    for _ in range(steps):
        times.append(await backend.turn())
        for stream in streams[:rows]:
            await anext(stream)
    await engine.stop()
    return times


def plans(rows: int, waiting: int, steps: int, *, mixed: bool) -> list[float]:
    """Seconds of `plan` alone. If `mixed`, prompts and answers have all lengths, and as many come as end."""
    device = DEVICES["h200-8b"]
    capacity = Capacity(1 << 20, BLOCK_SIZE, max_context=1 << 20)
    options = SchedulerOptions(
        max_running=rows,
        max_waiting=waiting + rows,
        target_step_ms=30.0 if mixed else 0.0,
        step_tokens=8192 if mixed else PROMPT * rows,
        ageing_seconds=2.0 if mixed else 3600.0,
        run_ahead=0,
    )
    scheduler = Scheduler(capacity, options, prior=device.costs)
    chance = random.Random(1)
    now, sent, times = 0.0, 0, []
    settle = 400 if mixed else 4
    for step in range(settle + steps):
        while scheduler.running + scheduler.waiting < rows + waiting:
            length = chance.choice(PROMPTS) if mixed else PROMPT
            answer = chance.randint(1, ANSWER) if mixed else 2 * steps
            scheduler.submit(Request(f"r{sent}", prompt(sent, length), answer, GREEDY, arrival=now), now)
            sent += 1
        begun = time.perf_counter()
        plan = scheduler.plan(now)
        if step >= settle:
            times.append(time.perf_counter() - begun)
        assert plan is not None
        seconds = plan.seconds * chance.uniform(0.9, 1.1)
        now += seconds
        scheduler.apply(plan, answered(plan, seconds))
    return times


def told(name: str, rows: int, waiting: int, seconds: Sequence[float]) -> str:
    ordered = [1e6 * one for one in sorted(seconds)]
    least, median, worst = ordered[0], ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return f"{name:<26} {rows:>8} {waiting:>8} {least:>9.0f} {median:>10.0f} {worst:>8.0f}"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=256)
    arguments.add_argument("--waiting", type=int, default=1000)
    arguments.add_argument("--steps", type=int, default=400)
    given = arguments.parse_args()
    rows, waiting, steps = given.rows, given.waiting, given.steps
    gc.freeze()
    print(f"{'':<26} {'running':>8} {'waiting':>8} {'least us':>9} {'median us':>10} {'p99 us':>8}")
    for some, queued in ((1, 0), (rows, 0), (rows, waiting)):
        print(told("turn", some, queued, asyncio.run(turns(some, queued, steps))))
    unwatched = asyncio.run(turns(rows, waiting, steps, watched=False))
    print(told("turn that nobody watches", rows, waiting, unwatched))
    print(told("plan, all decode", rows, waiting, plans(rows, waiting, steps, mixed=False)))
    print(told("plan, mixed", rows, waiting, plans(rows, waiting, steps, mixed=True)))


if __name__ == "__main__":
    main()
