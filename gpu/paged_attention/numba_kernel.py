"""paged_attention in Numba CUDA; see the package for the contract. The CUDA simulator runs it on CPU tensors.

A block of `read` has one kv head, the queries that share it (up to 8; blocks beside it have the rest, and
find keys and values in the cache), and an item: a run of whole tiles of one row's context. It keeps, for each
query, the largest score so far, the sum of the weights and the weighted sum of values. A row of one item is
then done; `join` adds up the items of the others. How rows are cut into items depends on all contexts, which
each block reads by itself, so that one long row is spread over the device, and a batch of short ones is not
cut at all.

The threads of a block take part in three ways. Scores: `SLICES` threads share a token of context, and each
multiplies every SLICES-th word of its key; the products are added up through shared memory. Weights: a warp
has a query, its lanes have the tokens of a tile. Values: a thread has one word of a head, and some of the
tokens. Keys and values go from memory to registers, 8 bytes at once, a tile ahead of their use.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from numba import cuda
from torch import Tensor

from gpu.paged_attention.numba_launch import (
    BIT_TYPES,
    LANES,
    SIMULATED,
    bounded,
    conversions,
    exp2,
    flat,
    inlined,
    launch,
)
from gpu.paged_attention.source import Heads
from gpu.paged_attention.tiling import BLOCKS, LEAST_TILES, SLICES, Tiling, check_batch, check_heads, tiled

NO_SIGN = 2**62 - 1  # tells the compiler that an index is not negative, or it would look each time
NEVER = np.float32(-1e30)  # the score of a token that is not seen: finite, so that differences are no NaN

if SIMULATED:

    def _of_lanes(x: Any) -> Any:
        told = cuda.shared.array(cuda.blockDim.x, np.float32)
        cuda.syncthreads()
        told[cuda.threadIdx.x] = x
        cuda.syncthreads()
        first = cuda.threadIdx.x // LANES * LANES
        return told[first : first + LANES]

    def largest_of_warp(x: Any) -> Any:
        return _of_lanes(x).max()

    def sum_of_warp(x: Any) -> Any:
        return _of_lanes(x).sum()

else:

    @inlined
    def largest_of_warp(x: Any) -> Any:
        for power in range(5):
            x = max(x, cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << power))
        return x

    @inlined
    def sum_of_warp(x: Any) -> Any:
        for power in range(5):
            x += cuda.shfl_xor_sync(0xFFFFFFFF, x, 1 << power)
        return x


@inlined
def own_thread() -> Any:
    """Its number in the block, at most 1023; not negative, see `NO_SIGN`."""
    return cuda.threadIdx.x & 1023


def _planner(tiling: Tiling) -> tuple[Any, Any]:
    """`first_seen`, the first position that a row reads, and `find`, which tells a block its item."""
    threads, tile, items = tiling.threads, tiling.tile, tiling.items

    @inlined
    def first_seen(count: Any, context: Any, window: Any) -> Any:
        return max(context - count + 1 - window, 0) if window > 0 else 0

    @inlined
    def tiles_of(row: Any, starts: Any, contexts: Any, window: Any) -> Any:
        count, context = starts[row + 1] - starts[row], contexts[row]
        if count <= 0:
            return 0
        return (context - first_seen(count, context, window) + tile - 1) // tile

    @inlined
    def find(item: Any, starts: Any, contexts: Any, window: Any, counted: Any, found: Any) -> None:
        """found = row (-1: none), item within the row, items of the row, tiles of an item."""
        thread, rows = own_thread(), contexts.size
        each = (rows + threads - 1) // threads
        first, last = min(thread * each, rows), min(thread * each + each, rows)
        mine = 0
        for row in range(first, last):
            mine += tiles_of(row, starts, contexts, window)
        counted[thread] = mine
        cuda.syncthreads()
        total = 0
        for other in range(min(threads, rows)):
            total += counted[other]
        most = max((total + items - 1) // items, LEAST_TILES)  # tiles of an item
        mine = 0
        for row in range(first, last):
            mine += (tiles_of(row, starts, contexts, window) + most - 1) // most
        cuda.syncthreads()
        counted[thread] = mine
        if thread == 0:
            found[0] = -1
        cuda.syncthreads()
        before = 0
        for other in range(min(thread, rows)):
            before += counted[other]
        if before <= item < before + mine:
            for row in range(first, last):
                tiles = tiles_of(row, starts, contexts, window)
                parts = (tiles + most - 1) // most
                if before <= item < before + parts:
                    found[0], found[1], found[2] = row, item - before, parts
                    found[3] = (tiles + parts - 1) // parts
                before += parts
        cuda.syncthreads()

    return first_seen, find


def _loader(tiling: Tiling) -> tuple[Any, Any, Any]:
    """`locate` finds where a tile's tokens lie; `load_keys` and `load_values` take a thread's words of it."""
    tile, words, slice_words, steps = tiling.tile, tiling.words, tiling.slice_words, tiling.steps
    slots, sharers, turns = tiling.threads // SLICES, tiling.sharers, tiling.turns

    @inlined
    def locate(
        places: Any, base: Any, position: Any, end: Any, table: Any, row_table: Any, layout: Any
    ) -> None:
        """places[base + n] = where in the pools, in words, the n-th token from `position` has its first."""
        if own_thread() < tile:
            at, place = position + own_thread(), -1
            if at < end:
                block_size, block_stride, entry_stride, offset = layout
                block = np.int64(table[row_table + at // block_size])
                place = block * block_stride + at % block_size * entry_stride + offset
            places[base + own_thread()] = place

    @inlined
    def load_keys(loaded: Any, keys: Any, places: Any, base: Any) -> None:
        """Word `part + SLICES * w` of each of the thread's tokens."""
        slot, part = own_thread() // SLICES, own_thread() % SLICES
        for step in range(steps):
            place = places[base + step * slots + slot]
            first = (place + part) & NO_SIGN
            for w in range(slice_words):
                there = place >= 0 and part < words - w * SLICES
                loaded[step * slice_words + w] = keys[first + w * SLICES] if there else 0

    @inlined
    def load_values(loaded: Any, values: Any, places: Any, base: Any) -> None:
        """The thread's word of every `sharers`-th token."""
        word, sharer = own_thread() % words, own_thread() // words
        for turn in range(turns):
            token = turn * sharers + sharer
            place = places[base + token] if sharer < sharers and token < tile else -1
            loaded[turn] = values[(place + word) & NO_SIGN] if place >= 0 else 0

    return locate, load_keys, load_values


