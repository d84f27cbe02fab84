"""Virtual time: it jumps, it repeats, and it tells a lost wake-up instead of hanging."""

from __future__ import annotations

import asyncio
import time

import pytest

from tokenspeed.sim.clock import LostWakeUpError, run


def test_an_hour_passes_at_once_and_in_order() -> None:
    async def main() -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def nap(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            seen.append((name, asyncio.get_running_loop().time()))

        await asyncio.gather(nap("long", 3600.0), nap("short", 0.5), nap("middle", 60.0))
        return seen

    begun = time.monotonic()
    assert run(main()) == [("short", 0.5), ("middle", 60.0), ("long", 3600.0)]
    assert time.monotonic() - begun < 3600.0


def test_waiting_for_what_nobody_will_do_is_an_error() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(LostWakeUpError):
        run(main())
