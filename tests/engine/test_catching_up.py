"""The draft model catches up with sequences where that pays, chunk by chunk and never twice with the same."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.engine.test_engine import Server, Spoil, expected, finishes, lie, request, right, tokens_of
from tokenspeed.core.costs import CostModel, Costs
from tokenspeed.core.plan import Row, StepPlan
from tokenspeed.core.request import FinishReason, Request, Sampling
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.sim.clock import run

# A small model on a CPU and its draft model, which takes 48 ms for 600 tokens of a prompt.
CPU = Costs(*(1.5e-3, 3e-4, 3e-4, 0.0, 0.0), draft=1.5e-4, verify=5e-5, round=2e-4, guess=8e-5, late=8e-5)
PROMPT = tuple(n * n % 50 for n in range(600))


def server_of(spoil: Spoil = right, *, control: str = "adaptive", **more: Any) -> Server:
    """Its draft model has been right with a short prompt before."""
    given = {"costs": CPU, "blocks": 4000, "block_size": 16, "target_step_ms": 55.0} | more
    if "speculation" not in given:
        given["speculation"] = Speculation(SpeculationOptions(drafter="model", control=control), guesses=True)
        answered(server_of(speculation=given["speculation"]), request("before", (1, 2, 3), 200))
    return Server(guesses=lambda row, drafts: spoil(row.start + 1, drafts), **given)


def answered(server: Server, *wanted: Request) -> float:
    """Seconds until all answers are there, and right."""

    async def main() -> float:
        async with server:
            began = server.engine.now()
            got = await asyncio.gather(*map(server.tokens, wanted))
            took = server.engine.now() - began
        assert list(got) == [expected(each, 0) for each in wanted]
        return took

    return run(main())


def without(*wanted: Request, **more: Any) -> float:
    return answered(server_of(speculation=None, **more), *wanted)


def drafted(plans: Sequence[StepPlan]) -> list[Row]:
    """All rows that the draft model has something to do with."""
    return [row for plan in plans for row in plan.rows if row.guess or row.behind]


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_a_long_answer_to_a_long_prompt_is_guessed_as_well(run_ahead: int) -> None:
    wanted = request("r", PROMPT, 600)
    server = server_of(run_ahead=run_ahead)
    assert answered(server, wanted) < 0.7 * without(wanted, run_ahead=run_ahead)


@pytest.mark.parametrize("control", ["adaptive", "always"])
def test_every_token_is_caught_up_with_once_and_in_order(control: str) -> None:
    server = server_of(control=control)
    answered(server, request("r", PROMPT, 400))
    rows = drafted(server.backend.plans)
    positions = [row.caught + n for row in rows for n in range(len(row.behind))]
    assert positions == sorted(set(positions))
    assert positions[: len(PROMPT)] == list(range(len(PROMPT)))
    most = max(len(row.behind) for row in rows)
    assert most == len(PROMPT) if control == "always" else most < 40


def test_catching_up_makes_no_step_much_more_than_twice_as_long() -> None:
    server = server_of()
    answered(server, *[request(f"r{n}", (n, *PROMPT), 400) for n in range(2)])
    late = [plan for plan in server.backend.plans if any(row.behind for row in plan.rows)]
    assert len(late) > 30
    for plan in late:
        # Without what it catches up by, but with the pass of the draft model for it.
        seconds = plan.seconds - CPU.guess * sum(len(row.behind) for row in plan.rows)
        assert plan.seconds <= 2.1 * seconds


def test_a_step_in_which_it_catches_up_stays_within_its_target_time() -> None:
    server = server_of(target_step_ms=3.3)
    answered(server, request("r", PROMPT, 600))
    late = [plan for plan in server.backend.plans if any(row.behind and not row.guess for row in plan.rows)]
    assert late
    assert max(plan.seconds for plan in late) <= 3.3e-3


def test_nobody_waits_for_a_sequence_that_is_caught_up_with() -> None:
    """Its rows run ahead of the token that is in flight."""
    server = server_of(run_ahead=1)
    answered(server, request("r", PROMPT, 400))
    late = [row for row in drafted(server.backend.plans) if not row.guess]
    assert len(late) > 10
    assert all(row.source >= 0 for row in late[1:])
    assert not any(plan.verifies for plan in server.backend.plans if not any(row.guess for row in plan.rows))


@pytest.mark.parametrize("limit", [60, 1000])
def test_a_short_answer_to_a_long_prompt_never_pays_for_catching_up(limit: int) -> None:
    """Whether it is known from the start that it will be short, or it stops by itself."""
    whole = expected(request("r", PROMPT, 60), 0)
    stop = next(token for n, token in enumerate(whole) if n >= 20 and token not in whole[:n])
    server = server_of()
    answered(server, request("r", PROMPT, limit, stop_ids=frozenset({stop} if limit > 60 else ())))
    assert not drafted(server.backend.plans)


def test_it_is_not_caught_up_with_where_drafts_do_not_pay() -> None:
    dear = replace(CPU, draft=2e-3)
    server = server_of(costs=dear)
    answered(server, request("r", PROMPT, 600))
    assert not [row for row in drafted(server.backend.plans) if not row.guess]


def test_guesses_that_never_hold_cost_a_long_prompt_what_it_takes_to_see_that() -> None:
    wanted = request("r", PROMPT, 1200)
    server = server_of(lie)
    assert answered(server, wanted) < 1.15 * without(wanted)
    late = sum(len(row.behind) for row in drafted(server.backend.plans))
    assert late < 1300  # its prompt, and what it lacked of the answer at each further try


def unlucky() -> Speculation:
    """Its draft model has always been wrong."""
    speculation = Speculation(SpeculationOptions(drafter="model"), guesses=True)
    for n in range(40):
        answered(server_of(lie, speculation=speculation), request("r", (n, 2, 3), 8))
    assert speculation.counts.drafted["model"] >= 40
    return speculation


def test_a_draft_model_that_has_been_wrong_is_not_to_catch_up_with_long_prompts() -> None:
    server = server_of(speculation=unlucky())
    answered(server, request("r", PROMPT, 500))
    assert not drafted(server.backend.plans)


def test_a_draft_model_that_has_been_wrong_gets_another_chance_where_that_costs_little() -> None:
    wanted = request("r", PROMPT[:60], 600)
    assert answered(server_of(speculation=unlucky()), wanted) < 0.8 * without(wanted)
    assert answered(server_of(lie, speculation=unlucky()), wanted) < 1.08 * without(wanted)


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_choices_of_one_prompt_are_caught_up_with_once(prefix_cache: bool) -> None:
    server = server_of(prefix_cache=prefix_cache)
    wanted = request("r", PROMPT[:200], 500, n=3)

    async def main() -> None:
        async with server:
            events = await server.events(wanted)
        assert [one.reason for one in finishes(events)] == [FinishReason.LENGTH] * 3

    run(main())
    rows = drafted(server.backend.plans)
    computed = [row.caught + n for row in rows for n in range(len(row.behind)) if row.caught + n < 200]
    assert set(computed) == set(range(200))
    assert len(computed) < 300
    assert len({row.sequence for row in rows if row.guess}) == 3


def test_the_next_prompt_that_begins_alike_goes_on_where_the_draft_model_has_been() -> None:
    server = server_of()
    first = request("first", PROMPT, 400)
    turn = (*PROMPT, *expected(first, 0), 7, 8, 9)

    async def main() -> list[Row]:
        async with server:
            await server.tokens(first)
            before = len(server.backend.plans)
            second = request("second", turn, 100)
            assert await server.tokens(second) == expected(second, 0)
            return drafted(server.backend.plans[before:])

    rows = run(main())
    assert rows[0].caught > len(turn) - 40
    assert sum(len(row.behind) for row in rows) < 60


def test_blocks_that_have_held_something_else_are_caught_up_with_anew() -> None:
    """The pool has blocks for one of the two, and a few more."""
    server = server_of(blocks=70)
    first, second = request("first", PROMPT, 400), request("second", (1, *PROMPT), 400)

    async def main() -> None:
        async with server:
            for wanted in (first, second):
                assert await server.tokens(wanted) == expected(wanted, 0)
            before = len(server.backend.plans)
            events = await server.events(replace(first, id="third"))
            assert tokens_of(events) == expected(first, 0)
            [finished] = finishes(events)
            assert 0 < finished.cached_tokens < 200
            assert drafted(server.backend.plans[before:])[0].caught == finished.cached_tokens

    run(main())


@pytest.mark.parametrize("prefix_cache", [True, False])
def test_who_lost_its_blocks_is_caught_up_with_as_far_as_they_are_lost(prefix_cache: bool) -> None:
    """Two sequences that do not fit beside one another until their ends."""
    server = server_of(blocks=60, prefix_cache=prefix_cache)
    answered(server, *[request(f"r{n}", (n, *PROMPT[:199]), 500) for n in range(2)])
    assert server.scheduler.preemptions > 0
    rows = [row for row in drafted(server.backend.plans) if row.sequence == 2]
    again = [row for before, row in pairwise(rows) if row.caught < before.caught]
    assert again
    assert {row.sequence for row in drafted(server.backend.plans) if row.guess} == {1, 2}


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_what_it_was_to_catch_up_with_in_a_step_that_failed_it_has_not_computed(run_ahead: int) -> None:
    fails: set[int] = set()
    server = server_of(fails=fails, run_ahead=run_ahead)
    first, second = request("first", PROMPT, 400), request("second", PROMPT, 400)

    async def main() -> None:
        async with server:
            stream = server.engine.submit(first)
            async for _ in stream:
                if drafted(server.backend.plans) and not fails:
                    fails.add(server.backend.plans[-1].number + 1)
            steps = len(server.backend.plans)
            assert await server.tokens(second) == expected(second, 0)
            assert drafted(server.backend.plans[steps:])[0].caught < len(PROMPT) // 2

    run(main())
    assert fails


def test_a_device_without_tokens_on_the_host_guesses_for_those_whose_draws_do_not_look_at_them() -> None:
    options = SpeculationOptions(drafter="model")
    speculation = Speculation(options, guesses=True, guesses_penalised=False)
    server = server_of(speculation=speculation)
    penalised = Sampling(temperature=0.0, presence_penalty=0.5)
    wanted = [request("plain", (1, 2, 3), 100), request("penalised", (4, 5), 100, sampling=penalised)]
    answered(server, *wanted)
    assert {row.sequence for row in drafted(server.backend.plans)} == {1}


def test_guesses_that_seem_too_dear_are_tried_all_the_same_even_behind_a_long_prompt() -> None:
    """What they cost is seen only where some are sent."""
    server = server_of(speculation=Speculation(SpeculationOptions(drafter="model"), guesses=True))
    server.scheduler.costs = CostModel(replace(CPU, verify=0.01))
    answered(server, request("r", PROMPT, 3000))
    rows = drafted(server.backend.plans)
    assert sum(len(row.behind) for row in rows if not row.guess) > 0.9 * len(PROMPT)
    assert sum(row.guess > 0 for row in rows) > 100  # by then it is known that they pay


@pytest.mark.parametrize("control", ["adaptive", "always"])
def test_none_are_asked_for_beyond_the_draft_models_context(control: str) -> None:
    options = SpeculationOptions(drafter="model", control=control)
    speculation = Speculation(options, guesses=True, guess_context=200)
    server = server_of(speculation=speculation)
    answered(server, request("r", (1, 2, 3), 400))
    ends = [row.start + row.guess for row in drafted(server.backend.plans) if row.guess]
    assert 190 < max(ends) <= 200
    assert speculation.guesses  # it is not taken to have failed
