"""Plays a workload at one endpoint or at two in turn: open loop, each request sent when its time comes."""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from collections.abc import Mapping, Sequence
from itertools import product
from random import Random
from typing import Any, NamedTuple

import msgspec

from bench.client import BenchError
from bench.serve.client import UNFINISHED, Client, Tally
from bench.serve.probe import ask, request_body
from bench.serve.prompts import text
from bench.serve.recording import Endpoint, Outcome, Repeat
from bench.serve.workloads import Arrival, Workload

REFUSALS = 8  # in a row: the endpoint is gone, the rest of the schedule is not sent
ALIVE_SECONDS = 60.0  # in which an endpoint must say something after a repeat
WARM_TOKENS = 8  # of a warm-up's answer


class Contestant(NamedTuple):
    """An endpoint under measurement."""

    client: Client
    endpoint: Endpoint
    extra: Mapping[str, Any]  # fields of every request


class Runner:
    """Takes the repeats. What is measured is in `repeats`, however it ends."""

    def __init__(self, contestants: Sequence[Contestant], workload: Workload) -> None:
        self.repeats: list[Repeat] = []
        self.tally = Tally()
        self.ended_early: str | None = None
        self._contestants, self._workload = contestants, workload
        self._nonce = secrets.randbits(64)  # no two runs send the same words
        self._same = len({contestant.endpoint.url for contestant in contestants}) < len(contestants)

    async def warm_up(self, times: int) -> None:
        """Requests of each kind, the largest, so that no first use is measured and no size is refused."""
        largest: dict[str, Arrival] = {}
        for arrival in self._workload.arrivals:
            if arrival.prompt_tokens >= largest.setdefault(arrival.kind, arrival).prompt_tokens:
                largest[arrival.kind] = arrival
        for number, contestant in product(range(times), self._contestants):
            for arrival in largest.values():
                self.tally.begin(f"warm-up of {contestant.endpoint.name}: {arrival.kind}", 1)
                await self._warm_up(contestant, arrival, f"{self.tally.turn} {number}")

    async def _warm_up(self, contestant: Contestant, arrival: Arrival, key: str) -> None:
        body = self._body(contestant, arrival, key)
        limit = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
        body[limit] = min(arrival.max_tokens, WARM_TOKENS)
        outcome = await ask(contestant.client, contestant.endpoint.path, body)
        if outcome.error is not None:
            size = f" of {arrival.prompt_tokens:,} tokens" if arrival.prompt_tokens else ""
            name = contestant.endpoint.name
            raise BenchError(
                f"{name} does not serve a {arrival.kind!r} request{size}: {outcome.error} "
                "(a workload's settings make it smaller: see --help)"
            )

    async def run(self, repeats: int) -> None:
        """All repeats: A B, then B A, then A B. Cancelled, it keeps what was measured until then."""
        for number in range(repeats):
            order = list(range(len(self._contestants)))
            for index in order if number % 2 == 0 else reversed(order):
                contestant = self._contestants[index]
                turn = f"repeat {number + 1} of {repeats}: {contestant.endpoint.name}"
                await self._turn(index, number, turn)
                if not await _alive(contestant):
                    self.repeats[-1].complete = False
                    self.ended_early = f"{contestant.endpoint.name} does not answer any more"
                    return

    async def _turn(self, index: int, number: int, turn: str) -> None:
        contestant = self._contestants[index]
        tally = self.tally
        bodies = self._bodies(contestant, number, index if self._same else 0)
        tally.begin(turn, len(bodies))
        gc.collect()
        start, used = time.perf_counter(), time.process_time()
        complete = False
        try:
            complete = await self._play(contestant, bodies, start)
        finally:
            seconds = time.perf_counter() - start
            outcomes = [outcome for outcome in tally.outcomes if outcome.error != UNFINISHED]
            outcomes.sort(key=lambda outcome: (outcome.phase, outcome.scheduled))
            share = (time.process_time() - used) / seconds
            missed = len(bodies) - len(outcomes)
            self.repeats.append(Repeat(index, number, seconds, share, complete, outcomes, missed))

    async def _play(self, contestant: Contestant, bodies: Sequence[bytes], start: float) -> bool:
        """Whether everything could be sent."""
        for phase in self._workload.phases():
            begin = time.perf_counter() - start
            async with asyncio.TaskGroup() as group:
                for index, arrival in phase:
                    due = begin + arrival.at
                    await asyncio.sleep(start + due - time.perf_counter())
                    if self.tally.refused_in_a_row >= REFUSALS:
                        return False
                    outcome = Outcome(arrival.kind, arrival.phase, due, arrival.max_tokens, 0.0)
                    path = contestant.endpoint.path
                    group.create_task(
                        contestant.client.stream(path, bodies[index], outcome, start, self.tally)
                    )
        return True

    def _bodies(self, contestant: Contestant, number: int, side: int) -> list[bytes]:
        """Ready to send: the same words for two servers in a repeat, new ones in every repeat."""
        return [
            msgspec.json.encode(self._body(contestant, arrival, f"{number} {side} {index}"))
            for index, arrival in enumerate(self._workload.arrivals)
        ]

    def _body(self, contestant: Contestant, arrival: Arrival, key: str) -> dict[str, Any]:
        endpoint = contestant.endpoint
        words = arrival.prompt or ""
        if arrival.prompt_tokens:
            words = text(endpoint.sizing.words(arrival.prompt_tokens), Random(f"{self._nonce} {key}"))
        return request_body(endpoint, arrival, words, contestant.extra)


async def _alive(contestant: Contestant) -> bool:
    """Whether anything answers there, be it an error."""
    try:
        async with asyncio.timeout(ALIVE_SECONDS):
            await contestant.client.get("/models")
    except (BenchError, TimeoutError):
        return False
    return True
