"""Random rows over a paged cache, what attention over them is in float64, and a graph replayed over some."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gpu.paged_attention.source import Heads
from gpu.table import PagedAttention

F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
LLAMA, QWEN = Heads(32, 8, 128, BF16), Heads(16, 8, 128, BF16)
TOLERANCE = {F32: 5e-6, BF16: 5e-3, FP16: 1e-3}  # of the norm: outputs are rounded once, weights once


class Case:
    """Random queries, pools and tables; blocks that no row owns, and entries past each context, are NaN.

    Past a row's blocks its table names `padding`: one of NaN, unless told.
    """

    def __init__(
        self,
        shape: Heads,
        counts: Sequence[int],
        contexts: Sequence[int],
        block_size: int = 16,
        *,
        padding: int | None = None,
        device: str = "cuda",
    ) -> None:
        generator = torch.Generator(device).manual_seed(sum(contexts))
        self.shape, self.counts, self.lengths, self.block_size = shape, counts, contexts, block_size
        self.scale = shape.head_dim**-0.5
        needed = [-(-length // block_size) for length in contexts]
        blocks = sum(needed) + 3
        pool_shape = (2, blocks, block_size, shape.kv_heads, shape.head_dim)
        pools = torch.randn(pool_shape, device=device, generator=generator).to(shape.dtype)
        order = torch.randperm(blocks, device=device, generator=generator).int()
        padding = int(order[-1]) if padding is None else padding
        self.tables = torch.full((len(contexts), max(needed)), padding, dtype=torch.int32, device=device)
        pools[:, order[-3:].long()] = float("nan")
        at = 0
        for row, (count, length) in enumerate(zip(needed, contexts, strict=True)):
            self.tables[row, :count] = order[at : at + count]
            at += count
            if length % block_size:
                pools[:, int(order[at - 1]), length % block_size :] = float("nan")
        self.keys, self.values = pools
        query_shape = (sum(counts), shape.heads, shape.head_dim)
        self.query = torch.randn(query_shape, device=device, generator=generator).to(shape.dtype)
        self.starts = torch.tensor([0, *counts]).cumsum(0).to(device, torch.int32)
        self.contexts = torch.tensor(contexts, dtype=torch.int32, device=device)

    def arguments(
        self, window: int | None, out: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float, int | None, Tensor]:
        """Of the op, in its order."""
        pools, rows = (self.keys, self.values), (self.tables, self.starts, self.contexts)
        return (self.query, *pools, *rows, self.scale, window, out)

    def run(self, attention: PagedAttention, window: int | None = None) -> Tensor:
        out = torch.full_like(self.query, float("nan"))
        attention(*self.arguments(window, out))
        return out

    def expected(self, window: int | None = None) -> Tensor:
        """In float64, one row after the other."""
        found, group, at = [], self.shape.group, 0
        for row, (count, length) in enumerate(zip(self.counts, self.lengths, strict=True)):
            blocks = self.tables[row, : -(-length // self.block_size)].long()
            keys, values = (
                pool[blocks].flatten(0, 1)[:length].double().repeat_interleave(group, 1)
                for pool in (self.keys, self.values)
            )
            scores = torch.einsum("qhd,phd->hqp", self.query[at : at + count].double(), keys) * self.scale
            positions = torch.arange(length, device=scores.device)
            distance = positions[length - count :, None] - positions
            hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            found.append(torch.einsum("hqp,phd->qhd", weights, values))
            at += count
        return torch.cat(found)


def assert_near(found: Tensor, expected: Tensor) -> None:
    """As a whole, and no token is far off."""
    difference, tolerance = found.double() - expected, TOLERANCE[found.dtype]
    assert float(difference.norm() / expected.norm()) < tolerance
    assert float(difference.abs().max()) < 20 * tolerance


def check_replays(attention: PagedAttention, cases: Sequence[Case]) -> None:
    """A captured graph sees what its tensors hold at each replay. All cases have as many tokens and rows."""
    first, largest = cases[0], max(cases, key=lambda case: len(case.keys))
    query, out = torch.zeros_like(first.query), torch.empty_like(first.query)
    keys, values = torch.zeros_like(largest.keys), torch.zeros_like(largest.values)
    tables = torch.zeros(len(first.counts), 400, dtype=torch.int32, device=query.device)
    starts, contexts = torch.zeros_like(first.starts), torch.ones_like(first.contexts)
    call = (query, keys, values, tables, starts, contexts, first.scale, None, out)
    attention(*call)  # what is compiled at the first launch cannot be captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(*call)
    for case in (*cases, first):
        query.copy_(case.query)
        keys[: len(case.keys)], values[: len(case.values)] = case.keys, case.values
        tables[:, : case.tables.shape[1]] = case.tables
        starts.copy_(case.starts)
        contexts.copy_(case.contexts)
        out.fill_(float("nan"))
        graph.replay()
        assert_near(out, case.expected())
