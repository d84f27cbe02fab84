"""What rows of logits are adjusted by, at random."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adjustments(NamedTuple):
    """In the order in which adjust_logits takes them."""

    starts: Tensor
    tokens: Tensor
    counts: Tensor
    biases: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor
    mask: Tensor | None


def adjustments(rows: int, vocab: int, most: int, *, masked: bool, device: str = "cuda") -> Adjustments:
    """Up to `most` entries a row; some tokens are out of the vocabulary, and some entries of no row."""
    sizes = torch.randint(min(most, vocab) + 1, (rows,))
    sizes[rows // 2] = min(most, vocab)
    starts = torch.cat([torch.tensor([2]), 2 + sizes.cumsum(0)])
    capacity = int(starts[-1]) + 300
    tokens = torch.randint(vocab, (capacity,))
    for row, size in enumerate(sizes.tolist()):
        own = torch.randperm(vocab)[:size]
        own[torch.rand(size) < 0.05] = vocab + 3
        own[torch.rand(size) < 0.05] = -1
        tokens[starts[row] : starts[row] + size] = own
    biases = torch.randn(capacity)
    biases[torch.rand(capacity) < 0.1] = -torch.inf
    words = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32) + 1))
    words[torch.rand(words.shape) < 0.3] = 0
    words[torch.rand(words.shape) < 0.3] = -1
    repetition = torch.where(torch.rand(rows) < 0.3, 1.0, 0.5 + torch.rand(rows))
    return Adjustments(
        starts.to(device, torch.int32),
        tokens.to(device, torch.int32),
        torch.randint(-1, 5, (capacity,)).to(device, torch.int32),
        biases.to(device),
        repetition.to(device),
        torch.randn(rows).to(device),
        torch.randn(rows).to(device),
        words.to(device, torch.int32)[:, :-1] if masked else None,
    )
