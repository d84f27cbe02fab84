"""Cases of paged_attention in Numba CUDA; a script, as numba_cases.py, and for the same reason.

With NUMBA_ENABLE_CUDASIM=1 the kernels run in the simulator on tensors of the CPU, else on the device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gpu.paged_attention.numba_kernel import PagedAttention
from gpu.paged_attention.reference import paged_attention
from gpu.paged_attention.source import Heads

DEVICE = "cpu" if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else "cuda"
F32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16
TOLERANCE = {F32: 5e-6, BF16: 4e-3, FP16: 1e-3}  # of the norm: outputs are rounded once
SCALE = 0.2


class Case:
    """Random queries, pools and tables; blocks that no row owns, and entries past each context, are NaN."""

    def __init__(self, shape: Heads, counts: Sequence[int], contexts: Sequence[int], block_size: int) -> None:
        self.shape, self.counts, self.lengths, self.block_size = shape, counts, contexts, block_size
        needed = [-(-length // block_size) for length in contexts]
        blocks = sum(needed) + 3
        # Heads beside each other's, keys and values in one tensor: pools are views.
        pools = torch.randn(blocks, 2, block_size, shape.kv_heads, shape.head_dim, device=DEVICE)
        order = torch.randperm(blocks, device=DEVICE).int()
        self.tables = torch.full((len(contexts), max(needed) + 2), int(order[-1]), device=DEVICE).int()
        pools[order[-3:].long()] = float("nan")
        at = 0
        for row, (count, length) in enumerate(zip(needed, contexts, strict=True)):
            self.tables[row, :count] = order[at : at + count]
            at += count
            if length % block_size:
                pools[int(order[at - 1]), :, length % block_size :] = float("nan")
        self.keys, self.values = pools.to(shape.dtype).unbind(1)
        self.query = torch.randn(sum(counts), shape.heads, shape.head_dim, device=DEVICE).to(shape.dtype)
        self.starts = torch.tensor([0, *counts], device=DEVICE).cumsum(0).int()
        self.contexts = torch.tensor(contexts, device=DEVICE).int()

    def arguments(self, window: int | None, out: Tensor) -> tuple[object, ...]:
        pools = (self.query, self.keys, self.values)
        return (*pools, self.tables, self.starts, self.contexts, SCALE, window, out)

    def expected(self, window: int | None) -> Tensor:
        """In float64, one row after the other; in the simulator, by the reference in float32."""
        query, out = self.query.float(), torch.empty_like(self.query).float()
        pools = (self.keys.float(), self.values.float())
        if DEVICE == "cpu":
            paged_attention(query, *pools, self.tables, self.starts, self.contexts, SCALE, window, out)
            return out.double()
        group, at, found = self.shape.group, 0, []
        for row, (count, length) in enumerate(zip(self.counts, self.lengths, strict=True)):
            blocks = self.tables[row, : -(-length // self.block_size)].long()
            keys, values = (
                pool[blocks].flatten(0, 1)[:length].double().repeat_interleave(group, 1) for pool in pools
            )
            scores = torch.einsum("qhd,phd->hqp", query[at : at + count].double(), keys) * SCALE
            positions = torch.arange(length, device=DEVICE)
            distance = positions[length - count :, None] - positions
            hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            found.append(torch.einsum("hqp,phd->qhd", weights, values))
            at += count
        return torch.cat(found)


def assert_near(found: Tensor, expected: Tensor) -> None:
    error = float((found.double() - expected).norm() / expected.norm())
    assert error < TOLERANCE[found.dtype], error


def check(
    shape: Heads,
    counts: Sequence[int],
    contexts: Sequence[int],
    block_size: int = 16,
    window: int | None = None,
    *,
    most_tokens: int = 1,
) -> None:
    case = Case(shape, counts, contexts, block_size)
    attention = PagedAttention(shape, most_tokens=most_tokens)
    out = torch.full_like(case.query, float("nan"))
    attention(*case.arguments(window, out))
    assert_near(out, case.expected(window))


def check_that_an_invalid_row_is_that_rows_own() -> None:
    """NaN in a row's own context comes out of that row, of the tokens and heads that see it."""
    case = Case(Heads(2, 1, 8, F32), [1, 1], [17, 20], 16)
    expected = case.expected(None)
    case.keys[int(case.tables[0, 0]), 3] = float("nan")
    out = torch.empty_like(case.query)
    PagedAttention(case.shape)(*case.arguments(None, out))
    assert out[0].isnan().all()
    assert_near(out[1], expected[1])


def check_large_scores() -> None:
    case = Case(Heads(4, 2, 16, BF16), [1], [20], 16)
    case.query.fill_(1e4)
    case.keys.fill_(1e4)
    out = torch.empty_like(case.query)
    PagedAttention(case.shape)(*case.arguments(None, out))
    assert out.isfinite().all()


