"""The real engine and scheduler in virtual time, over a device whose memory is real."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.core.accounts import Account
from tokenspeed.core.costs import Costs
from tokenspeed.core.lookup import LONGEST
from tokenspeed.core.plan import Capacity, Row, StepPlan, StepResult
from tokenspeed.core.policy import POLICIES, SchedulerOptions
from tokenspeed.core.request import Event, Finished, FinishReason, Request, Sampling, TokenDelta
from tokenspeed.core.scheduler import Scheduler
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.engine.engine import LEAD_SHARE, Engine
from tokenspeed.errors import (
    ContextLengthError,
    DeviceLostError,
    EngineStoppedError,
    OverloadedError,
    RequestError,
)
from tokenspeed.sim.backend import EVEN, SimBackend, continuation
from tokenspeed.sim.clock import run

VOCABULARY = 50
Workload = list[tuple[float, Request, float | None]]
GREEDY = Sampling(temperature=0.0)


class Server:
    """An engine over a simulated device, checked after every step."""

    def __init__(
        self,
        *,
        blocks: int = 64,
        block_size: int = 4,
        prefix_cache: bool = True,
        fails: set[int] | None = None,
        costs: Costs = EVEN,
        accounts: Mapping[str, Account] | None = None,
        lead: float = 0.0,
        speculation: Speculation | None = None,
        guesses: Callable[[Row, tuple[int, ...]], tuple[int, ...]] = lambda row, right: (),
        **options: object,
    ) -> None:
        """Steps are bounded by `step_tokens` unless the options have a `target_step_ms`."""
        capacity = Capacity(blocks, block_size, max_context=4096)
        made = SchedulerOptions(**{"target_step_ms": 0.0} | options)  # type: ignore[arg-type]
        self.scheduler = Scheduler(
            capacity,
            made,
            prefix_cache=prefix_cache,
            accounts=accounts or {},
            prior=costs,
            speculation=speculation,
        )
        self.backend = SimBackend(
            capacity,
            vocabulary=VOCABULARY,
            costs=costs,
            guesses=guesses,
            fails=lambda plan: plan.number in (fails or set()),
        )
        self.engine = Engine(self.scheduler, self.backend, lead=lead)

    async def __aenter__(self) -> Server:
        self.engine.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.engine.stop()
        self.scheduler.check()
        assert self.engine.held_blocks == 0

    async def events(self, request: Request) -> list[Event]:
        collected: list[Event] = []
        async for events in self.engine.submit(request):
            self.scheduler.check()
            collected += events
        return collected

    async def tokens(self, request: Request, choice: int = 0) -> list[int]:
        return tokens_of(await self.events(request), choice)


def tokens_of(events: Sequence[Event], choice: int = 0) -> list[int]:
    deltas = [e for e in events if isinstance(e, TokenDelta) and e.choice == choice]
    return [token for delta in deltas for token in delta.tokens]


def finishes(events: Sequence[Event]) -> list[Finished]:
    return [e for e in events if isinstance(e, Finished)]


def request(name: str, prompt: Sequence[int], max_tokens: int = 8, **fields: object) -> Request:
    fields.setdefault("sampling", GREEDY)
    return Request(name, tuple(prompt), max_tokens, **fields)  # type: ignore[arg-type]


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[float, Request, float | None]]:
    """(when it arrives, request, when its client vanishes) with prompts that share prefixes."""
    stems = draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=3))
    work = []
    for i in range(draw(st.integers(1, 12))):
        prompt = draw(st.sampled_from(stems)) + draw(st.lists(st.integers(0, 9), max_size=12))
        made = Request(
            f"r{i}",
            tuple(prompt),
            draw(st.integers(0, 20)),
            draw(st.sampled_from([GREEDY, Sampling(seed=7), Sampling(seed=3, presence_penalty=0.5)])),
            n=draw(st.integers(1, 4)),
            stop_ids=draw(st.sampled_from([frozenset(), frozenset({1, 2, 3})])),
            priority=draw(st.integers(-1, 1)),
            account=draw(st.sampled_from(["", "capped", "heavy"])),
        )
        vanishes = draw(st.none() | st.floats(0.0, 0.3))
        work.append((draw(st.floats(0.0, 0.2)), made, vanishes))
    return work


Spoil = Callable[[int, tuple[int, ...]], tuple[int, ...]]


class Oracle:
    """Drafts for a sequence of some workload; of those that would hold, from some position on, `spoil` makes
    what is sent."""

    def __init__(self, work: Workload, text: Iterable[int], spoil: Spoil) -> None:
        self._text, self._spoil = list(text), spoil
        self._answers = [
            [*made.prompt, *expected(made, choice)]
            for _, made, _ in work
            for choice in range(made.n)
            if tuple(self._text[: len(made.prompt)]) == made.prompt
        ]

    @property
    def common(self) -> int:
        return LONGEST

    def extend(self, tokens: Sequence[int]) -> list[tuple[int, bool]]:
        foretold = self.propose(len(tokens))
        self._text += tokens
        return [(LONGEST, draft == token) for draft, token in zip(foretold, tokens, strict=False)]

    def propose(self, most: int) -> tuple[int, ...]:
        known = len(self._text)
        self._answers = [answer for answer in self._answers if answer[:known] == self._text]
        right = self._answers[0][known : known + most] if self._answers else range(most)
        return self._spoil(known, tuple(right))


def right(start: int, drafts: tuple[int, ...]) -> tuple[int, ...]:
    return drafts


def lie(start: int, drafts: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((token + 1) % VOCABULARY for token in drafts)


def mostly(start: int, drafts: tuple[int, ...]) -> tuple[int, ...]:
    """Three right ones, then a wrong one."""
    return tuple(token if (start + n) % 4 else (token + 1) % VOCABULARY for n, token in enumerate(drafts))


def looked_up(work: Workload, control: str, spoil: Spoil) -> dict[str, Any]:
    options = SpeculationOptions(drafter="ngram", control=control)
    return {"speculation": Speculation(options, look_up=lambda text: Oracle(work, text, spoil))}


# The draft model takes as long for a token as the model for two rows: it catches up in chunks of some tokens.
SLOW_GUESSES = replace(EVEN, round=0.0005, guess=0.001)


def guessed(control: str, spoil: Spoil, costs: Costs = EVEN) -> dict[str, Any]:
    options = SpeculationOptions(drafter="model", control=control)
    return {
        "costs": costs,
        "speculation": Speculation(options, guesses=True),
        "guesses": lambda row, drafts: spoil(row.start + 1, drafts),
    }


# What drafts come from: nothing, the prompt and the answer so far, other answers as well, what always lies,
# what is always right, or most of the time; a draft model of these kinds; both.
SPECULATIONS: dict[str, Callable[[Workload], dict[str, Any]]] = {
    "off": lambda work: {},
    "lookup": lambda work: {"speculation": Speculation(SpeculationOptions(drafter="ngram"))},
    "lookup always": lambda work: {
        "speculation": Speculation(SpeculationOptions(drafter="ngram", control="always", most_drafts=5))
    },
    "other answers": lambda work: {"speculation": Speculation(SpeculationOptions(other_answers=True))},
    "other answers always": lambda work: {
        "speculation": Speculation(SpeculationOptions(control="always", other_answers=True))
    },
    "right": lambda work: looked_up(work, "adaptive", right),
    "always right": lambda work: looked_up(work, "always", right),
    "always lies": lambda work: looked_up(work, "always", lie),
    "always mostly right": lambda work: looked_up(work, "always", mostly),
    "guesses right": lambda work: guessed("adaptive", right),
    "always guesses right": lambda work: guessed("always", right),
    "always guesses wrong": lambda work: guessed("always", lie),
    "always guesses mostly right": lambda work: guessed("always", mostly),
    "always guesses nothing": lambda work: guessed("always", lambda start, drafts: ()),
    "slow guesses right": lambda work: guessed("adaptive", right, SLOW_GUESSES),
    "always slow guesses right": lambda work: guessed("always", right, SLOW_GUESSES),
    "always slow guesses mostly right": lambda work: guessed("always", mostly, SLOW_GUESSES),
    "both, slow": lambda work: {
        "costs": SLOW_GUESSES,
        "speculation": Speculation(SpeculationOptions(), guesses=True, guesses_penalised=False),
        "guesses": lambda row, drafts: mostly(row.start + 1, drafts),
    },
    "both": lambda work: {
        "speculation": Speculation(SpeculationOptions(control="always"), guesses=True),
        "guesses": lambda row, drafts: mostly(row.start + 1, drafts),
    },
}


@lru_cache(maxsize=1000)
def continued(prompt: tuple[int, ...], count: int, sampling: Sampling) -> list[int]:
    return continuation(prompt, count, VOCABULARY, sampling)


def expected(made: Request, choice: int) -> list[int]:
    sampling = Sampling(temperature=made.sampling.temperature, seed=made.sampling.seed + choice)
    tokens = continued(made.prompt, made.max_tokens, sampling)
    stop = next((i for i, token in enumerate(tokens) if token in made.stop_ids), len(tokens))
    return tokens[:stop]


@given(
    workloads(),
    st.integers(20, 60),
    st.sampled_from([16, 24, 64]),
    st.integers(1, 6),
    st.integers(0, 1),
    st.booleans(),
    st.sampled_from(sorted(POLICIES)),
    st.sampled_from([0.0, 0.5, 4.0, 30.0]),
    st.sampled_from([0.0, 0.001, 1.0]),
    st.sampled_from(sorted(SPECULATIONS)),
)
@settings(max_examples=200, deadline=None)
def test_what_a_request_gets_does_not_depend_on_what_runs_beside_it(
    work: list[tuple[float, Request, float | None]],
    blocks: int,
    step_tokens: int,
    max_running: int,
    run_ahead: int,
    prefix_cache: bool,
    policy: str,
    target_step_ms: float,
    lead: float,
    speculates: str,
) -> None:
    async def client(server: Server, at: float, made: Request, vanishes: float | None) -> None:
        await asyncio.sleep(at)  # virtual
        made = Request(**{f: getattr(made, f) for f in made.__slots__} | {"arrival": server.engine.now()})
        stream = server.engine.submit(made)
        if vanishes is not None:
            asyncio.get_running_loop().call_later(vanishes, stream.cancel)
        events: list[Event] = []
        async for batch in stream:
            server.scheduler.check()
            events += batch
        assert sorted(f.choice for f in finishes(events)) == list(range(made.n))
        for finished in finishes(events):
            got, whole = tokens_of(events, finished.choice), expected(made, finished.choice)
            assert got == whole[: len(got)]
            if finished.reason is not FinishReason.CANCELLED:
                assert got == whole
                assert finished.reason == ("length" if len(whole) == made.max_tokens else "stop")

    async def main() -> None:
        server = Server(
            lead=lead,
            blocks=blocks,
            prefix_cache=prefix_cache,
            step_tokens=step_tokens,
            max_running=max_running,
            run_ahead=run_ahead,
            policy=policy,
            target_step_ms=target_step_ms,
            ageing_seconds=0.05,
            accounts={"capped": Account(max_running=1), "heavy": Account(share=3.0)},
            **SPECULATIONS[speculates](work),
        )
        async with server:
            await asyncio.gather(*(client(server, *one) for one in work))
            for plan in server.backend.plans:
                assert len({row.sequence for row in plan.rows}) == len(plan.rows)
                assert len(plan.rows) <= max_running
                tokens = sum(len(row.tokens) + len(row.drafts) + row.guess for row in plan.rows)
                assert tokens <= step_tokens + max_running

    run(main())


def test_a_second_prompt_reuses_the_blocks_of_the_first() -> None:
    async def main() -> None:
        async with Server() as server:
            prompt = list(range(18))
            await server.events(request("a", prompt))
            (finished,) = finishes(await server.events(request("b", prompt)))
            assert finished.cached_tokens == 16

    run(main())


def test_choices_share_their_prompt_with_and_without_the_prefix_cache() -> None:
    async def main(prefix_cache: bool) -> None:
        async with Server(prefix_cache=prefix_cache) as server:
            await server.events(request("a", range(20), n=4))
            computed = sum(len(row.tokens) for plan in server.backend.plans for row in plan.rows)
            assert computed <= 20 + 3 * 4 + 4 * 8  # one prompt, three tails of a block at most, the decodes

    run(main(True))
    run(main(False))


def test_a_short_prompt_is_in_the_next_step_while_a_long_one_prefills() -> None:
    async def main() -> None:
        async with Server(blocks=600, step_tokens=64) as server:
            long = asyncio.create_task(server.events(request("long", range(2000), arrival=0.0)))
            await asyncio.sleep(0.1)
            steps = len(server.backend.plans)
            short = server.engine.submit(request("short", range(30), arrival=server.engine.now()))
            await anext(short)
            assert len(server.backend.plans) <= steps + 2  # the step in flight when it came, then its own
            assert not long.done()
            short.cancel()
            await long

    run(main())


def test_the_long_context_progresses_in_every_step_while_short_ones_keep_coming() -> None:
    async def main() -> None:
        async with Server(blocks=2000, step_tokens=64, eldest_share=0.25) as server:
            long = asyncio.create_task(server.events(request("long", range(1000), 1)))
            await asyncio.sleep(0)
            shorts = [
                asyncio.create_task(server.events(request(f"s{i}", [i % 10] * 60, 1, arrival=0.001 * i)))
                for i in range(200)
            ]
            await long
            prefilling = [p for p in server.backend.plans if any(r.sequence == 1 for r in p.rows)]
            assert len(prefilling) <= 1000 / (64 * 0.25) + 1
            await asyncio.gather(*shorts)

    run(main())


def test_a_running_request_keeps_decoding_while_a_long_context_prefills() -> None:
    async def main() -> None:
        async with Server(blocks=600, step_tokens=64) as server:
            decoding = asyncio.create_task(server.events(request("a", [1], 200)))
            await asyncio.sleep(0.1)
            await server.events(request("long", range(2000), 1))
            plans = [p for p in server.backend.plans if p.prefills]
            assert len(plans) > 20
            assert all(any(row.sequence == 1 for row in plan.rows) for plan in plans)
            await decoding

    run(main())


def test_a_vanished_client_frees_its_blocks_at_once_also_while_it_queues() -> None:
    async def main() -> None:
        async with Server(max_running=1) as server:
            running = server.engine.submit(request("a", range(20), 30))
            queued = server.engine.submit(request("b", range(20), 30))
            await anext(running)
            queued.cancel()
            assert finishes(await anext(queued))[0].reason == FinishReason.CANCELLED
            running.cancel()
            assert server.engine.held_blocks == 0
            server.scheduler.check()

    run(main())


def test_a_failing_step_ends_its_requests_and_nobody_else() -> None:
    async def main() -> None:
        async with Server(fails={3}, max_running=2) as server:
            first, second, queued = await asyncio.gather(
                *(server.events(request(name, [i] * 9)) for i, name in enumerate("abc"))
            )
            assert [finishes(e)[0].reason for e in (first, second)] == [FinishReason.ERROR] * 2
            assert finishes(first)[0].error == "the simulated device failed"
            assert tokens_of(queued) == expected(request("c", [2] * 9), 0)

    run(main())


def test_a_sequence_that_was_preempted_goes_on_where_it_was() -> None:
    async def main() -> None:
        async with Server(blocks=12) as server:
            made = [request(name, [i] * 8, 30, arrival=float(i)) for i, name in enumerate("abc")]
            got = await asyncio.gather(*(server.tokens(one) for one in made))
            assert server.scheduler.preemptions > 0
            assert got == [expected(one, 0) for one in made]

    run(main())


def test_a_prefill_that_runs_out_of_blocks_takes_none_from_a_row_of_the_same_step() -> None:
    async def main() -> None:
        async with Server(blocks=58, step_tokens=16) as server:
            made = [request("long", range(200), 2)] + [request(f"s{i}", [i], 60) for i in range(3)]
            got = await asyncio.gather(*(server.tokens(one) for one in made))
            assert server.scheduler.preemptions > 0
            assert got == [expected(one, 0) for one in made]

    run(main())


def test_prompt_scores_come_once_and_cover_every_token_but_the_first() -> None:
    async def main() -> None:
        async with Server(step_tokens=16) as server:
            await server.events(request("warm", range(40), 1))
            events = await server.events(request("a", range(40), 0, prompt_logprobs=1))
            scored, finished = events
            assert [t.token for t in scored.logprobs] == list(range(1, 40))  # type: ignore[union-attr]
            assert finished.reason == FinishReason.LENGTH  # type: ignore[union-attr]

    run(main())


def test_stop_ids_cannot_end_a_choice_before_its_minimum() -> None:
    async def main() -> None:
        every = frozenset(range(1, VOCABULARY))
        async with Server() as server:
            events = await server.events(request("a", [5], 8, stop_ids=every, min_tokens=3))
            assert tokens_of(events) == [0, 0, 0]
            assert finishes(events)[0].completion_tokens == 4

    run(main())


def test_a_request_that_cannot_fit_or_queue_is_refused_and_changes_nothing() -> None:
    async def main() -> None:
        async with Server(blocks=8, max_running=1, max_waiting=1) as server:
            with pytest.raises(ContextLengthError, match=r"20 prompt tokens and 13 .* make 33.* 32 "):
                server.engine.submit(request("a", range(20), 13))
            with pytest.raises(RequestError, match="no tokens"):
                server.engine.submit(request("a", []))
            streams = [server.engine.submit(request(name, [1])) for name in "ab"]
            with pytest.raises(OverloadedError) as refused:
                server.engine.submit(request("c", [1]))
            assert refused.value.retry_after > 0
            with pytest.raises(RequestError, match="running already"):
                server.engine.submit(request("a", [1]))
            for stream in streams:
                assert tokens_of([event async for batch in stream for event in batch])

    run(main())


def test_draining_finishes_what_runs_and_takes_nothing_new() -> None:
    async def main() -> None:
        async with Server() as server:
            task = asyncio.create_task(server.tokens(request("a", [1], 20)))
            await asyncio.sleep(0)
            draining = asyncio.create_task(server.engine.drain(60.0))
            await asyncio.sleep(0)
            assert not server.engine.ready
            with pytest.raises(EngineStoppedError):
                server.engine.submit(request("b", [1]))
            assert len(await task) == 20
            assert await draining

    run(main())


def test_a_drain_that_takes_too_long_gives_up_and_stop_ends_the_rest_with_an_error() -> None:
    async def main() -> None:
        server = Server(blocks=600)
        async with server:
            stream = server.engine.submit(request("a", [1], 2000))
            assert not await server.engine.drain(0.5)
            await server.engine.stop()
            events = [event async for batch in stream for event in batch]
            assert finishes(events)[-1].reason == FinishReason.ERROR

    run(main())


def test_a_defect_in_the_loop_ends_every_request_instead_of_hanging_it() -> None:
    async def main() -> None:
        server = Server()

        def broken(plan: StepPlan) -> bool:
            raise ZeroDivisionError

        server.engine.start()
        stream = server.engine.submit(request("a", [1]))
        server.scheduler.plan = broken  # type: ignore[assignment,method-assign]
        await server.engine.failed()
        events = [event async for batch in stream for event in batch]
        assert finishes(events)[0].error == "the engine failed"
        assert not server.engine.ready

    run(main())


def test_a_device_that_is_lost_ends_every_request_and_the_loop() -> None:
    async def main() -> None:
        server = Server()

        def lost(plan: StepPlan) -> asyncio.Future[StepResult]:
            future: asyncio.Future[StepResult] = asyncio.get_running_loop().create_future()
            future.set_exception(DeviceLostError("an illegal memory access was encountered"))
            return future

        server.backend.submit = lost  # type: ignore[method-assign]
        server.engine.start()
        streams = [server.engine.submit(request(name, [1])) for name in "ab"]
        await server.engine.failed()
        for stream in streams:
            events = [event async for batch in stream for event in batch]
            assert finishes(events)[0].error == "the engine failed"
        assert not server.engine.ready

    run(main())


def test_the_same_workload_gives_the_same_trace() -> None:
    async def trace() -> list[StepPlan]:
        async with Server(blocks=24, step_tokens=16) as server:
            await asyncio.gather(
                *(server.events(request(f"r{i}", [i % 3] * (7 * i % 30 + 1), n=1 + i % 2)) for i in range(9))
            )
            return server.backend.plans

    assert run(trace()) == run(trace())


@pytest.mark.parametrize("share", [0.05, LEAD_SHARE, 0.5])
def test_the_step_behind_a_prefill_is_planned_shortly_before_that_ends(share: float) -> None:
    took = EVEN.prefill(0, 16) + EVEN.base
    lead, ahead = share * took, min(share, LEAD_SHARE) * took

    async def main() -> list[tuple[float, int]]:
        server = Server(lead=lead, step_tokens=16)
        handed: list[tuple[float, int]] = []
        submit = server.backend.submit

        def noted(plan: StepPlan) -> Awaitable[StepResult]:
            handed.append((server.engine.now(), len(plan.rows)))
            return submit(plan)

        server.backend.submit = noted  # type: ignore[method-assign]
        async with server:
            long = asyncio.create_task(server.tokens(request("long", [1] * 40, 1)))
            await asyncio.sleep(0)
            await asyncio.sleep(took - 1.01 * ahead)  # virtual: just before the lead begins
            short = asyncio.create_task(server.tokens(request("short", [2, 3], 1)))
            assert await long == expected(request("long", [1] * 40, 1), 0)
            assert await short == expected(request("short", [2, 3], 1), 0)
        return handed

    handed = run(main())
    began = handed[0][0]
    second = handed[1]
    assert second[0] - began == pytest.approx(took - ahead, abs=1e-6)
    assert second[1] == 2  # whoever came before is in it
