"""Several client processes that begin together: one cannot follow tens of thousands of events a second.

Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import signal
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from multiprocessing.connection import Connection
from typing import NamedTuple

from bench.client import BenchError
from bench.serve.client import Client, Tally, connected
from bench.serve.probe import COMPLETIONS
from bench.serve.recording import Outcome

try:
    import uvloop
except ImportError:  # not to be had on every platform
    new_loop = asyncio.new_event_loop
else:
    new_loop = uvloop.new_event_loop

LEAD = 0.1  # seconds from handing out a turn to its begin, so that every process is there
BYTES_A_SECOND = 200e6  # of bodies handed to processes, at least
TIMER_SECONDS = 0.002  # what a timer may be late
FOREVER = 86_400.0  # seconds for a request: turns have timeouts of their own
PATIENCE = 15.0  # seconds beyond a turn's timeout until a process that says nothing is given up


class Order(NamedTuple):
    """One request."""

    at: float  # seconds after the start of the turn
    kind: str
    max_tokens: int
    body: bytes


class Turn(NamedTuple):
    """What one process is to do. `start` is by perf_counter()."""

    start: float
    timeout: float
    orders: list[Order]


class Share(NamedTuple):
    """What one process did, in how much of a core."""

    outcomes: list[Outcome]
    cpu: float


class Clients:
    """So many processes that wait for turns. A context manager, which ends them."""

    def __init__(self, count: int, url: str, api_key: str | None) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would copy threads and loops
        self._pipes: list[Connection] = []
        self._processes = []
        self.busiest = 0.0  # of a core, in any process and turn so far
        for number in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(
                target=_work, args=(theirs, url, api_key), daemon=True, name=f"client-{number}"
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()  # which ends a process that waits for a turn
        for process in self._processes:
            process.join(1.0)
            process.kill()
            process.join()

    def play(self, orders: Sequence[Order], timeout: float) -> list[Outcome]:
        """Send all of them when they are due; what became of each. Raises BenchError if a process is lost."""
        lead = LEAD + sum(len(order.body) for order in orders) / BYTES_A_SECOND
        start = time.perf_counter() + lead
        taking = [
            (pipe, share)
            for number, pipe in enumerate(self._pipes)
            if (share := list(orders[number :: len(self._pipes)]))
        ]
        for pipe, share in taking:
            pipe.send(Turn(start, timeout, share))
        found: list[Outcome] = []
        until = start + timeout + PATIENCE
        for pipe, _ in taking:
            answer = _received(pipe, until - time.perf_counter())
            found += answer.outcomes
            self.busiest = max(self.busiest, answer.cpu)
        return sorted(found, key=lambda outcome: outcome.scheduled)


def _received(pipe: Connection, seconds: float) -> Share:
    try:
        if pipe.poll(max(0.0, seconds)):
            answer: Share = pipe.recv()
            return answer
    except EOFError:
        raise BenchError("a client process ended; its error stands above") from None
    raise BenchError("a client process did not come back from its turn; try fewer --clients")


def _work(pipe: Connection, url: str, api_key: str | None) -> None:
    """The whole life of a client process. Connections are kept from turn to turn, as clients do."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it sees to the end
    with asyncio.Runner(loop_factory=new_loop) as runner, contextlib.suppress(EOFError):
        stack = AsyncExitStack()
        client = runner.run(stack.enter_async_context(connected(url, api_key, FOREVER)))
        gc.freeze()
        gc.disable()  # but between turns
        try:
            while True:
                turn: Turn = pipe.recv()
                pipe.send(runner.run(_turn(turn, client)))
                gc.collect()
        finally:
            runner.run(stack.aclose())


async def _turn(turn: Turn, client: Client) -> Share:
    used, began = time.process_time(), time.perf_counter()
    tally = Tally()
    async with asyncio.TaskGroup() as group:
        for order in sorted(turn.orders, key=lambda order: order.at):
            await _until(turn.start + order.at)
            group.create_task(_send(order, turn, client, tally))
    return Share(tally.outcomes, (time.process_time() - used) / (time.perf_counter() - began))


async def _send(order: Order, turn: Turn, client: Client, tally: Tally) -> None:
    outcome = Outcome(order.kind, 0, order.at, order.max_tokens, 0.0)
    try:
        async with asyncio.timeout(turn.start + turn.timeout - time.perf_counter()):
            await client.stream(COMPLETIONS, order.body, outcome, turn.start, tally)
    except TimeoutError:
        outcome.error = "no end within the time of the workload"


async def _until(due: float) -> None:
    """Not before `due`, by perf_counter(), and hardly after it: a loop's timers are off by a millisecond."""
    while (left := due - time.perf_counter()) > 0:  # noqa: ASYNC110 (no event tells that time has come)
        await asyncio.sleep(max(0.0, left - TIMER_SECONDS))
