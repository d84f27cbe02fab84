"""How near decode steps come to the speed of light, and when waiting counts as idle."""

from __future__ import annotations

import pytest

from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Row, StepPlan, StepResult
from tokenspeed.engine.device_metrics import DeviceFigures, DeviceMetrics
from tokenspeed.engine.observer import Step

FIGURES = DeviceFigures(bytes_a_second=1e12, step_bytes=10**10, key_bytes=10**6, memory={"weights": 7})
COSTS = Costs(0.01, 0.0, 0.0, 0.0, 0.0)


def step(seconds: float, *, idle: float = 0.0, rested: bool = False, tokens: int = 1, start: int = 0) -> Step:
    rows = (Row(0, start, (1,) * tokens, (0,), None),)
    return Step(StepPlan(0, rows), StepResult((), seconds, idle), (), 0.0, 0.0, COSTS, rested)


def figures(metrics: DeviceMetrics) -> dict[str, float]:
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in metrics.collect()
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def test_a_step_that_decodes_is_held_against_reading_weights_and_keys_once() -> None:
    metrics = DeviceMetrics(FIGURES)
    metrics.stepped(step(0.020, start=9_999))  # 10 GB of weights and 10 of keys at 1 TB/s: at light
    metrics.stepped(step(0.020))
    metrics.stepped(step(0.020, tokens=5))  # a prefill has no such bound
    found = figures(metrics)
    assert found["tokenspeed_step_light_ratio_count"] == 2
    assert found["tokenspeed_step_light_ratio_sum"] == pytest.approx(1.5, abs=1e-3)
    assert found["tokenspeed_device_busy_seconds_total"] == pytest.approx(0.06)


def test_only_waiting_while_there_was_work_is_idle() -> None:
    metrics = DeviceMetrics(FIGURES)
    metrics.stepped(step(0.01, idle=5.0, rested=True))
    metrics.stepped(step(0.01, idle=0.25))
    assert figures(metrics)["tokenspeed_device_idle_seconds_total"] == 0.25


def test_memory_is_told_by_its_use() -> None:
    assert figures(DeviceMetrics(FIGURES))["tokenspeed_device_memory_bytesweights"] == 7


def test_the_bound_of_one_stream_is_told() -> None:
    assert FIGURES.told() == "100 tokens/s"
