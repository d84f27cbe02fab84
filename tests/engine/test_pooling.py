"""A prompt's vector is the same in one step, in chunks, after preemption and behind a shared prefix."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.core.plan import Capacity, StepPlan
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import (
    Event,
    Finished,
    FinishReason,
    Pooled,
    Pooling,
    Request,
    Sampling,
    TokenDelta,
)
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.engine.engine import Engine
from tokenspeed.sim.backend import SimBackend, continuation, embedding
from tokenspeed.sim.clock import run

VOCABULARY = 50
GREEDY = Sampling(temperature=0.0)
POOLINGS: list[Pooling] = ["last", "mean"]


class Came(NamedTuple):
    """A request: its prompt, how it is pooled, how many tokens follow, and when it comes."""

    prompt: tuple[int, ...]
    pooling: Pooling | None
    answer: int
    at: float


class Run(NamedTuple):
    """The events of each request, the steps, and how many preemptions there were."""

    events: list[list[Event]]
    plans: list[StepPlan]
    preemptions: int


def played(work: Sequence[Came], *, blocks: int = 64, prefix_cache: bool = True, **options: object) -> Run:
    """All of it on an engine over a device whose memory is real, checked after every batch of events."""

    async def main() -> Run:
        capacity = Capacity(blocks, 4, max_context=4096)
        made = SchedulerOptions(**{"target_step_ms": 0.0} | options)  # type: ignore[arg-type]
        scheduler = Scheduler(capacity, made, prefix_cache=prefix_cache)
        backend = SimBackend(capacity, vocabulary=VOCABULARY)
        engine = Engine(scheduler, backend)

        async def one(number: int, came: Came) -> list[Event]:
            await asyncio.sleep(came.at)
            request = Request(
                f"r{number}", came.prompt, came.answer, GREEDY, arrival=came.at, pooling=came.pooling
            )
            events: list[Event] = []
            async for batch in engine.submit(request):
                scheduler.check()
                events += batch
            return events

        engine.start()
        events = await asyncio.gather(*(one(number, came) for number, came in enumerate(work)))
        await engine.stop()
        assert engine.held_blocks == 0
        return Run(events, backend.plans, scheduler.preemptions)

    return run(main())


def vectors(events: Sequence[Event]) -> list[list[float]]:
    return [event.vector.tolist() for event in events if isinstance(event, Pooled)]


@st.composite
def workloads(draw: st.DrawFn) -> list[Came]:
    """Prompts that share prefixes, pooled or not, with and without an answer."""
    stems = draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=3))
    made = []
    for _ in range(draw(st.integers(1, 12))):
        prompt = draw(st.sampled_from(stems)) + draw(st.lists(st.integers(0, 9), max_size=12))
        pooling = draw(st.sampled_from([None, *POOLINGS]))
        answer = draw(st.sampled_from([0, 0, 1, 14]))
        made.append(Came(tuple(prompt), pooling, answer, draw(st.floats(0.0, 0.2))))
    return made


@given(
    workloads(),
    st.sampled_from([18, 24, 64]),
    st.sampled_from([16, 23, 200]),
    st.booleans(),
    st.integers(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_a_vector_is_that_of_the_prompt_alone_whatever_runs_beside_it(
    work: list[Came], blocks: int, step_tokens: int, prefix_cache: bool, run_ahead: int
) -> None:
    found = played(
        work, blocks=blocks, prefix_cache=prefix_cache, step_tokens=step_tokens, run_ahead=run_ahead
    )
    for came, events in zip(work, found.events, strict=True):
        wanted = [] if came.pooling is None else [embedding(came.prompt, came.pooling).tolist()]
        assert vectors(events) == wanted
        tokens = [token for event in events if isinstance(event, TokenDelta) for token in event.tokens]
        assert tokens == continuation(came.prompt, came.answer, VOCABULARY)
        assert isinstance(events[-1], Finished)
        assert events[-1].reason is FinishReason.LENGTH


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_vector_comes_once_after_all_chunks_and_nothing_is_generated(pooling: Pooling) -> None:
    prompt = tuple(range(40))
    [events], plans, _ = played([Came(prompt, pooling, 0, 0.0)], step_tokens=16)
    pooled, finished = events
    assert isinstance(pooled, Pooled)
    assert pooled.vector.tolist() == embedding(prompt, pooling).tolist()
    assert finished == Finished(0, FinishReason.LENGTH, 40, 0, 0)
    rows = [row for plan in plans for row in plan.rows]
    assert len(rows) > 1
    assert all(row.draw is None for row in rows)
    assert [row.pooled for row in rows] == (
        [len(row.tokens) for row in rows] if pooling == "mean" else [0] * (len(rows) - 1) + [1]
    )


def test_a_mean_computes_every_token_again_and_a_last_state_only_the_last_block() -> None:
    prompt = tuple(range(40))
    work = [Came(prompt, None, 0, 0.0), Came(prompt, "mean", 0, 1.0), Came(prompt, "last", 0, 2.0)]
    events = played(work).events
    ends = [each[-1] for each in events]
    assert [end.cached_tokens for end in ends if isinstance(end, Finished)] == [0, 0, 36]
    assert vectors(events[1]) == [embedding(prompt, "mean").tolist()]
    assert vectors(events[2]) == [embedding(prompt, "last").tolist()]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_prompt_that_loses_its_blocks_amid_its_sum_begins_anew(pooling: Pooling) -> None:
    """An answer that came before it grows until it takes them."""
    prompt = tuple(range(128))
    work = [Came((7,) * 8, None, 40, 0.0), Came(prompt, pooling, 0, 0.01)]
    found = played(work, blocks=35, step_tokens=16, prefix_cache=False)
    assert vectors(found.events[1]) == [embedding(prompt, pooling).tolist()]
    assert found.preemptions > 0
    starts = [row.start for plan in found.plans for row in plan.rows if row.sequence == 2]
    assert any(before > after == 0 for before, after in pairwise(starts))


def test_the_choices_of_a_request_share_one_vector() -> None:
    async def main() -> list[Event]:
        capacity = Capacity(64, 4, max_context=4096)
        engine = Engine(Scheduler(capacity, SchedulerOptions()), SimBackend(capacity, vocabulary=VOCABULARY))
        engine.start()
        stream = engine.submit(Request("a", (1, 2, 3, 4, 5, 6), 3, GREEDY, n=3, pooling="mean"))
        events = [event async for batch in stream for event in batch]
        await engine.stop()
        return events

    assert vectors(run(main())) == [embedding((1, 2, 3, 4, 5, 6), "mean").tolist()]


def test_different_prompts_have_different_vectors() -> None:
    prompts = [(1, 2, 3), (1, 2, 4), (3, 2, 1), (1, 2)]
    for pooling in POOLINGS:
        assert len({tuple(embedding(prompt, pooling).tolist()) for prompt in prompts}) == 4
    assert np.array_equal(embedding((5,), "last"), embedding((5,), "mean"))
