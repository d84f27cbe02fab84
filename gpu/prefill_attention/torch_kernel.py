"""prefill_attention of torch's own operations, for devices and heads without a kernel of ours.

A row at a time: it asks the device for the rows' lengths, which waits for it, and it allocates. So it cannot
be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.functional import scaled_dot_product_attention


def prefill_attention(
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
    block_size, group = key_pool.shape[1], query.shape[1] // key_pool.shape[2]
    starts = row_starts.tolist()
    for row, context in enumerate(contexts.tolist()):
        tokens = slice(starts[row], starts[row + 1])
        count = tokens.stop - tokens.start
        if count <= 0:
            continue
        blocks = block_tables[row, : -(-context // block_size)]
        # [blocks, block_size, kv_heads, head_dim] -> [1, heads, context, head_dim]
        keys, values = (
            pool[blocks].flatten(0, 1)[:context].repeat_interleave(group, 1).transpose(0, 1)[None]
            for pool in (key_pool, value_pool)
        )
        attended = scaled_dot_product_attention(
            query[tokens].transpose(0, 1)[None],
            keys,
            values,
            attn_mask=_mask(count, context, window, query.device),
            scale=scale,
        )
        out[tokens] = attended[0].transpose(0, 1)


def _mask(count: int, context: int, window: int | None, device: torch.device) -> Tensor | CausalBias | None:
    """Which of the `context` tokens each of the last `count` sees."""
    if window is None or window >= context:
        if count == 1:
            return None  # all of them
        bias: CausalBias = causal_lower_right(count, context)
        return bias
    at = torch.arange(context, device=device)
    distance = at[context - count :, None] - at
    return (distance >= 0) & (distance < window)
