"""The CUDA source of gated_linear, and which variant of it takes which product."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpu.source import HOPPER, Constants, Source

CLUSTER = 2  # blocks
BLOCK_ROWS = 128  # of x
DEPTH = 64  # inputs of a stage
THREADS = 384
ALIGNMENT = 1024  # bytes, of the swizzled ring


@dataclass(frozen=True, slots=True)
class Plan:
    """The constants of kernel.cu."""

    width: int  # rows of the matrix, that a cluster has at a time
    stages: int

    @property
    def outputs(self) -> int:
        """Of a tile; rows of the matrix that a block fetches."""
        return self.width // 2

    @property
    def shared_bytes(self) -> int:
        return self.stages * (BLOCK_ROWS + self.width) * 2 * DEPTH + ALIGNMENT

    def tiles(self, rows: int, outputs: int) -> int:
        """Of a cluster."""
        return -(-rows // (CLUSTER * BLOCK_ROWS)) * -(-outputs // self.outputs)

    def constants(self, half: bool) -> Constants:
        return {"WIDTH": self.width, "STAGES": self.stages, "HALF": int(half)}


BROAD = Plan(width=256, stages=4)
NARROW = Plan(width=128, stages=6)
PLANS = (BROAD, NARROW)
NARROW_COST = 0.53  # what a tile half as wide takes
LEAST_BUSY = 0.84  # of the device, for it to pay

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("gated_linear",),
    variants=tuple(plan.constants(half) for plan in PLANS for half in (False, True)),
    shared=HOPPER,
    architectures=("sm_90a",),
)


def planned(rows: int, outputs: int, multiprocessors: int) -> Plan:
    """The plan whose last tiles leave the fewest multiprocessors idle."""
    clusters = multiprocessors // CLUSTER
    broad, narrow = (-(-plan.tiles(rows, outputs) // clusters) for plan in PLANS)
    return BROAD if broad <= narrow * NARROW_COST else NARROW


def pays(rows: int, outputs: int, multiprocessors: int) -> bool:
    """Whether the device is busy enough for it to be faster than a product and silu_mul, by measurement."""
    plan, clusters = planned(rows, outputs, multiprocessors), multiprocessors // CLUSTER
    tiles = plan.tiles(rows, outputs)
    worked = rows * outputs / (tiles * CLUSTER * BLOCK_ROWS * plan.outputs)  # what is no padding
    busy = tiles / (-(-tiles // clusters) * clusters)
    return worked * busy >= LEAST_BUSY
