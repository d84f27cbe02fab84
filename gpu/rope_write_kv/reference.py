"""The plain torch reference of rope_write_kv; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor


def rope_write_kv(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cos: Tensor,
    sin: Tensor,
    slots: Tensor,
    key_pool: Tensor,
    value_pool: Tensor,
) -> None:
    """Turn query [tokens, heads, head_dim] in place; write turned key and value to their slots."""
    query.copy_(_turned(query, cos, sin))
    at = slots.long()
    # [blocks, block_size, kv_heads, head_dim] -> [slots, kv_heads, head_dim]
    key_pool.view(-1, *key.shape[1:])[at] = _turned(key, cos, sin)
    value_pool.view(-1, *value.shape[1:])[at] = value


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, head_dim], its first 2 * pairs elements turned."""
    pairs = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([*(half.to(x.dtype) for half in turned), x[..., 2 * pairs :]], dim=-1)
