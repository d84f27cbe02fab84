"""The plain torch reference of rope_write_kv; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor

from gpu.rms_norm.reference import rms_norm
from gpu.rope_write_kv.norms import HeadNorms


def rope_write_kv(
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
    """Turn query [tokens, heads, head_dim] in place; write turned key and value to their slots."""
    asked = query
    if norms is not None:
        asked, key = _normed(query, norms.query, norms.eps), _normed(key, norms.key, norms.eps)
    query.copy_(_turned(asked, cos, sin))
    at = slots.long()
    # [blocks, block_size, kv_heads, head_dim] -> [slots, kv_heads, head_dim]
    key_pool.view(-1, *key.shape[1:])[at] = _turned(key, cos, sin)
    value_pool.view(-1, *value.shape[1:])[at] = value


def _normed(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Each of heads [tokens, heads, head_dim]."""
    out = torch.empty_like(heads)
    rms_norm(heads, weight, eps, out)
    return out


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [tokens, heads, head_dim], its first 2 * pairs elements turned."""
    pairs = cos.shape[1]
    cos, sin = cos[:, None, :], sin[:, None, :]
    first, second = x[..., :pairs].float(), x[..., pairs : 2 * pairs].float()
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat([*(half.to(x.dtype) for half in turned), x[..., 2 * pairs :]], dim=-1)
