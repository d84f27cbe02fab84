"""The plain torch reference of verify; see the package for the contract."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


def verify(sampled: Tensor, starts: Tensor, drafts: Tensor, accepted: Tensor) -> None:
    """sampled, drafts [places]; starts [rows + 1]; accepted [rows]."""
    bounds = starts.tolist()
    same = (sampled == drafts).tolist()
    counts = []
    for start, end in pairwise(bounds):
        agreed = start
        while agreed < end - 1 and same[agreed]:
            agreed += 1
        counts.append(min(agreed - start + 1, end - start))
    accepted.copy_(torch.tensor(counts, dtype=torch.int32))
