"""Steps enqueued in the loop and awaited on a thread: in order, faults in their place, and a clean end.

On the CPU, with gates where a device would take its time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tokenspeed.backend.cuda import CudaBackend
from tokenspeed.backend.graphs import Graphs
from tokenspeed.backend.marks import HostMark
from tokenspeed.backend.results import SOURCE_FAILED
from tokenspeed.backend.stepper import Begun, Stepper
from tokenspeed.core.plan import Capacity, Draw, Row, StepPlan, StepResult
from tokenspeed.core.request import Sampling
from tokenspeed.errors import DeviceLostError, EngineError, EngineStoppedError
from tokenspeed.model.cuda.network import Bounds

GREEDY = Sampling(temperature=0.0)
BLOCKS = tuple(range(10))
PROMPT = (1, 2, 3)
SOON = 20.0  # seconds within which anything here happens, or never


class GatedMark(HostMark):
    """The end of a step that is reached when it is let through, or never for its fault."""

    def __init__(self, gate: threading.Semaphore, fault: Exception | None) -> None:
        super().__init__()
        self.gate, self.fault = gate, fault

    def wait(self) -> None:
        assert self.gate.acquire(timeout=SOON)
        if self.fault is not None:
            raise self.fault


class Device:
    """A stepper whose steps end when they are let through; it may fail for one step or for good."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper
        self.graphs: list[Graphs] = []
        self.gate = threading.Semaphore(0)
        self.faults: dict[int, Exception] = {}  # by plan number
        self.lost = False
        self.threads: set[threading.Thread] = set()

    def begin(self, plan: StepPlan) -> Begun:
        self.threads.add(threading.current_thread())
        begun = self.stepper.begin(plan)
        mark = GatedMark(self.gate, self.faults.get(plan.number))
        mark.at = begun.ended.at  # type: ignore[attr-defined]
        begun.ended = mark
        return begun

    def end(self, begun: Begun) -> StepResult:
        self.threads.add(threading.current_thread())
        return self.stepper.end(begun)

    def drop(self, begun: Begun) -> None:
        self.stepper.drop(begun)

    def check(self) -> None:
        if self.lost:
            raise RuntimeError("an illegal memory access was encountered")

    def let_through(self, steps: int) -> None:
        self.gate.release(steps)


def first(number: int = 0) -> StepPlan:
    return StepPlan(number, (Row(0, 0, PROMPT, BLOCKS, Draw(GREEDY, 0, len(PROMPT))),))


def following(number: int, start: int) -> StepPlan:
    """The next token of the row of the step before, which samples it."""
    return StepPlan(number, (Row(0, start, (0,), BLOCKS, Draw(GREEDY, 0, start + 1), source=0),))


@pytest.fixture
def device(make_stepper: Callable[[Bounds], Stepper]) -> Device:
    return Device(make_stepper(Bounds(64, 8, 8, 48)))


@pytest.fixture
async def backend(tiny: Any, device: Any) -> AsyncIterator[CudaBackend]:
    backend = CudaBackend(device, Capacity(tiny.blocks, tiny.block_size, tiny.spec.max_context))
    yield backend
    device.let_through(100)
    await backend.close()


async def soon(step: Any) -> Any:
    async with asyncio.timeout(SOON):
        return await step


def tokens_of(result: StepResult) -> tuple[int, ...]:
    return tuple(token for row in result.rows for token in row.tokens)


async def test_a_step_is_enqueued_behind_the_one_that_runs_and_all_is_done_in_the_loop(
    tiny: Any, device: Device, backend: CudaBackend
) -> None:
    running, found = backend.submit(first()), []
    for number in range(1, 10):
        behind = backend.submit(following(number, 2 + number))
        assert not running.done()
        device.let_through(1)
        found += tokens_of(await soon(running))
        running = behind
    device.let_through(1)
    found += tokens_of(await soon(running))
    assert tuple(found) == tiny.continued(PROMPT, GREEDY, 10)
    assert device.threads == {threading.current_thread()}


async def test_a_step_that_fails_is_the_only_one_to_fail(
    tiny: Any, device: Device, backend: CudaBackend, caplog: pytest.LogCaptureFixture
) -> None:
    device.faults[1] = RuntimeError("out of luck\nand more of it")
    device.let_through(2)
    failing, after = backend.submit(first(1)), backend.submit(first(2))
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError) as caught:
        await soon(failing)
    assert str(caught.value) == "step 1 failed: out of luck"
    assert not isinstance(caught.value, DeviceLostError)
    assert "out of luck" in caplog.text
    assert tokens_of(await soon(after)) == tiny.continued(PROMPT, GREEDY, 1)


async def test_steps_that_fail_leave_room_for_others_and_give_nothing_to_the_ones_behind(
    tiny: Any, device: Device, backend: CudaBackend
) -> None:
    for number in range(1, 4):
        device.faults[number] = RuntimeError("out of luck")
        device.let_through(2)
        failing, behind = backend.submit(first(number)), backend.submit(following(10 + number, 3))
        with pytest.raises(EngineError, match="out of luck"):
            await soon(failing)
        (row,) = (await soon(behind)).rows
        assert row.error == SOURCE_FAILED
    device.let_through(1)
    assert tokens_of(await soon(backend.submit(first()))) == tiny.continued(PROMPT, GREEDY, 1)


async def test_a_device_that_is_lost_says_so(device: Device, backend: CudaBackend) -> None:
    device.faults[1] = RuntimeError("an illegal memory access was encountered")
    device.lost = True
    device.let_through(1)
    with pytest.raises(DeviceLostError, match="the device failed: an illegal memory access"):
        await soon(backend.submit(first(1)))


async def test_a_plan_that_cannot_be_laid_out_fails_its_step(device: Device, backend: CudaBackend) -> None:
    device.let_through(1)
    too_few_blocks = Row(0, 0, (1,) * 9, (0,), Draw(GREEDY, 0, 9))
    with pytest.raises(EngineError, match="step 7 failed: a row's blocks do not cover its tokens"):
        await soon(backend.submit(StepPlan(7, (too_few_blocks,))))
    assert (await soon(backend.submit(first()))).rows[0].error is None


async def test_a_step_whose_future_was_cancelled_runs_all_the_same(
    tiny: Any, device: Device, backend: CudaBackend
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    cancelled, after = backend.submit(first()), backend.submit(following(1, 3))
    cancelled.cancel()
    device.let_through(2)
    assert tokens_of(await soon(after)) == tiny.continued(PROMPT, GREEDY, 2)[1:]
    assert complaints == []


async def test_closing_ends_what_runs_and_refuses_what_comes(device: Device, backend: CudaBackend) -> None:
    running = backend.submit(first())
    closing = asyncio.gather(backend.close(), backend.close())
    await asyncio.sleep(0)  # closing begins
    with pytest.raises(EngineStoppedError, match="shutting down"):
        await soon(backend.submit(first()))
    device.let_through(1)
    assert len(tokens_of(await soon(running))) == 1
    await soon(closing)
    await soon(backend.close())


async def test_a_plan_without_rows_is_done_at_once(backend: CudaBackend) -> None:
    assert await soon(backend.submit(StepPlan(0, ()))) == StepResult((), 0.0)
