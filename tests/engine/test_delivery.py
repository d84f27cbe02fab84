"""Tokens go out as they come while writing keeps up, and together where it does not."""

from __future__ import annotations

import asyncio

from tokenspeed.core.request import Event, Finished, FinishReason, Request, TokenDelta
from tokenspeed.engine.delivery import AT_ONCE, REST, Delivery
from tokenspeed.engine.streams import Stream
from tokenspeed.sim.clock import run

WRITING = 0.004  # seconds that a round of writing takes the loop


class Clock:
    """The loop's time, and what writing has added to it."""

    def __init__(self) -> None:
        self.spent = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() + self.spent


def stream_of(name: str) -> Stream:
    return Stream(Request(name, (1,), 9), lambda request, choice: None, 0.0)


def give(delivery: Delivery, stream: Stream, event: Event) -> None:
    (delivery.wake if stream.push(event) else delivery.hold)(stream)


def token(number: int) -> TokenDelta:
    return TokenDelta(0, (number,))


async def read(stream: Stream, found: list[list[int]], clock: Clock) -> None:
    """Note the tokens of each time it is woken; writing them takes a while."""
    async for events in stream:
        found.append([t for event in events if isinstance(event, TokenDelta) for t in event.tokens])
        clock.spent += WRITING


async def turns() -> None:
    """Let everybody who is woken run."""
    for _ in range(4):
        await asyncio.sleep(0)


def test_tokens_gather_while_the_loop_rests_from_writing_and_the_first_and_last_never_wait() -> None:
    async def main() -> list[list[int]]:
        clock, stream, found = Clock(), stream_of("a"), []
        delivery = Delivery(clock.now)
        reader = asyncio.create_task(read(stream, found, clock))
        await turns()
        for number in range(1, 5):
            give(delivery, stream, token(number))
            delivery.settle()
            await turns()
        give(delivery, stream, Finished(0, FinishReason.LENGTH, 1, 4, 0))
        delivery.settle()
        await reader
        return found

    # 1 is the first; 2 begins the first round, whose end nobody knew; 3 and 4 gather until the end.
    assert run(main()) == [[1], [2], [3, 4]]


def test_what_was_held_goes_out_by_itself_when_its_time_has_come() -> None:
    async def main() -> tuple[list[list[int]], int]:
        clock, stream, found = Clock(), stream_of("a"), []
        delivery = Delivery(clock.now)
        reader = asyncio.create_task(read(stream, found, clock))
        await turns()
        for number in range(1, 4):
            give(delivery, stream, token(number))
            delivery.settle()
            await turns()
        held = len(found)
        await asyncio.sleep(REST * WRITING)  # virtual
        await turns()
        reader.cancel()
        return found, held

    found, held = run(main())
    assert held == 2
    assert found == [[1], [2], [3]]


def test_a_round_lets_others_in_between_readers() -> None:
    async def main() -> list[int]:
        clock, found = Clock(), []
        delivery = Delivery(clock.now)
        streams = [stream_of(str(n)) for n in range(3 * AT_ONCE)]
        readers = [asyncio.create_task(read(stream, found, clock)) for stream in streams]
        for number in range(2):
            await turns()
            for stream in streams:
                give(delivery, stream, token(number))
            delivery.settle()
        begun = len(found)
        seen = []
        for _ in range(12):
            seen.append(len(found) - begun)
            await asyncio.sleep(0)
        for reader in readers:
            reader.cancel()
        return seen

    seen = run(main())
    assert seen[-1] == 3 * AT_ONCE
    assert set(seen) >= {AT_ONCE, 2 * AT_ONCE}


def test_whoever_keeps_up_has_every_token_by_itself() -> None:
    async def main() -> list[list[int]]:
        clock, stream, found = Clock(), stream_of("a"), []
        delivery = Delivery(clock.now)
        reader = asyncio.create_task(read(stream, found, clock))
        for number in range(6):
            await asyncio.sleep(3 * WRITING)
            give(delivery, stream, token(number))
            delivery.settle()
        await turns()
        reader.cancel()
        return found

    assert run(main()) == [[number] for number in range(6)]
