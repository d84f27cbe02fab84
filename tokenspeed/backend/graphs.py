"""Captured graphs: one launch for all kernels of a step, where launching each would take too long."""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, takewhile
from typing import Any, NamedTuple

import torch

from gpu.driver import Driver
from tokenspeed.model.cuda.network import PADDED_ROWS, Bounds, Shape

logger = logging.getLogger(__name__)

FUSED_ROWS = 16  # with more, attention by itself is faster
EXACT = 8  # rows up to which every number has a graph of its own
# Tokens of steps that prefill. Products go by 128 rows, so up to 64 more cost little; with more than 2,048
# the device takes longer than launching does, even for small models.
MIXED = (16, 32, *range(64, 2049, 64))
VERIFY_ROWS = (1, 8, 64)  # of steps that carry drafts
COARSE = 256  # tokens; every prompt's step has a larger coarse one this near
# A step without a graph runs kernel by kernel, which takes the host ten times as long as all of a small
# model's step takes the device. So a few coarse shapes are captured first; until the others are, steps take a
# larger one. Those that have none are the only ones for which captures do not wait, but for those that carry
# drafts: they come in so many shapes that captures would take turns with them for long, and drafts can wait.
#
# While steps run, the thread that captures rests nine times as long as each other capture took: it holds the
# interpreter, and every token of the first seconds would wait for it several times.
REST = 9.0
WANTED = 16  # shapes that are remembered to have been asked for, of either kind
RUNNING_SECONDS = 0.1  # since a step asked for a graph, as long as steps are thought to run


class Graph(NamedTuple):
    """A step of one shape. `replay` enqueues it on torch's current stream."""

    shape: Shape
    replay: Callable[[], None]


