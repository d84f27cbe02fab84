"""What a GPU's memory is used for, decided before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from tokenspeed.core.plan import Capacity
from tokenspeed.errors import ModelError

GIB = 1 << 30
# Kernels, the libraries' own workspaces, log-probabilities of some rows, what the allocator rounds up.
RESERVE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Ledger:
    """Bytes of one GPU: `free` of `total` when the server came, whoever uses the rest."""

    total: int
    free: int
    allowed: int  # of the free ones
    weights: int
    workspace: int
    graphs: int
    block: int  # of one KV block, over all layers
    block_size: int  # tokens
    blocks: int

    @property
    def kv(self) -> int:
        return self.blocks * self.block

    @property
    def tokens(self) -> int:
        """That the KV memory holds, over all sequences."""
        return self.blocks * self.block_size

    @property
    def uses(self) -> dict[str, int]:
        """What each use takes."""
        return {
            "weights": self.weights,
            "workspace": self.workspace,
            "graphs": self.graphs,
            "reserve": RESERVE_BYTES,
            "KV cache": self.kv,
        }

    def told(self) -> str:
        """One line."""
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.uses.items())
        return (
            f"GPU memory, GiB: {self.total / GIB:.1f}, free {self.free / GIB:.1f}; {parts} = "
            f"{self.blocks} blocks of {self.block_size}, {self.tokens:,} tokens"
        )


def plan_ledger(
    *,
    total: int,
    free: int,
    fraction: float,
    weights: int,
    workspace: int,
    graphs: int,
    block: int,
    block_size: int,
    wanted: int = 0,
) -> Ledger:
    """Divide `fraction` of the `free` bytes; KV memory takes `wanted` bytes, or with 0 all that is left.

    Raises `ModelError` where not one block of KV, or not what is wanted, fits beside the rest.
    """
    allowed = int(free * fraction)
    fixed = weights + workspace + graphs + RESERVE_BYTES
    left = allowed - fixed
    # One block more than sequences may use takes what padding writes.
    blocks = (wanted or max(left, 0)) // block - (0 if wanted else 1)
    ledger = Ledger(total, free, allowed, weights, workspace, graphs, block, block_size, max(blocks, 0))
    told = (
        f"the GPU has {free / GIB:.1f} GiB free, of which [device] memory_fraction allows "
        f"{allowed / GIB:.1f}; weights take {weights / GIB:.1f}, workspace {workspace / GIB:.1f}, graphs "
        f"{graphs / GIB:.1f} and a reserve {RESERVE_BYTES / GIB:.1f}"
    )
    if wanted and wanted + block > left:
        raise ModelError(
            f"{told}, which leaves {max(left, 0) / GIB:.1f}, not the {wanted / GIB:.1f} of "
            "[cache] memory_mib; lower that"
        )
    if blocks < 1:
        raise ModelError(
            f"{told}, which leaves no KV memory; free some, serve a smaller model, or lower "
            "[scheduler] step_tokens"
        )
    return ledger


def capacity_of(ledger: Ledger, max_context: int) -> Capacity:
    """What the scheduler may hand out."""
    return Capacity(ledger.blocks, ledger.block_size, min(max_context, ledger.tokens))
