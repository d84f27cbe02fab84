"""The whole decoder on one device: static memory, and a forward that only enqueues."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from gpu.table import Ops
from tokenspeed.errors import ModelError
from tokenspeed.model.cuda.products import Products, add_product, multiply
from tokenspeed.model.cuda.staging import StepTensors
from tokenspeed.model.cuda.weights import PlacedLayer, PlacedWeights
from tokenspeed.model.spec import ModelSpec

ATTENDED_AT_ONCE = 1024  # rows of one call of attention
RESIDUAL = torch.float32
SHORT_KEYS = 256  # tokens of a head that a multiprocessor attends while the others have no more
PADDED_ROWS = 16  # that a step may have beyond those that the scheduler plans


class Shape(NamedTuple):
    """Of a step: its tokens, and its rows, of which the first `singles` have one token each, or none.

    The others have any number of tokens. Rows without tokens, and tokens that belong to no row, may pad a
    step to the shape of a captured graph; such tokens write to the spare block.
    """

    tokens: int
    singles: int
    rows: int
    short: bool = False  # rows of one token alone, and such contexts that `decode_attention` takes them
    every: bool = False  # whether hidden states are wanted after every token, not only the last ones of rows
    few: bool = False  # rows of a few tokens, as `verify_attention` takes them, and draws after every token

    @property
    def narrow(self) -> bool:
        """Whether the last layer goes on with the last tokens of rows alone: they are few among all."""
        return not (self.draws or self.every) and 2 * self.rows <= self.tokens

    @property
    def draws(self) -> bool:
        """Whether there is a draw after every token."""
        return self.few or (self.singles == self.rows and not self.every)

    @property
    def multiplied(self) -> tuple[int, ...]:
        """How many rows products have."""
        return (self.tokens, self.rows) if self.narrow else (self.tokens,)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest step that there is memory for."""

    tokens: int
    rows: int
    logits: int
    context: int  # tokens of the longest sequence
    few: int = 1  # tokens of a row for which `verify_attention` was made


class _Activations(NamedTuple):
    """Views of the workspace for so many tokens."""

    hidden: Tensor  # float32 [tokens, hidden]
    qkv: Tensor  # [tokens, (heads + 2 * kv_heads) * head_dim]
    query: Tensor  # [tokens, heads, head_dim], of qkv; key and value likewise
    key: Tensor
    value: Tensor
    attended: Tensor  # [tokens, heads, head_dim]
    flat: Tensor  # attended as [tokens, heads * head_dim]
    gated: Tensor  # [tokens, intermediate]
    cos: Tensor  # float32 [tokens, pairs]
    sin: Tensor


