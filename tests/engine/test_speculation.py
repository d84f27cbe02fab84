"""What drafts are worth on devices of known costs: time is virtual, so figures are exact."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.engine.test_engine import (
    Oracle,
    Server,
    Spoil,
    Workload,
    expected,
    lie,
    mostly,
    request,
    right,
    tokens_of,
)
from tokenspeed.core.costs import Costs
from tokenspeed.core.plan import Row
from tokenspeed.core.request import FinishReason, Request
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.engine.metrics import EngineMetrics
from tokenspeed.engine.timeline import Timelines
from tokenspeed.sim.clock import run

# Of 8B parameters on an H200, about: a step reads the weights, a token more in it is little.
BOUND_BY_MEMORY = Costs(
    *(4.5e-3, 1.2e-5, 2.3e-5, 0.0, 3e-8), draft=3e-5, verify=1e-4, round=8e-4, guess=3e-6, late=3e-6
)
# A CPU with many streams: every token costs what a token costs.
BOUND_BY_TOKENS = Costs(
    *(5e-4, 1e-3, 1e-3, 0.0, 0.0), draft=1e-3, verify=0.0, round=1e-3, guess=2e-4, late=2e-4
)


def work_of(streams: int, answer: int) -> list[Request]:
    return [request(f"r{n}", (n % 50, n // 50, 3, 4, 5), answer) for n in range(streams)]


def seconds(
    costs: Costs, wanted: Sequence[Request], speculation: Speculation | None = None, **more: Any
) -> float:
    """Until all answers are there, and right."""

    async def main() -> float:
        server = Server(blocks=20_000, block_size=16, costs=costs, speculation=speculation, **more)
        async with server:
            began = server.engine.now()
            got = await asyncio.gather(*map(server.tokens, wanted))
            took = server.engine.now() - began
        assert list(got) == [expected(each, 0) for each in wanted]
        return took

    return run(main())


def finding(wanted: Sequence[Request], spoil: Spoil, control: str = "adaptive") -> Speculation:
    work: Workload = [(0.0, each, None) for each in wanted]
    options = SpeculationOptions(drafter="ngram", control=control)
    return Speculation(options, look_up=lambda text: Oracle(work, text, spoil))


@pytest.mark.parametrize("run_ahead", [0, 1])
def test_drafts_that_hold_make_one_stream_several_times_as_fast(run_ahead: int) -> None:
    wanted = work_of(1, 400)
    plain = seconds(BOUND_BY_MEMORY, wanted, run_ahead=run_ahead)
    assert plain > 5 * seconds(BOUND_BY_MEMORY, wanted, finding(wanted, right), run_ahead=run_ahead)


@pytest.mark.parametrize("costs", [BOUND_BY_MEMORY, BOUND_BY_TOKENS])
@pytest.mark.parametrize("streams", [1, 4])
def test_drafts_that_never_hold_are_given_up_at_once(costs: Costs, streams: int) -> None:
    """As they are looked up, it is seen for nothing that they do not hold."""
    wanted = work_of(streams, 150)
    speculation = finding(wanted, lie)
    assert seconds(costs, wanted, speculation) <= 1.02 * seconds(costs, wanted)
    assert speculation.counts.drafted.total() < 80 * streams


@pytest.mark.parametrize("costs", [BOUND_BY_MEMORY, BOUND_BY_TOKENS])
def test_guesses_that_never_hold_are_tried_seldom(costs: Costs) -> None:
    wanted = work_of(1, 500)
    speculation = Speculation(SpeculationOptions(drafter="model"), guesses=True)
    took = seconds(costs, wanted, speculation, guesses=lambda row, drafts: lie(0, drafts))
    assert took <= 1.05 * seconds(costs, wanted)
    assert (costs is BOUND_BY_MEMORY) <= speculation.counts.drafted["model"] < 100


def test_guesses_that_hold_at_last_are_found_out() -> None:
    """A sequence whose guesses did not pay tries again every now and then."""
    wanted = work_of(1, 500)
    speculation = Speculation(SpeculationOptions(drafter="model"), guesses=True)

    def guess(row: Row, good: tuple[int, ...]) -> tuple[int, ...]:
        return lie(0, good) if row.start < 150 else good

    took = seconds(BOUND_BY_MEMORY, wanted, speculation, guesses=guess)
    assert took < 0.9 * seconds(BOUND_BY_MEMORY, wanted)


@pytest.mark.parametrize("costs", [BOUND_BY_MEMORY, BOUND_BY_TOKENS])
@pytest.mark.parametrize("streams", [1, 12])
def test_it_is_never_slower_than_always_or_never_drafting(costs: Costs, streams: int) -> None:
    """Of drafts of which three of four hold."""
    wanted = work_of(streams, 80)
    took = seconds(costs, wanted, finding(wanted, mostly))
    always = seconds(costs, wanted, finding(wanted, mostly, "always"))
    assert took <= 1.02 * min(always, seconds(costs, wanted))


def test_those_carry_drafts_whose_drafts_hold() -> None:
    """Beside others whose never do."""
    wanted = work_of(8, 150)
    good = {each.prompt for each in wanted[:4]}

    def made(text: Any) -> Oracle:
        spoil = right if tuple(text[:5]) in good else lie
        return Oracle([(0.0, each, None) for each in wanted], text, spoil)

    speculation = Speculation(SpeculationOptions(drafter="ngram"), look_up=made)
    seconds(BOUND_BY_MEMORY, wanted, speculation)
    assert speculation.counts.accepted.total() > 0.7 * speculation.counts.drafted.total()
    assert speculation.counts.accepted.total() > 4 * 100


def test_a_step_with_drafts_stays_within_its_target_time() -> None:
    wanted = work_of(20, 60)

    async def main() -> None:
        speculation = finding(wanted, right)
        server = Server(
            blocks=20_000, block_size=16, costs=BOUND_BY_TOKENS, speculation=speculation, target_step_ms=30.0
        )
        async with server:
            await asyncio.gather(*map(server.tokens, wanted))
            assert all(plan.seconds <= 0.031 for plan in server.backend.plans)

    run(main())


@pytest.mark.parametrize(
    ("other_answers", "accounts", "least", "most"),
    [
        (True, ("", ""), 0.8, 1.0),
        (False, ("", ""), 0.0, 0.0),
        (True, ("alice", "bob"), 0.0, 0.0),  # what one was answered tells the other nothing
        (True, ("alice", "alice"), 0.8, 1.0),
    ],
)
def test_a_prompt_that_comes_again_is_answered_from_its_first_answer(
    other_answers: bool, accounts: tuple[str, str], least: float, most: float
) -> None:
    """The part of the second answer that were drafts which held."""
    options = SpeculationOptions(drafter="ngram", other_answers=other_answers)
    wanted = [request(f"r{n}", range(100), 200, account=account) for n, account in enumerate(accounts)]

    async def main() -> float:
        speculation = Speculation(options)
        server = Server(blocks=2000, block_size=16, costs=BOUND_BY_MEMORY, speculation=speculation)
        async with server:
            for each in wanted:
                before = speculation.counts.accepted.total()
                assert await server.tokens(each) == expected(each, 0)
        return (speculation.counts.accepted.total() - before) / 200

    assert least <= run(main()) <= most


@pytest.mark.parametrize("silent", [0, 1])
def test_a_request_that_wants_no_speculation_neither_sees_others_nor_is_seen(silent: int) -> None:
    options = SpeculationOptions(drafter="ngram", other_answers=True)
    wanted = [request(f"r{n}", range(100), 100, speculation=n != silent) for n in range(2)]

    async def main() -> None:
        server = Server(blocks=2000, costs=BOUND_BY_MEMORY, speculation=Speculation(options))
        async with server:
            for each in wanted:
                await server.tokens(each)
            assert not server.scheduler.speculation.counts.accepted.total()

    run(main())


def test_a_request_that_wants_no_speculation_carries_carries_no_drafts() -> None:
    wanted = [request(f"r{n}", (n, 2, 3, 4), 100, speculation=n == 0) for n in range(2)]

    async def main() -> None:
        server = Server(blocks=2000, speculation=finding(wanted, right))
        async with server:
            await asyncio.gather(*map(server.tokens, wanted))
            drafted = {row.sequence for plan in server.backend.plans for row in plan.rows if row.drafts}
            assert drafted == {1}

    run(main())


def test_drafts_take_blocks_from_nobody() -> None:
    """Two sequences that together just fit: neither is preempted for the other's drafts."""
    wanted = [request(f"r{n}", (n, 2, 3, 4), 36) for n in range(2)]

    async def main() -> None:
        server = Server(blocks=20, block_size=4, speculation=finding(wanted, right, "always"))
        async with server:
            got = await asyncio.gather(*map(server.tokens, wanted))
        assert list(got) == [expected(each, 0) for each in wanted]
        assert server.scheduler.preemptions == 0

    run(main())


