"""Captured graphs of decode steps: one launch for all kernels of a step of so many rows."""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

logger = logging.getLogger(__name__)

EXACT = 8  # rows up to which every number has a graph of its own


class Graph(NamedTuple):
    """A step of `rows` rows of one token each, padding included."""

    rows: int
    captured: torch.cuda.CUDAGraph

    def replay(self) -> None:
        """Enqueue it on torch's current stream."""
        self.captured.replay()


def sizes_up_to(most: int) -> list[int]:
    """Numbers of rows worth a graph: padding adds a quarter at most, and nothing to `EXACT` or fewer."""
    sizes = [*range(1, EXACT + 1)]
    while sizes[-1] < most:
        last = sizes[-1]
        sizes.append(last + max(2, (1 << last.bit_length()) // EXACT))
    return [*(size for size in sizes if size < most), most]


class Graphs:
    """Captures on a thread of its own, while steps without a graph run kernel by kernel.

    `work` enqueues a step of so many rows on torch's current stream, over memory that is the same each
    time; `warm` does what it does for the first time (loading kernels, say) and touches no memory that steps
    use. `budget_bytes` bounds what graphs take of the device's memory. A capture that fails is logged and
    ends the capturing; what was captured stays.
    """

    def __init__(
        self,
        most_rows: int,
        work: Callable[[int], None],
        warm: Callable[[int], None],
        *,
        device: torch.device,
        budget_bytes: int,
    ) -> None:
        self._work, self._warm, self._device = work, warm, device
        self._budget = budget_bytes
        self._sizes = sizes_up_to(most_rows)
        self._graphs: dict[int, Graph] = {}
        self._pool: Any = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._capture_all, name="graphs", daemon=True)
        self.bytes_taken = 0

    def __len__(self) -> int:
        return len(self._graphs)

    def start(self) -> None:
        """Begin to capture."""
        self._thread.start()

    def wait(self) -> None:
        """Until all are captured that will be."""
        self._thread.join()

    def close(self) -> None:
        """Capture no more, and wait for the one that is under way."""
        self._closing.set()
        if self._thread.ident is not None:
            self._thread.join()

    def find(self, rows: int) -> Graph | None:
        """The smallest graph for so many rows, if it is captured already and pads by a half at most."""
        first = bisect_left(self._sizes, rows)
        for size in self._sizes[first : first + 2]:
            if (graph := self._graphs.get(size)) is not None and size <= max(2 * rows, EXACT):
                return graph
        return None

    def _capture_all(self) -> None:
        try:
            with torch.inference_mode(), torch.cuda.device(self._device):
                # A stream of its own to warm up on: libraries keep a workspace for each stream, and that
                # of the stream that captures is used by graphs, which run meanwhile.
                warming, capturing = torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
                for rows in self._sizes:
                    if self._closing.is_set() or self._used_up(rows):
                        return
                    with torch.cuda.stream(warming):
                        self._warm(rows)
                        warming.synchronize()
                    with torch.cuda.stream(capturing):
                        self._capture(rows)
        except Exception:
            logger.warning("a decode step could not be captured; it runs kernel by kernel", exc_info=True)
        logger.debug("captured %d graphs in %d MiB", len(self), self.bytes_taken >> 20)

    def _used_up(self, rows: int) -> bool:
        if self.bytes_taken < self._budget:
            return False
        logger.info("no memory for graphs of %d rows and more; raise [device] graphs_mib", rows)
        return True

    def _capture(self, rows: int) -> None:
        """Capture one, on the current stream."""
        before, _ = torch.cuda.mem_get_info(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on launching and allocating while this one captures.
        graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")
        try:
            self._work(rows)
        finally:
            graph.capture_end()
        self._pool = self._pool or graph.pool()
        self._graphs[rows] = Graph(rows, graph)
        after, _ = torch.cuda.mem_get_info(self._device)
        self.bytes_taken += max(0, before - after)
