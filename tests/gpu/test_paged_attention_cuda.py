"""The CUDA kernel of paged_attention against float64: its shapes, its edges, and a replayed graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gpu.paged_attention.source import Heads, constants

pytestmark = pytest.mark.gpu
BF16, FP16 = torch.bfloat16, torch.float16
TOLERANCE = {BF16: 5e-3, FP16: 1e-3}  # of the norm: outputs are rounded once, weights once

LLAMA = Heads(32, 8, 128, BF16)
QWEN = Heads(16, 8, 128, BF16)
SHAPES = (
    LLAMA,
    QWEN,
    Heads(14, 2, 64, BF16),  # a group of 7
    Heads(8, 8, 64, FP16),  # no group at all
    Heads(32, 8, 96, FP16),
    Heads(32, 32, 96, BF16),
    Heads(8, 1, 256, BF16),
    Heads(8, 4, 256, FP16),
    Heads(24, 3, 128, FP16),
    Heads(16, 1, 128, BF16),  # 128 query rows where 8 tokens are verified
)


class Case:
    """Random queries, pools and tables; blocks that no row owns, and entries past each context, are NaN."""

    def __init__(
        self, shape: Heads, counts: Sequence[int], contexts: Sequence[int], block_size: int = 16
    ) -> None:
        generator = torch.Generator("cuda").manual_seed(torch.initial_seed() % 1000)
        self.shape, self.counts, self.lengths, self.block_size = shape, counts, contexts, block_size
        needed = [-(-length // block_size) for length in contexts]
        blocks = sum(needed) + 3
        pool_shape = (2, blocks, block_size, shape.kv_heads, shape.head_dim)
        pools = torch.randn(pool_shape, device="cuda", generator=generator).to(shape.dtype)
        order = torch.randperm(blocks, device="cuda", generator=generator).int()
        self.tables = torch.full(
            (len(contexts), max(needed)), int(order[-1]), dtype=torch.int32, device="cuda"
        )
        pools[:, order[-3:].long()] = float("nan")
        at = 0
        for row, (count, length) in enumerate(zip(needed, contexts, strict=True)):
            self.tables[row, :count] = order[at : at + count]
            at += count
            if length % block_size:
                pools[:, int(order[at - 1]), length % block_size :] = float("nan")
        self.keys, self.values = pools
        self.query = torch.randn(
            sum(counts), shape.heads, shape.head_dim, device="cuda", generator=generator
        ).to(shape.dtype)
        starts = torch.tensor([0, *counts]).cumsum(0)
        self.starts = starts.to("cuda", torch.int32)
        self.contexts = torch.tensor(contexts, dtype=torch.int32, device="cuda")

    def arguments(self, scale: float, window: int | None, out: Tensor) -> tuple[object, ...]:
        pools = (self.query, self.keys, self.values)
        return (*pools, self.tables, self.starts, self.contexts, scale, window, out)

    def expected(self, scale: float, window: int | None) -> Tensor:
        """In float64, one row after the other."""
        found, group, at = [], self.shape.group, 0
        for row, (count, length) in enumerate(zip(self.counts, self.lengths, strict=True)):
            blocks = self.tables[row, : -(-length // self.block_size)].long()
            keys, values = (
                pool[blocks].flatten(0, 1)[:length].double().repeat_interleave(group, 1)
                for pool in (self.keys, self.values)
            )
            scores = torch.einsum("qhd,phd->hqp", self.query[at : at + count].double(), keys) * scale
            positions = torch.arange(length, device="cuda")
            distance = positions[length - count :, None] - positions
            hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
            weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
            found.append(torch.einsum("hqp,phd->qhd", weights, values))
            at += count
        return torch.cat(found)


def assert_right(case: Case, most_tokens: int, window: int | None = None) -> None:
    kernel = pytest.importorskip("gpu.paged_attention.cupy_kernel")
    scale = case.shape.head_dim**-0.5
    attention = kernel.PagedAttention(case.shape, most_tokens=most_tokens)
    out = torch.full_like(case.query, float("nan"))
    attention(*case.arguments(scale, window, out))
    expected = case.expected(scale, window)
    error = float((out.double() - expected).norm() / expected.norm())
    assert error < TOLERANCE[case.shape.dtype]


@pytest.fixture(autouse=True)
def _device() -> None:
    pytest.importorskip("cupy")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 48])
def test_decode_rows(shape: Heads, block_size: int) -> None:
    assert_right(Case(shape, [1] * 7, [1, 16, 17, 300, 1025, 33, 2], block_size), 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 5, 200])
def test_ragged_verification(shape: Heads, window: int | None) -> None:
    assert_right(Case(shape, [8, 1, 3, 8, 2, 5], [8, 40, 700, 1030, 2, 129]), 8, window)


@pytest.mark.parametrize("window", [None, 1, 100, 4096])
def test_one_long_row_fills_the_device(window: int | None) -> None:
    assert_right(Case(LLAMA, [1], [32_769]), 1, window)


@pytest.mark.parametrize("shape", [LLAMA, QWEN], ids=str)
@pytest.mark.parametrize(("rows", "most"), [(257, 513), (600, 200), (64, 4097)])
def test_many_rows_of_many_lengths(shape: Heads, rows: int, most: int) -> None:
    assert_right(Case(shape, [1] * rows, torch.randint(1, most + 1, (rows,)).tolist()), 1)


def test_a_long_row_among_short_ones() -> None:
    assert_right(Case(LLAMA, [1, 4, 1, 2], [3, 9000, 64, 65]), 4)


def test_rows_without_tokens_are_passed_over() -> None:
    case = Case(LLAMA, [1, 0, 1, 0, 0], [500, 0, 40, 0, 0])
    kernel = pytest.importorskip("gpu.paged_attention.cupy_kernel")
    out = torch.full_like(case.query, float("nan"))
    kernel.PagedAttention(LLAMA)(*case.arguments(0.1, None, out))
    expected = case.expected(0.1, None)
    assert float((out.double() - expected).norm() / expected.norm()) < TOLERANCE[BF16]


def test_a_replayed_graph_sees_new_contexts() -> None:
    kernel = pytest.importorskip("gpu.paged_attention.cupy_kernel")
    short, long = Case(QWEN, [1, 1], [20, 600]), Case(QWEN, [1, 1], [3000, 470])
    attention = kernel.PagedAttention(QWEN)
    out, tables = torch.empty_like(short.query), torch.zeros(2, 400, dtype=torch.int32, device="cuda")
    query, keys, values = (torch.empty_like(x) for x in (long.query, long.keys, long.values))
    contexts = torch.ones_like(short.contexts)
    call = (query, keys, values, tables, short.starts, contexts, 0.1, None, out)
    attention(*call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(*call)
    for case in (short, long):
        query.copy_(case.query)
        for pool, its in ((keys, case.keys), (values, case.values)):
            pool[: len(its)] = its
        tables[:, : case.tables.shape[1]] = case.tables
        contexts.copy_(case.contexts)
        out.fill_(float("nan"))
        graph.replay()
        expected = case.expected(0.1, None)
        assert float((out.double() - expected).norm() / expected.norm()) < TOLERANCE[BF16]


def test_large_scores_stay_finite() -> None:
    case = Case(LLAMA, [1], [100])
    case.query.fill_(1e4)
    case.keys.fill_(1e4)
    kernel = pytest.importorskip("gpu.paged_attention.cupy_kernel")
    out = torch.empty_like(case.query)
    kernel.PagedAttention(LLAMA)(*case.arguments(1.0, None, out))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("shape", "most_tokens"),
    [
        (Heads(8, 8, 80, BF16), 1),
        (Heads(8, 8, 64, torch.float32), 1),
        (Heads(9, 2, 64, BF16), 1),
        (LLAMA, 99),
    ],
    ids=str,
)
def test_other_shapes_are_refused(shape: Heads, most_tokens: int) -> None:
    with pytest.raises(ValueError, match="paged_attention"):
        constants(shape, most_tokens, 227 * 1024)
