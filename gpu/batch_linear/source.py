"""The CUDA source of linear for up to 128 rows, and how it divides which matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gpu.linear.source import Form, Into
from gpu.source import HOPPER, Constants, Source

ROWS = 128  # of x, the most
TILE_ROWS = 64  # of x, that a warpgroup multiplies
BOX_INPUTS = 64  # that are copied at once: 128 bytes
MOST_STAGES = 16
ALIGNMENT = 1024  # bytes, of the swizzled ring


@dataclass(frozen=True, slots=True)
class Plan:
    """How a matrix is divided: the constants of kernel.cu.

    Sums are in an order that `split` fixes; so it is the same for any number of rows.
    """

    width: int  # rows of the matrix, of a tile
    split: int  # blocks of a cluster, that divide the inputs

    def constants(self, form: Form, half: bool) -> Constants:
        """What kernel.cu is compiled with, for float16 or bfloat16."""
        return {
            "WIDTH": self.width,
            "SPLIT": self.split,
            "INTO": int(form.into),
            "WIDE_OUT": int(form.wide_out),
            "HALF": int(half),
        }

    def own(self, form: Form) -> int:
        """Outputs of a tile; as many rows of the matrix are copied at once."""
        return self.width // 2 if form.into is Into.GATED else self.width

    def tiles(self, form: Form, outputs: int) -> int:
        return -(-outputs // self.own(form))


@dataclass(frozen=True, slots=True)
class Layout:
    """Of a block's shared memory, for so many rows of x by some plan: as kernel.cu divides it."""

    plan: Plan
    rows: int

    @property
    def tiles(self) -> int:
        """Of 64 rows."""
        return -(-self.rows // TILE_ROWS)

    @property
    def function(self) -> str:
        return f"batch_linear_{self.tiles * TILE_ROWS}"

    @property
    def threads(self) -> int:
        return 128 * self.tiles + 32

    @property
    def box_rows(self) -> int:
        """Of x, that are copied: 8 are swizzled together."""
        return -(-self.rows // 8) * 8

    @property
    def stage_bytes(self) -> int:
        boxes = 2 if self.tiles == 1 else 1
        return boxes * 2 * BOX_INPUTS * (self.plan.width + TILE_ROWS * self.tiles)

    @property
    def sums_bytes(self) -> int:
        """Of what a cluster exchanges."""
        columns = self.plan.width // self.plan.split
        stride = columns if columns % 16 else columns + 8
        return 0 if self.plan.split == 1 else self.plan.split * self.box_rows * stride * 4

    def stages(self, room: int) -> int:
        """Of the ring, that there is room for."""
        return min(MOST_STAGES, (room - ALIGNMENT - self.sums_bytes) // self.stage_bytes)

    def shared_bytes(self, stages: int) -> int:
        return ALIGNMENT + stages * self.stage_bytes + self.sums_bytes


PLANS = (
    *(Plan(width, 1) for width in (32, 48, 64, 80, 96, 112, 128)),
    *(Plan(width, 2) for width in (32, 64, 96)),
)
FORMS = (
    Form(),
    Form(wide_out=True),
    Form(into=Into.ADDED),
    Form(into=Into.ADDED, wide_out=True),
    Form(into=Into.GATED),
)

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("batch_linear_64", "batch_linear_128"),
    variants=(
        *(plan.constants(form, False) for plan in (Plan(48, 1), Plan(64, 2)) for form in FORMS),
        Plan(128, 1).constants(Form(wide_out=True), False),
        Plan(112, 1).constants(Form(into=Into.GATED), True),
        Plan(128, 1).constants(Form(into=Into.ADDED), True),
        Plan(96, 2).constants(Form(into=Into.ADDED), False),
        Plan(32, 2).constants(Form(into=Into.GATED), False),
    ),
    shared=HOPPER,
    architectures=("sm_90a",),
)

# What was measured on an H200 with 64 rows (bench/log-h200.md), in bytes a microsecond and microseconds.
MEMORY_RATE = 4.5e6
BLOCK_RATE = 75e3  # of what a block reads, the matrix and x
EXCHANGE = 1.2  # of a cluster's sums
UNEVEN = 0.3  # of the time that idle blocks would have saved, is lost


def planned(form: Form, inputs: int, outputs: int, multiprocessors: int) -> Plan:
    """The plan that reads a matrix fastest."""
    sums = 2 * outputs if form.into is Into.GATED else outputs

    def microseconds(plan: Plan) -> float:
        blocks = plan.tiles(form, outputs) * plan.split
        turns = -(-blocks // multiprocessors)
        idle = 1 - blocks / (turns * multiprocessors)
        memory = 2 * sums * inputs / MEMORY_RATE * (1 + UNEVEN * idle)
        block = turns * 2 * (plan.width + TILE_ROWS) * inputs / plan.split / BLOCK_RATE
        return max(memory, block) + (EXCHANGE if plan.split > 1 else 0)

    return min(PLANS, key=microseconds)
