"""What a step should cost, before the first one was measured."""

from __future__ import annotations

from tokenspeed.core.costs import Costs
from tokenspeed.model.spec import ModelSpec

# A CPU of today, within a factor of two or so; the cost model corrects it within some tens of steps.
BYTES_A_SECOND = 12e9
FLOPS_A_THREAD = 40e9
ATTENTION_FLOPS_A_THREAD = 15e9
STEP = 1e-3  # seconds that a step takes whatever it does
VALUE_BYTES = 4  # of a key or value in the cache


def cpu_costs(spec: ModelSpec, *, weight_bytes: int, threads: int) -> Costs:
    """Coefficients in seconds for a model of that shape, computed with so many threads."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * queries + 2 * keys + 3 * spec.intermediate_size)  # weights
    flops = FLOPS_A_THREAD * threads
    token = 2 * spec.layers * layer / flops
    head = 2 * spec.vocab_size * spec.hidden_size / flops
    return Costs(
        base=STEP + weight_bytes / BYTES_A_SECOND,
        row=token + head,  # a decode row computes one token, and every row that draws the logits
        token=token,
        attended=4 * spec.layers * queries / (ATTENTION_FLOPS_A_THREAD * threads),
        read=2 * spec.layers * keys * VALUE_BYTES / BYTES_A_SECOND,
    )
