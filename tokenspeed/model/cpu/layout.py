"""What the compiled network is told: sizes, and where things lie.

Kernels work on addresses (int64), for the tiles are LLVM and know no arrays. Every dimension that a kernel
walks is padded where it is packed, with zero weights, so that no kernel has a tail: the width of a head to a
multiple of 16, the hidden width, the outputs of a projection and the vocabulary to multiples of 32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tokenspeed.model.cpu.tile import BLOCK, MOST_PAIRS, MOST_ROWS, PAIR
from tokenspeed.model.spec import ModelSpec

SLAB_TOKENS = 512  # tokens of one pass; a larger batch takes several (weights are read again: 2% of its time)
ATTENTION_ROWS = 48  # queries x heads that share one walk over a context
TILE_POSITIONS = 64  # absolute, aligned positions whose scores are exponentiated together
FLOAT = 4  # bytes
LINE = 64  # bytes


def padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


class Shape(NamedTuple):
    """The sizes of a network, in elements unless they say bytes."""

    hidden: int
    width: int  # of the hidden state, padded
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    head: int  # width of a head, padded
    rotary_half: int  # pairs of a head that rotate
    intermediate: int  # padded
    vocab: int  # padded
    block_size: int  # positions of a KV block
    block_bytes: int  # of a KV block over all layers
    qk_norm: bool
    epsilon: float
    scale: float  # of attention scores

    @property
    def group(self) -> int:
        return self.heads // self.kv_heads

    @property
    def fused(self) -> int:
        """Outputs of the fused query, key and value projection."""
        return padded((self.heads + 2 * self.kv_heads) * self.head, PAIR)

    @property
    def attended(self) -> int:
        """Inputs of the output projection."""
        return self.heads * self.head

    @property
    def phases(self) -> int:
        return 8 * self.layers + 3

    @staticmethod
    def of(spec: ModelSpec, block_size: int, operand_bytes: int) -> Shape:
        head = padded(spec.head_dim, BLOCK)
        return Shape(
            hidden=spec.hidden_size,
            width=padded(spec.hidden_size, PAIR),
            layers=spec.layers,
            heads=spec.heads,
            kv_heads=spec.kv_heads,
            head_dim=spec.head_dim,
            head=head,
            rotary_half=spec.rope.rotary_dim // 2,
            intermediate=padded(spec.intermediate_size, BLOCK),
            vocab=padded(spec.vocab_size, PAIR),
            block_size=block_size,
            block_bytes=2 * spec.layers * spec.kv_heads * block_size * head * operand_bytes,
            qk_norm=spec.qk_norm,
            epsilon=spec.norm_eps,
            scale=spec.attention_scale,
        )


class Sizes(NamedTuple):
    """The derived sizes that kernels need, since numba reads the fields of a tuple but not its properties."""

    group: int  # query heads of a key and value head
    fused: int
    attended: int
    scratch: int  # bytes of one thread


MATRICES = ("qkv", "output", "gate", "up", "down")
VECTORS = ("qkv_bias", "output_bias", "gate_bias", "up_bias", "down_bias")
NORMS = ("input_norm", "mlp_norm", "query_norm", "key_norm")

# Addresses of one layer's packed weights; `window` in tokens, 0 for none.
LAYER = np.dtype([(name, np.int64) for name in (*MATRICES, *VECTORS, *NORMS, "window")])

# One pass: addresses of its int32 arrays (see Batch), of its float32 logits and hidden states, and how many
# there are.
JOB = np.dtype(
    [
        (name, np.int64)
        for name in (
            "tokens",  # [count]
            "positions",  # [count]
            "slots",  # [count]
            "count",
            "groups",  # [group_count, 3]: first token, tokens, row: consecutive tokens that attend together
            "group_count",
            "tables",  # [rows, table_width]
            "table_width",
            "logit_rows",  # [logit_count]
            "logit_count",
            "logits",  # [logit_count, vocab]
            "state_rows",  # [state_count]: tokens whose normalised hidden states are wanted
            "state_count",
            "states",  # [state_count, width]
        )
    ]
)


class Memory(NamedTuple):
    """Addresses of what lives as long as the decoder."""

    embedding: int  # packed [vocab, width]
    head: int  # packed [vocab, width]
    head_bias: int  # [vocab] of zeros
    norm: int  # float32 [width]
    cosines: int  # float32 [max_context, rotary_half]
    sines: int
    pool: int  # KV [blocks] of block_bytes: [layers][kv_heads][key, value] of packed blocks
    hidden: int  # float32 [SLAB_TOKENS, width], the residual stream
    operands: int  # [SLAB_TOKENS, width], normalised
    fused: int  # float32 [SLAB_TOKENS, fused]
    queries: int  # operands [kv_heads, SLAB_TOKENS, group, head]
    attended: int  # operands [SLAB_TOKENS, heads * head]
    activated: int  # operands [SLAB_TOKENS, intermediate]
    scratch: int  # [threads] of scratch bytes


def attention_rows(shape: Shape) -> int:
    """The most (query, head) rows that one attention task holds."""
    return max(ATTENTION_ROWS // shape.group, 1) * shape.group


def scratch_bytes(shape: Shape) -> int:
    """One thread's: a projection's tile, or attention's scores, probabilities, sums, maxima and totals."""
    row = TILE_POSITIONS * 2 * FLOAT + padded(shape.head, PAIR) * FLOAT + 2 * FLOAT
    pairs = max(TILE_POSITIONS // BLOCK, MOST_PAIRS)  # whose addresses a call is given
    return padded(max(MOST_ROWS * PAIR * FLOAT, attention_rows(shape) * row) + 16 * pairs, LINE)
