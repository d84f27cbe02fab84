"""The second kernel: what the items of a row have, to its result."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu.paged_attention.numba_device import conversions, cuda, exp2, own_thread
from gpu.paged_attention.numba_parts import NEVER, asker
from gpu.paged_attention.tiling import Tiling


def joiner(tiling: Tiling) -> Any:
    queries, chunks, group, head_dim = tiling.queries, tiling.chunks, tiling.group, tiling.head_dim
    _, narrow = conversions(tiling.dtype)
    place_of, _ = asker(tiling)

    @cuda.jit
    def join(starts: Any, partial_sums: Any, partial_weights: Any, parts: Any, out: Any) -> None:
        chunk, kv_head, row = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        kv_heads, first_query = cuda.gridDim.y, chunk * queries
        live = min((starts[row + 1] - starts[row]) * group - first_query, queries)
        if live <= 0 or parts[2 * row + 1] == 1:
            return
        asking = starts[row], kv_head, first_query, live
        first = ((parts[2 * row] * kv_heads + kv_head) * chunks + chunk) * queries
        step = kv_heads * chunks * queries  # from an item to the next
        last = first + parts[2 * row + 1] * step
        for n in range(own_thread(), live * head_dim, cuda.blockDim.x):
            one, at = n // head_dim, n % head_dim
            best = NEVER
            for part in range(first + one, last, step):
                best = max(best, partial_weights[2 * part])
            norm, total = np.float32(0.0), np.float32(0.0)
            for part in range(first + one, last, step):
                fade = exp2(partial_weights[2 * part] - best)
                norm += fade * partial_weights[2 * part + 1]
                total += fade * partial_sums[part * head_dim + at]
            token, head = place_of(one, asking)
            out[(token * kv_heads * group + head) * head_dim + at] = narrow(total / norm)

    return join
