"""The threads of a team: the caller's and its helpers, all inside one compiled function."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenspeed.model.cpu.jit import cached, source_digest
from tokenspeed.model.cpu.layout import JOB, LINE, Memory, Shape, Sizes
from tokenspeed.model.cpu.memory import Arena
from tokenspeed.model.cpu.network import run_pass
from tokenspeed.model.cpu.team import CELL_BYTES, Team, await_pass, close_cells, ring
from tokenspeed.model.cpu.tile import Format

Enter = Callable[..., None]


@functools.cache
def entry() -> Enter:
    """The compiled function that every thread of a team runs."""
    return compiled_entry(source_digest())


def compiled_entry(digest: str) -> Enter:
    """`digest` becomes part of the key of numba's cache on disk, which itself looks at this file alone."""

    @cached
    def enter(
        form: Format,
        shape: Shape,
        sizes: Sizes,
        memory: Memory,
        layers: Any,
        request: Any,
        job: Any,
        team: Team,
        epoch: int,
        thread: int,
    ) -> None:
        """Thread 0: lead one pass. Other threads: help with every pass, until the team ends."""
        _ = digest
        if thread == 0:
            close_cells(team, epoch)
            job[0] = request[0]
            ring(team, epoch)
        else:
            epoch = await_pass(team, thread, epoch)
        while epoch >= 0:
            run_pass(form, shape, sizes, memory, layers, job[0], team, epoch, thread)
            epoch = -1 if thread == 0 else await_pass(team, thread, epoch)

    return enter


class Crew:
    """A team and its helper threads, which start with the first pass.

    A helper that waits for a pass spins for a moment, then blocks without the interpreter lock; it needs that
    lock only to start and to end.
    """

    def __init__(
        self, form: Format, shape: Shape, sizes: Sizes, memory: Memory, layers: NDArray[np.void], threads: int
    ) -> None:
        self._job = np.zeros(1, JOB)
        self._fixed = (form, shape, sizes, memory, layers)
        size = shape.phases * CELL_BYTES + (2 * threads + 1) * LINE
        self._arena = Arena(size + 4 * LINE, huge=False)
        self._pipes = [os.pipe() for _ in range(threads - 1)]
        ends = np.array([(0, 0), *self._pipes], np.int64)
        pipes = self._arena.take(threads * 16)
        self._arena.view(pipes, threads * 16).view(np.int64)[:] = ends.ravel()
        self._team = Team(
            cells=self._arena.take(shape.phases * CELL_BYTES),
            epoch=self._arena.take(LINE),
            bells=self._arena.take(threads * LINE),
            pipes=pipes,
            phases=shape.phases,
            threads=threads,
        )
        self._epoch = 0
        self._helpers: list[threading.Thread] = []
        self._closed = False

    def run(self, request: NDArray[np.void]) -> None:
        """One pass over `request`, a JOB; returns when it is done. From one thread at a time."""
        if self._closed:
            raise RuntimeError("the decoder is closed")
        self._epoch += 1
        self._enter(request, self._epoch, 0)
        if not self._helpers:  # only now: the first pass compiled what they run
            self._start()

    def close(self) -> None:
        """End the helpers; safe to call twice."""
        if self._closed:
            return
        self._closed = True
        ring(self._team, -1)
        for helper in self._helpers:
            helper.join()
        for pair in self._pipes:
            for end in pair:
                os.close(end)

    def _start(self) -> None:
        for thread in range(1, self._team.threads):
            arguments = (self._job, self._epoch, thread)
            helper = threading.Thread(
                target=self._enter, args=arguments, name=f"decoder-{thread}", daemon=True
            )
            helper.start()
            self._helpers.append(helper)

    def _enter(self, request: NDArray[np.void], epoch: int, thread: int) -> None:
        entry()(*self._fixed, request, self._job, self._team, epoch, thread)
