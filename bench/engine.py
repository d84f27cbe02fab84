"""What the engine itself costs: plan + apply + deliver of a decode step, without any model.

    python -m bench.engine [--rows 256] [--waiting 0] [--steps 400]

Prints the median and the 99th percentile in microseconds, with and without waiting requests behind the
running ones. The events are pushed to real streams, and the metrics are kept as in the server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import time

from tokenspeed.core.plan import NOTHING, Capacity, RowResult, StepPlan, StepResult
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Request, Sampling
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import EngineMetrics

BLOCK_SIZE = 16
PROMPT = 512  # tokens
SAMPLED = RowResult((7,))


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
        rows = tuple(SAMPLED if row.draw else NOTHING for row in self.plan.rows)
        result = StepResult(rows, 0.01)
        begun = time.perf_counter()
        self._future.set_result(result)
        await asyncio.sleep(0)  # the engine's task runs its whole turn before this one resumes
        return time.perf_counter() - begun


async def measure(rows: int, waiting: int, steps: int) -> list[float]:
    """Seconds of the engine's part of each decode step with `rows` running and `waiting` queued."""
    blocks = rows * (-(-(PROMPT + 2 * steps) // BLOCK_SIZE)) + 64
    capacity = Capacity(blocks, BLOCK_SIZE, max_context=1 << 20)
    options = SchedulerOptions(
        max_running=rows, max_waiting=waiting, step_tokens=PROMPT * rows, ageing_seconds=3600.0, run_ahead=0
    )
    scheduler = Scheduler(capacity, options)
    backend = HeldBackend(capacity)
    engine = Engine(scheduler, backend, EngineMetrics(scheduler))
    engine.start()
    sampling = Sampling(temperature=0.0)
    streams = []
    for i in range(rows + waiting):
        prompt = tuple((i * 31 + j) % 1000 for j in range(PROMPT))
        streams.append(engine.submit(Request(f"r{i}", prompt, 2 * steps - 8, sampling, arrival=engine.now())))
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


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--rows", type=int, default=256)
    arguments.add_argument("--waiting", type=int, default=1000)
    arguments.add_argument("--steps", type=int, default=400)
    given = arguments.parse_args()
    gc.freeze()
    print(f"{'running':>8} {'waiting':>8} {'median us':>10} {'p99 us':>8}")
    for rows, waiting in ((1, 0), (given.rows, 0), (given.rows, given.waiting)):
        times = sorted(asyncio.run(measure(rows, waiting, given.steps)))
        median, worst = times[len(times) // 2], times[len(times) * 99 // 100]
        print(f"{rows:>8} {waiting:>8} {median * 1e6:>10.0f} {worst * 1e6:>8.0f}")


if __name__ == "__main__":
    main()
