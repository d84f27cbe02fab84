"""The device thread: steps in order, faults in their place, and an end that leaves nobody waiting."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch
import uvloop

from tokenspeed.backend.cpu import CpuBackend, plan_memory
from tokenspeed.core.plan import Capacity, Draw, Row, StepPlan, StepResult
from tokenspeed.core.request import Sampling
from tokenspeed.errors import ConfigError, EngineError, EngineStoppedError
from tokenspeed.model.batch import Batch

GREEDY = Sampling(temperature=0.0)
BLOCKS = tuple(range(10))
PROMPT = (1, 2, 3)
SOON = 20.0  # seconds within which anything here happens, or never


class Gated:
    """A decoder that waits at every forward until it is let through, and fails where it is told to."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self.failing: dict[int, Exception] = {}  # by the number of the forward
        self.forwards = 0
        self.closed = 0
        self.thread: threading.Thread | None = None

    @property
    def block_bytes(self) -> int:
        return int(self.decoder.block_bytes)

    def allocate(self, blocks: int) -> None:
        self.decoder.allocate(blocks)

    def warm_up(self) -> None:
        self.decoder.warm_up()

    def close(self) -> None:
        self.closed += 1

    def forward(self, batch: Batch) -> torch.Tensor:
        self.thread = threading.current_thread()
        number, self.forwards = self.forwards, self.forwards + 1
        self.entered.release()
        assert self.gate.acquire(timeout=SOON)
        if number in self.failing:
            raise self.failing[number]
        return self.decoder.forward(batch)

    def let_through(self, forwards: int) -> None:
        self.gate.release(forwards)


def first(number: int = 0) -> StepPlan:
    return StepPlan(number, (Row(0, 0, PROMPT, BLOCKS, Draw(GREEDY, 0, len(PROMPT))),))


def following(number: int, start: int) -> StepPlan:
    """The next token of the row of the step before, which samples it."""
    return StepPlan(number, (Row(0, start, (0,), BLOCKS, Draw(GREEDY, 0, start + 1), source=0),))


@pytest.fixture
def gated(tiny: Any) -> Gated:
    return Gated(tiny.decoder())


@pytest.fixture
async def backend(tiny: Any, gated: Gated) -> AsyncIterator[CpuBackend]:
    backend = make(tiny, gated)
    yield backend
    gated.let_through(100)
    await backend.close()


def make(tiny: Any, decoder: Any) -> CpuBackend:
    capacity = Capacity(tiny.blocks, tiny.block_size, tiny.spec.max_context)
    return CpuBackend(decoder, capacity, vocab_size=tiny.vocab, threads=1)


async def soon(step: Any) -> Any:
    async with asyncio.timeout(SOON):
        return await step


def tokens_of(result: StepResult) -> tuple[int, ...]:
    return tuple(token for row in result.rows for token in row.tokens)


async def test_steps_submitted_ahead_run_in_order_on_one_thread(
    tiny: Any, gated: Gated, backend: CpuBackend
) -> None:
    steps = [backend.submit(first()), *(backend.submit(following(n, 2 + n)) for n in range(1, 20))]
    assert not any(step.done() for step in steps)
    gated.let_through(20)
    results = [await soon(step) for step in steps]
    found = [token for result in results for token in tokens_of(result)]
    assert tuple(found) == tiny.continued(PROMPT, GREEDY, 20)
    assert gated.thread is not threading.current_thread()
    assert all(result.seconds > 0 for result in results)


async def test_a_step_that_fails_is_the_only_one_to_fail(
    tiny: Any, gated: Gated, backend: CpuBackend, caplog: pytest.LogCaptureFixture
) -> None:
    gated.failing[1] = RuntimeError("out of luck\nand more of it")
    steps = [backend.submit(first(number)) for number in range(3)]
    gated.let_through(3)
    with caplog.at_level(logging.ERROR), pytest.raises(EngineError) as caught:
        await soon(steps[1])
    assert str(caught.value) == "step 1 failed: out of luck"
    assert caught.value.__cause__ is gated.failing[1]
    assert "out of luck" in caplog.text
    for step in (steps[0], steps[2]):
        assert tokens_of(await soon(step)) == tiny.continued(PROMPT, GREEDY, 1)