def decode_shapes(most: int) -> list[Shape]:
    """Steps that decode: padding adds a quarter at most, and nothing to `EXACT` rows or fewer."""
    sizes = [*range(1, EXACT + 1)]
    while sizes[-1] < most:
        last = sizes[-1]
        sizes.append(last + max(2, (1 << last.bit_length()) // EXACT))
    return [Shape(size, size, size) for size in (*(size for size in sizes if size < most), most)]


def mixed_shapes(most_rows: int, most_tokens: int) -> list[Shape]:
    """Steps in which some rows prefill, beside any number that decode."""
    sizes = [size for size in MIXED if size <= most_tokens]
    return [Shape(size, min(most_rows, size), min(most_rows, size) + PADDED_ROWS) for size in sizes]


def verify_shapes(most_rows: int, most_tokens: int, few: int) -> list[Shape]:
    """Steps whose rows have up to `few` tokens each: drafts behind the one that decodes."""
    sizes = [shape.tokens for shape in decode_shapes(most_tokens)]
    before, found = 0, []
    for most in (*(rows for rows in VERIFY_ROWS if rows < most_rows), min(most_rows, VERIFY_ROWS[-1])):
        fitting = [size for size in sizes if max(1, before) < size <= most * few]
        found += [Shape(size, 0, most, few=True) for size in fitting]
        before = most
    return found if few > 1 else []


def coarse(shapes: Sequence[Shape]) -> list[Shape]:
    """Those that smaller steps may take while nothing nearer is captured: twice the rows that decode, or a
    few more tokens, cost the device less than launching kernel by kernel costs the host."""
    decodes = [shape for shape in shapes if shape.singles == shape.rows]
    mixed = [shape for shape in shapes if not shape.draws]
    found = [shape for shape in decodes if shape.rows.bit_count() == 1 or shape == decodes[-1]]
    found += [shape for shape in mixed if shape.tokens % COARSE == 0 or shape == mixed[-1]]
    return found + [shape for shape in shapes if shape.few and shape.tokens.bit_count() == 1]


class Agenda:
    """What is still to be captured: what steps have no graph for, coarse shapes, what steps have only a
    larger graph for, then the rest in its order.

    One thread takes, others ask.
    """

    def __init__(self, shapes: Sequence[Shape]) -> None:
        self._coarse = dict.fromkeys(coarse(shapes))
        self._left = self._coarse | dict.fromkeys(shapes)
        self._missing: deque[Shape] = deque(maxlen=WANTED)
        self._covered: deque[Shape] = deque(maxlen=WANTED)
        self._asked = float("-inf")
        self._news = threading.Event()  # something is missing, or it is closed
        self._closed = False

    def ask(self, shape: Shape, now: float, instead: Shape | None) -> None:
        """A step begins that would best have that shape, by the graph of another one or, if None, by none."""
        self._asked = now
        if shape not in self._left:
            return
        if instead is None and not shape.few:
            self._missing.append(shape)
            self._news.set()
        else:
            self._covered.append(shape)

    def take(self) -> Shape | None:
        """The next one; None: all were taken, or it is closed."""
        self._news.clear()
        following = next(iter(self._left), None)
        if following is None or self._closed:
            return None
        for asked in (self._missing,) if following in self._coarse else (self._missing, self._covered):
            while asked:
                wanted = asked.popleft()
                if wanted in self._left:
                    del self._left[wanted]
                    return wanted
        del self._left[following]
        return following

    def rest(self, took: float, now: float) -> None:
        """After a capture of so many seconds: let steps run alone, unless one has no graph."""
        if now - self._asked < RUNNING_SECONDS and not self._closed:
            self._news.wait(REST * took)

    def close(self) -> None:
        """End a rest, and let no more be taken."""
        self._closed = True  # before the news, which `take` may forget
        self._news.set()


class Graphs:
    """Captures on a thread of its own, while steps without a graph run kernel by kernel.

    Steps that decode up to `FUSED_ROWS` rows, and attend up to `short_keys` tokens together, have graphs of
    their own. `work` enqueues a step of a shape on torch's current stream, over memory that is the same each
    time; `warm` does what it does for the first time (loading kernels, say) and touches no memory that steps
    use. `budget_bytes` bounds what graphs take of the device's memory. A capture that fails is logged and
    ends the capturing; what was captured stays.
    """

    def __init__(
        self,
        bounds: Bounds,
        short_keys: int,
        work: Callable[[Shape], None],
        warm: Callable[[int], None],
        *,
        device: torch.device,
        budget_bytes: int,
        turns: threading.Lock | None = None,
    ) -> None:
        """Of steps that prefill, those of up to `bounds.tokens` are captured. Who shares `turns` captures one
        at a time."""
        self._work, self._warm, self._device = work, warm, device
        self._budget = budget_bytes
        self._short_keys = short_keys
        self._turns = turns or threading.Lock()
        self._decodes = decode_shapes(bounds.rows)
        self._mixed = mixed_shapes(bounds.rows, bounds.tokens)
        self._verifies = verify_shapes(bounds.rows, bounds.logits, bounds.few)
        self._agenda = Agenda(self.shapes)
        self._graphs: dict[Shape, Graph] = {}
        self._kept: list[torch.cuda.CUDAGraph] = []  # as long as they may be launched
        self._pool: Any = None
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
        self._agenda.close()
        if self._thread.ident is not None:
            self._thread.join()

    @property
    def shapes(self) -> list[Shape]:
        """All that are captured, in this order where no step asks for another."""
        short = [s._replace(short=True) for s in self._decodes if self._short_keys and s.rows <= FUSED_ROWS]
        return [*short, *self._decodes, *self._mixed, *self._verifies]

    def decode(self, rows: int, keys: int) -> Graph | None:
        """For a step of so many rows of one token that attend `keys` together: the smallest one that fits, of
        those that are captured already."""
        place = bisect_left(self._decodes, Shape(rows, 0, 0))
        fitting = takewhile(lambda shape: shape.rows <= 2 * rows, self._decodes[place:])
        if keys <= self._short_keys:
            return self._captured(chain.from_iterable(map(_with_short, fitting)))
        return self._captured(fitting)

    def verify(self, tokens: int, rows: int) -> Graph | None:
        """For a step of so many tokens, a few in each row: the smallest with room for it, of those that are
        captured already."""
        return self._captured(
            shape for shape in self._verifies if tokens <= shape.tokens <= 2 * tokens and rows <= shape.rows
        )

    def mixed(self, tokens: int, singles: int, others: int) -> Graph | None:
        """For a step of so many tokens, in rows of one token and others: the smallest with room for it, of
        those that are captured already."""
        place = bisect_left(self._mixed, Shape(tokens, 0, 0))
        near = takewhile(lambda shape: shape.tokens < tokens + COARSE, self._mixed[place:])
        return self._captured(
            shape for shape in near if singles <= shape.singles and others <= shape.rows - shape.singles
        )

    def _captured(self, fitting: Iterable[Shape]) -> Graph | None:
        """Of the first that is; the very first is asked for."""
        best, found = None, None
        for shape in fitting:
            best = best or shape
            if found := self._graphs.get(shape):
                break
        if best is not None:
            self._agenda.ask(best, time.monotonic(), found and found.shape)
        return found

    def _capture_all(self) -> None:
        try:
            first = time.monotonic()
            with torch.inference_mode(), torch.cuda.device(self._device):
                # A stream of its own to warm up on: libraries keep a workspace for each stream, and that
                # of the stream that captures is used by graphs, which run meanwhile.
                warming, capturing = torch.cuda.Stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
                driver = Driver(self._device)
                while (shape := self._agenda.take()) is not None and not self._used_up():
                    began = time.monotonic()
                    with torch.cuda.stream(warming):
                        for rows in shape.multiplied:
                            self._warm(rows)
                        warming.synchronize()
                    with self._turns, torch.cuda.stream(capturing):
                        self._capture(shape, driver)
                    now = time.monotonic()
                    self._agenda.rest(now - began, now)
        except Exception:
            logger.warning("a step could not be captured; such steps run kernel by kernel", exc_info=True)
        logger.debug(
            "captured %d graphs in %d MiB, the last after %.1f s",
            len(self),
            self.bytes_taken >> 20,
            time.monotonic() - first,
        )

    def _used_up(self) -> bool:
        if self.bytes_taken < self._budget:
            return False
        logger.info("no memory for more than %d graphs; raise [device] graphs_mib", len(self))
        return True

    def _capture(self, shape: Shape, driver: Driver) -> None:
        """Capture one, on the current stream."""
        before, _ = torch.cuda.mem_get_info(self._device)
        graph = torch.cuda.CUDAGraph()
        # Other threads go on launching and allocating while this one captures.
        graph.capture_begin(pool=self._pool, capture_error_mode="relaxed")
        try:
            self._work(shape)
        finally:
            graph.capture_end()
        self._pool = self._pool or graph.pool()
        self._kept.append(graph)
        self._graphs[shape] = Graph(shape, _replay_of(graph, driver))
        after, _ = torch.cuda.mem_get_info(self._device)
        self.bytes_taken += max(0, before - after)


def _with_short(shape: Shape) -> Iterator[Shape]:
    if shape.rows <= FUSED_ROWS:
        yield shape._replace(short=True)
    yield shape


def _replay_of(graph: torch.cuda.CUDAGraph, driver: Driver) -> Callable[[], None]:
    """By the driver, where this version of torch tells the handle that it needs."""
    if hasattr(graph, "raw_cuda_graph_exec"):
        return partial(driver.launch_graph, graph.raw_cuda_graph_exec())
    return graph.replay
