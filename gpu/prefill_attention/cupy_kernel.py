"""prefill_attention in CUDA C++; see the package for the contract, and kernel.cu for how it works."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpu.launch import Kernels
from gpu.paged_attention.checks import check_pools, check_query
from gpu.paged_attention.source import Heads
from gpu.prefill_attention.source import (
    GRANULE,
    MOST_ROWS,
    QUERY_ROWS,
    SOURCE,
    THREADS,
    constants,
    shared_bytes,
)

NO_WINDOW = 1 << 30
ACCESS_BYTES = 16  # of one copy or store


class PrefillAttention:
    """Rows of any number of query tokens, for one model on one device, one call at a time.

    The workspace, two counters, is this object's own: calls on two streams at once need two objects. A
    captured graph refers to it: keep the object as long as the graph.
    """

    def __init__(self, shape: Heads, *, device: torch.device | None = None) -> None:
        chosen = constants(shape)
        self._shape = shape
        self._blocks = torch.cuda.get_device_properties(device).multi_processor_count
        self._shared_bytes = shared_bytes(chosen)
        self.kernels = Kernels(SOURCE, chosen, shared_bytes={"prefill_attention": self._shared_bytes})
        where = torch.device("cuda") if device is None else device
        self._counters = torch.zeros(2, dtype=torch.int32, device=where)  # the kernel leaves them so

    @property
    def workspace_bytes(self) -> int:
        return self._counters.numel() * self._counters.element_size()

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
        """See the package."""
        self._check(query, key_pool, value_pool, block_tables, contexts.shape[0], scale, out)
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
        """The call, unchecked."""
        rows, tokens, shape = contexts.shape[0], query.shape[0], self._shape
        tiles = shape.kv_heads * (tokens * shape.group // QUERY_ROWS + rows)  # at most
        if not tokens or not rows:
            return
        self.kernels.launch_early(
            "prefill_attention",
            (min(self._blocks, tiles),),
            (THREADS,),
            query,
            key_pool,
            value_pool,
            block_tables,
            row_starts,
            contexts,
            out,
            self._counters,
            query.stride(0),
            key_pool.stride(0),
            key_pool.stride(1),
            key_pool.stride(2),
            block_tables.stride(0),
            key_pool.shape[1] // GRANULE,
            rows,
            shape.kv_heads,
            min(window or NO_WINDOW, NO_WINDOW),
            scale * math.log2(math.e),
            shared_bytes=self._shared_bytes,
        )

    def _check(
        self,
        query: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        rows: int,
        scale: float,
        out: Tensor,
    ) -> None:
        shape = self._shape
        check_query("prefill_attention", shape, query)
        check_pools("prefill_attention", shape, key_pool, value_pool, GRANULE)
        if rows > MOST_ROWS:
            raise ValueError(f"prefill_attention: {rows} rows exceed {MOST_ROWS}; run them in two calls")
        if scale <= 0:
            raise ValueError(f"prefill_attention: scale is {scale}; it must be above 0")
        if (
            query.stride()[1:] != (shape.head_dim, 1)
            or not out.is_contiguous()
            or block_tables.stride(1) != 1
        ):
            raise ValueError(
                "prefill_attention: query tokens, tables and out must be contiguous;"
                " call .contiguous() on them"
            )
        strides = (query.stride(0), *key_pool.stride()[:3])
        if any(x.data_ptr() % ACCESS_BYTES for x in (query, key_pool, value_pool, out)) or any(
            stride * shape.dtype.itemsize % ACCESS_BYTES for stride in strides
        ):
            raise ValueError(
                f"prefill_attention: heads do not start at multiples of {ACCESS_BYTES} bytes; align them"
            )
