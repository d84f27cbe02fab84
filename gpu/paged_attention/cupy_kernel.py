"""paged_attention in CUDA C++; see the package for the contract, and kernel.cu for how it works."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpu.launch import Kernels
from gpu.paged_attention.checks import check_pools, check_query
from gpu.paged_attention.source import MOST_ROWS, SOURCE, TILE, Heads, constants

JOINING_WARPS = 8  # of a block of the second kernel
LEAST_TILES = 1  # of a stream: even the shortest gains more than joining it costs


class PagedAttention:
    """Rows of at most `most_tokens` query tokens, for one model on one device, one call at a time.

    The workspace is this object's own, so calls on two streams at once need two objects. A captured graph
    refers to the workspace: keep the object as long as the graph.
    """

    def __init__(self, shape: Heads, *, most_tokens: int = 1, device: torch.device | None = None) -> None:
        properties = torch.cuda.get_device_properties(device)
        shared_bytes = properties.shared_memory_per_block_optin  # type: ignore[attr-defined]
        chosen = constants(shape, most_tokens, shared_bytes)
        self._shape, self._most_tokens = shape, most_tokens
        self._warps = chosen["WARPS"]
        teams = self._warps // chosen["TILES"]
        self._streams = max(properties.multi_processor_count * chosen["BLOCKS"] * teams // shape.kv_heads, 1)
        self._blocks = -(-self._streams * shape.kv_heads // teams)
        self._shared_bytes = teams * chosen["RING"] * 2 * TILE * shape.head_dim
        self.kernels = Kernels(SOURCE, chosen, shared_bytes={"paged_attention_read": self._shared_bytes})
        parts = 2 * self._streams * shape.kv_heads * TILE * chosen["TILES"]
        where = torch.device("cuda") if device is None else device
        self._sums = torch.empty(parts, shape.head_dim, dtype=torch.float32, device=where)
        self._weights = torch.empty(parts, 2, dtype=torch.float32, device=where)
        self._line = torch.empty(MOST_ROWS + 1, dtype=torch.int32, device=where)

    @property
    def workspace_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self._sums, self._weights, self._line))

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
        self._check(query, key_pool, value_pool, contexts.shape[0], out)
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
        rows = contexts.shape[0]
        shape, block_size = self._shape, key_pool.shape[1]
        shared = (shape.heads, shape.kv_heads, self._streams, LEAST_TILES)
        self.kernels.launch_early(
            "paged_attention_read",
            (self._blocks,),
            (32 * self._warps,),
            query,
            key_pool,
            value_pool,
            block_tables,
            row_starts,
            contexts,
            out,
            self._sums,
            self._weights,
            self._line,
            query.stride(0),
            key_pool.stride(0),
            key_pool.stride(1),
            key_pool.stride(2),
            block_tables.stride(0),
            block_size // TILE,
            rows,
            *shared,
            window or 0,
            scale * math.log2(math.e),
            shared_bytes=self._shared_bytes,
        )
        if block_tables.shape[1] * block_size <= LEAST_TILES * TILE and rows == 1:
            return  # one stream: there is nothing to join
        wanted = rows * self._most_tokens * shape.heads
        split = next(n for n in (8, 4, 2, 1) if n == 1 or wanted * n <= 2048)
        self.kernels.launch_early(
            "paged_attention_join",
            (-(-wanted * split // JOINING_WARPS),),
            (32 * JOINING_WARPS,),
            row_starts,
            out,
            self._sums,
            self._weights,
            self._line,
            rows,
            self._most_tokens,
            *shared,
            split,
        )

    def _check(self, query: Tensor, key_pool: Tensor, value_pool: Tensor, rows: int, out: Tensor) -> None:
        check_query("paged_attention", self._shape, query)
        check_pools("paged_attention", self._shape, key_pool, value_pool, TILE)
        if query.shape[0] > rows * self._most_tokens:
            raise ValueError(
                f"paged_attention: {query.shape[0]} tokens in {rows} rows, made for"
                f" {self._most_tokens} a row at most"
            )
        if rows > MOST_ROWS:
            raise ValueError(f"paged_attention: {rows} rows exceed {MOST_ROWS}; run them in two calls")
        if query.stride()[1:] != (self._shape.head_dim, 1) or not out.is_contiguous():
            raise ValueError(
                "paged_attention: query tokens and out must be contiguous; call .contiguous() on them"
            )
