"""Rows that follow drafts which were just verified: where they begin, the device alone knows in time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tokenspeed.backend.passes import Pass
from tokenspeed.model.cuda.drawing import to_device
from tokenspeed.model.cuda.network import Network
from tokenspeed.model.cuda.staging import StepTensors

UNKNOWN = 0  # what the draft model reads in the place of a token that its embedding lacks


class Verified(NamedTuple):
    """A row with drafts, of a pass that draws after every token."""

    first: int  # its first logit
    drafts: int
    start: int  # position of its token
    room: int  # tokens that its blocks hold


class Follow:
    """Changes a pass whose rows have two tokens each, so that these are the last two of sequences whose
    drafts were verified before it; nothing is waited for.

    The first of the two was computed by the draft model already unless all drafts held; it is written to the
    spare block then. So is a token beyond a row's blocks, whose draw means nothing.
    """

    def __init__(self, network: Network, made: Pass, drawn: Tensor, rows: Sequence[Verified]) -> None:
        """`network` is the draft model's; `made` is the pass that verified, which drew `drawn`."""
        self._network, self._made, self._drawn = network, made, drawn
        self._most = max(row.drafts for row in rows)
        self._rows = np.array(rows, np.int64).T.copy()

    def __call__(self, step: StepTensors) -> None:
        """Enqueue the changes of what was sent of the pass."""
        network = self._network
        first, drafts, start, room = to_device(self._rows, network.device)  # each [rows]
        rows, size = len(first), network.block_size
        ahead = torch.arange(self._most, device=network.device)
        places = first[:, None] + ahead  # [rows, most drafts]
        verified = self._made.step.tokens  # a draft stands behind the token whose draw it should be
        given = verified[(places + 1).clamp_(max=len(verified) - 1)]
        held = ((self._drawn[places] == given) & (ahead < drafts[:, None])).cumprod(1).sum(1)
        last, position, whole = first + held, start + 1 + held, held == drafts
        spare = network.spare_block * size
        table = network.tables[:rows]

        def slots(positions: Tensor) -> Tensor:
            within = positions.clamp(max=network.table_width * size - 1)
            blocks = table.gather(1, (within // size)[:, None])[:, 0]
            return torch.where(positions < room, blocks * size + within % size, spare)

        def known(tokens: Tensor) -> Tensor:
            return torch.where(tokens < network.spec.vocab_size, tokens, UNKNOWN)

        pairs = step.tokens[: 2 * rows].view(rows, 2)
        pairs[:, 0] = torch.where(whole, known(self._drawn[(last - 1).clamp_(min=0)]), UNKNOWN)
        pairs[:, 1] = known(self._drawn[last])
        pairs = step.positions[: 2 * rows].view(rows, 2)
        pairs[:, 0], pairs[:, 1] = position - 1, position
        pairs = step.slots[: 2 * rows].view(rows, 2)
        pairs[:, 0], pairs[:, 1] = torch.where(whole, slots(position - 1), spare), slots(position)
        step.contexts[:rows] = torch.minimum(position + 1, room)
        step.draw_positions[1 : 2 * rows : 2] += held
