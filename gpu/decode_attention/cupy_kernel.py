"""decode_attention in CUDA C++; see the package for the contract, and kernel.cu for how it works."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gpu.decode_attention.source import MOST_ROWS, MOST_SPLITS, RING, SOURCE, TILE, WARPS, constants
from gpu.elements import check_rows
from gpu.launch import Kernels
from gpu.paged_attention.checks import check_pools
from gpu.paged_attention.source import Heads
from gpu.rope_write_kv.norms import HeadNorms

STATIC_BYTES = 8 * 1024  # of a block's shared memory, at most, besides the rings


class DecodeAttention:
    """Rows of one token, for one model on one device, one call at a time.

    The workspace is this object's own, so calls on two streams at once need two objects. A captured graph
    refers to the workspace: keep the object as long as the graph.
    """

    def __init__(self, shape: Heads, pairs: int, *, normed: bool = False, settled: bool = False) -> None:
        """Compiles for the current device; `ValueError` where it does not take the model or the device.

        With `settled`, the caller promises that tables, contexts and all of the pools but the newest entries
        were there before a copy or a graph ended, or a plain launch began, that is ahead in the stream: then
        the kernel reads them while the kernel ahead still runs.
        """
        self._shape, self._pairs, self._normed, self._settled = shape, pairs, normed, int(settled)
        properties = torch.cuda.get_device_properties()
        self._shared_bytes = WARPS * RING * 2 * TILE * shape.head_dim * 2
        chosen = constants(shape, pairs, normed)
        needed = self._shared_bytes + STATIC_BYTES
        if needed > properties.shared_memory_per_block_optin:  # type: ignore[attr-defined]
            raise ValueError(
                f"decode_attention needs {needed} bytes of shared memory, more than this device has:"
                " use rope_write_kv and paged_attention"
            )
        self._multiprocessors = properties.multi_processor_count
        shared = {"decode_attention": self._shared_bytes}
        self.kernels = Kernels(SOURCE, chosen, shared_bytes=shared, shared_percent=100)
        parts = MOST_ROWS * MOST_SPLITS * shape.heads
        self._sums = torch.empty(parts, shape.head_dim, dtype=torch.float32, device="cuda")
        self._weights = torch.empty(parts, 2, dtype=torch.float32, device="cuda")
        self._tickets = torch.zeros(MOST_ROWS * shape.kv_heads, dtype=torch.int32, device="cuda")

    @property
    def workspace_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (self._sums, self._weights, self._tickets))

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        contexts: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
        norms: HeadNorms | None = None,
    ) -> None:
        """See the package."""
        self._check(query, key, value, key_pool, value_pool, out)
        self._check_shared(query.shape[0], cos, sin, block_tables, contexts)
        self._check_norms(norms)
        if query.shape[0]:
            pools, where = (key_pool, value_pool), (block_tables, contexts)
            self.enqueue(query, key, value, cos, sin, *pools, *where, scale, window, out, norms)

    def enqueue(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        contexts: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
        norms: HeadNorms | None = None,
    ) -> None:
        """The call, unchecked, for one row or more."""
        shape, rows = self._shape, query.shape[0]
        strides = (query.stride(0), key.stride(0), value.stride(0), *key_pool.stride()[:3])
        self.kernels.launch_early(
            "decode_attention",
            (min(self._multiprocessors, rows * shape.kv_heads * MOST_SPLITS),),
            (32 * WARPS,),
            *(query, key, value, cos, sin),
            *((None, None) if norms is None else (norms.query, norms.key)),
            *(key_pool, value_pool, block_tables, contexts, out, self._sums, self._weights, self._tickets),
            *(0.0 if norms is None else norms.eps, scale * math.log2(math.e)),
            *(rows, shape.heads, shape.kv_heads, *strides, block_tables.stride(0), key_pool.shape[1] // TILE),
            *(window or 0, self._settled),
            shared_bytes=self._shared_bytes,
        )

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, key_pool: Tensor, value_pool: Tensor, out: Tensor
    ) -> None:
        shape, rows = self._shape, query.shape[0]
        if rows > MOST_ROWS:
            raise ValueError(f"decode_attention: {rows} rows exceed {MOST_ROWS}; use paged_attention")
        check_rows("query", query, shape.dtype, (rows, shape.heads, shape.head_dim))
        check_rows("key", key, shape.dtype, (rows, shape.kv_heads, shape.head_dim))
        check_rows("value", value, shape.dtype, (rows, shape.kv_heads, shape.head_dim))
        check_rows("out", out, shape.dtype, (rows, shape.heads, shape.head_dim))
        if not out.is_contiguous():
            raise ValueError("decode_attention: out has gaps; make it contiguous")
        check_pools("decode_attention", shape, key_pool, value_pool, TILE)

    def _check_shared(
        self, rows: int, cos: Tensor, sin: Tensor, block_tables: Tensor, contexts: Tensor
    ) -> None:
        given = {
            "cos": (cos, torch.float32, (rows, self._pairs)),
            "sin": (sin, torch.float32, (rows, self._pairs)),
            "block_tables": (block_tables, torch.int32, (rows, block_tables.shape[1])),
            "contexts": (contexts, torch.int32, (rows,)),
        }
        for name, (tensor, dtype, shape) in given.items():
            if tensor.dtype != dtype or tensor.shape != shape or tensor.stride(-1) != 1:
                raise ValueError(f"decode_attention: {name} is not a dense {dtype}{list(shape)}; make it one")
        if not (cos.is_contiguous() and sin.is_contiguous()):
            raise ValueError("decode_attention: cos and sin must be contiguous; call .contiguous() on them")

    def _check_norms(self, norms: HeadNorms | None) -> None:
        if (norms is not None) != self._normed:
            raise ValueError(f"decode_attention was made for normed={self._normed}: pass norms only if so")
        if norms is not None:
            for name, weight in (("norms.query", norms.query), ("norms.key", norms.key)):
                check_rows(name, weight[None], self._shape.dtype, (1, self._shape.head_dim))
