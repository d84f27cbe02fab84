"""The plain torch reference of gated_linear; see the package for the contract."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import silu


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """x [rows, in], weight [2 * outputs, in], bias [2 * outputs] -> out [rows, outputs]."""
    sums = x.float() @ weight.float().T
    if bias is not None:
        sums += bias.float()
    gate, up = sums.chunk(2, dim=-1)
    out.copy_(silu(gate) * up)
