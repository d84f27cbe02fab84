"""rope_write_kv in CUDA C++; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.elements import check_rows, dtype_constant
from gpu.launch import Kernels
from gpu.rope_write_kv.norms import HeadNorms
from gpu.rope_write_kv.source import SOURCE, WARP, constants

THREADS = 64  # small blocks were the fastest on many tokens


class RopeWriteKv:
    """Heads of one shape and dtype."""

    def __init__(self, dtype: torch.dtype, head_dim: int, pairs: int) -> None:
        if not 0 < 2 * pairs <= head_dim:
            raise ValueError(f"{pairs} pairs turn in heads of {head_dim}; make it 1 to {head_dim // 2}")
        chosen = constants(dtype_constant(dtype), dtype.itemsize, head_dim, pairs)
        self._dtype, self._head_dim, self._pairs = dtype, head_dim, pairs
        self._group = chosen["GROUP"]
        self._kernels = Kernels(SOURCE, chosen)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        norms: HeadNorms | None = None,
    ) -> None:
        """See the package."""
        self._check(query, key, value, key_pool, value_pool)
        self._check_shared(query.shape[0], cos, sin, slots)
        if norms is not None:
            self._check_norms(norms)
        if query.shape[0]:
            self.enqueue(query, key, value, cos, sin, slots, key_pool, value_pool, norms)

    def enqueue(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cos: Tensor,
        sin: Tensor,
        slots: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        norms: HeadNorms | None = None,
    ) -> None:
        """The call, unchecked, for one token or more."""
        tokens, heads, _ = query.shape
        kv_heads = key.shape[1]
        lanes = (heads + 2 * kv_heads) * self._group
        threads = min(THREADS, -(-lanes // WARP) * WARP)
        self._kernels.launch_early(
            "rope_write_kv",
            (tokens, -(-lanes // threads)),
            (threads,),
            *(query, key, value, cos, sin, slots, key_pool, value_pool),
            *((None, None, 0.0) if norms is None else (norms.query, norms.key, norms.eps)),
            *(heads, kv_heads, query.stride(0), key.stride(0), value.stride(0)),
        )

    def _check(self, query: Tensor, key: Tensor, value: Tensor, key_pool: Tensor, value_pool: Tensor) -> None:
        tokens, heads, _ = query.shape
        kv_heads = key.shape[1]
        check_rows("query", query, self._dtype, (tokens, heads, self._head_dim))
        check_rows("key", key, self._dtype, (tokens, kv_heads, self._head_dim))
        check_rows("value", value, self._dtype, (tokens, kv_heads, self._head_dim))
        for name, pool in (("key_pool", key_pool), ("value_pool", value_pool)):
            check_rows(name, pool, self._dtype, (*pool.shape[:2], kv_heads, self._head_dim))
            if not pool.is_contiguous():
                raise ValueError(f"{name} has gaps; make it contiguous")

    def _check_shared(self, tokens: int, cos: Tensor, sin: Tensor, slots: Tensor) -> None:
        if slots.dtype != torch.int32 or slots.shape != (tokens,) or not slots.is_contiguous():
            raise ValueError(f"slots is {slots.dtype} {list(slots.shape)}; make it torch.int32 [{tokens}]")
        for name, angles in (("cos", cos), ("sin", sin)):
            if angles.dtype != torch.float32 or angles.shape != (tokens, self._pairs):
                needed = f"torch.float32 [{tokens}, {self._pairs}]"
                raise ValueError(f"{name} is {angles.dtype} {list(angles.shape)}; make it {needed}")
            if not angles.is_contiguous():
                raise ValueError(f"{name} has gaps; make it contiguous")

    def _check_norms(self, norms: HeadNorms) -> None:
        for name, weight in (("norms.query", norms.query), ("norms.key", norms.key)):
            check_rows(name, weight[None], self._dtype, (1, self._head_dim))
