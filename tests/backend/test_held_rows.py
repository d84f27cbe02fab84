"""Rows that a grammar holds: on a device they run ahead, and draw once the token before them is known."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tokenspeed.backend.cuda import CudaBackend
from tokenspeed.backend.stepper import Stepper
from tokenspeed.core.constraint import Masks
from tokenspeed.core.plan import Capacity, Draw, Held, Row, StepPlan, StepResult
from tokenspeed.core.request import Sampling
from tokenspeed.model.cuda.network import Bounds

GREEDY = Sampling(temperature=0.0)
PROMPT = (1, 2, 3)
SOON = 20.0  # seconds within which anything here happens, or never


class Stride:
    """Behind a token only those may follow that are `step` more, or a multiple of it."""

    active = True

    def __init__(self, vocab: int, step: int = 7) -> None:
        self.vocab, self.step = vocab, step
        self.asked: list[tuple[int, int]] = []

    def take(self, tokens: Sequence[int]) -> int:
        return len(tokens)

    def fitting(self, drafts: Sequence[int]) -> int:
        return len(drafts)

    def allowed(self, last: int) -> list[int]:
        return [token for token in range(self.vocab) if (token - last) % self.step == 0]

    def fill(self, masks: Masks, count: int, last: int, drafts: Sequence[int]) -> str | None:
        self.asked.append((count, last))
        for row, token in zip(masks, (last if count else 0, *drafts), strict=True):
            bits = np.zeros(32 * len(row), np.uint8)
            bits[self.allowed(token)] = 1
            row[:] = np.packbits(bits, bitorder="little").view(np.int32)
        return None


def expected(tiny: Any, count: int, stride: Stride) -> list[int]:
    """The greedy answer, one token at a time, each drawn from what may stand there."""
    tokens, last = list(PROMPT), 0
    for _ in range(count):
        logits = tiny.logits(tokens)[-1]
        allowed = stride.allowed(last)
        last = allowed[int(logits[allowed].argmax())]
        tokens.append(last)
    return tokens[len(PROMPT) :]


@pytest.fixture
def stepper(make_stepper: Callable[[Bounds], Stepper]) -> Stepper:
    return make_stepper(Bounds(64, 8, 8, 48))


def row(number: int, stride: Stride | None, *, sequence: int = 0) -> Row:
    """The row of step `number` of a sequence that follows itself."""
    blocks = tuple(range(10 * sequence, 10 * sequence + 10))
    held = None if stride is None else Held(stride, number)
    position = len(PROMPT) + number
    draw = Draw(GREEDY, 0, position, held=held)
    if number == 0:
        return Row(sequence, 0, PROMPT, blocks, draw)
    return Row(sequence, position - 1, (0,), blocks, draw, source=sequence)


def free(tiny: Any, count: int) -> list[int]:
    tokens = list(PROMPT)
    for _ in range(count):
        tokens.append(int(tiny.logits(tokens)[-1].argmax()))
    return tokens[len(PROMPT) :]


def test_a_step_that_waits_draws_once_the_one_before_has_ended(tiny: Any, stepper: Stepper) -> None:
    stride, steps = Stride(tiny.vocab), 12
    found: list[list[int]] = [[], []]
    running = [stepper.begin(StepPlan(0, (row(0, stride), row(0, None, sequence=1))))]
    for number in range(1, steps + 1):
        behind = stepper.begin(StepPlan(number, (row(number, stride), row(number, None, sequence=1))))
        assert behind.waits
        ended = running.pop()
        ended.ended.wait()
        result = stepper.end(ended)
        for tokens, given in zip(found, result.rows, strict=True):
            tokens += given.tokens
        stepper.finish(behind, result)
        running.append(behind)
    assert found[0] == expected(tiny, steps, stride)
    assert found[1] == free(tiny, steps)
    assert [count for count, _ in stride.asked] == list(range(steps + 1))
    assert [last for _, last in stride.asked[1:]] == found[0]


def test_a_step_whose_tokens_are_there_does_not_wait(tiny: Any, stepper: Stepper) -> None:
    begun = stepper.begin(StepPlan(0, (row(0, Stride(tiny.vocab)),)))
    assert not begun.waits
    assert stepper.end(begun).rows[0].tokens == tuple(expected(tiny, 1, Stride(tiny.vocab)))


def test_what_follows_a_row_that_failed_fails_and_nothing_beside_it_does(tiny: Any, stepper: Stepper) -> None:
    broken = row(0, Stride(tiny.vocab))._replace(tokens=(1, 10**6, 3))
    first = stepper.begin(StepPlan(0, (broken, row(0, None, sequence=1))))
    second = stepper.begin(StepPlan(1, (row(1, Stride(tiny.vocab)), row(1, None, sequence=1))))
    result = stepper.end(first)
    assert result.rows[0].error is not None
    if second.waits:
        stepper.finish(second, result)
    held, other = stepper.end(second).rows
    assert held.error is not None
    assert list(other.tokens) == free(tiny, 2)[1:]


def test_a_grammar_that_cannot_be_followed_ends_its_row_alone(tiny: Any, stepper: Stepper) -> None:
    class Lost(Stride):
        def fill(self, masks: Masks, count: int, last: int, drafts: Sequence[int]) -> str | None:
            return "lost" if count else super().fill(masks, count, last, drafts)

    first = stepper.begin(StepPlan(0, (row(0, Lost(tiny.vocab)), row(0, None, sequence=1))))
    second = stepper.begin(StepPlan(1, (row(1, Lost(tiny.vocab)), row(1, None, sequence=1))))
    stepper.finish(second, stepper.end(first))
    held, other = stepper.end(second).rows
    assert held.error == "lost"
    assert list(other.tokens) == free(tiny, 2)[1:]


class Device:
    """A stepper whose graphs nobody captures."""

    graphs: tuple[Any, ...] = ()

    def __init__(self, stepper: Stepper) -> None:
        self.begin, self.finish, self.end = stepper.begin, stepper.finish, stepper.end
        self.drop, self.check = stepper.drop, stepper.check


def backend_on(tiny: Any, stepper: Stepper) -> CudaBackend:
    capacity = Capacity(tiny.blocks, tiny.block_size, tiny.spec.max_context)
    return CudaBackend(Device(stepper), capacity)  # type: ignore[arg-type]


@pytest.fixture
async def backend(tiny: Any, stepper: Stepper) -> Any:
    backend = backend_on(tiny, stepper)
    yield backend
    await backend.close()


async def soon(step: Any) -> StepResult:
    async with asyncio.timeout(SOON):
        result: StepResult = await step
        return result


async def test_the_backend_lets_a_step_draw_as_soon_as_it_can(tiny: Any, backend: CudaBackend) -> None:
    stride, steps = Stride(tiny.vocab), 10
    found: list[int] = []
    ahead = backend.submit(StepPlan(0, (row(0, stride),)))
    for number in range(1, steps):
        behind = backend.submit(StepPlan(number, (row(number, stride),)))
        found += (await soon(ahead)).rows[0].tokens
        ahead = behind
    found += (await soon(ahead)).rows[0].tokens
    assert found == expected(tiny, steps, stride)


async def test_a_step_may_come_after_what_it_waits_for_was_seen_by_the_backend_alone(
    tiny: Any, backend: CudaBackend
) -> None:
    stride = Stride(tiny.vocab)
    first = backend.submit(StepPlan(0, (row(0, stride),)))
    found = list((await soon(first)).rows[0].tokens)
    second = await soon(backend.submit(StepPlan(1, (row(1, stride),))))
    assert found + list(second.rows[0].tokens) == expected(tiny, 2, stride)


async def test_a_step_that_waits_as_the_backend_closes_is_refused(tiny: Any, stepper: Stepper) -> None:
    backend = backend_on(tiny, stepper)
    stride = Stride(tiny.vocab)
    first = backend.submit(StepPlan(0, (row(0, stride),)))
    second = backend.submit(StepPlan(1, (row(1, stride),)))
    await backend.close()
    assert (await soon(first)).rows[0].tokens
    with pytest.raises(Exception, match="shutting down"):
        await soon(second)
