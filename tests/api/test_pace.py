"""Requests that come together go through a few at a time, in their order, with the loop turning between."""

from __future__ import annotations

import asyncio
from itertools import groupby

import pytest

from tokenspeed.api.pace import Pace


async def passed(pace: Pace, count: int, cancelled: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """By turn of the loop, who went through, for so many that come at once."""
    found: list[tuple[int, int]] = []
    turns = 0

    async def one(number: int) -> None:
        await pace.turn()
        found.append((turns, number))

    tasks = [asyncio.create_task(one(number)) for number in range(count)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turns += 1
        if turns == 1:
            for number in cancelled:
                tasks[number].cancel()
    return found


@pytest.mark.parametrize(("at_once", "count"), [(1, 5), (3, 3), (3, 20), (8, 100)])
async def test_no_more_pass_in_a_turn_of_the_loop_than_may_and_none_is_overtaken(
    at_once: int, count: int
) -> None:
    pace = Pace(at_once)
    for _ in range(2):  # also after a pause
        found = await passed(pace, count)
        assert [number for _, number in found] == list(range(count))
        in_turns = [len(list(those)) for _, those in groupby(found, key=lambda one: one[0])]
        assert max(in_turns) <= at_once
        assert len(in_turns) <= -(-count // at_once) + 1  # and none is held up for nothing
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_one_that_comes_alone_does_not_wait() -> None:
    pace = Pace(1)
    step = pace.turn()
    with pytest.raises(StopIteration):
        step.send(None)
    await asyncio.sleep(0)


async def test_who_leaves_while_waiting_takes_nobodys_turn() -> None:
    found = await passed(Pace(2), 9, cancelled=(3, 4, 5))
    assert [number for _, number in found] == [0, 1, 2, 6, 7, 8]