class Network:
    """Composes operations into the network of `spec`, over memory that it takes once.

    Nothing is allocated, waited for or read back in `forward`, so it can be captured in a CUDA graph for a
    step of one size; it then serves any step of that size. A block of KV memory beyond those that were
    asked for takes what padding rows write.
    """

    def __init__(
        self,
        spec: ModelSpec,
        weights: PlacedWeights,
        ops: Ops,
        products: Products,
        bounds: Bounds,
        *,
        block_size: int,
        drawable: int | None = None,
    ) -> None:
        """No token from `drawable` on is ever drawn."""
        self.spec = spec
        self.bounds = bounds
        self.block_size = block_size
        self._weights, self._ops, self._products = weights, ops, products
        self.dtype, self.device = weights.embedding.dtype, weights.embedding.device
        self._norms = tuple(layer.head_norms(spec.norm_eps) for layer in weights.layers)
        self._inverse_frequencies = torch.tensor(
            spec.rope.inverse_frequencies, dtype=torch.float32, device=self.device
        )
        # The sum over layers is kept in float32: rounded each time, it is what errs most in bfloat16.
        self._hidden = torch.empty(bounds.tokens, spec.hidden_size, dtype=RESIDUAL, device=self.device)
        self._qkv = self._made(bounds.tokens, (spec.heads + 2 * spec.kv_heads) * spec.head_dim)
        self._attended = self._made(bounds.tokens, spec.heads * spec.head_dim)
        self._gated = self._made(bounds.tokens, spec.intermediate_size)
        angles = (bounds.tokens, spec.rope.rotary_dim // 2)
        self._cos = torch.empty(angles, dtype=torch.float32, device=self.device)
        self._sin = torch.empty(angles, dtype=torch.float32, device=self.device)
        self._last = torch.empty(bounds.logits, spec.hidden_size, dtype=RESIDUAL, device=self.device)
        self.logits = torch.empty(bounds.logits, spec.vocab_size, dtype=torch.float32, device=self.device)
        self._never_drawn = None if drawable is None else self.logits[:, drawable:]
        blocks = -(-bounds.context // block_size)
        rows = bounds.rows + PADDED_ROWS
        self._tables = torch.zeros(rows, blocks, dtype=torch.int32, device=self.device)
        # Of the last tokens of rows, for the last layer of a step that is `narrow`.
        self._ends = torch.empty(rows, dtype=torch.int32, device=self.device)
        self._end_contexts = torch.empty(rows, dtype=torch.int32, device=self.device)
        self._end_starts = torch.arange(rows + 1, dtype=torch.int32, device=self.device)
        self._end_queries = self._made(rows, spec.heads, spec.head_dim)
        self._end_hidden = torch.empty(rows, spec.hidden_size, dtype=RESIDUAL, device=self.device)
        self._pool = torch.empty(0, dtype=self.dtype, device=self.device)
        self._activations = lru_cache(maxsize=64)(self._views)

    @property
    def spare_block(self) -> int:
        """Where tokens write that belong to no row."""
        return self._pool.shape[2] - 1

    @property
    def short_keys(self) -> int:
        """How many tokens rows may attend together in a step whose shape is `short`; 0: there is none."""
        if self._ops.decode_attention is None:
            return 0
        if self.device.type == "cpu":
            return SHORT_KEYS
        multiprocessors = torch.cuda.get_device_properties(self.device).multi_processor_count
        return SHORT_KEYS * multiprocessors // self.spec.kv_heads

    @property
    def tables(self) -> Tensor:
        """int32 [rows, width]: the block tables of the rows of a step."""
        return self._tables

    @property
    def table_width(self) -> int:
        return self._tables.shape[1]

    def allocate(self, blocks: int) -> None:
        """Make the KV memory of `blocks` blocks and the spare one. `ModelError` where it does not fit."""
        spec = self.spec
        shape = (spec.layers, 2, blocks + 1, self.block_size, spec.kv_heads, spec.head_dim)
        try:
            self._pool = torch.empty(shape, dtype=self.dtype, device=self.device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            gib = (blocks + 1) * block_bytes(spec, self.block_size, self.dtype) / 2**30
            raise ModelError(
                f"{gib:.1f} GiB of KV memory cannot be allocated; lower [cache] memory_mib"
            ) from error

    def set_tables(self, first: int, tables: Tensor) -> None:
        """Take block tables, int32 [rows, width], as those of the step's rows from `first` on."""
        rows, width = tables.shape
        self._tables[first : first + rows, :width].copy_(tables)

    def embed(self, step: StepTensors, shape: Shape, sampled: Tensor) -> None:
        """Begin a step: from token ids to hidden states.

        `sampled` int32 is what the step before drew, which `step.sources` refer to. A graph begins when all
        before it has ended, so its kernels may read what was sent to the device (tables, contexts, positions)
        while those ahead of them still run; not so what is written here.
        """
        views = self._activations(shape.tokens)
        self._ops.embed(
            step.tokens,
            step.sources,
            sampled,
            step.positions,
            self._weights.embedding,
            self._inverse_frequencies,
            self.spec.rope.attention_scaling,
            views.hidden,
            views.cos,
            views.sin,
        )

    def forward(self, step: StepTensors, shape: Shape) -> None:
        """Through all layers: write keys and values to their slots, and the last hidden states."""
        products = self._products
        views = self._activations(shape.tokens)
        last = len(self._weights.layers) - 1
        for number, layer in enumerate(self._weights.layers):
            products.norm_linear(views.hidden, layer.input_norm, layer.qkv, layer.qkv_bias, views.qkv)
            if number == last and shape.narrow:
                self._rotate_and_write(number, views, step)
                self._end(number, layer, views, step, shape.rows)
                continue
            self._attend(number, views, step, shape)
            products.add_linear(views.flat, layer.output, layer.output_bias, views.hidden)
            self._feed_forward(layer, views.hidden, views.gated)

    def compute_logits(self, rows: Tensor | None, count: int, shape: Shape) -> Tensor:
        """float32 [count, vocab] after the last forward, which was of that shape.

        After the tokens `rows`, or the rows `rows` where the shape is `narrow`; or after the first `count`.
        """
        weights, spec = self._weights, self.spec
        all_hidden = self._end_hidden if shape.narrow else self._hidden
        hidden = all_hidden[:count]
        if rows is not None:
            hidden = self._last[:count]
            torch.index_select(all_hidden, 0, rows, out=hidden)
        logits = self.logits[:count]
        self._products.norm_linear(hidden, weights.norm, weights.head, None, logits)
        assert logits.shape[1] == spec.vocab_size
        if self._never_drawn is not None:
            self._never_drawn[:count].fill_(-torch.inf)
        return logits

    def states(self, tokens: Tensor) -> Tensor:
        """float32 [tokens, hidden]: the hidden states after the final norm that follow `tokens`, at most
        `bounds.logits`, until logits are computed; after a forward whose shape wants `every` one."""
        states = self._last[: len(tokens)]
        torch.index_select(self._hidden, 0, tokens, out=states)
        squares = torch.linalg.vector_norm(states, dim=1, keepdim=True).square_()
        scale = squares.div_(self.spec.hidden_size).add_(self.spec.norm_eps).rsqrt_()  # [tokens, 1]
        return states.mul_(scale).mul_(self._weights.norm)

    def warm(self, rows: int) -> None:
        """Multiply rows of zeros by every kind of matrix, so that the library chooses and loads its kernels;
        on torch's current stream, over memory of its own."""
        spec, layer = self.spec, self._weights.layers[0]
        queries = spec.heads * spec.head_dim
        normed = torch.zeros(rows, spec.hidden_size, dtype=self.dtype, device=self.device)
        matrices = [(layer.qkv, self.dtype), (layer.gate_up, self.dtype)]
        if rows <= self.bounds.logits:
            matrices.append((self._weights.head, torch.float32))
        for matrix, kind in matrices:
            multiply(normed, matrix, None, normed.new_empty(rows, len(matrix), dtype=kind))
        hidden = normed.to(RESIDUAL)
        for matrix, inputs in ((layer.output, queries), (layer.down, spec.intermediate_size)):
            add_product(normed.new_zeros(rows, inputs), matrix, None, hidden)

    def _attend(self, number: int, views: _Activations, step: StepTensors, shape: Shape) -> None:
        spec, ops = self.spec, self._ops
        keys, values = self._pool[number]  # each [blocks, block_size, kv_heads, head_dim]
        rest = (spec.attention_scale, spec.windows[number])
        if shape.short and ops.decode_attention is not None:
            rotated = (views.query, views.key, views.value, views.cos, views.sin)
            tables = self._tables[: shape.rows]
            norms = self._norms[number]
            ops.decode_attention(*rotated, keys, values, tables, step.contexts, *rest, views.attended, norms)
            return
        self._rotate_and_write(number, views, step)
        if shape.few:
            tables = self._tables[: shape.rows]
            ops.verify_attention(
                views.query, keys, values, tables, step.row_starts, step.contexts, *rest, views.attended
            )
            return
        for first in range(0, shape.singles, ATTENDED_AT_ONCE):
            last = min(first + ATTENDED_AT_ONCE, shape.singles)
            ops.paged_attention(
                views.query[:last],
                keys,
                values,
                self._tables[first:last],
                step.row_starts[first : last + 1],
                step.contexts[first:last],
                *rest,
                views.attended[:last],
            )
        for first in range(shape.singles, shape.rows, ATTENDED_AT_ONCE):
            last = min(first + ATTENDED_AT_ONCE, shape.rows)
            ops.prefill_attention(
                views.query,
                keys,
                values,
                self._tables[first:last],
                step.row_starts[first : last + 1],
                step.contexts[first:last],
                *rest,
                views.attended,
            )

    def _end(
        self, number: int, layer: PlacedLayer, views: _Activations, step: StepTensors, rows: int
    ) -> None:
        """The rest of a layer after which only the last tokens of rows are wanted.

        The others have done their part with their keys and values.
        """
        # Rows without tokens compute what nobody reads, from what there is. Attention may read contexts
        # before the kernel ahead of it has ended, so they are made well ahead: two plain launches follow.
        ends = torch.sub(step.row_starts[1:], 1, out=self._ends[:rows]).clamp_(min=0)
        contexts = torch.clamp(step.contexts, min=1, out=self._end_contexts[:rows])
        queries = torch.index_select(views.query, 0, ends, out=self._end_queries[:rows])
        hidden = torch.index_select(views.hidden, 0, ends, out=self._end_hidden[:rows])
        ended = self._activations(rows)  # of the same memory, and no more is read of what it held
        keys, values = self._pool[number]
        for first in range(0, rows, ATTENDED_AT_ONCE):
            last = min(first + ATTENDED_AT_ONCE, rows)
            self._ops.paged_attention(
                queries[:last],
                keys,
                values,
                self._tables[first:last],
                self._end_starts[first : last + 1],
                contexts[first:last],
                self.spec.attention_scale,
                self.spec.windows[number],
                ended.attended[:last],
            )
        self._products.add_linear(ended.flat, layer.output, layer.output_bias, hidden)
        self._feed_forward(layer, hidden, ended.gated)

    def _rotate_and_write(self, number: int, views: _Activations, step: StepTensors) -> None:
        keys, values = self._pool[number]
        self._ops.rope_write_kv(
            views.query,
            views.key,
            views.value,
            views.cos,
            views.sin,
            step.slots,
            keys,
            values,
            self._norms[number],
        )

    def _feed_forward(self, layer: PlacedLayer, hidden: Tensor, gated: Tensor) -> None:
        products = self._products
        products.norm_gated(hidden, layer.mlp_norm, layer.gate_up, layer.gate_up_bias, gated)
        products.add_linear(gated, layer.down, layer.down_bias, hidden)

    def _views(self, tokens: int) -> _Activations:
        spec = self.spec
        qkv = self._qkv[:tokens]
        heads = qkv.view(tokens, spec.heads + 2 * spec.kv_heads, spec.head_dim)
        flat = self._attended[:tokens]
        return _Activations(
            self._hidden[:tokens],
            qkv,
            heads[:, : spec.heads],
            heads[:, spec.heads : spec.heads + spec.kv_heads],
            heads[:, spec.heads + spec.kv_heads :],
            flat.view(tokens, spec.heads, spec.head_dim),
            flat,
            self._gated[:tokens],
            self._cos[:tokens],
            self._sin[:tokens],
        )

    def _made(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)


def block_bytes(spec: ModelSpec, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of KV memory that one block takes over all layers."""
    return 2 * spec.layers * spec.kv_heads * spec.head_dim * block_size * dtype.itemsize


def workspace_bytes(spec: ModelSpec, bounds: Bounds, block_size: int, dtype: torch.dtype) -> int:
    """What a network takes beside weights and KV memory; `Products` included."""
    heads = (2 * spec.heads + 2 * spec.kv_heads) * spec.head_dim
    # The hidden size again for a copy of it, normalised. Three times the inner: gates, ups, both gated.
    token = (spec.hidden_size + heads + 3 * spec.intermediate_size) * dtype.itemsize
    token += RESIDUAL.itemsize * spec.hidden_size + 4 * spec.rope.rotary_dim
    logit = RESIDUAL.itemsize * spec.hidden_size + 4 * spec.vocab_size
    # Of a row its table, and what the last layer has of its last token.
    row = 4 * (3 + -(-bounds.context // block_size))
    row += spec.heads * spec.head_dim * dtype.itemsize + RESIDUAL.itemsize * spec.hidden_size
    return bounds.tokens * token + bounds.logits * logit + (bounds.rows + PADDED_ROWS) * row
