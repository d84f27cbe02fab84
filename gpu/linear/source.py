"""The CUDA source of linear for few rows, and which variant of it reads which matrix fastest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from gpu.source import Constants, Source


@dataclass(frozen=True, slots=True)
class Plan:
    """How a matrix is divided: the constants of kernel.cu.

    Sums are in an order that `warps` fixes; so these are the same for any number of rows.
    """

    warps: int  # of a block; they divide the inputs
    tiles: int  # of 16 outputs, that a block sums at a time
    stages: int  # of 128 inputs, that a warp's reads are ahead of its sums
    blocks: int  # that are resident on a multiprocessor

    def constants(self, half: bool) -> Constants:
        """What kernel.cu is compiled with, for float16 or bfloat16."""
        return {**{name.upper(): value for name, value in asdict(self).items()}, "HALF": int(half)}

    @property
    def shared_bytes(self) -> int:
        """Of the rings of a block."""
        return self.warps * self.stages * self.tiles * 4096

    def grid(self, outputs: int, multiprocessors: int) -> int:
        """As many blocks as are resident, which walk over the tiles, or one for each tile."""
        tiles = -(-outputs // (16 * self.tiles))
        return min(tiles, multiprocessors * self.blocks)


LONE = Plan(warps=8, tiles=1, stages=2, blocks=1)
PAIRED = Plan(warps=8, tiles=1, stages=2, blocks=2)
DEEP = Plan(warps=8, tiles=1, stages=3, blocks=1)
BROAD = Plan(warps=8, tiles=2, stages=2, blocks=1)
PLANS = (LONE, PAIRED, DEEP, BROAD)

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("linear_8", "linear_16"),
    variants=tuple(plan.constants(half) for plan in PLANS for half in (False, True)),
    shared=(Path(__file__).parents[1] / "common.cuh",),
)


def planned(rows: int, outputs: int, multiprocessors: int) -> Plan:
    """The plan that reads a matrix of so many outputs fastest, by measurement (bench/log-h200.md)."""
    tiles = -(-outputs // 16)
    each = -(-tiles // multiprocessors)
    if rows > 8:  # x is read again for each tile: half as often for broad ones
        return DEEP if each == 1 else BROAD
    return LONE if each % 2 else PAIRED  # so that no block is left without a tile at the end
