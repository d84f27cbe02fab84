"""Timelines of constructed cases, whose causes are known, and of random ones, whose sums must agree."""

from __future__ import annotations

import asyncio
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.core.costs import Costs, Work
from tokenspeed.core.plan import NOTHING, Row, StepPlan, StepResult
from tokenspeed.core.request import Request
from tokenspeed.core.sequence import Sequence
from tokenspeed.engine.causes import HIDDEN, NAMED, Part, PrefillLog, others, prefilling
from tokenspeed.engine.facts import CHUNKS, GAPS
from tokenspeed.engine.observer import Step
from tokenspeed.sim.backend import EVEN
from tokenspeed.sim.clock import run

# Steps of 64 tokens, prompts in the order of arrival: who runs instead of whom is known beforehand.
IN_ORDER = {"policy": "first-come", "target_step_ms": 0.0, "step_tokens": 64}
CHUNK = EVEN.prefill(0, 64)  # seconds


def test_the_timeline_of_a_short_request_behind_a_long_one_names_the_long_one(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            await server.run(server.send("long", range(640)), server.send("short", range(900, 930)))
            told = server.told("short")
            (part,) = told.waited_for.named
            assert (part.request, part.tokens) == ("long", 640)
            assert part.seconds == pytest.approx(10 * CHUNK)
            assert told.own == pytest.approx(EVEN.prefill(0, 30))
            assert told.queued == pytest.approx(10 * (EVEN.base + CHUNK))
            assert told.first_token == pytest.approx(told.waited_for.seconds + told.own + 11 * EVEN.base)
            assert "most of it long (640 tokens, 325 ms)" in told.why(None)
            assert not server.told("long").waited_for.named
            assert "none that of others" in server.told("long").why(None)

    run(main())


def test_a_short_request_that_prefills_beside_a_long_one_names_it_in_its_chunk(watched):
    async def main() -> None:
        async with watched(target_step_ms=40.0) as server:
            long = server.send("long", range(4000))
            await asyncio.sleep(1.0)
            await server.run(server.send("short", range(900, 930)))
            (chunk,) = server.told("short").chunks
            assert [part.request for part in chunk.beside.named] == ["long"]
            assert (chunk.start, chunk.tokens) == (0, 30)
            assert chunk.began < chunk.ended == server.told("short").first_token
            beside = [one for one in server.told("long").chunks if one.step == chunk.step]
            assert [part.request for part in beside[0].beside.named] == ["short"]
            long.cancel()

    run(main())


def test_of_a_step_in_flight_only_the_rest_counts_for_who_comes_meanwhile(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            long = server.send("long", range(64))
            step = EVEN.base + CHUNK
            await asyncio.sleep(0.75 * step)
            await server.run(server.send("short", range(900, 930)))
            told = server.told("short")
            assert told.waited_for.seconds == pytest.approx(0.25 * CHUNK)
            await server.run(long)

    run(main())


def test_a_gap_between_tokens_is_blamed_on_the_prompt_that_was_computed_in_it(watched):
    async def main() -> None:
        async with watched(run_ahead=0, **IN_ORDER) as server:
            stream = server.send("decoding", [1, 2], 40)
            await asyncio.sleep(0.1)
            await server.run(server.send("long", range(3, 129)))
            await server.run(stream)
            told = server.told("decoding")
            assert len(told.gaps) == GAPS
            longest, second, third, _ = told.gaps
            assert [gap.cause for gap in told.gaps] == ["prefill", "prefill", "decode", "decode"]
            assert [part.request for part in longest.prefills.named] == ["long"]
            assert longest.prefills.tokens == second.prefills.tokens == 63  # beside one that decodes
            assert longest.ended - longest.began > 3 * (third.ended - third.began)

    run(main())


def test_a_request_that_was_preempted_says_so_and_what_it_computed_again(watched):
    async def main() -> None:
        async with watched(blocks=12, prefix_cache=False) as server:
            await server.run(*(server.send(name, [i] * 8, 30) for i, name in enumerate("abc")))
            told = [server.told(name) for name in "abc"]
            assert sum(one.preemptions for one in told) == server.scheduler.preemptions > 0
            assert told[0].preemptions == 0
            lost = told[-1]
            assert lost.preemptions > 0
            assert "preempted" in {gap.cause for gap in lost.gaps}
            assert max(gap.recomputed for gap in lost.gaps) > 8
            assert len([chunk for chunk in lost.chunks if chunk.start == 0]) > 1

    run(main())


def test_the_last_token_of_a_prompt_that_was_found_computed_is_a_chunk_of_one(watched):
    async def main() -> None:
        async with watched() as server:
            await server.run(server.send("first", range(17)))
            await server.run(server.send("again", range(17)))
            told = server.told("again")
            assert told.cached_tokens == 16
            assert [(chunk.start, chunk.tokens) for chunk in told.chunks] == [(16, 1)]

    run(main())


def test_a_request_that_lives_is_told_of_as_far_as_it_came(watched):
    async def main() -> None:
        async with watched(max_running=1, **IN_ORDER) as server:
            assert server.timelines.get("a") is None
            first, second = server.send("a", range(640), 9), server.send("b", range(900, 930), 9)
            assert (server.told("a").state, server.told("b").state) == ("queued", "queued")
            await asyncio.sleep(2 * (EVEN.base + CHUNK))
            assert (server.told("a").state, server.told("b").state) == ("prefilling", "queued")
            assert server.told("b").waited_for.named[0].request == "a"
            assert server.told("b").first_token is None
            await anext(first)
            assert server.told("a").state == "decoding"
            assert server.told("a").completion_tokens == 1
            await server.run(first)
            assert (server.told("a").state, server.told("a").completion_tokens) == ("length", 9)
            await server.run(second)

    run(main())


def test_who_leaves_or_fails_has_a_timeline_too(watched):
    async def main() -> None:
        async with watched(max_running=1, fails=lambda plan: plan.number == 3, **IN_ORDER) as server:
            failing, queued = server.send("failing", range(640)), server.send("queued", range(9))
            await asyncio.sleep(0.01)
            queued.cancel()
            await server.run(failing)
            told = server.told("queued")
            assert (told.state, told.queued, told.first_token) == ("cancelled", None, None)
            assert told.total == pytest.approx(0.01)
            told = server.told("failing")
            assert (told.state, told.error) == ("error", "the simulated device failed")
            assert len(told.chunks) == 2

    run(main())


def test_choices_of_a_request_are_told_of_together(watched):
    async def main() -> None:
        async with watched() as server:
            await server.run(server.send("two", range(30), 6, n=2), server.send("other", range(50, 80), 6))
            told = server.told("two")
            assert told.completion_tokens == 12
            assert {chunk.choice for chunk in told.chunks} == {0, 1}
            assert [part.request for part in told.waited_for.named] == ["other"]
            assert "preempted" not in {gap.cause for gap in told.gaps}  # the other choice's chunk is none

    run(main())


def test_a_choice_that_leaves_while_its_chunk_runs_is_counted_once(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            stream = server.send("two", range(100), 6, n=2)
            await asyncio.sleep(0.001)
            stream.cancel(0)
            await server.run(stream)
            told = server.told("two")
            assert (told.preemptions, told.completion_tokens) == (0, 6)

    run(main())


def test_a_key_reads_no_id_of_anothers_request(watched):
    async def main() -> None:
        async with watched(**IN_ORDER) as server:
            fields = {"mine": "me", "theirs": "them", "nobodys": ""}
            await server.run(
                *(server.send(name, range(64), 2, account=whose) for name, whose in fields.items())
            )
            await server.run(server.send("last", range(64), account="me"))
            told = server.told("nobodys")
            everything = json.dumps(told.to_dict(None))
            assert "mine" in everything
            assert "theirs" in everything
            for reader, visible in (("me", {"mine"}), ("them", {"theirs"}), ("", set())):
                read = told.to_dict(reader)
                named = {part["request"] for part in read["ran_instead"]["requests"]}
                assert named == visible | {HIDDEN}
                assert not ({"mine", "theirs"} - visible) & set(json.dumps(read).replace("(", '"').split('"'))

    run(main())


def test_of_the_requests_that_ended_only_the_last_are_kept(watched):
    async def main() -> None:
        async with watched(keep=3) as server:
            for i in range(6):
                await server.run(server.send(f"r{i}", range(64)))
            assert [i for i in range(6) if server.timelines.get(f"r{i}")] == [3, 4, 5]
            await server.run(server.send("r3", range(9)))  # the id is free again
            assert server.told("r3").prompt_tokens == 9
            await server.run(server.send("r6", range(64)))
            assert [i for i in range(7) if server.timelines.get(f"r{i}")] == [3, 5, 6]

    run(main())


def test_a_wait_that_began_before_what_is_remembered_says_so(watched):
    async def main(logged: int) -> tuple[bool, int]:
        async with watched(logged=logged, **IN_ORDER) as server:
            await server.run(server.send("long", range(640)), server.send("short", range(900, 930)))
            told = server.told("short")
            return told.complete, told.waited_for.tokens

    assert run(main(65_536)) == (True, 640)
    assert run(main(4)) == (False, 3 * 64)  # and the step of its own


def test_of_many_chunks_the_first_and_the_last_are_told_and_the_rest_counted(watched):
    async def main() -> None:
        async with watched(policy="first-come", target_step_ms=0.0, step_tokens=16) as server:
            await server.run(server.send("long", range(16 * (CHUNKS + 10))))
            told = server.told("long")
            assert (len(told.chunks), told.chunks_left_out) == (CHUNKS, 10)
            assert told.chunks[0].start == 0
            assert told.chunks[-1].start == 16 * (CHUNKS + 9)
            assert told.own == pytest.approx((CHUNKS + 10) * EVEN.prefill(0, 16))

    run(main())


def test_beside_many_the_largest_are_named_and_the_rest_summed_up(watched):
    async def main() -> None:
        async with watched(policy="first-come", target_step_ms=0.0, step_tokens=4096) as server:
            sizes = range(10, 10 + NAMED + 3)
            await server.run(*(server.send(f"r{i}", range(100 * i, 101 * i)) for i in sizes))
            seen = server.told("r10").waited_for
            assert [part.tokens for part in seen.named] == sorted(sizes, reverse=True)[:NAMED]
            assert (seen.more, seen.tokens) == (2, sum(sizes) - 10)

    run(main())


def test_a_steps_measured_seconds_are_divided_as_predicted_and_its_base_is_nobodys():
    costs = Costs(base=1.0, row=0.1, token=0.01, attended=0.0, read=0.0)
    rows = tuple(Row(i, 0, (7,) * count, (), None) for i, count in enumerate((1, 90, 10)))
    sequences = [Sequence(i, Request(f"r{i}", (7,) * 90, 1), 0, 0.0) for i in range(3)]
    plan = StepPlan(1, rows, costs.seconds(Work.of(rows)))
    result = StepResult((NOTHING,) * 3, 2 * plan.seconds)  # it took twice as long
    found = prefilling(Step(plan, result, sequences, 0.0, result.seconds, costs))
    assert [(s.request.id, len(row.tokens)) for s, row, _ in found] == [("r1", 90), ("r2", 10)]
    assert [seconds for _, _, seconds in found] == pytest.approx([2.0, 0.4])


def test_the_log_forgets_whole_steps_the_oldest_first():
    log = PrefillLog(parts=5)
    for number in range(6):
        log.add(number, float(number), number + 1.0, tuple([part(f"r{number}") for _ in range(2)]))
    assert [step.number for step in log.between(0, log.next)] == [4, 5]
    assert [step.number for step in log.back(log.add(6, 6.0, 7.0, ()), 0.0)] == [6, 5, 4]
    assert others(log.between(0, log.next), "r4", 5.5).seconds == pytest.approx(1.0)


def part(name: str) -> Part:
    return Part(name, "", 10, 1.0)


jobs = st.tuples(
    st.floats(0.0, 0.5),  # when it comes
    st.integers(1, 300),  # prompt tokens
    st.integers(1, 9),  # tokens to generate
    st.integers(1, 2),  # choices
    st.none() | st.floats(0.0, 0.5),  # when its client vanishes
)


@given(
    st.lists(jobs, min_size=1, max_size=12),
    st.sampled_from([80, 128, 1024]),
    st.integers(1, 8),
    st.integers(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_nobody_waits_longer_for_others_than_he_waits_and_the_metrics_agree(
    watched, work, blocks, max_running, run_ahead
):
    async def client(server, number, at, length, answer, n, vanishes) -> None:
        await asyncio.sleep(at)
        stream = server.send(f"r{number}", [number] * length, answer, n=n)
        if vanishes is not None:
            asyncio.get_running_loop().call_later(vanishes, stream.cancel)
        await server.run(stream)

    async def main() -> None:
        async with watched(blocks=blocks, max_running=max_running, run_ahead=run_ahead) as server:
            await asyncio.gather(*(client(server, number, *job) for number, job in enumerate(work)))
            told = [server.told(f"r{number}") for number in range(len(work))]
            for one in told:
                wait = one.total if one.first_token is None else one.first_token
                assert one.own + one.waited_for.seconds <= wait + 1e-9
                assert json.loads(json.dumps(one.to_dict(None)))["id"] == one.id
            assert sum(one.preemptions for one in told) == server.scheduler.preemptions
            blocked = sum(one.waited_for.seconds for one in told)
            assert server.figure("prefill_blocked_seconds_total") == pytest.approx(blocked)

    run(main())
