"""Rows that follow drafts, of all kinds."""

from __future__ import annotations

from random import Random
from typing import Any

import torch

BLOCK_SIZE, SPARE, VOCAB, WIDTH = 4, 999, 9, 12


def followed(rows: int, most: int, *, seed: int) -> tuple[Any, ...]:
    """The arguments of `follow_drafts`, on the CPU: rows with one draft or up to `most`, which hold often,
    with room for what follows or not, and tokens beyond the vocabulary."""
    chance = Random(seed)
    verified: list[int] = []
    drawn: list[int] = []
    told: list[tuple[int, int, int, int]] = []
    for _ in range(rows):
        drafts = chance.randint(1, most)
        verified.append(chance.randrange(VOCAB + 2))  # another token of the row, which draws nothing
        drawn.append(chance.randrange(VOCAB + 2))
        start = chance.randint(0, BLOCK_SIZE * WIDTH - most - 2)
        told.append((len(verified), drafts, start, BLOCK_SIZE * -(-(start + 1 + drafts) // BLOCK_SIZE)))
        tokens = [chance.randrange(VOCAB + 2) for _ in range(1 + drafts)]
        verified += tokens
        drawn += [t if chance.random() < 0.7 else (t + 1) % VOCAB for t in tokens[1:]]
        drawn.append(chance.randrange(VOCAB + 2))

    def integers(*shape: int) -> torch.Tensor:
        return torch.tensor(chance.choices(range(60), k=torch.Size(shape).numel())).int().view(shape)

    tables = torch.stack([torch.randperm(60)[:WIDTH] for _ in range(rows)]).int()
    return (
        torch.tensor(verified).int(),
        torch.tensor([*drawn, 3]).int(),
        torch.tensor(told).int(),
        tables,
        BLOCK_SIZE,
        SPARE,
        VOCAB,
        integers(2 * rows + 1),
        integers(2 * rows + 1),
        integers(2 * rows + 1),
        integers(rows + 1),
        integers(2 * rows + 1),
    )
