"""The first kernel: a block's item of a row's context, to a result or to a part of one."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu.paged_attention.numba_device import LANES, bounded, conversions, cuda, inlined, own_thread
from gpu.paged_attention.numba_parts import (
    NEVER,
    adder,
    asker,
    first_seen,
    gatherer,
    loader,
    locator,
    planner,
    scorer,
    weigher,
)
from gpu.paged_attention.tiling import BLOCKS, SLICES, Tiling


def attender(tiling: Tiling) -> Any:
    """`attend`: all tiles from `start` to `end`, one after the other."""
    tile, held_keys, held_values = tiling.tile, tiling.steps * tiling.slice_words, tiling.turns
    locate, score, weigh, add = locator(tiling), scorer(tiling), weigher(tiling), adder(tiling)
    load_keys, load_values = loader(tiling)

    @inlined
    def attend(
        pools: Any,
        table: Any,
        row_table: Any,
        layout: Any,
        span: Any,
        asked_by: Any,
        window: Any,
        shared: Any,
        best: Any,
        norms: Any,
        sums: Any,
    ) -> None:
        """The queries are in shared memory at the next barrier."""
        keys, values = pools
        start, end = span
        places, asked, products, weights, fades = shared
        loaded_keys = cuda.local.array(held_keys, np.int64)
        loaded_values = cuda.local.array(held_values, np.int64)
        locate(places, 0, start, end, table, row_table, layout)
        locate(places, tile, start + tile, end, table, row_table, layout)
        cuda.syncthreads()
        load_keys(loaded_keys, keys, places, 0)
        load_values(loaded_values, values, places, 0)
        this, other = 0, tile
        while start < end:
            score(loaded_keys, asked, products)
            load_keys(loaded_keys, keys, places, other)
            cuda.syncthreads()
            locate(places, this, start + 2 * tile, end, table, row_table, layout)
            weigh(products, weights, fades, best, norms, start, asked_by, window)
            cuda.syncthreads()
            add(loaded_values, weights, fades, sums)
            load_values(loaded_values, values, places, other)
            start += tile
            this, other = other, this

    return attend


def writer(tiling: Tiling, place_of: Any) -> Any:
    """`write`: what a block has of its queries, to `out` where that is the whole row, else to the parts."""
    _, narrow = conversions(tiling.dtype)
    threads, queries, chunks, group = tiling.threads, tiling.queries, tiling.chunks, tiling.group
    head_dim, padded = tiling.head_dim, tiling.padded

    @inlined
    def write(
        total: Any, best: Any, norms: Any, asking: Any, row_parts: Any, out: Any, sums: Any, weights: Any
    ) -> None:
        kv_heads, live = cuda.gridDim.y, asking[3]
        base = ((cuda.blockIdx.z * kv_heads + asking[1]) * chunks + cuda.blockIdx.x) * queries
        for n in range(own_thread(), live * head_dim, threads):
            one, at = n // head_dim, n % head_dim
            value = total[one * padded + at]
            if row_parts == 1:
                token, head = place_of(one, asking)
                out[(token * kv_heads * group + head) * head_dim + at] = narrow(value / norms[one])
            else:
                sums[(base + one) * head_dim + at] = value
                if at == 0:
                    weights[2 * (base + one)] = best[one]
                    weights[2 * (base + one) + 1] = norms[one]

    return write


def reader(tiling: Tiling) -> Any:
    threads, queries, group = tiling.threads, tiling.queries, tiling.group
    asked_size, products_size = queries * tiling.padded, SLICES * tiling.pitch
    weights_size, places_size = tiling.tile * queries, 2 * tiling.tile
    held_sums, rounds, tile = queries * tiling.elements, -(-queries // (threads // LANES)), tiling.tile
    find, attend = planner(tiling), attender(tiling)
    place_of, ask = asker(tiling)
    gather_sums, gather_norms = gatherer(tiling)
    write = writer(tiling, place_of)

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
        chunk, kv_head, item = cuda.blockIdx.x, cuda.blockIdx.y, cuda.blockIdx.z
        counted = cuda.shared.array(threads, np.int32)
        found = cuda.shared.array(4, np.int32)
        find(item, starts, contexts, window, counted, found)
        row, part, row_parts, run = found[0], found[1], found[2], found[3]
        if row < 0:
            return
        count, context = starts[row + 1] - starts[row], contexts[row]
        first_query = chunk * queries
        live = min(count * group - first_query, queries)
        if live <= 0:
            return
        if own_thread() == 0 and part == 0 and chunk == 0 and kv_head == 0:
            parts[2 * row], parts[2 * row + 1] = item, row_parts

        places = cuda.shared.array(places_size, np.int64)  # of two tiles, in turns
        asked = cuda.shared.array(asked_size, np.float32)
        products = cuda.shared.array(products_size, np.float32)
        weights = cuda.shared.array(weights_size, np.float32)
        fades = cuda.shared.array(queries, np.float32)
        sums = cuda.local.array(held_sums, np.float32)
        best = cuda.local.array(rounds, np.float32)
        norms = cuda.local.array(rounds, np.float32)
        for n in range(held_sums):
            sums[n] = 0.0
        for n in range(rounds):
            best[n], norms[n] = NEVER, 0.0

        start = first_seen(count, context, window) + part * run * tile
        span = start, min(start + run * tile, context)
        layout = block_size, block_stride, entry_stride, kv_head * head_stride
        asking, asked_by = (starts[row], kv_head, first_query, live), (context - count, first_query, live)
        shared = places, asked, products, weights, fades
        ask(query, query_stride, scale, asking, asked)
        table = row * table_stride
        attend((keys, values), tables, table, layout, span, asked_by, window, shared, best, norms, sums)
        gather_sums(sums, asked)
        gather_norms(best, norms, weights, fades)
        write(asked, weights, fades, asking, row_parts, out, partial_sums, partial_weights)

    return read
