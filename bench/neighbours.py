"""How much of the machine others use meanwhile: a figure taken beside them says little."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

TICK = os.sysconf("SC_CLK_TCK")
STAT = Path("/proc/stat")
BUSY_FIELDS = (1, 2, 3, 6, 7, 8)  # of the line for all cores: user, nice, system, irq, softirq, steal
LOOK_SECONDS = 0.25

Figure = TypeVar("Figure")


class Usage(NamedTuple):
    """Seconds of the cores since the start of the machine, and the time when they were read."""

    all: float
    ours: float
    at: float


def usage(group: int) -> Usage:
    """What all processes have used, and of that this one and the process group."""
    if not STAT.exists():
        return Usage(0.0, 0.0, time.perf_counter())
    fields = STAT.read_text().splitlines()[0].split()
    busy = sum(int(fields[field]) for field in BUSY_FIELDS) / TICK
    return Usage(busy, time.process_time() + group_seconds(group), time.perf_counter())


def group_seconds(group: int) -> float:
    """The time of the cores that a process group's living members have used."""
    ticks = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if os.getpgid(int(folder.name)) == group:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])  # utime and stime
    return ticks / TICK


def others_share(before: Usage, after: Usage) -> float:
    """The part of all cores that neither this process nor the group has used in between."""
    theirs = (after.all - before.all) - (after.ours - before.ours)
    elapsed = (after.at - before.at) * (os.cpu_count() or 1)
    return max(theirs, 0.0) / elapsed if elapsed > 0 else 0.0


class Watch:
    """Takes figures while others are quiet, as far as its patience (seconds of waiting in all) goes."""

    def __init__(self, most: float, patience: float, tries: int) -> None:
        self._most, self._patience, self._tries = most, patience, tries

    def take(self, group: int, measure: Callable[[], Figure]) -> tuple[Figure, float]:
        """A figure, and the part of the cores that others used meanwhile: the quietest of a few tries."""
        best: tuple[Figure, float] | None = None
        for _ in range(self._tries):
            self._await_quiet(group)
            before = usage(group)
            figure = measure()
            share = others_share(before, usage(group))
            if best is None or share < best[1]:
                best = (figure, share)
            if share <= self._most:
                break
        assert best is not None
        return best

    def _await_quiet(self, group: int) -> None:
        while self._patience > 0:
            before = usage(group)
            time.sleep(LOOK_SECONDS)
            if others_share(before, usage(group)) <= self._most:
                return
            self._patience -= LOOK_SECONDS
