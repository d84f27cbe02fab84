"""paged_attention in Numba CUDA; see the package for the contract. The CUDA simulator runs it on CPU tensors.

A block of `read` has one kv head, the queries that share it (up to 8; blocks beside it have the rest, and
find keys and values in the cache), and an item: a run of whole tiles of one row's context. It keeps, for each
query, the largest score so far, the sum of the weights and the weighted sum of values. A row of one item is
then done; `join` adds up the items of the others. How rows are cut into items depends on all contexts, which
each block reads by itself, so that one long row is spread over the device, and a batch of short ones is not
cut at all.

The threads of a block take part in three ways. Scores: `SLICES` threads share a token of context, and each
multiplies every SLICES-th word of its key; the products are added up through shared memory. Weights: a warp
has a query, its lanes have the tokens of a tile. Values: a thread has one word of a head, and some of the
tokens. Keys and values go from memory to registers, 8 bytes at once, a tile ahead of their use.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from gpu.numba_launch import SIMULATED, enqueue
from gpu.paged_attention.numba_device import BIT_TYPES, LANES, flat
from gpu.paged_attention.numba_join import joiner
from gpu.paged_attention.numba_read import reader
from gpu.paged_attention.source import Heads
from gpu.paged_attention.tiling import LEAST_TILES, Tiling, check_batch, check_heads, tiled


@cache
def kernels(tiling: Tiling) -> tuple[Any, Any]:
    """`read` and `join`, which are compiled at their first launch."""
    return reader(tiling), joiner(tiling)


class PagedAttention:
    """Rows of at most `most_tokens` query tokens, for one model on one device, one call at a time.

    Heads may be of any multiple of 8 up to 256, in float32, bfloat16 or float16; blocks of any size. The
    workspace is this object's own: calls on two streams at once need two objects, and a captured graph needs
    the object as long as it lives. Call it once before a capture, for the kernels to be compiled.
    """

    def __init__(
        self, shape: Heads, *, most_tokens: int = 1, most_rows: int = 512, device: torch.device | None = None
    ) -> None:
        where = torch.device("cpu" if SIMULATED else "cuda") if device is None else device
        processors = 1 if SIMULATED else torch.cuda.get_device_properties(where).multi_processor_count
        self._shape, self._most_tokens, self._most_rows = shape, most_tokens, most_rows
        self.tiling = tiling = tiled(shape, most_tokens, most_rows, processors, LANES)
        self._read, self._join = kernels(tiling)
        parts = (tiling.items + most_rows) * shape.kv_heads * tiling.chunks * tiling.queries
        self._sums = torch.empty(parts * shape.head_dim, dtype=torch.float32, device=where)
        self._weights = torch.empty(2 * parts, dtype=torch.float32, device=where)
        self._parts = torch.empty(2 * most_rows, dtype=torch.int32, device=where)

    @property
    def workspace_bytes(self) -> int:
        return sum(x.nbytes for x in (self._sums, self._weights, self._parts))

    def __call__(
        self,
        query: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        row_starts: Tensor,
        contexts: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """Check, and enqueue."""
        check_heads(self._shape, query, key_pool, value_pool, out)
        check_batch(self._most_tokens, self._most_rows, query, block_tables, row_starts, contexts, window)
        self.enqueue(query, key_pool, value_pool, block_tables, row_starts, contexts, scale, window, out)

    def enqueue(
        self,
        query: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        row_starts: Tensor,
        contexts: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """As the call, unchecked."""
        rows, tiling, words = len(contexts), self.tiling, torch.int64
        if not len(query) or not block_tables.numel():
            return
        block_size, kv_heads = key_pool.shape[1], self._shape.kv_heads
        longest = -(-block_tables.shape[1] * block_size // (tiling.tile * LEAST_TILES))
        results = flat(out, BIT_TYPES[out.dtype])
        keys, values = flat(key_pool, words), flat(value_pool, words)
        enqueue(
            self._read,
            (tiling.chunks, kv_heads, min(tiling.items + rows, longest * rows)),
            tiling.threads,
            flat(query, words),
            query.stride(0) // tiling.elements,
            keys,
            values,
            block_size,
            *(stride // tiling.elements for stride in key_pool.stride()[:3]),
            flat(block_tables, torch.int32),
            block_tables.stride(0),
            row_starts,
            contexts,
            scale * math.log2(math.e),
            window or 0,
            results,
            self._sums,
            self._weights,
            self._parts,
        )
        if longest > 1:
            width = tiling.queries * tiling.head_dim
            threads = tiling.threads if SIMULATED else min(1024, -(-width // LANES) * LANES)
            grid = (tiling.chunks, kv_heads, rows)
            enqueue(self._join, grid, threads, row_starts, self._sums, self._weights, self._parts, results)
