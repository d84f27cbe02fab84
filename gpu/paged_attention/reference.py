"""The plain torch reference of paged_attention; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor


def paged_attention(
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
    """query [tokens, heads, head_dim] -> out of the same shape, one row of the batch after the other."""
    block_size = key_pool.shape[1]
    starts = row_starts.tolist()
    for row, context in enumerate(contexts.tolist()):
        tokens = slice(starts[row], starts[row + 1])
        blocks = block_tables[row, : -(-context // block_size)].long()
        keys = key_pool[blocks].flatten(0, 1)[:context]  # [context, kv_heads, head_dim]
        values = value_pool[blocks].flatten(0, 1)[:context]
        out[tokens] = _attend(query[tokens], keys, values, scale, window)


def _attend(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """One sequence: query [new, heads, head_dim] over keys and values [context, kv_heads, head_dim]."""
    new, heads, head_dim = query.shape
    context, kv_heads, _ = keys.shape
    # [new, kv_heads, group, head_dim] -> [kv_heads, group, new, head_dim]
    grouped = query.float().view(new, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    scores = grouped @ keys.float().permute(1, 2, 0)[:, None] * scale  # [kv_heads, group, new, context]
    at = torch.arange(context, device=query.device)
    distance = at[context - new :, None] - at  # [new, context]; negative: in the future
    seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    weights = torch.softmax(scores.masked_fill(~seen, float("-inf")), dim=-1)
    summed = weights @ values.float().permute(1, 0, 2)[:, None]  # [kv_heads, group, new, head_dim]
    return summed.permute(2, 0, 1, 3).reshape(new, heads, head_dim).to(query.dtype)
