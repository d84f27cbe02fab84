"""The shape of a decoder, as data: what every supported family is a row of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding, scaling already folded in.

    `inverse_frequencies` has `rotary_dim / 2` entries; pair i of a head rotates by position × entry i, in
    the half-split convention (element i pairs with element i + rotary_dim / 2). cos and sin are multiplied
    by `attention_scaling` (yarn; 1 elsewhere). Elements of a head beyond `rotary_dim` do not rotate.
    """

    inverse_frequencies: tuple[float, ...]
    attention_scaling: float = 1.0

    @property
    def rotary_dim(self) -> int:
        return 2 * len(self.inverse_frequencies)


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A pre-norm decoder with grouped-query attention and a gated SiLU MLP.

    `windows[l]` is the sliding window of layer l in tokens (a query attends itself and the window - 1
    tokens before it), None for full attention. `dtype` is what the checkpoint's weights are stored in
    ("bfloat16", "float16", "float32"). `max_context` is the longest sequence the positions allow.
    """

    family: str
    vocab_size: int
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    norm_eps: float
    rope: RopeSpec
    windows: tuple[int | None, ...]
    max_context: int
    dtype: str
    tied_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def parameters(self) -> int:
        """How many numbers the model has learned."""
        hidden, inner = self.hidden_size, self.intermediate_size
        query, key = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 2 * hidden * (query + key) + 3 * hidden * inner + 2 * hidden
        layer += self.qkv_bias * (query + 2 * key) + self.output_bias * hidden
        layer += self.mlp_bias * (2 * inner + hidden) + self.qk_norm * 2 * self.head_dim
        return self.layers * layer + hidden + (2 - self.tied_embeddings) * self.vocab_size * hidden

    @property
    def attention_scale(self) -> float:
        return float(self.head_dim**-0.5)