def check_refusals() -> None:
    for shape in (
        Heads(4, 2, 12, F32),
        Heads(4, 2, 264, F32),
        Heads(5, 2, 8, F32),
        Heads(4, 2, 8, torch.float64),
    ):
        assert refused(lambda shape=shape: PagedAttention(shape))
    shape = Heads(4, 2, 8, F32)
    assert refused(lambda: PagedAttention(shape, most_tokens=0))
    attention, case = PagedAttention(shape, most_rows=2), Case(shape, [1, 1], [3, 5], 4)
    query, keys, values, tables, starts, contexts, scale, window, out = case.arguments(
        None, torch.empty_like(case.query)
    )
    rest = (tables, starts, contexts, scale, window, out)
    assert refused(lambda: attention(query.half(), keys, values, *rest))
    assert refused(lambda: attention(query, keys[..., :1, :], values[..., :1, :], *rest))
    assert refused(lambda: attention(query, keys.contiguous(), values, *rest))
    assert refused(
        lambda: attention(query, keys, values, tables, starts, contexts.long(), scale, window, out)
    )
    assert refused(lambda: attention(query, keys, values, tables, starts[:2], contexts, scale, window, out))
    assert refused(lambda: attention(query, keys, values, tables, starts, contexts, scale, 0, out))
    assert refused(
        lambda: attention(query, keys, values, tables, starts, contexts, scale, window, out.half())
    )
    many = Case(shape, [2], [3], 4)
    assert refused(lambda: attention(*many.arguments(None, torch.empty_like(many.query))))


def refused(call: Callable[[], object]) -> bool:
    """With an error of one line."""
    try:
        call()
    except ValueError as error:
        return "\n" not in str(error)
    return False


def check_replays() -> None:
    """A captured graph holds for other contexts, and allocates nothing."""
    shape = Heads(16, 8, 128, BF16)
    short, long = Case(shape, [1, 1], [20, 600], 16), Case(shape, [1, 1], [3000, 470], 16)
    attention = PagedAttention(shape)
    out, tables = torch.empty_like(short.query), torch.zeros(2, 400, dtype=torch.int32, device=DEVICE)
    query, keys, values = (torch.zeros_like(x) for x in (long.query, long.keys, long.values))
    contexts = torch.ones_like(short.contexts)
    call = (query, keys, values, tables, short.starts, contexts, SCALE, None, out)
    attention(*call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention.enqueue(*call)
    for case in (short, long, short):
        query.copy_(case.query)
        for pool, its in ((keys, case.keys), (values, case.values)):
            pool[: len(its)] = its
        tables[:, : case.tables.shape[1]] = case.tables
        contexts.copy_(case.contexts)
        out.fill_(float("nan"))
        graph.replay()
        assert_near(out, case.expected(None))


def check_small() -> None:
    check(Heads(4, 1, 16, F32), [1, 1, 1], [1, 40, 15])
    check(Heads(4, 2, 8, BF16), [1, 2, 0, 3, 1], [16, 17, 0, 40, 1], most_tokens=3)
    check(Heads(1, 1, 24, FP16), [1, 1, 1], [16, 17, 40], 5, 7)
    check(Heads(4, 1, 8, BF16), [3, 1], [40, 17], 7, 16, most_tokens=3)  # 12 queries: two blocks share them
    check(Heads(2, 2, 40, F32), [1], [33], 3)
    check_that_an_invalid_row_is_that_rows_own()
    check_large_scores()
    check_refusals()


SHAPES = (
    Heads(32, 8, 128, BF16),
    Heads(14, 2, 64, BF16),
    Heads(8, 8, 80, FP16),
    Heads(12, 4, 72, F32),
    Heads(32, 8, 96, FP16),
    Heads(8, 4, 256, BF16),
    Heads(8, 1, 256, F32),
    Heads(4, 4, 8, FP16),
    Heads(16, 1, 128, F32),
)


def check_large() -> None:
    for shape in SHAPES:
        for block_size in (16, 5):
            check(shape, [1] * 7, [1, 16, 17, 300, 1025, 33, 2], block_size)
        for window in (None, 5, 200):
            check(shape, [8, 1, 3, 8, 2, 0, 5], [8, 40, 700, 1030, 2, 0, 129], 16, window, most_tokens=8)
    llama = SHAPES[0]
    for window in (None, 1, 100, 4096):
        check(llama, [1], [32_769], 16, window)
    check(Heads(32, 8, 128, F32), [1, 1], [32_769, 3])
    check(llama, [1] * 257, torch.randint(1, 514, (257,)).tolist())
    check(llama, [1] * 500, torch.randint(1, 200, (500,)).tolist())
    check(llama, [1, 4, 1, 2], [3, 9000, 64, 65], most_tokens=4)
    check_replays()


if __name__ == "__main__":
    torch.manual_seed(0)
    check_small()
    if DEVICE == "cuda":
        check_large()
