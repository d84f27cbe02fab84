"""The tensors of a decoder by role, whatever names a checkpoint gives them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer. Matrices are [out, in] as checkpoints store them; absent biases and norms are None."""

    input_norm: Tensor  # [hidden]
    query: Tensor  # [heads * head_dim, hidden]
    key: Tensor  # [kv_heads * head_dim, hidden]
    value: Tensor  # [kv_heads * head_dim, hidden]
    output: Tensor  # [hidden, heads * head_dim]
    mlp_norm: Tensor  # [hidden]
    gate: Tensor  # [intermediate, hidden]
    up: Tensor  # [intermediate, hidden]
    down: Tensor  # [hidden, intermediate]
    query_bias: Tensor | None = None
    key_bias: Tensor | None = None
    value_bias: Tensor | None = None
    output_bias: Tensor | None = None
    gate_bias: Tensor | None = None
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    query_norm: Tensor | None = None  # [head_dim]
    key_norm: Tensor | None = None  # [head_dim]


@dataclass(frozen=True, slots=True)
class Weights:
    """A whole decoder. `head` is `embedding` itself where they are tied."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[LayerWeights, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor there is, a tied head once."""
        yield self.embedding
        yield self.norm
        if self.head is not self.embedding:
            yield self.head
        for layer in self.layers:
            yield from (t for t in (getattr(layer, field.name) for field in fields(layer)) if t is not None)

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return sum(tensor.nbytes for tensor in self.tensors())
