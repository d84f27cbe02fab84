"""Rows of results for kernels that move memory and compute next to nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.gpu_kernels.timing import copies_beyond_cache, microseconds

READ_CEILING = 4.67e12  # bytes a second, what an H200 reads
MOST_SETS = 128  # of inputs; few rows stay in the cache with these, as they do between the kernels of a step
ROWS = (1, 16, 256, 8192)


def measured(op: str, shape: str, moved: int, make: Callable[[], Callable[[], object]]) -> dict[str, Any]:
    """Time calls that `make` draws fresh inputs for; each reads and writes `moved` bytes in all."""
    calls = [make() for _ in range(max(4, min(MOST_SETS, copies_beyond_cache(moved))))]
    taken = microseconds(calls)
    achieved = moved / (taken * 1e-6)
    return {
        "op": op,
        "shape": shape,
        "microseconds": taken,
        "bytes": moved,
        "achieved": achieved,
        "fraction": achieved / READ_CEILING,
    }
