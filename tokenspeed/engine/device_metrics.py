"""How near the device's steps come to its speed of light, and how long it waited for the host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from tokenspeed.core.plan import StepPlan
from tokenspeed.core.request import Request
from tokenspeed.core.taking import Happening
from tokenspeed.engine.families import Histogram, counter, gauge, gauges, histogram
from tokenspeed.engine.observer import Step
from tokenspeed.errors import RequestError

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """What a step that decodes must read at least, and how fast the device reads."""

    bytes_a_second: float
    step_bytes: int  # of weights, by any step
    key_bytes: int  # of keys and values, by a row for each token that it attends
    memory: Mapping[str, int]  # bytes of the device's memory, by what they are for

    def least_seconds(self, keys: int) -> float:
        """Of a step whose rows attend so many tokens together."""
        return (self.step_bytes + self.key_bytes * keys) / self.bytes_a_second

    def told(self) -> str:
        """The bound of one stream without context."""
        return f"{1 / self.least_seconds(0):.0f} tokens/s"


class DeviceMetrics(Collector):
    """An observer of the engine, read by a Prometheus registry that it is registered with."""

    def __init__(self, figures: DeviceFigures) -> None:
        self._figures = figures
        self._busy = 0.0  # seconds
        self._idle = 0.0
        self._light = Histogram(SHARES)

    def stepped(self, step: Step) -> None:
        self._busy += step.result.seconds
        if not step.rested:
            self._idle += step.result.idle
        if not step.plan.prefills and step.result.seconds > 0.0:
            keys = sum([row.start + 1 for row in step.plan.rows])
            self._light.observe(self._figures.least_seconds(keys) / step.result.seconds)

    def submitted(self, request: Request, predicted: float, now: float) -> None:
        """Nothing of it is counted here."""

    def refused(self, request: Request, error: RequestError, now: float) -> None:
        """Nor of this."""

    def step_failed(self, plan: StepPlan, now: float) -> None:
        """It has no time."""

    def delivered(self, happenings: Sequence[Happening], now: float) -> None:
        """The device is done with it."""

    def collect(self) -> Iterable[Metric]:
        yield counter(
            "device_busy_seconds",
            "That the device worked on steps, waiting for their launches included",
            self._busy,
        )
        yield counter(
            "device_idle_seconds",
            "That the device waited between two steps although there was work for it",
            self._idle,
        )
        yield gauge(
            "device_read_bytes_per_second",
            "At which it reads memory, measured at the start",
            self._figures.bytes_a_second,
        )
        yield gauges(
            "device_memory_bytes",
            "Of the device's memory, as divided at the start, by what it is for",
            ("use",),
            {(use,): float(size) for use, size in self._figures.memory.items()},
        )
        yield histogram(
            "step_light_ratio",
            "The least time that a step could take that only decodes, reading weights and keys once at that "
            "rate, over the time that it took; above 1 where kernels read faster than what was measured",
            self._light,
        )

    def describe(self) -> Iterable[Metric]:
        return self.collect()
