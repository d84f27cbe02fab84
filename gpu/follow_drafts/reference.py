"""The plain torch reference of follow_drafts; see the package for the contract."""

from __future__ import annotations

import torch
from torch import Tensor


def follow_drafts(
    verified: Tensor,
    drawn: Tensor,
    rows: Tensor,
    tables: Tensor,
    block_size: int,
    spare_block: int,
    vocab: int,
    tokens: Tensor,
    positions: Tensor,
    slots: Tensor,
    contexts: Tensor,
    draw_positions: Tensor,
) -> None:
    """verified, drawn [places]; rows [rows, 4]; tables [rows, width]; the others as the package tells."""
    first, drafts, start, room = rows.long().T
    count = len(rows)
    ahead = torch.arange(int(drafts.max()), device=rows.device)
    places = (first[:, None] + ahead).clamp(max=len(verified) - 2)  # [rows, most drafts]
    given = verified[places + 1]
    held = ((drawn[places] == given) & (ahead < drafts[:, None])).cumprod(1).sum(1)
    last, position, whole = first + held, start + 1 + held, held == drafts
    spare = spare_block * block_size

    def slots_of(positions: Tensor) -> Tensor:
        within = positions.clamp(max=tables.shape[1] * block_size - 1)
        blocks = tables.gather(1, (within // block_size)[:, None])[:, 0]
        return torch.where(positions < room, blocks * block_size + within % block_size, spare)

    def known(tokens: Tensor) -> Tensor:
        return torch.where(tokens < vocab, tokens, 0)

    before = torch.where(whole, known(drawn[(last - 1).clamp(min=0)]), 0)
    tokens[: 2 * count] = torch.stack((before, known(drawn[last])), 1).view(-1).int()
    positions[: 2 * count] = torch.stack((position - 1, position), 1).view(-1).int()
    where = torch.stack((torch.where(whole, slots_of(position - 1), spare), slots_of(position)), 1)
    slots[: 2 * count] = where.view(-1).int()
    contexts[:count] = torch.minimum(position + 1, room).int()
    draw_positions[1 : 2 * count : 2] += held.int()
