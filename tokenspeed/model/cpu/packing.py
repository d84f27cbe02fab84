"""Weights into the form that the tile kernel reads, once, at start."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tokenspeed.model.cpu.jit import cached
from tokenspeed.model.cpu.layout import FLOAT, LAYER, Shape, padded
from tokenspeed.model.cpu.memory import Arena
from tokenspeed.model.cpu.tile import BLOCK
from tokenspeed.model.weights import LayerWeights, Weights

Progress = Callable[[int], None]  # bytes packed so far
Task = Callable[[], int]  # packs one matrix; its bytes


@cached
def transpose_blocks(source: NDArray[np.uint32], target: NDArray[np.uint32]) -> None:
    """source [N, cells] of 32 bits -> target [N / 16, cells or more, 16]; rows past N stay zero."""
    outputs, cells = source.shape
    for block in range(target.shape[0]):
        for lane in range(min(BLOCK, outputs - block * BLOCK)):
            for cell in range(cells):
                target[block, cell, lane] = source[block * BLOCK + lane, cell]


class Packer:
    """Places matrices and vectors in one arena; `run` then fills the matrices on several threads."""

    def __init__(self, shape: Shape, dtype: torch.dtype, matrices: int) -> None:
        vectors = (6 * shape.width + 2 * shape.intermediate + shape.fused + 2 * shape.head) * shape.layers
        spare = 64 * 16 * (shape.layers + 1)
        self.arena = Arena(matrices * dtype.itemsize + (vectors + shape.width + shape.vocab) * FLOAT + spare)
        self.shape = shape
        self.dtype = dtype
        self._tasks: list[Task] = []

    def matrix(self, outputs: int, inputs: int, parts: list[tuple[int, Tensor]]) -> int:
        """Place a matrix [outputs, inputs], zero but for `parts`: (first output, tensor); its address."""
        address = self.arena.take(outputs * inputs * self.dtype.itemsize)
        cells = inputs * self.dtype.itemsize // 4
        for first, tensor in parts:
            size = padded(tensor.shape[0], BLOCK) * cells * 4
            target = self.arena.view(address + first * cells * 4, size).view(np.uint32)
            self._tasks.append(partial(self._pack, tensor, target.reshape(-1, cells, BLOCK)))
        return address

    def vector(self, size: int, parts: list[tuple[int, Tensor | None]]) -> int:
        """Place a float32 vector, zero but for `parts`: (first element, tensor); its address."""
        address = self.arena.take(size * FLOAT)
        target = self.arena.view(address, size * FLOAT).view(np.float32)
        for first, tensor in parts:
            if tensor is not None:
                target[first : first + tensor.numel()] = tensor.float().numpy().ravel()
        return address

    def run(self, threads: int, progress: Progress | None) -> None:
        """Pack all matrices that were placed, and let go of their tensors."""
        done = 0
        tasks, self._tasks = self._tasks, []
        with ThreadPoolExecutor(threads) as pool:
            for size in pool.map(lambda task: task(), tasks):
                done += size
                if progress is not None:
                    progress(done)

    def _pack(self, tensor: Tensor, target: NDArray[np.uint32]) -> int:
        if tensor.shape[1] * self.dtype.itemsize % 4:
            tensor = functional.pad(tensor, (0, 1))
        cells = tensor.detach().to(self.dtype).contiguous().view(torch.uint32).numpy()
        transpose_blocks(cells, target)
        return int(cells.nbytes)


def pack_layer(packer: Packer, layer: LayerWeights, window: int | None) -> tuple[int, ...]:
    """Place one layer; its fields of LAYER."""
    shape = packer.shape
    width, inner = shape.width, shape.intermediate
    keys = shape.heads * shape.head
    values = keys + shape.kv_heads * shape.head
    wide = partial(wide_heads, shape)
    fused = [(0, wide(layer.query)), (keys, wide(layer.key)), (values, wide(layer.value))]
    biases = [(0, layer.query_bias), (keys, layer.key_bias), (values, layer.value_bias)]
    return (
        packer.matrix(shape.fused, width, fused),
        packer.matrix(width, shape.attended, [(0, wide_heads(shape, layer.output.T).T)]),
        packer.matrix(inner, width, [(0, layer.gate)]),
        packer.matrix(inner, width, [(0, layer.up)]),
        packer.matrix(width, inner, [(0, layer.down)]),
        packer.vector(shape.fused, [(at, None if bias is None else wide(bias)) for at, bias in biases]),
        packer.vector(width, [(0, layer.output_bias)]),
        packer.vector(inner, [(0, layer.gate_bias)]),
        packer.vector(inner, [(0, layer.up_bias)]),
        packer.vector(width, [(0, layer.down_bias)]),
        packer.vector(width, [(0, layer.input_norm)]),
        packer.vector(width, [(0, layer.mlp_norm)]),
        packer.vector(shape.head, [(0, layer.query_norm)]),
        packer.vector(shape.head, [(0, layer.key_norm)]),
        window or 0,
    )


def wide_heads(shape: Shape, tensor: Tensor) -> Tensor:
    """[heads * head_dim, ...] with each head's outputs padded with zeros to the packed width of a head."""
    if shape.head == shape.head_dim:
        return tensor
    heads = tensor.reshape(-1, shape.head_dim, *tensor.shape[1:])
    padding = [0, 0] * (tensor.dim() - 1) + [0, shape.head - shape.head_dim]
    return functional.pad(heads, padding).flatten(0, 1)


def layer_elements(shape: Shape) -> int:
    """Elements of one layer's packed matrices."""
    per_width = shape.fused + shape.attended + 3 * shape.intermediate
    return per_width * shape.width


class Packed(NamedTuple):
    """A decoder's weights as addresses, and the arena that they lie in."""

    layers: NDArray[np.void]  # [layers] of LAYER
    embedding: int
    head: int
    head_bias: int
    norm: int
    arena: Arena


def pack(
    shape: Shape,
    weights: Weights,
    windows: tuple[int | None, ...],
    dtype: torch.dtype,
    threads: int,
    progress: Progress | None,
) -> Packed:
    """Pack all weights. Nothing that is returned refers to the source tensors."""
    tables = 1 if weights.head is weights.embedding else 2
    elements = layer_elements(shape) * shape.layers + tables * shape.vocab * shape.width
    packer = Packer(shape, dtype, elements)
    rows = [pack_layer(packer, *pair) for pair in zip(weights.layers, windows, strict=True)]
    head = packer.matrix(shape.vocab, shape.width, [(0, weights.head)])
    embedding = head
    if tables == 2:
        embedding = packer.matrix(shape.vocab, shape.width, [(0, weights.embedding)])
    norm = packer.vector(shape.width, [(0, weights.norm)])
    zeros = packer.vector(shape.vocab, [])
    packer.run(threads, progress)
    return Packed(np.array(rows, LAYER), embedding, head, zeros, norm, packer.arena)
