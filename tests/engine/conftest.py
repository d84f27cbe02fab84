"""An engine that is watched as in the server, over a simulated device, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Capacity, StepPlan
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Event, Request, Sampling
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.metrics import EngineMetrics
from tokenspeed.engine.streams import Stream
from tokenspeed.engine.timeline import Timeline, Timelines
from tokenspeed.sim.backend import EVEN, SimBackend

GREEDY = Sampling(temperature=0.0)


class Watched:
    """An engine with its metrics and timelines. The scheduler knows the device's costs from the start."""

    def __init__(
        self,
        *,
        blocks: int = 1024,
        prefix_cache: bool = True,
        costs: Costs = EVEN,
        keep: int = 1024,
        logged: int = 65_536,
        fails: Callable[[StepPlan], bool] = lambda plan: False,
        **options: object,
    ) -> None:
        capacity = Capacity(blocks, 4, max_context=1 << 16)
        wanted = SchedulerOptions(**options)  # type: ignore[arg-type]
        self.scheduler = Scheduler(capacity, wanted, prefix_cache=prefix_cache, prior=costs)
        backend = SimBackend(capacity, costs=costs, says=lambda draw: draw.position, fails=fails)
        self.metrics = EngineMetrics(self.scheduler, clock=self.now)
        self.timelines = Timelines(keep, logged=logged, wall=lambda: 1e9 + self.now())
        self.engine = Engine(self.scheduler, backend, [self.metrics, self.timelines])

    def now(self) -> float:
        return asyncio.get_running_loop().time()

    async def __aenter__(self) -> Watched:
        self.engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()

    def send(self, name: str, prompt: Sequence[int], max_tokens: int = 1, **fields: object) -> Stream:
        made = Request(name, tuple(prompt), max_tokens, GREEDY, arrival=self.now(), **fields)  # type: ignore[arg-type]
        return self.engine.submit(made)

    async def run(self, *streams: Stream) -> None:
        """Until all of them have ended."""
        await asyncio.gather(*(self.events(stream) for stream in streams))

    async def events(self, stream: Stream) -> list[Event]:
        return [event async for batch in stream for event in batch]

    def told(self, name: str) -> Timeline:
        timeline = self.timelines.get(name)
        assert timeline is not None
        return timeline

    def figure(self, name: str, **labels: str) -> float:
        """What a scrape reads of one sample, such as `tokenspeed_steps_total`; 0 where there is none."""
        found = 0.0
        for family in self.metrics.collect():
            for sample in family.samples:
                if sample.name == f"tokenspeed_{name}" and labels.items() <= sample.labels.items():
                    found += sample.value
        return found


@pytest.fixture(scope="session")
def watched() -> type[Watched]:
    return Watched
