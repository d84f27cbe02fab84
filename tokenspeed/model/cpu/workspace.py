"""The decoder's own memory: activations of one pass, rotation tables, and the KV pool's place."""

from __future__ import annotations

import numpy as np

from tokenspeed.model.cpu.layout import FLOAT, SLAB_TOKENS, Memory, Shape, Sizes, scratch_bytes
from tokenspeed.model.cpu.memory import Arena
from tokenspeed.model.cpu.packing import Packed
from tokenspeed.model.spec import RopeSpec

ROPE_CHUNK = 1024  # positions whose rotations are computed at once, when they are first reached


def sizes_of(shape: Shape) -> Sizes:
    return Sizes(shape.group, shape.fused, shape.attended, scratch_bytes(shape))


def place_activations(
    shape: Shape, operand: int, threads: int, packed: Packed, rope: RopeTable
) -> tuple[Arena, Memory]:
    """Memory for the activations of one pass; `operand` is the bytes of one. The pool comes later."""
    rows = SLAB_TOKENS
    parts = {
        "hidden": rows * shape.width * FLOAT,
        "operands": rows * shape.width * operand,
        "fused": rows * shape.fused * FLOAT,
        "queries": rows * shape.attended * operand,
        "attended": rows * shape.attended * operand,
        "activated": rows * shape.intermediate * operand,
        "scratch": threads * scratch_bytes(shape),
    }
    arena = Arena(sum(parts.values()) + 64 * len(parts))
    memory = Memory(
        embedding=packed.embedding,
        head=packed.head,
        head_bias=packed.head_bias,
        norm=packed.norm,
        cosines=rope.cosines,
        sines=rope.sines,
        pool=0,
        **{name: arena.take(size) for name, size in parts.items()},
    )
    return arena, memory


class RopeTable:
    """cos and sin of each position's rotations, float32 [max_context, pairs], filled in as it is reached."""

    def __init__(self, rope: RopeSpec, max_context: int) -> None:
        # Angles are products in float32, as models were trained with; only their cosines are exact.
        self._frequencies = np.array(rope.inverse_frequencies, np.float32)
        self._scaling = rope.attention_scaling
        self._filled = 0
        size = max_context * self._frequencies.size * FLOAT
        self._arena = Arena(2 * size + 64, huge=False)
        self.cosines = self._arena.take(size)
        self.sines = self._arena.take(size)

    def reach(self, positions: int) -> None:
        """Have rows [0, positions) filled."""
        if positions <= self._filled:
            return
        first, end = self._filled, -(-positions // ROPE_CHUNK) * ROPE_CHUNK
        pairs = self._frequencies.size
        limit = (self.sines - self.cosines) // FLOAT // max(pairs, 1)
        end = min(end, limit)
        angles = np.arange(first, end, dtype=np.float32)[:, None] * self._frequencies
        for address, function in ((self.cosines, np.cos), (self.sines, np.sin)):
            view = self._arena.view(address + first * pairs * FLOAT, (end - first) * pairs * FLOAT)
            view.view(np.float32)[:] = (function(angles.astype(np.float64)) * self._scaling).ravel()
        self._filled = end
