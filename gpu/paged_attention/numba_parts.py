"""What the first kernel is made of: device functions for one tiling. `numba_kernel` says who does what."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu.paged_attention.numba_device import (
    LANES,
    conversions,
    cuda,
    exp2,
    inlined,
    largest_of_warp,
    own_thread,
    sum_of_warp,
)
from gpu.paged_attention.tiling import LEAST_TILES, SLICES, Tiling

NO_SIGN = 2**62 - 1  # tells the compiler that an index is not negative, or it would look each time
NEVER = np.float32(-1e30)  # the score of a token that is not seen: finite, so that differences are no NaN


@inlined
def first_seen(count: Any, context: Any, window: Any) -> Any:
    """The first position that a row reads."""
    return max(context - count + 1 - window, 0) if window > 0 else 0


def counter(tiling: Tiling) -> tuple[Any, Any]:
    """`tiles_of` a row, and `most_tiles` of an item, for which each thread counts some rows."""
    threads, tile, items = tiling.threads, tiling.tile, tiling.items

    @inlined
    def tiles_of(row: Any, starts: Any, contexts: Any, window: Any) -> Any:
        count, context = starts[row + 1] - starts[row], contexts[row]
        if count <= 0:
            return 0
        return (context - first_seen(count, context, window) + tile - 1) // tile

    @inlined
    def most_tiles(first: Any, last: Any, starts: Any, contexts: Any, window: Any, counted: Any) -> Any:
        mine = 0
        for row in range(first, last):
            mine += tiles_of(row, starts, contexts, window)
        counted[own_thread()] = mine
        cuda.syncthreads()
        total = 0
        for other in range(min(threads, contexts.size)):
            total += counted[other]
        return max((total + items - 1) // items, LEAST_TILES)

    return tiles_of, most_tiles


def planner(tiling: Tiling) -> Any:
    """`find`, which tells a block its item."""
    threads = tiling.threads
    tiles_of, most_tiles = counter(tiling)

    @inlined
    def find(item: Any, starts: Any, contexts: Any, window: Any, counted: Any, found: Any) -> None:
        """found = row (-1: none), item within the row, items of the row, tiles of an item."""
        thread, rows = own_thread(), contexts.size
        each = (rows + threads - 1) // threads
        first, last = min(thread * each, rows), min(thread * each + each, rows)
        most = most_tiles(first, last, starts, contexts, window, counted)
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

    return find


def asker(tiling: Tiling) -> tuple[Any, Any]:
    """`place_of` a query in its row, as (token, head); `ask` takes the block's queries to shared memory.

    `asking` is the row's first token; the kv head; the block's first query in the row; how many it has.
    """
    widen, _ = conversions(tiling.dtype)
    threads, queries, group = tiling.threads, tiling.queries, tiling.group
    words, elements, padded = tiling.words, tiling.elements, tiling.padded

    @inlined
    def place_of(one: Any, asking: Any) -> Any:
        first_token, kv_head, first_query, _ = asking
        return first_token + (first_query + one) // group, kv_head * group + (first_query + one) % group

    @inlined
    def ask(query: Any, query_stride: Any, scale: Any, asking: Any, asked: Any) -> None:
        live = asking[3]
        for n in range(own_thread(), queries * padded, threads):
            one, word, element = n // padded, n % padded // elements, n % elements
            asked[n] = 0.0
            if one < live and word < words:
                token, head = place_of(one, asking)
                bits = query[token * query_stride + head * words + word]
                asked[n] = widen(bits, element) * np.float32(scale)

    return place_of, ask


def locator(tiling: Tiling) -> Any:
    """`locate`, which finds where a tile's tokens lie."""
    tile = tiling.tile

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

    return locate


def loader(tiling: Tiling) -> tuple[Any, Any]:
    """`load_keys` and `load_values`, which take a thread's words of a tile."""
    tile, words, slice_words, steps = tiling.tile, tiling.words, tiling.slice_words, tiling.steps
    slots, sharers, turns = tiling.threads // SLICES, tiling.sharers, tiling.turns

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

    return load_keys, load_values


def scorer(tiling: Tiling) -> Any:
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


def chooser(tiling: Tiling) -> Any:
    """`choose`: a lane's scores of a query, `NEVER` where it does not see a token, and the largest so far."""
    tile, pitch, group = tiling.tile, tiling.pitch, tiling.group
    lane_tokens = -(-tile // LANES)

    @inlined
    def choose(
        products: Any, scores: Any, query: Any, best: Any, start: Any, asked_by: Any, window: Any
    ) -> Any:
        position, first_query, live = asked_by
        last = position + (first_query + query) // group
        for n in range(lane_tokens):
            token = n * LANES + own_thread() % LANES
            at = start + token
            scores[n] = NEVER
            if query < live and token < tile and at <= last and (window <= 0 or at > last - window):
                total = np.float32(0.0)
                for part in range(SLICES):
                    total += products[part * pitch + query * tile + token]
                scores[n] = total
                best = max(best, total)
        return best

    return choose


def weigher(tiling: Tiling) -> Any:
    """`weigh`: scores of a tile to weights, relative to the largest score so far."""
    queries, tile, warps = tiling.queries, tiling.tile, tiling.threads // LANES
    rounds, lane_tokens = -(-queries // warps), -(-tile // LANES)
    choose = chooser(tiling)

    @inlined
    def weigh(
        products: Any, weights: Any, fades: Any, best: Any, norms: Any, start: Any, asked_by: Any, window: Any
    ) -> None:
        """`asked_by`: where the row's first token is; the block's first query in the row; how many it has."""
        lane, warp = own_thread() % LANES, own_thread() // LANES
        scores = cuda.local.array(lane_tokens, np.float32)
        for turn in range(rounds):
            query = turn * warps + warp
            largest = largest_of_warp(choose(products, scores, query, best[turn], start, asked_by, window))
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


def adder(tiling: Tiling) -> Any:
    """`add` weighs the values of a tile."""
    widen, _ = conversions(tiling.dtype)
    queries, tile, elements = tiling.queries, tiling.tile, tiling.elements
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

    return add


def gatherer(tiling: Tiling) -> tuple[Any, Any]:
    """What threads have, to shared memory: `gather_sums` of the values, `gather_norms` and largest scores."""
    queries, elements, padded = tiling.queries, tiling.elements, tiling.padded
    words, sharers, warps = tiling.words, tiling.sharers, tiling.threads // LANES
    rounds = -(-queries // warps)

    @inlined
    def gather_sums(sums: Any, total: Any) -> None:
        """The threads that share a word add theirs in turn."""
        word, sharer = own_thread() % words, own_thread() // words
        for turn in range(sharers):
            if sharer == turn:
                for query in range(queries):
                    for element in range(elements):
                        n = query * padded + word * elements + element
                        before = np.float32(0.0) if turn == 0 else total[n]
                        total[n] = before + sums[query * elements + element]
            cuda.syncthreads()

    @inlined
    def gather_norms(best: Any, norms: Any, all_best: Any, all_norms: Any) -> None:
        lane, warp = own_thread() % LANES, own_thread() // LANES
        for n in range(rounds):
            norm, one = sum_of_warp(norms[n]), n * warps + warp
            if lane == 0 and one < queries:
                all_norms[one] = norm
                all_best[one] = best[n]
        cuda.syncthreads()

    return gather_sums, gather_norms
