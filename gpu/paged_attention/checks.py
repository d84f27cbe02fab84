"""What the CUDA kernels of attention take: the same of queries and pools, in each op's name."""

from __future__ import annotations

from torch import Tensor

from gpu.paged_attention.source import Heads


def check_query(op: str, shape: Heads, query: Tensor) -> None:
    if query.shape[1:] != (shape.heads, shape.head_dim) or query.dtype != shape.dtype:
        raise ValueError(f"{op}: query is {query.dtype}{list(query.shape)}, made for {shape}")


def check_pools(op: str, shape: Heads, key_pool: Tensor, value_pool: Tensor, granule: int) -> None:
    """`granule`: tokens that must lie in one block."""
    for pool in (key_pool, value_pool):
        if pool.dtype != shape.dtype or pool.shape[2:] != (shape.kv_heads, shape.head_dim):
            raise ValueError(f"{op}: a pool is {pool.dtype}{list(pool.shape)}, made for {shape}")
    if key_pool.shape[1] % granule:
        raise ValueError(
            f"{op}: block size {key_pool.shape[1]} is no multiple of {granule}; choose one that is"
        )
    if key_pool.stride() != value_pool.stride() or key_pool.stride(3) != 1:
        raise ValueError(f"{op}: keys and values of a head must be contiguous, and both pools alike")