async def test_a_plan_that_cannot_be_laid_out_fails_its_step(gated: Gated, backend: CpuBackend) -> None:
    gated.let_through(2)
    too_few_blocks = Row(0, 0, (1,) * 9, (0,), Draw(GREEDY, 0, 9))
    with pytest.raises(EngineError, match="step 7 failed: a row's blocks do not cover its tokens"):
        await soon(backend.submit(StepPlan(7, (too_few_blocks,))))
    assert (await soon(backend.submit(first()))).rows[0].error is None


async def test_a_step_whose_future_was_cancelled_runs_all_the_same(
    tiny: Any, gated: Gated, backend: CpuBackend
) -> None:
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    cancelled, after = backend.submit(first()), backend.submit(following(1, 3))
    cancelled.cancel()
    gated.let_through(2)
    assert tokens_of(await soon(after)) == tiny.continued(PROMPT, GREEDY, 2)[1:]
    assert complaints == []


async def test_closing_ends_the_step_that_runs_and_refuses_those_that_wait(
    gated: Gated, backend: CpuBackend
) -> None:
    running, waiting = backend.submit(first()), backend.submit(following(1, 3))
    await asyncio.to_thread(gated.entered.acquire)
    closing = asyncio.create_task(backend.close())
    await asyncio.sleep(0)  # closing begins
    with pytest.raises(EngineStoppedError):
        await soon(backend.submit(first()))
    gated.let_through(1)
    assert len(tokens_of(await soon(running))) == 1
    with pytest.raises(EngineStoppedError, match="shutting down"):
        await soon(waiting)
    await soon(closing)
    assert gated.forwards == 1
    assert gated.closed == 1


async def test_closing_twice_is_closing_once(gated: Gated, backend: CpuBackend) -> None:
    await soon(asyncio.gather(backend.close(), backend.close()))
    await soon(backend.close())
    assert gated.closed == 1
    with pytest.raises(EngineStoppedError):
        await soon(backend.submit(first()))


def test_a_loop_that_closed_leaves_the_thread_alive_for_the_next(tiny: Any, gated: Gated) -> None:
    backend = make(tiny, gated)

    async def abandon() -> None:
        backend.submit(first())

    async def resume() -> StepResult:
        gated.let_through(2)
        result: StepResult = await soon(backend.submit(following(1, 3)))
        await soon(backend.close())
        return result

    asyncio.run(abandon())
    assert tokens_of(asyncio.run(resume())) == tiny.continued(PROMPT, GREEDY, 2)[1:]


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_any_loop_will_do(tiny: Any, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def generate() -> tuple[int, ...]:
        backend = make(tiny, tiny.decoder())
        steps = [backend.submit(first()), *(backend.submit(following(n, 2 + n)) for n in range(1, 5))]
        found = tuple([token for step in steps for token in tokens_of(await soon(step))])
        await soon(backend.close())
        return found

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(generate()) == tiny.continued(PROMPT, GREEDY, 5)


def test_a_backend_that_is_dropped_does_not_hold_up_the_process(tiny: Any) -> None:
    backend = make(tiny, tiny.decoder())
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "device")
    asyncio.run(backend.close())


def test_memory_is_planned_in_whole_blocks(tiny: Any) -> None:
    spec = tiny.spec
    assert plan_memory(spec, 1000, 100_999, 16) == Capacity(100, 16, 200)
    assert plan_memory(spec, 1000, 5_000, 16) == Capacity(5, 16, 80)
    assert plan_memory(spec, 1000, 5_000, 16, draft_block_bytes=600) == Capacity(3, 16, 48)
    with pytest.raises(ConfigError, match=r"memory_mib is too small for one block .* give it 3 or more"):
        plan_memory(spec, 2_500_000, 2_000_000, 16)
