"""The decoder for CPUs: packed weights, a team of threads, and one compiled pass over all layers."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from llvmlite import binding
from numpy.typing import NDArray
from torch import Tensor

from tokenspeed.model.batch import NO_ROWS, Batch, Int32
from tokenspeed.model.cpu.crew import Crew
from tokenspeed.model.cpu.layout import JOB, SLAB_TOKENS, Shape, attention_rows
from tokenspeed.model.cpu.memory import Arena
from tokenspeed.model.cpu.packing import Progress, pack
from tokenspeed.model.cpu.tile import BLOCK, MOST_ROWS, Bf16Dot, Bf16Widen, Float32, Format
from tokenspeed.model.cpu.workspace import RopeTable, place_activations, sizes_of
from tokenspeed.model.spec import ModelSpec
from tokenspeed.model.weights import Weights

Dtype = Literal["bfloat16", "float32"]
Instructions = Literal["avx512bf16", "generic"]


class CpuDecoder:
    """`Decoder` on the CPU.

    `dtype` is what weights, matrix operands and KV are held in; sums, norms, softmax and the residual stream
    are float32. `threads` compute, the caller's among them. `instructions` pins kernels: "generic" runs on
    any processor, "avx512bf16" where that exists; None takes the best that this host has. `progress` is
    called with the bytes packed so far. After construction nothing refers to `weights`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        *,
        dtype: Dtype,
        block_size: int,
        threads: int,
        instructions: Instructions | None = None,
        progress: Progress | None = None,
    ) -> None:
        if block_size < BLOCK or block_size % BLOCK:
            raise ValueError(f"block_size must be a multiple of {BLOCK}, not {block_size}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        kind = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        self._format = choose_format(dtype, instructions)
        self._vocab = spec.vocab_size
        self._shape = Shape.of(spec, block_size, kind.itemsize)
        self._packed = pack(self._shape, weights, spec.windows, kind, threads, progress)
        self._rope = RopeTable(spec.rope, spec.max_context)
        self._activations, self._memory = place_activations(
            self._shape, kind.itemsize, threads, self._packed, self._rope
        )
        self._threads = threads
        self._pool: Arena | None = None
        self._crew: Crew | None = None

    @property
    def block_bytes(self) -> int:
        """Bytes of KV memory that one block takes over all layers."""
        return self._shape.block_bytes

    def allocate(self, blocks: int) -> None:
        """Reserve the KV memory of `blocks` blocks; the system provides it as it is first written."""
        if self._pool is not None:
            raise RuntimeError("allocate() was called twice")
        size = blocks * self._shape.block_bytes
        self._pool = Arena(size)
        memory = self._memory._replace(pool=self._pool.take(size))
        sizes = sizes_of(self._shape)
        self._crew = Crew(self._format, self._shape, sizes, memory, self._packed.layers, self._threads)

    def warm_up(self) -> None:
        """Compile the pass, or load it from disk, so that no forward waits for that; after `allocate`."""
        self._run(np.zeros(1, JOB))

    def forward(self, batch: Batch) -> Tensor:
        """Write the batch's keys and values to their slots and return float32 logits [logits, vocab]."""
        return self.forward_states(batch, NO_ROWS)[0]

    def forward_states(self, batch: Batch, rows: Int32) -> tuple[Tensor, Tensor]:
        """As `forward`, and the hidden states after the final norm that follow the tokens `rows`, which
        differ: float32 [rows, hidden]."""
        count = len(batch.tokens)
        if count:
            self._rope.reach(int(batch.positions.max()) + 1)
        if count <= SLAB_TOKENS:
            return self._forward_slab(batch, 0, count, batch.logit_rows, rows)
        logits = torch.empty(len(batch.logit_rows), self._vocab)
        states = torch.empty(len(rows), self._shape.hidden)
        for first in range(0, count, SLAB_TOKENS):
            end = min(first + SLAB_TOKENS, count)
            wanted, kept = _within(batch.logit_rows, first, end), _within(rows, first, end)
            logits[wanted], states[kept] = self._forward_slab(
                batch, first, end, batch.logit_rows[wanted], rows[kept]
            )
        return logits, states

    def close(self) -> None:
        """End the threads; safe to call twice."""
        if self._crew is not None:
            self._crew.close()

    def _forward_slab(
        self, batch: Batch, first: int, end: int, logit_rows: Int32, state_rows: Int32
    ) -> tuple[Tensor, Tensor]:
        """One pass over the tokens [first, end) of a batch: they look backwards only."""
        if len(logit_rows) > SLAB_TOKENS:  # more than there are tokens: some are asked for twice
            once, places = np.unique(logit_rows, return_inverse=True)
            logits, states = self._forward_slab(batch, first, end, once, state_rows)
            return logits[places], states
        logits = torch.empty(len(logit_rows), self._shape.vocab)
        states = torch.empty(len(state_rows), self._shape.width)
        groups = query_groups(batch.row_starts, first, end, attention_rows(self._shape) // self._shape.group)
        arrays = {
            "tokens": contiguous(batch.tokens[first:end]),
            "positions": contiguous(batch.positions[first:end]),
            "slots": contiguous(batch.slots[first:end]),
            "groups": groups,
            "tables": contiguous(batch.block_tables),
            "logit_rows": contiguous(logit_rows - first),
            "state_rows": contiguous(state_rows - first),
        }
        job = np.zeros(1, JOB)
        for name, array in arrays.items():
            job[name] = array.ctypes.data
        job["count"], job["group_count"], job["logit_count"] = end - first, len(groups), len(logit_rows)
        job["table_width"], job["logits"] = batch.block_tables.shape[1], logits.data_ptr()
        job["state_count"], job["states"] = len(state_rows), states.data_ptr()
        self._run(job)
        return logits[:, : self._vocab], states[:, : self._shape.hidden]

    def _run(self, job: NDArray[np.void]) -> None:
        if self._crew is None:
            raise RuntimeError("allocate() comes before the first pass")
        self._crew.run(job)


def contiguous(array: Int32) -> Int32:
    return np.ascontiguousarray(array, np.int32)


def _within(rows: Int32, first: int, end: int) -> NDArray[np.intp]:
    """Where `rows` name tokens of [first, end)."""
    return np.flatnonzero((rows >= first) & (rows < end))


def query_groups(row_starts: Int32, first: int, end: int, most: int) -> Int32:
    """Runs of at most `most` tokens of one row in [first, end): [(token - first, tokens, row)]."""
    groups = [
        (start - first, min(most, min(stop, end) - start), row)
        for row, (begin, stop) in enumerate(pairwise(row_starts.tolist()))
        for start in range(max(begin, first), min(stop, end), most)
    ]
    return np.array(groups, np.int32).reshape(-1, 3)


def choose_format(dtype: Dtype, instructions: Instructions | None) -> Format:
    """The kernels for this host, or those that `instructions` pins."""
    features = binding.get_host_cpu_features()
    # Rows of a tile x 2 blocks of 16 sums must fit the registers: 32 of 16 lanes, 32 of 4, or 16 of 8.
    rows = MOST_ROWS if features.get("avx512f") else 3 if features.get("neon") else 2
    if dtype == "float32":
        return Float32(rows)
    if instructions is None:
        instructions = "avx512bf16" if features.get("avx512bf16") else "generic"
    return Bf16Dot(rows) if instructions == "avx512bf16" else Bf16Widen(rows)