@pytest.mark.parametrize("where", ["begin", "extend", "propose"])
def test_a_drafter_that_fails_is_switched_off_and_told_once(where: str) -> None:
    wanted = work_of(3, 50)
    told: list[Exception] = []

    class Broken(Oracle):
        def extend(self, tokens: Sequence[int]) -> list[tuple[int, bool]]:
            if where == "extend":
                raise ValueError(where)
            return super().extend(tokens)

        def propose(self, most: int) -> tuple[int, ...]:
            if where == "propose":
                raise ValueError(where)
            return super().propose(most)

    def made(text: Any) -> Oracle:
        if where == "begin":
            raise ValueError(where)
        return Broken([(0.0, each, None) for each in wanted], text, right)

    speculation = Speculation(SpeculationOptions(drafter="ngram"), look_up=made, failed=told.append)
    seconds(BOUND_BY_MEMORY, wanted, speculation)
    assert [str(error) for error in told] == [where]
    assert speculation.counts.failures == 1
    assert not speculation.active


def test_a_draft_model_that_finds_nothing_any_more_is_left_alone() -> None:
    speculation = Speculation(SpeculationOptions(drafter="model"), guesses=True)
    seconds(BOUND_BY_MEMORY, work_of(1, 100), speculation, guesses=lambda row, drafts: ())
    assert not speculation.guesses
    assert speculation.counts.failures == 1


