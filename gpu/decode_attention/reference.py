"""The plain torch reference of decode_attention; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.paged_attention.reference import paged_attention
from gpu.rope_write_kv.norms import HeadNorms
from gpu.rope_write_kv.reference import rope_write_kv


def decode_attention(
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
    """query [rows, heads, head_dim] -> out of the same shape; key and value into their pools."""
    live = (contexts > 0).nonzero().flatten()
    tables, lengths, turned = block_tables[live], contexts[live], query[live]
    size = key_pool.shape[1]
    last = lengths.long() - 1
    slots = tables.long().gather(1, (last // size)[:, None])[:, 0] * size + last % size
    rope_write_kv(
        turned, key[live], value[live], cos[live], sin[live], slots.int(), key_pool, value_pool, norms
    )
    starts = torch.arange(len(live) + 1, dtype=torch.int32, device=query.device)
    found = torch.empty_like(turned)
    paged_attention(turned, key_pool, value_pool, tables, starts, lengths, scale, window, found)
    out[live] = found
