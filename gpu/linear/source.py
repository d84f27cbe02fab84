"""The CUDA source of linear for few rows, and which variant of it reads which matrix fastest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from gpu.source import COMMON, Constants, Source

ELEMENT_BYTES = 2
LANES_APART = 64  # bytes more than whole lines from one row of x in shared memory to the next


@dataclass(frozen=True, slots=True)
class Plan:
    """How a matrix is divided: the constants of kernel.cu.

    Sums are in an order that `warps` fixes; so these are the same for any number of rows.
    """

    warps: int  # of a block; they divide the inputs
    tiles: int  # of 16 rows of the matrix, that a block sums at a time
    stages: int  # of 128 inputs, that a warp's reads are ahead of its sums
    blocks: int  # that are resident on a multiprocessor

    def constants(self, half: bool) -> Constants:
        """What kernel.cu is compiled with, for float16 or bfloat16."""
        return {**{name.upper(): value for name, value in asdict(self).items()}, "HALF": int(half)}

    @property
    def ring_bytes(self) -> int:
        """Of shared memory, for a block."""
        return self.warps * self.stages * self.tiles * 4096

    def grid(self, tiles: int, multiprocessors: int) -> int:
        """Of tiles of 16: as many blocks as are resident, which walk over the tiles, or one for each."""
        return min(-(-tiles // self.tiles), multiprocessors * self.blocks)


class Into(IntEnum):
    """What becomes of the sums: INTO in kernel.cu."""

    OUT = 0
    ADDED = 1
    GATED = 2


LONE = Plan(warps=8, tiles=1, stages=2, blocks=1)
PAIRED = Plan(warps=8, tiles=1, stages=2, blocks=2)
DEEP = Plan(warps=8, tiles=1, stages=3, blocks=1)
DEEPEST = Plan(warps=8, tiles=1, stages=4, blocks=1)
BROAD = Plan(warps=8, tiles=2, stages=2, blocks=1)
PLANS = (LONE, PAIRED, DEEP, DEEPEST, BROAD)
LARGE = 16 << 20  # elements of a matrix that is read for long enough to want a deeper ring


@dataclass(frozen=True, slots=True)
class Form:
    """What a product does besides; see the package."""

    normed: bool = False
    into: Into = Into.OUT
    wide_x: bool = False  # x is float32
    wide_out: bool = False  # out is float32

    @property
    def plans(self) -> tuple[Plan, ...]:
        """That may be planned."""
        if self.normed:
            return (LONE, DEEPEST)
        return (DEEPEST, BROAD) if self.into is Into.ADDED else (LONE, PAIRED, DEEP, BROAD)

    @property
    def constants(self) -> Constants:
        """What kernel.cu is compiled with."""
        return {name.upper(): int(value) for name, value in asdict(self).items()}

    def held_bytes(self, rows: int, inputs: int) -> int:
        """Of shared memory, for x in a block."""
        return rows * (-(-inputs * ELEMENT_BYTES // 128) * 128 + LANES_APART) if self.normed else 0

    def tiles(self, outputs: int) -> int:
        """Of 16 rows of the matrix."""
        return -(-outputs // (8 if self.into is Into.GATED else 16))


FORMS = (
    Form(normed=True),
    Form(into=Into.ADDED),
    Form(normed=True, into=Into.GATED),
    Form(normed=True, wide_out=True),
    Form(normed=True, wide_x=True),
    Form(normed=True, wide_x=True, wide_out=True),
    Form(normed=True, into=Into.GATED, wide_x=True),
    Form(into=Into.ADDED, wide_out=True),
)

SOURCE = Source(
    Path(__file__).with_name("kernel.cu"),
    functions=("linear_8", "linear_16"),
    variants=(
        *(plan.constants(half) for plan in PLANS for half in (False, True)),
        *({**LONE.constants(False), **form.constants} for form in FORMS),
        {**BROAD.constants(True), **Form(normed=True, into=Into.GATED).constants},
    ),
    shared=COMMON,
)


def planned(form: Form, rows: int, inputs: int, outputs: int, multiprocessors: int) -> Plan:
    """The plan that reads a matrix fastest, by measurement (bench/log-h200.md)."""
    tiles = form.tiles(outputs)
    large = 16 * tiles * inputs >= LARGE
    if form.normed:
        return DEEPEST if large and rows <= 8 else LONE
    if form.into is Into.ADDED:
        return BROAD if large else DEEPEST
    each = -(-tiles // multiprocessors)
    if rows > 8:  # x is read again for each tile: half as often for broad ones
        return DEEP if each == 1 else BROAD
    return LONE if each % 2 else PAIRED  # so that no block is left without a tile at the end
