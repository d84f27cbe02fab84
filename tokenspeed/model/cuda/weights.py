"""A decoder's weights where the device reads them: what is multiplied together lies together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from gpu.rope_write_kv.norms import HeadNorms
from tokenspeed.model.cuda.pinned import PinnedCopier
from tokenspeed.model.spec import ModelSpec
from tokenspeed.model.weights import LayerWeights, Weights

Progress = Callable[[int], None]  # bytes placed so far
SPREAD = 0.02  # of random weights: logits stay of order one


@dataclass(frozen=True, slots=True)
class PlacedLayer:
    """One layer. Matrices are [out, in]; absent biases and norms are None."""

    input_norm: Tensor  # [hidden]
    qkv: Tensor  # [(heads + 2 * kv_heads) * head_dim, hidden]: queries, keys, values
    output: Tensor  # [hidden, heads * head_dim]
    mlp_norm: Tensor  # [hidden]
    gate_up: Tensor  # [2 * intermediate, hidden]: gates, then ups
    down: Tensor  # [hidden, intermediate]
    qkv_bias: Tensor | None = None
    output_bias: Tensor | None = None
    gate_up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    query_norm: Tensor | None = None  # [head_dim]
    key_norm: Tensor | None = None  # [head_dim]

    def head_norms(self, eps: float) -> HeadNorms | None:
        """Where the family normalises heads."""
        if self.query_norm is None or self.key_norm is None:
            return None
        return HeadNorms(self.query_norm, self.key_norm, eps)


@dataclass(frozen=True, slots=True)
class PlacedWeights:
    """A whole decoder. `head` is `embedding` itself where they are tied."""

    embedding: Tensor  # [vocab, hidden]
    layers: tuple[PlacedLayer, ...]
    norm: Tensor  # [hidden]
    head: Tensor  # [vocab, hidden]


# What each tensor here is put together from, in order; what is not named keeps its name.
PARTS: dict[str, tuple[str, ...]] = {
    "qkv": ("query", "key", "value"),
    "qkv_bias": ("query_bias", "key_bias", "value_bias"),
    "gate_up": ("gate", "up"),
    "gate_up_bias": ("gate_bias", "up_bias"),
}


def weight_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What `empty` takes of the device's memory, but for the allocator's rounding."""
    hidden = spec.hidden_size
    layer = sum(_count(shape) for shape in _layer_shapes(spec).values())
    embeddings = spec.vocab_size * hidden * (1 if spec.tied_embeddings else 2)
    return (spec.layers * layer + embeddings + hidden) * dtype.itemsize


def matrix_bytes(spec: ModelSpec, dtype: torch.dtype) -> int:
    """What a decode step reads of the weights: all but the embedding, unless that is the head as well."""
    whole = weight_bytes(spec, dtype)
    return whole if spec.tied_embeddings else whole - spec.vocab_size * spec.hidden_size * dtype.itemsize


def empty(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> PlacedWeights:
    """Memory for the weights, not written yet."""

    def made(shape: Sequence[int]) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=device)

    embedding = made((spec.vocab_size, spec.hidden_size))
    head = embedding if spec.tied_embeddings else made((spec.vocab_size, spec.hidden_size))
    shapes = _layer_shapes(spec)
    layers = tuple(
        PlacedLayer(**{name: made(shape) for name, shape in shapes.items()}) for _ in range(spec.layers)
    )
    return PlacedWeights(embedding, layers, made((spec.hidden_size,)), head)


def fill(placed: PlacedWeights, weights: Weights, progress: Progress | None = None) -> None:
    """Copy a checkpoint's tensors into `placed`, through pinned memory where that is on a GPU."""
    copier = PinnedCopier(placed.embedding.device)
    done = 0
    for target, source in _pairs(placed, weights):
        copier.copy(target, source)
        done += source.nbytes
        if progress is not None:
            progress(done)
    copier.finish()


def randomise(placed: PlacedWeights, seed: int = 0) -> None:
    """Random numbers of a size that keeps activations of order one; norms are about one."""
    generator = torch.Generator(placed.embedding.device).manual_seed(seed)
    matrices = [placed.embedding, *(() if placed.head is placed.embedding else (placed.head,))]
    norms = [placed.norm]
    for layer in placed.layers:
        for field in fields(layer):
            tensor = getattr(layer, field.name)
            if tensor is not None:
                (norms if field.name.endswith("norm") else matrices).append(tensor)
    for matrix in matrices:
        matrix.normal_(0.0, SPREAD, generator=generator)
    for norm in norms:
        norm.normal_(1.0, SPREAD, generator=generator)


def _pairs(placed: PlacedWeights, weights: Weights) -> Iterator[tuple[Tensor, Tensor]]:
    """Every target, or part of one, with the tensor that belongs there."""
    yield placed.embedding, weights.embedding
    if placed.head is not placed.embedding:
        yield placed.head, weights.head
    yield placed.norm, weights.norm
    for target, source in zip(placed.layers, weights.layers, strict=True):
        yield from _layer_pairs(target, source)


def _layer_pairs(target: PlacedLayer, source: LayerWeights) -> Iterator[tuple[Tensor, Tensor]]:
    for field in fields(target):
        whole = getattr(target, field.name)
        if whole is None:
            continue
        first = 0
        for name in PARTS.get(field.name, (field.name,)):
            part: Tensor = getattr(source, name)
            yield whole[first : first + part.shape[0]], part
            first += part.shape[0]


def _layer_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    queries, keys = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "input_norm": (hidden,),
        "qkv": (queries + 2 * keys, hidden),
        "output": (hidden, queries),
        "mlp_norm": (hidden,),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
    }
    if spec.qkv_bias:
        shapes["qkv_bias"] = (queries + 2 * keys,)
    if spec.output_bias:
        shapes["output_bias"] = (hidden,)
    if spec.mlp_bias:
        shapes |= {"gate_up_bias": (2 * inner,), "down_bias": (hidden,)}
    if spec.qk_norm:
        shapes |= {"query_norm": (spec.head_dim,), "key_norm": (spec.head_dim,)}
    return shapes


def _count(shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
