"""The decoder in plain torch, on any device: what the fast ones are compared with, and their fallback."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu.table import REFERENCE, Ops
from tokenspeed.errors import ModelError
from tokenspeed.model.batch import NO_ROWS, Batch, Int32
from tokenspeed.model.spec import ModelSpec
from tokenspeed.model.weights import LayerWeights, Weights


@dataclass(frozen=True, slots=True)
class _Step:
    """A batch on the device, and what all layers share of it."""

    tokens: int
    slots: Tensor  # int32 [tokens]
    row_starts: Tensor  # int32 [rows + 1]
    contexts: Tensor  # int32 [rows]
    block_tables: Tensor  # int32 [rows, blocks]
    cos: Tensor  # float32 [tokens, pairs]
    sin: Tensor  # float32 [tokens, pairs]


class TorchDecoder:
    """Composes a table of operations into the network of `spec`.

    Weights and KV memory are held in `dtype` on `device`; logits are float32. On the CPU in float32 a
    token's logits differ between batches and chunkings by rounding alone: the matrix products of torch
    choose their order of summation by the number of rows.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: Weights,
        *,
        block_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        ops: Ops = REFERENCE,
    ) -> None:
        self.spec = spec
        self.block_size = block_size
        self._device = torch.device(device)
        self._dtype = dtype
        self._ops = ops
        self._embedding = self._placed(weights.embedding)
        self._head = self._embedding if weights.head is weights.embedding else self._placed(weights.head)
        self._norm = self._placed(weights.norm)
        self._layers = tuple(self._placed_layer(layer) for layer in weights.layers)
        self._inverse_frequencies = torch.tensor(spec.rope.inverse_frequencies, device=self._device)
        self._pool = torch.empty(0, dtype=dtype, device=self._device)

    @property
    def block_bytes(self) -> int:
        per_token = 2 * self.spec.layers * self.spec.kv_heads * self.spec.head_dim
        return per_token * self.block_size * self._dtype.itemsize

    def allocate(self, blocks: int) -> None:
        """Make the KV memory. `ModelError` where it does not fit."""
        spec = self.spec
        shape = (spec.layers, 2, blocks, self.block_size, spec.kv_heads, spec.head_dim)
        try:
            self._pool = torch.zeros(shape, dtype=self._dtype, device=self._device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            gib = blocks * self.block_bytes / 2**30
            raise ModelError(
                f"{gib:.1f} GiB of KV memory cannot be allocated; lower [cache] memory_mib"
            ) from error

    def forward(self, batch: Batch) -> Tensor:
        """Write the batch's keys and values to their slots and return float32 logits [logits, vocab]."""
        return self.forward_states(batch, NO_ROWS)[0]

    @torch.inference_mode()
    def forward_states(self, batch: Batch, rows: Int32) -> tuple[Tensor, Tensor]:
        """As `forward`, and the hidden states after the final norm that follow the tokens `rows`, which
        differ: float32 [rows, hidden]."""
        step = self._step(batch)
        hidden = self._embedding[self._sent(batch.tokens).long()]  # [tokens, hidden]
        for number, layer in enumerate(self._layers):
            hidden += self._attention(hidden, number, layer, step)
            hidden += self._mlp(hidden, layer)
        last = hidden[self._sent(batch.logit_rows).long()]  # [logits, hidden]
        logits = self._linear(self._normed(last, self._norm), self._head, None).float()
        wanted = hidden[self._sent(rows).long()]  # [rows, hidden]
        return logits, (self._normed(wanted, self._norm) if len(rows) else wanted).float()

    def warm_up(self) -> None:
        """Nothing is compiled."""

    def close(self) -> None:
        """Nothing runs between forwards."""

    def _attention(self, hidden: Tensor, number: int, layer: LayerWeights, step: _Step) -> Tensor:
        spec = self.spec
        normed = self._normed(hidden, layer.input_norm)
        query = self._heads(self._linear(normed, layer.query, layer.query_bias), spec.heads, layer.query_norm)
        key = self._heads(self._linear(normed, layer.key, layer.key_bias), spec.kv_heads, layer.key_norm)
        value = self._heads(self._linear(normed, layer.value, layer.value_bias), spec.kv_heads, None)
        keys, values = self._pool[number]  # each [blocks, block_size, kv_heads, head_dim]
        self._ops.rope_write_kv(query, key, value, step.cos, step.sin, step.slots, keys, values)
        attended = torch.empty_like(query)
        self._ops.paged_attention(
            query,
            keys,
            values,
            step.block_tables,
            step.row_starts,
            step.contexts,
            spec.attention_scale,
            spec.windows[number],
            attended,
        )
        return self._linear(attended.view(step.tokens, -1), layer.output, layer.output_bias)

    def _mlp(self, hidden: Tensor, layer: LayerWeights) -> Tensor:
        normed = self._normed(hidden, layer.mlp_norm)
        gate = self._linear(normed, layer.gate, layer.gate_bias)
        up = self._linear(normed, layer.up, layer.up_bias)
        self._ops.silu_mul(gate, up, gate)
        return self._linear(gate, layer.down, layer.down_bias)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
        self._ops.linear(x, weight, bias, out)
        return out

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        out = torch.empty_like(x)
        self._ops.rms_norm(x, weight, self.spec.norm_eps, out)
        return out

    def _heads(self, x: Tensor, heads: int, norm: Tensor | None) -> Tensor:
        """x [tokens, heads * head_dim] -> [tokens, heads, head_dim], each head normalised where asked."""
        if norm is not None:
            rows = x.view(-1, self.spec.head_dim)
            self._ops.rms_norm(rows, norm, self.spec.norm_eps, rows)
        return x.view(-1, heads, self.spec.head_dim)

    def _step(self, batch: Batch) -> _Step:
        positions = self._sent(batch.positions)
        angles = positions[:, None].float() * self._inverse_frequencies  # [tokens, pairs]
        scaling = self.spec.rope.attention_scaling
        return _Step(
            tokens=len(batch.tokens),
            slots=self._sent(batch.slots),
            row_starts=self._sent(batch.row_starts),
            contexts=self._sent(batch.contexts),
            block_tables=self._sent(batch.block_tables),
            cos=angles.cos() * scaling,
            sin=angles.sin() * scaling,
        )

    def _sent(self, array: NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _placed(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self._device, dtype=self._dtype)

    def _placed_layer(self, layer: LayerWeights) -> LayerWeights:
        tensors = {field.name: getattr(layer, field.name) for field in fields(layer)}
        placed = {name: self._placed(tensor) for name, tensor in tensors.items() if tensor is not None}
        return replace(layer, **placed)
