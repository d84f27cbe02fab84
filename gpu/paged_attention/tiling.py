"""How the Numba kernels of paged_attention are laid out for a model, and what they take."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gpu.paged_attention.checks import check_pools, check_query
from gpu.paged_attention.source import Heads

WARPS = 4  # of a block at least
SLICES = 8  # threads that share the key of a token
MOST_QUERIES = 8  # of a block: what fits in registers; blocks that share a kv head read it through the cache
MOST_STEPS = 4  # tokens of a tile whose keys a thread has at once
WORDS_IN_FLIGHT = 16  # of keys, and again of values, that a thread waits for at once
WORD_BYTES = 8
MOST_HEAD_DIM = 256
LEAST_TILES = 2  # of an item: shorter ones cost more to start and to join than they gain
BLOCKS = 3  # that share a multiprocessor
WAVES = 2  # of blocks, at least, that a long context is cut into
MOST_ROWS = 65_535 // 2  # of a grid's third extent, half of it
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a block is laid out for a model's heads; the kernels are compiled for one."""

    head_dim: int
    dtype: torch.dtype
    group: int  # query heads of a kv head
    chunks: int  # blocks that share the queries of a kv head and a row
    queries: int  # of a block
    items: int  # beyond one a row
    lanes: int  # of a warp

    @property
    def elements(self) -> int:
        """Of a word."""
        return WORD_BYTES // self.dtype.itemsize

    @property
    def words(self) -> int:
        """Of a head."""
        return self.head_dim // self.elements

    @property
    def slice_words(self) -> int:
        return -(-self.words // SLICES)

    @property
    def threads(self) -> int:
        return self.lanes * max(WARPS, -(-self.words // self.lanes))

    @property
    def steps(self) -> int:
        return max(1, min(MOST_STEPS, WORDS_IN_FLIGHT // self.slice_words))

    @property
    def tile(self) -> int:
        """Tokens of context that a block weighs at once."""
        return self.steps * self.threads // SLICES

    @property
    def sharers(self) -> int:
        """Threads that share a word of the values: each has every sharers-th token of a tile."""
        return self.threads // self.words

    @property
    def turns(self) -> int:
        return -(-self.tile // self.sharers)

    @property
    def padded(self) -> int:
        """Of a head, so that all slices are equally long."""
        return self.slice_words * SLICES * self.elements

    @property
    def pitch(self) -> int:
        """From a slice's products to the next one's: writing a warp's finds no bank twice."""
        return self.queries * self.tile + 32 // SLICES


def tiled(shape: Heads, most_tokens: int, most_rows: int, processors: int, lanes: int) -> Tiling:
    """For rows of up to `most_tokens`, on so many multiprocessors of warps of `lanes`; or `ValueError`."""
    if shape.head_dim % 8 or not 8 <= shape.head_dim <= MOST_HEAD_DIM:
        raise ValueError(
            f"paged_attention: head_dim is {shape.head_dim}; the Numba kernel takes multiples of 8 up to"
            f" {MOST_HEAD_DIM}"
        )
    if shape.dtype not in DTYPES:
        raise ValueError(f"paged_attention: dtype is {shape.dtype}; use float32, bfloat16 or float16")
    if shape.heads % shape.kv_heads:
        raise ValueError(f"paged_attention: {shape.heads} heads are no multiple of {shape.kv_heads} kv heads")
    if most_tokens < 1 or not 1 <= most_rows <= MOST_ROWS:
        raise ValueError(
            f"paged_attention: {most_tokens} tokens a row and {most_rows} rows at most; choose at least 1"
            f" token and 1 to {MOST_ROWS} rows"
        )
    wanted = shape.group * most_tokens
    chunks = -(-wanted // MOST_QUERIES)
    items = max(WAVES * BLOCKS * processors // (shape.kv_heads * chunks), 1)
    queries = -(-wanted // chunks)
    return Tiling(shape.head_dim, shape.dtype, shape.group, chunks, queries, items, lanes)


def check_heads(shape: Heads, query: Tensor, key_pool: Tensor, value_pool: Tensor, out: Tensor) -> None:
    check_query("paged_attention", shape, query)
    check_pools("paged_attention", shape, key_pool, value_pool, 1)
    if out.shape != query.shape or out.dtype != query.dtype or not out.is_contiguous():
        raise ValueError(f"paged_attention: out is {out.dtype}{list(out.shape)}; make it dense, as query")
    if key_pool.shape != value_pool.shape:
        raise ValueError("paged_attention: key and value pool differ in shape; make them alike")
    if query.stride()[1:] != (shape.head_dim, 1):
        raise ValueError("paged_attention: query tokens must be dense; call .contiguous()")
    for tensor in (query, key_pool, value_pool):
        if any(n * tensor.itemsize % WORD_BYTES for n in (tensor.storage_offset(), *tensor.stride()[:-1])):
            raise ValueError(
                f"paged_attention: heads must start at multiples of {WORD_BYTES} bytes; align them"
            )


def check_batch(
    most_tokens: int,
    most_rows: int,
    query: Tensor,
    block_tables: Tensor,
    row_starts: Tensor,
    contexts: Tensor,
    window: int | None,
) -> None:
    rows = len(contexts)
    if rows > most_rows or len(query) > rows * most_tokens:
        raise ValueError(
            f"paged_attention: {len(query)} tokens in {rows} rows, made for {most_tokens} a row and"
            f" {most_rows} rows; make it for more, or run them in two calls"
        )
    if len(row_starts) != rows + 1 or len(block_tables) != rows:
        raise ValueError(
            f"paged_attention: {len(row_starts)} row starts and {len(block_tables)} block tables for"
            f" {rows} rows; give {rows + 1} and {rows}"
        )
    for tensor in (block_tables, row_starts, contexts):
        if tensor.dtype != torch.int32 or (tensor.numel() and tensor.stride(-1) != 1):
            raise ValueError("paged_attention: tables, starts and contexts must be dense torch.int32")
    if window is not None and window < 1:
        raise ValueError(f"paged_attention: the window is {window}; make it at least 1, or None")