def _scorer(tiling: Tiling) -> Any:
    """`score`: products of queries and keys, of each slice."""
    widen, _ = conversions(tiling.dtype)
    queries, tile, elements, slice_words = tiling.queries, tiling.tile, tiling.elements, tiling.slice_words
    steps, slots, padded, pitch = tiling.steps, tiling.threads // SLICES, tiling.padded, tiling.pitch
    held = steps * queries

    @inlined
    def score(loaded: Any, asked: Any, products: Any) -> None:
        slot, part = own_thread() // SLICES, own_thread() % SLICES
        sums = cuda.local.array(held, np.float32)
        keys = cuda.local.array(steps, np.float32)
        for n in range(steps * queries):
            sums[n] = 0.0
        for w in range(slice_words):
            for element in range(elements):
                for step in range(steps):
                    keys[step] = widen(loaded[step * slice_words + w], element)
                for query in range(queries):
                    x = asked[query * padded + (w * SLICES + part) * elements + element]
                    for step in range(steps):
                        sums[step * queries + query] += x * keys[step]
        for step in range(steps):
            for query in range(queries):
                products[part * pitch + query * tile + step * slots + slot] = sums[step * queries + query]

    return score


def _weigher(tiling: Tiling) -> Any:
    """`weigh`: scores of a tile to weights, relative to the largest score so far."""
    queries, tile, pitch, group = tiling.queries, tiling.tile, tiling.pitch, tiling.group
    warps = tiling.threads // LANES
    rounds, lane_tokens = -(-queries // warps), -(-tile // LANES)

    @inlined
    def weigh(
        products: Any, weights: Any, fades: Any, best: Any, norms: Any, start: Any, asking: Any, window: Any
    ) -> None:
        """`asking`: where the row's first token is; the block's first query in the row; how many it has."""
        lane, warp = own_thread() % LANES, own_thread() // LANES
        position, first_query, live = asking
        scores = cuda.local.array(lane_tokens, np.float32)
        for turn in range(rounds):
            query = turn * warps + warp
            last = position + (first_query + query) // group
            largest = best[turn]
            for n in range(lane_tokens):
                token = n * LANES + lane
                at = start + token
                scores[n] = NEVER
                if query < live and token < tile and at <= last and (window <= 0 or at > last - window):
                    total = np.float32(0.0)
                    for part in range(SLICES):
                        total += products[part * pitch + query * tile + token]
                    scores[n] = total
                    largest = max(largest, total)
            largest = largest_of_warp(largest)
            fade = exp2(best[turn] - largest)
            norm = norms[turn] * fade
            for n in range(lane_tokens):
                token = n * LANES + lane
                weight = np.float32(0.0)
                if scores[n] != NEVER:  # true of NaN too: it is to be seen in the output
                    weight = exp2(scores[n] - largest)
                if query < queries and token < tile:
                    weights[token * queries + query] = weight
                norm += weight
            if query < queries and lane == 0:
                fades[query] = fade
            best[turn], norms[turn] = largest, norm

    return weigh


def _adder(tiling: Tiling) -> tuple[Any, Any]:
    """`add` weighs the values of a tile; `gather` adds up what the threads that share a word have."""
    widen, _ = conversions(tiling.dtype)
    queries, tile, elements, padded = tiling.queries, tiling.tile, tiling.elements, tiling.padded
    words, sharers, turns = tiling.words, tiling.sharers, tiling.turns

    @inlined
    def add(loaded: Any, weights: Any, fades: Any, sums: Any) -> None:
        sharer = own_thread() // words
        values = cuda.local.array(elements, np.float32)
        for query in range(queries):
            for element in range(elements):
                sums[query * elements + element] *= fades[query]
        for turn in range(turns):
            token = turn * sharers + sharer
            if sharer < sharers and token < tile:
                for element in range(elements):
                    values[element] = widen(loaded[turn], element)
                for query in range(queries):
                    weight = weights[token * queries + query]
                    for element in range(elements):
                        sums[query * elements + element] += weight * values[element]

    @inlined
    def gather(sums: Any, total: Any) -> None:
        word, sharer = own_thread() % words, own_thread() // words
        for turn in range(sharers):
            if sharer == turn:
                for query in range(queries):
                    for element in range(elements):
                        n = query * padded + word * elements + element
                        before = np.float32(0.0) if turn == 0 else total[n]
                        total[n] = before + sums[query * elements + element]
            cuda.syncthreads()

    return add, gather


def _reader(tiling: Tiling) -> Any:
    threads, tile = tiling.threads, tiling.tile
    queries, chunks, group = tiling.queries, tiling.chunks, tiling.group
    head_dim, words, elements, padded = tiling.head_dim, tiling.words, tiling.elements, tiling.padded
    held_keys, held_values = tiling.steps * tiling.slice_words, tiling.turns
    held_sums, rounds = queries * elements, -(-queries // (threads // LANES))
    products_size, places_size = SLICES * tiling.pitch, 2 * tile
    asked_size, weights_size = queries * padded, tile * queries
    widen, narrow = conversions(tiling.dtype)
    first_seen, find = _planner(tiling)
    locate, load_keys, load_values = _loader(tiling)
    score, weigh = _scorer(tiling), _weigher(tiling)
    add, gather = _adder(tiling)

    @bounded(threads, BLOCKS)
    def read(
        query: Any,
        query_stride: Any,
        keys: Any,
        values: Any,
        block_size: Any,
        block_stride: Any,
        entry_stride: Any,
        head_stride: Any,
        tables: Any,
        table_stride: Any,
        starts: Any,
        contexts: Any,
        scale: Any,
        window: Any,
        out: Any,
        partial_sums: Any,
        partial_weights: Any,
        parts: Any,
    ) -> None:
        thread, chunk, kv_head, item = own_thread(), cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        kv_heads = cuda.gridDim.y
        counted = cuda.shared.array(threads, np.int32)
        found = cuda.shared.array(4, np.int32)
        find(item, starts, contexts, window, counted, found)
        row, part, row_parts, run = found[0], found[1], found[2], found[3]
        if row < 0:
            return
        first_token = starts[row]
        count, context = starts[row + 1] - first_token, contexts[row]
        first_query = chunk * queries
        live = min(count * group - first_query, queries)
        if live <= 0:
            return
        if thread == 0 and part == 0 and chunk == 0 and kv_head == 0:
            parts[2 * row], parts[2 * row + 1] = item, row_parts

        places = cuda.shared.array(places_size, np.int64)  # of two tiles, in turns
        asked = cuda.shared.array(asked_size, np.float32)
        products = cuda.shared.array(products_size, np.float32)
        weights = cuda.shared.array(weights_size, np.float32)
        fades = cuda.shared.array(queries, np.float32)
        start = first_seen(count, context, window) + part * run * tile
        end = min(start + run * tile, context)
        layout = block_size, block_stride, entry_stride, kv_head * head_stride
        locate(places, 0, start, end, tables, row * table_stride, layout)
        locate(places, tile, start + tile, end, tables, row * table_stride, layout)
        for n in range(thread, queries * padded, threads):
            asking, word, element = n // padded, n % padded // elements, n % elements
            asked[n] = 0.0
            if asking < live and word < words:
                token = first_token + (first_query + asking) // group
                head = kv_head * group + (first_query + asking) % group
                bits = query[token * query_stride + head * words + word]
                asked[n] = widen(bits, element) * np.float32(scale)
        cuda.syncthreads()

        loaded_keys = cuda.local.array(held_keys, np.int64)
        loaded_values = cuda.local.array(held_values, np.int64)
        sums = cuda.local.array(held_sums, np.float32)
        best = cuda.local.array(rounds, np.float32)
        norms = cuda.local.array(rounds, np.float32)
        for n in range(held_sums):
            sums[n] = 0.0
        for n in range(rounds):
            best[n], norms[n] = NEVER, 0.0
        load_keys(loaded_keys, keys, places, 0)
        load_values(loaded_values, values, places, 0)
        this, other = 0, tile
        while start < end:
            score(loaded_keys, asked, products)
            load_keys(loaded_keys, keys, places, other)
            cuda.syncthreads()
            locate(places, this, start + 2 * tile, end, tables, row * table_stride, layout)
            asked_by = context - count, first_query, live
            weigh(products, weights, fades, best, norms, start, asked_by, window)
            cuda.syncthreads()
            add(loaded_values, weights, fades, sums)
            load_values(loaded_values, values, places, other)
            start += tile
            this, other = other, this

        gather(sums, asked)
        lane, warp = thread % LANES, thread // LANES
        for n in range(rounds):
            norm, one = sum_of_warp(norms[n]), n * (threads // LANES) + warp
            if lane == 0 and one < queries:
                fades[one] = norm
                weights[one] = best[n]
        cuda.syncthreads()
        base = ((item * kv_heads + kv_head) * chunks + chunk) * queries
        for n in range(thread, live * head_dim, threads):
            one, at = n // head_dim, n % head_dim
            total = asked[one * padded + at]
            if row_parts == 1:
                token = first_token + (first_query + one) // group
                head = kv_head * group + (first_query + one) % group
                out[(token * kv_heads * group + head) * head_dim + at] = narrow(total / fades[one])
            else:
                partial_sums[(base + one) * head_dim + at] = total
                if at == 0:
                    partial_weights[2 * (base + one)] = weights[one]
                    partial_weights[2 * (base + one) + 1] = fades[one]

    return read


def _joiner(tiling: Tiling) -> Any:
    queries, chunks, group, head_dim = tiling.queries, tiling.chunks, tiling.group, tiling.head_dim
    _, narrow = conversions(tiling.dtype)

    @cuda.jit
    def join(starts: Any, partial_sums: Any, partial_weights: Any, parts: Any, out: Any) -> None:
        chunk, kv_head, row = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        kv_heads, first_token = cuda.gridDim.y, starts[row]
        first_query = chunk * queries
        live = min((starts[row + 1] - first_token) * group - first_query, queries)
        if live <= 0 or parts[2 * row + 1] == 1:
            return
        first = ((parts[2 * row] * kv_heads + kv_head) * chunks + chunk) * queries
        step = kv_heads * chunks * queries  # from an item to the next
        last = first + parts[2 * row + 1] * step
        for n in range(own_thread(), live * head_dim, cuda.blockDim.x):
            one, at = n // head_dim, n % head_dim
            best = NEVER
            for part in range(first + one, last, step):
                best = max(best, partial_weights[2 * part])
            norm, total = np.float32(0.0), np.float32(0.0)
            for part in range(first + one, last, step):
                fade = exp2(partial_weights[2 * part] - best)
                norm += fade * partial_weights[2 * part + 1]
                total += fade * partial_sums[part * head_dim + at]
            token = first_token + (first_query + one) // group
            head = kv_head * group + (first_query + one) % group
            out[(token * kv_heads * group + head) * head_dim + at] = narrow(total / norm)

    return join


@cache
def kernels(tiling: Tiling) -> tuple[Any, Any]:
    """`read` and `join`, which are compiled at their first launch."""
    return _reader(tiling), _joiner(tiling)


class PagedAttention:
    """Rows of at most `most_tokens` query tokens, for one model on one device, one call at a time.

    Heads may be of any multiple of 8 up to 256, in float32, bfloat16 or float16; blocks of any size. The
    workspace is this object's own: calls on two streams at once need two objects, and a captured graph needs
    the object as long as it lives. Call it once before a capture, for the kernels to be compiled.
    """

    def __init__(
        self, shape: Heads, *, most_tokens: int = 1, most_rows: int = 512, device: torch.device | None = None
    ) -> None:
        where = torch.device("cpu" if SIMULATED else "cuda") if device is None else device
        processors = 1 if SIMULATED else torch.cuda.get_device_properties(where).multi_processor_count
        self._shape, self._most_tokens, self._most_rows = shape, most_tokens, most_rows
        self.tiling = tiling = tiled(shape, most_tokens, most_rows, processors, LANES)
        self._read, self._join = kernels(tiling)
        parts = (tiling.items + most_rows) * shape.kv_heads * tiling.chunks * tiling.queries
        self._sums = torch.empty(parts * shape.head_dim, dtype=torch.float32, device=where)
        self._weights = torch.empty(2 * parts, dtype=torch.float32, device=where)
        self._parts = torch.empty(2 * most_rows, dtype=torch.int32, device=where)

    @property
    def workspace_bytes(self) -> int:
        return sum(x.nbytes for x in (self._sums, self._weights, self._parts))

    def __call__(
        self,
        query: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        row_starts: Tensor,
        contexts: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """Check, and enqueue."""
        check_heads(self._shape, query, key_pool, value_pool, out)
        check_batch(self._most_tokens, self._most_rows, query, block_tables, row_starts, contexts, window)
        self.enqueue(query, key_pool, value_pool, block_tables, row_starts, contexts, scale, window, out)

    def enqueue(
        self,
        query: Tensor,
        key_pool: Tensor,
        value_pool: Tensor,
        block_tables: Tensor,
        row_starts: Tensor,
        contexts: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None:
        """As the call, unchecked."""
        rows, tiling, words = len(contexts), self.tiling, torch.int64
        if not len(query) or not block_tables.numel():
            return
        block_size, kv_heads = key_pool.shape[1], self._shape.kv_heads
        longest = -(-block_tables.shape[1] * block_size // (tiling.tile * LEAST_TILES))
        results = flat(out, BIT_TYPES[out.dtype])
        keys, values = flat(key_pool, words), flat(value_pool, words)
        launch(
            self._read,
            (tiling.chunks, kv_heads, min(tiling.items + rows, longest * rows)),
            tiling.threads,
            flat(query, words),
            query.stride(0) // tiling.elements,
            keys,
            values,
            block_size,
            *(stride // tiling.elements for stride in key_pool.stride()[:3]),
            flat(block_tables, torch.int32),
            block_tables.stride(0),
            row_starts,
            contexts,
            scale * math.log2(math.e),
            window or 0,
            results,
            self._sums,
            self._weights,
            self._parts,
        )
        if longest > 1:
            width = tiling.queries * tiling.head_dim
            threads = tiling.threads if SIMULATED else min(1024, -(-width // LANES) * LANES)
            grid = (tiling.chunks, kv_heads, rows)
            launch(self._join, grid, threads, row_starts, self._sums, self._weights, self._parts, results)
