"""Answers that are held to something are the same whatever runs beside them, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_engine import (
    SPECULATIONS,
    VOCABULARY,
    Oracle,
    Server,
    Spoil,
    Workload,
    finishes,
    mostly,
    request,
    right,
    tokens_of,
    workloads,
)
from tests.toys import FAULT, Toy
from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import Costs
from tokenspeed.core.policy import POLICIES
from tokenspeed.core.request import Event, FinishReason, Request, Sampling
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.sim.backend import _sampled, _slot_values
from tokenspeed.sim.clock import run

Make = Callable[[], Toy]
CONSTRAINTS: dict[str, Make | None] = {
    "free": None,
    "held": partial(Toy, VOCABULARY),
    "tightly": partial(Toy, VOCABULARY, part=25),
    "ends": partial(Toy, VOCABULARY, part=7, stop=1),
    "from 5 on": partial(Toy, VOCABULARY, opener=5),
    "from 8 on, tightly": partial(Toy, VOCABULARY, part=VOCABULARY, opener=8),
    "from 3 on, ends": partial(Toy, VOCABULARY, opener=3, stop=1),
    "never": partial(Toy, VOCABULARY, opener=VOCABULARY),
}


@lru_cache(maxsize=2000)
def continued(
    prompt: tuple[int, ...], count: int, sampling: Sampling, stops: frozenset[int], make: Make | None
) -> tuple[tuple[int, ...], bool]:
    """What one sequence alone is answered, drawn one token after the other; whether a stop ended it."""
    toy = None if make is None else make()
    tokens: list[int] = []
    for _ in range(count):
        context = _slot_values(np.array([*prompt, *tokens], np.int64), 0)
        allowed = None
        if toy is not None and toy.active:
            allowed = np.array(sorted(toy.allowed()), np.intp)
        token = _sampled(context, sampling, sampling.seed, VOCABULARY, (), allowed)
        if token in stops:
            return tuple(tokens), True
        if toy is not None:
            toy.take([token])
        tokens.append(token)
    return tuple(tokens), False


def expected(made: Request, choice: int = 0) -> tuple[list[int], bool]:
    sampling = Sampling(temperature=made.sampling.temperature, seed=made.sampling.seed + choice)
    make: Any = made.constraint
    tokens, stopped = continued(made.prompt, made.max_tokens, sampling, made.stop_ids, make)
    return list(tokens), stopped


class Prophet(Oracle):
    """Looks up what will be answered, constraints heeded."""

    def __init__(self, work: Workload, text: Sequence[int], spoil: Spoil) -> None:
        super().__init__([], text, spoil)
        self._answers = [
            [*made.prompt, *expected(made, choice)[0]]
            for _, made, _ in work
            for choice in range(made.n)
            if tuple(self._text[: len(made.prompt)]) == made.prompt
        ]


def prophesied(work: Workload, control: str, spoil: Spoil) -> dict[str, Any]:
    options = SpeculationOptions(drafter="ngram", control=control)
    return {"speculation": Speculation(options, look_up=lambda text: Prophet(work, list(text), spoil))}


WAYS: dict[str, Callable[[Workload], dict[str, Any]]] = {
    **SPECULATIONS,
    "right, constraints heeded": lambda work: prophesied(work, "adaptive", right),
    "always right, constraints heeded": lambda work: prophesied(work, "always", right),
    "always mostly right, constraints heeded": lambda work: prophesied(work, "always", mostly),
}


@given(
    workloads(),
    st.lists(st.sampled_from(sorted(CONSTRAINTS)), min_size=12, max_size=12),
    st.integers(20, 60),
    st.sampled_from([16, 24, 64]),
    st.integers(1, 6),
    st.integers(0, 1),
    st.booleans(),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from([0.0, 4.0, 30.0]),
    st.sampled_from(sorted(WAYS)),
)
@settings(max_examples=250, deadline=None)
def test_what_is_held_gets_the_same_whatever_runs_beside_it(
    work: Workload,
    names: list[str],
    blocks: int,
    step_tokens: int,
    max_running: int,
    run_ahead: int,
    prefix_cache: bool,
    policy: str,
    target_step_ms: float,
    speculates: str,
) -> None:
    """Alone or batched, run ahead or not, preempted, with drafts or none; and every choice ends once."""
    work = [
        (at, replace(made, constraint=CONSTRAINTS[name]), vanishes)
        for (at, made, vanishes), name in zip(work, names, strict=False)
    ]

    async def client(server: Server, at: float, made: Request, vanishes: float | None) -> None:
        await asyncio.sleep(at)  # virtual
        made = replace(made, arrival=server.engine.now())
        stream = server.engine.submit(made)
        if vanishes is not None:
            asyncio.get_running_loop().call_later(vanishes, stream.cancel)
        events: list[Event] = []
        async for batch in stream:
            server.scheduler.check()
            events += batch
        assert sorted(f.choice for f in finishes(events)) == list(range(made.n))
        for finished in finishes(events):
            got, (whole, stopped) = tokens_of(events, finished.choice), expected(made, finished.choice)
            assert got == whole[: len(got)]
            if finished.reason is not FinishReason.CANCELLED:
                assert got == whole
                assert finished.reason == ("stop" if stopped else "length")

    async def main() -> None:
        server = Server(
            blocks=blocks,
            prefix_cache=prefix_cache,
            step_tokens=step_tokens,
            max_running=max_running,
            run_ahead=run_ahead,
            policy=policy,
            target_step_ms=target_step_ms,
            ageing_seconds=0.05,
            accounts={"capped": Account(max_running=1), "heavy": Account(share=3.0)},
            **WAYS[speculates](work),
        )
        async with server:
            await asyncio.gather(*(client(server, *one) for one in work))

    run(main())


def held(name: str, prompt: Sequence[int], max_tokens: int = 40, how: str = "held", **fields: Any) -> Request:
    return request(name, prompt, max_tokens, constraint=CONSTRAINTS[how], **fields)


@pytest.mark.parametrize("how", ["held", "from 5 on", "from 8 on, tightly"])
@pytest.mark.parametrize("run_ahead", [0, 1])
def test_what_was_preempted_goes_on_in_its_constraint(how: str, run_ahead: int) -> None:
    async def main() -> None:
        async with Server(blocks=12, run_ahead=run_ahead) as server:
            made = [held(name, [i] * 8, 30, how, arrival=float(i)) for i, name in enumerate("abc")]
            got = await asyncio.gather(*map(server.tokens, made))
            assert server.scheduler.preemptions > 0
            assert got == [expected(one)[0] for one in made]

    run(main())


def opening(how: str, after: int = 3) -> Request:
    """A request whose answer opens amid it, having been free for some tokens."""
    toy = CONSTRAINTS[how]
    assert toy is not None
    for first in range(1000):
        made = held("r", (first, 2, 3), 40, how)
        tokens, _ = expected(made)
        if toy().opener in tokens[after:-10] and toy().opener not in tokens[:after]:
            return made
    raise AssertionError("none opens")


def test_a_row_that_ran_ahead_of_what_opens_is_drawn_again() -> None:
    """What it had drawn from everything is never seen, and it is planned again at the same place."""
    made = opening("from 5 on")

    async def main() -> None:
        async with Server(run_ahead=1) as server:
            assert await server.tokens(made) == expected(made)[0]
            rows = [plan.rows[0] for plan in server.backend.plans]
            opens = len(made.prompt) + expected(made)[0].index(5)
            again = [row for row in rows if row.start == opens]
            assert len(again) == 2
            assert [row.source >= 0 for row in again] == [True, False]
            assert [row.draw is not None and row.draw.held is not None for row in again] == [
                False,
                True,
            ]
            assert again[1].tokens == (5,)

    run(main())


def test_whoever_looks_up_drafts_hears_of_what_opens() -> None:
    """Also where a step in flight is recalled for it."""
    made = opening("from 5 on")
    heard: list[list[int]] = []

    class Hears(Oracle):
        def __init__(self, text: Sequence[int]) -> None:
            super().__init__([], text, right)
            heard.append(self._text)

        @property
        def common(self) -> int:
            return 0  # it promises nothing, so nobody waits for it

        def propose(self, most: int) -> tuple[int, ...]:
            return ()

    options = SpeculationOptions(drafter="ngram", control="adaptive")

    async def main() -> None:
        async with Server(run_ahead=1, speculation=Speculation(options, look_up=Hears)) as server:
            assert await server.tokens(made) == expected(made)[0]
            planned = [plan.rows[0].start for plan in server.backend.plans]
            assert len(planned) > len(set(planned))  # one was recalled

    run(main())
    answer = [*made.prompt, *expected(made)[0]]
    assert heard == [answer[: len(heard[0])]]
    assert len(heard[0]) >= len(answer) - 1


def test_guesses_that_run_past_what_opens_do_not_stand() -> None:
    made = opening("from 5 on")
    speculation = Speculation(SpeculationOptions(drafter="model", control="always"), guesses=True)

    async def main() -> None:
        server = Server(speculation=speculation, guesses=lambda row, drafts: drafts)
        async with server:
            assert await server.tokens(made) == expected(made)[0]
        assert speculation.counts.accepted.total() > 0

    run(main())


def test_drafts_are_cut_to_what_is_allowed_before_they_are_sent() -> None:
    made = held("r", (1, 2, 3), 60, "tightly")
    work: Workload = [(0.0, made, None)]

    async def main() -> None:
        async with Server(blocks=200, **prophesied(work, "always", mostly)) as server:
            assert await server.tokens(made) == expected(made)[0]
            rows = [row for plan in server.backend.plans for row in plan.rows if row.drafts]
            assert rows
            answer = [*made.prompt, *expected(made)[0]]
            for row in rows:
                toy = Toy(VOCABULARY, part=25)
                toy.take(answer[len(made.prompt) : row.start + 1])
                assert toy.fitting(row.drafts) == len(row.drafts)

    run(main())


def test_drafts_that_hold_make_a_held_answer_faster() -> None:
    made = held("r", (1, 2, 3), 100)

    async def main(**more: Any) -> float:
        async with Server(blocks=200, **more) as server:
            began = server.engine.now()
            assert await server.tokens(made) == expected(made)[0]
            return server.engine.now() - began

    assert run(main()) > 2 * run(main(**prophesied([(0.0, made, None)], "always", right)))


def test_a_constraint_that_breaks_ends_its_own_answer() -> None:
    async def main() -> None:
        async with Server() as server:
            broken = request("a", (1, 2, 3), 30, constraint=partial(Toy, VOCABULARY, breaks=4))
            other = held("b", (4, 5, 6), 30)
            first, second = await asyncio.gather(server.events(broken), server.tokens(other))
            assert finishes(first)[0].reason is FinishReason.ERROR
            assert finishes(first)[0].error == FAULT
            assert tokens_of(first) == expected(broken)[0][:4]
            assert second == expected(other)[0]

    run(main())


def test_choices_are_held_each_for_itself() -> None:
    made = held("r", (1, 2, 3), 30, "from 5 on", n=4, sampling=Sampling(seed=9))

    async def main() -> None:
        async with Server(blocks=100, run_ahead=1) as server:
            events = await server.events(made)
            answers = [tokens_of(events, choice) for choice in range(4)]
            assert answers == [expected(made, choice)[0] for choice in range(4)]
            assert len(set(map(tuple, answers))) == 4

    run(main())


QUICK = Costs(base=1e-3, row=1e-5, token=1e-5, attended=0.0, read=0.0)  # a step takes few gaps between steps


def mixed(held_ones: int, free_ones: int) -> tuple[int, int, int]:
    """Of a batch with so many of each, with run-ahead: steps planned ahead, all steps, and rows planned ahead
    that are held."""
    made = [held(f"h{n}", (n, 2), 60) for n in range(held_ones)]
    made += [held(f"f{n}", (n, 3), 60, "free") for n in range(free_ones)]

    async def main() -> tuple[int, int, int]:
        server = Server(blocks=2000, run_ahead=1, step_tokens=512, max_running=64, costs=QUICK)
        async with server:
            got = await asyncio.gather(*map(server.tokens, made))
            assert got == [expected(one)[0] for one in made]
            plans = server.backend.plans
            ahead = [plan for plan in plans if any(row.source >= 0 for row in plan.rows)]
            rows = [row for plan in plans for row in plan.rows if row.source >= 0]
            return len(ahead), len(plans), sum(row.draw.held is not None for row in rows if row.draw)

    return run(main())


@pytest.mark.parametrize(("held_ones", "free_ones"), [(1, 0), (1, 30), (20, 4)])
def test_answers_run_ahead_whether_they_are_held_or_free(held_ones: int, free_ones: int) -> None:
    ahead, steps, held_ahead = mixed(held_ones, free_ones)
    assert steps <= 62  # 60 tokens each
    assert ahead >= 58
    assert held_ahead >= 58 * held_ones
