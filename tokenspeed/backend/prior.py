"""What a step should cost, before the first one was measured."""

from __future__ import annotations

import dataclasses

from tokenspeed.core.costs import Costs
from tokenspeed.model.spec import ModelSpec

# A CPU of today, within a factor of two or so; the cost model corrects it within some tens of steps.
BYTES_A_SECOND = 12e9
FLOPS_A_THREAD = 40e9
ATTENTION_FLOPS_A_THREAD = 15e9
STEP = 1e-3  # seconds that a step takes whatever it does
VALUE_BYTES = 4  # of a key or value in the cache


VERIFY = 0.02  # of a step, for verifying drafts at all


def with_guesses(model: Costs, draft: Costs) -> Costs:
    """The costs of a model whose draft model has those of its own."""
    return dataclasses.replace(model, round=draft.base, guess=draft.row, late=draft.token)


def cpu_costs(spec: ModelSpec, *, weight_bytes: int, threads: int) -> Costs:
    """Coefficients in seconds for a model of that shape, computed with so many threads."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * queries + 2 * keys + 3 * spec.intermediate_size)  # weights
    flops = FLOPS_A_THREAD * threads
    token = 2 * spec.layers * layer / flops
    head = 2 * spec.vocab_size * spec.hidden_size / flops
    base = STEP + weight_bytes / BYTES_A_SECOND
    return Costs(
        base=base,
        row=token + head,  # a decode row computes one token, and every row that draws the logits
        token=token,
        attended=4 * spec.layers * queries / (ATTENTION_FLOPS_A_THREAD * threads),
        read=2 * spec.layers * keys * VALUE_BYTES / BYTES_A_SECOND,
        draft=token + head,
        verify=VERIFY * base,
    )


# A GPU of the Hopper generation with HBM3, whole; the cost model corrects it as well.
GPU_BYTES_A_SECOND = 3.5e12
GPU_FLOPS = 550e12
GPU_ATTENTION_FLOPS = 350e12
GPU_STEP = 3e-4
GPU_LAYER = 1e-5  # what its kernels take beyond reading weights


def gpu_costs(spec: ModelSpec, *, weight_bytes: int, value_bytes: int) -> Costs:
    """Coefficients in seconds for a model of that shape on one GPU; cached values have `value_bytes`."""
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    layer = spec.hidden_size * (2 * queries + 2 * keys + 3 * spec.intermediate_size)  # weights
    token = 2 * spec.layers * layer / GPU_FLOPS
    head = 2 * spec.vocab_size * spec.hidden_size / GPU_FLOPS
    base = GPU_STEP + spec.layers * GPU_LAYER + weight_bytes / GPU_BYTES_A_SECOND
    return Costs(
        base=base,
        row=token + head,
        token=token,
        attended=4 * spec.layers * queries / GPU_ATTENTION_FLOPS,
        read=2 * spec.layers * keys * value_bytes / GPU_BYTES_A_SECOND,
        draft=token + head,
        verify=VERIFY * base,
    )
