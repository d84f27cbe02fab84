"""Times calls on the device: CUDA graph replays between events, over inputs larger than the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

import torch

REPEATS = 20
CACHE_BYTES = 200_000_000  # inputs that rotate make up at least so much, four times an H200's L2


def copies_beyond_cache(read_bytes: int) -> int:
    """How many sets of inputs of that size keep each other out of the cache."""
    return max(1, -(-CACHE_BYTES // max(read_bytes, 1)))


def microseconds(calls: Sequence[Callable[[], object]]) -> float:
    """Of one call: all of `calls` are captured in one graph, which is replayed; the median of the replays."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(REPEATS):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return float(median(times))


def read_ceiling() -> float:
    """Bytes a second at which the device reads memory: a sum over 4 GB, in 16-byte loads."""
    words = torch.randn(1 << 30, device="cuda", dtype=torch.float32)
    out = torch.empty((), device="cuda", dtype=torch.float32)
    taken = microseconds([lambda: torch.sum(words, dim=0, out=out)])
    return words.nbytes / (taken * 1e-6)