def test_a_stop_among_the_drafts_ends_the_answer_there() -> None:
    wanted = request("r", (1, 2, 3), 60)
    whole = expected(wanted, 0)
    stop = next(token for n, token in enumerate(whole) if n > 10 and token not in whole[:n])
    wanted = request("r", (1, 2, 3), 60, stop_ids=frozenset({stop}))
    work: Workload = [(0.0, request("r", (1, 2, 3), 60), None)]
    options = SpeculationOptions(drafter="ngram", control="always")

    async def main() -> None:
        speculation = Speculation(options, look_up=lambda text: Oracle(work, text, right))
        async with Server(blocks=200, speculation=speculation) as server:
            events = await server.events(wanted)
        assert tokens_of(events) == whole[: whole.index(stop)]
        assert events[-1].reason is FinishReason.STOP  # type: ignore[union-attr]
        assert events[-1].completion_tokens == whole.index(stop) + 1  # type: ignore[union-attr]

    run(main())


def test_what_is_counted_adds_up() -> None:
    wanted = work_of(2, 100)
    speculation = finding(wanted, mostly, "always")
    seconds(BOUND_BY_MEMORY, wanted, speculation)
    counts = speculation.counts
    assert counts.drafted_at.total() == counts.drafted["ngram"]
    assert counts.accepted_at.total() == counts.accepted["ngram"]
    assert all(counts.accepted_at[n] <= counts.drafted_at[n] for n in counts.drafted_at)
    assert counts.saved > counts.spent > 0.0


def test_metrics_and_timelines_tell_what_drafts_did() -> None:
    wanted = work_of(2, 100)
    speculation = finding(wanted, mostly, "always")

    async def main() -> None:
        server = Server(blocks=2000, block_size=16, costs=BOUND_BY_MEMORY, speculation=speculation)
        metrics, timelines = EngineMetrics(server.scheduler, clock=server.engine.now), Timelines()
        server.engine._observers = (metrics, timelines)
        async with server:
            await asyncio.gather(*map(server.tokens, wanted))
        found = {
            (sample.name, sample.labels.get("drafter")): sample.value
            for family in metrics.collect()
            for sample in family.samples
        }
        counts = speculation.counts
        assert found["tokenspeed_drafted_tokens_total", "ngram"] == counts.drafted["ngram"] > 0
        assert found["tokenspeed_accepted_tokens_total", "ngram"] == counts.accepted["ngram"] > 0
        assert found["tokenspeed_accepted_tokens_total", "model"] == 0
        assert found["tokenspeed_speculation_saved_seconds_total", None] == counts.saved
        told = [timelines.get(each.id) for each in wanted]
        assert sum(each.drafted_tokens for each in told if each) == counts.drafted.total()
        assert sum(each.accepted_tokens for each in told if each) == counts.accepted.total()

    run(main())
