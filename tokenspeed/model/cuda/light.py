"""The speed of light of decoding: how fast this device reads memory, measured when the server starts."""

from __future__ import annotations

import torch

READ_BYTES = 1 << 30  # many times any cache
READS = 8  # between two events: what the first one waits for to be launched is then little among them
REPEATS = 3


def read_rate(device: torch.device) -> float:
    """Bytes a second at which a sum over a gigabyte reads, the best of a few; takes that gigabyte for it."""
    words = torch.ones(READ_BYTES // 4, dtype=torch.float32, device=device)
    out = torch.empty((), dtype=torch.float32, device=device)
    best = float("inf")
    for _ in range(REPEATS):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        for _ in range(READS):
            torch.sum(words, dim=0, out=out)
        end.record()
        end.synchronize()
        best = min(best, start.elapsed_time(end) * 1e-3)
    return READS * words.nbytes / best
