"""The CUDA kernel of prefill_attention against float64: its shapes, its edges, and a replayed graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gpu.paged_attention.source import Heads
from gpu.prefill_attention.source import constants
from gpu.prefill_attention.torch_kernel import prefill_attention as from_torch

pytestmark = pytest.mark.gpu
BF16, FP16 = torch.bfloat16, torch.float16
TOLERANCE = {BF16: 5e-3, FP16: 1e-3}  # of the norm: outputs are rounded once, weights once

LLAMA = Heads(32, 8, 128, BF16)
QWEN = Heads(16, 8, 128, BF16)
SHAPES = (
    LLAMA,
    QWEN,
    Heads(14, 2, 64, BF16),  # a group of 7: tiles begin within tokens
    Heads(8, 8, 64, FP16),  # no group at all
    Heads(32, 8, 96, FP16),
    Heads(8, 8, 96, BF16),
    Heads(8, 1, 256, BF16),
    Heads(8, 4, 256, FP16),
    Heads(24, 3, 128, FP16),
    Heads(16, 1, 128, BF16),
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
        # Past a row's blocks: what no pool has.
        self.tables = torch.full((len(contexts), max(needed)), 1 << 30, dtype=torch.int32, device="cuda")
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
        self.starts = torch.tensor([0, *counts]).cumsum(0).to("cuda", torch.int32)
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


def made(shape: Heads) -> object:
    return pytest.importorskip("gpu.prefill_attention.cupy_kernel").PrefillAttention(shape)


def run(attention: object, case: Case, window: int | None = None) -> Tensor:
    assert callable(attention)
    out = torch.full_like(case.query, float("nan"))
    attention(*case.arguments(case.shape.head_dim**-0.5, window, out))
    return out


def assert_right(case: Case, window: int | None = None, out: Tensor | None = None) -> None:
    found = run(made(case.shape), case, window) if out is None else out
    expected = case.expected(case.shape.head_dim**-0.5, window)
    difference = found.double() - expected
    assert float(difference.norm() / expected.norm()) < TOLERANCE[case.shape.dtype]
    assert float(difference.abs().max()) < 20 * TOLERANCE[case.shape.dtype]  # and no token is far off


@pytest.fixture(autouse=True)
def _device() -> None:
    pytest.importorskip("cupy")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("no Hopper device")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 48, 128])
def test_prompts_from_their_first_token(shape: Heads, block_size: int) -> None:
    counts = [1, 16, 130, 700, 127, 128]
    assert_right(Case(shape, counts, counts, block_size))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 5, 128, 200])
def test_ragged_chunks_of_longer_prompts(shape: Heads, window: int | None) -> None:
    assert_right(Case(shape, [40, 1, 300, 33, 7, 128], [40, 900, 1111, 34, 1500, 256]), window)


@pytest.mark.parametrize("window", [None, 1, 300])
def test_a_long_prompt(window: int | None) -> None:
    assert_right(Case(LLAMA, [2500], [2500]), window)


def test_a_chunk_far_into_a_prompt() -> None:
    assert_right(Case(QWEN, [300], [20_001]))


@pytest.mark.parametrize(("rows", "most"), [(40, 200), (300, 60), (1024, 3)])
def test_many_rows_of_many_lengths(rows: int, most: int) -> None:
    counts = torch.randint(1, most + 1, (rows,))
    past = torch.randint(0, 400, (rows,)) * torch.randint(0, 2, (rows,))
    assert_right(Case(QWEN, counts.tolist(), (counts + past).tolist()))


def test_rows_without_tokens_are_passed_over() -> None:
    assert_right(Case(LLAMA, [0, 200, 0, 40, 0], [0, 500, 77, 40, 0]))


def test_tokens_of_no_row_are_left_alone() -> None:
    case = Case(LLAMA, [100, 70, 50], [300, 70, 50])
    expected = case.expected(0.1, None)
    out = torch.full_like(case.query, 7.0)
    attention = made(LLAMA)
    assert callable(attention)
    later = (case.tables[1:], case.starts[1:], case.contexts[1:])
    attention(case.query, case.keys, case.values, *later, 0.1, None, out)
    assert bool((out[:100] == 7).all())
    assert float((out[100:].double() - expected[100:]).norm() / expected[100:].norm()) < TOLERANCE[BF16]


def test_a_row_does_not_depend_on_the_others_nor_on_its_chunks() -> None:
    case = Case(LLAMA, [90, 333, 200], [90, 1333, 200])
    attention = made(LLAMA)
    assert callable(attention)
    together, alone = run(attention, case), torch.zeros_like(case.query)
    row = (case.tables[1:2], case.starts[1:3], case.contexts[1:2])
    attention(case.query, case.keys, case.values, *row, 128**-0.5, None, alone)
    assert torch.equal(together[90:423], alone[90:423])
    assert torch.equal(together, run(attention, case))
    first = (case.tables[1:2], case.starts[1:3] - case.starts.new_tensor([0, 203]), case.contexts[1:2] - 203)
    rest = (case.tables[1:2], case.starts[1:3] + case.starts.new_tensor([130, 0]), case.contexts[1:2])
    for chunk in (first, rest):
        attention(case.query, case.keys, case.values, *chunk, 128**-0.5, None, alone)
    assert torch.equal(together[90:423], alone[90:423])


def test_pools_of_other_layouts() -> None:
    case = Case(LLAMA, [150, 20], [400, 20])
    expected = run(made(LLAMA), case)
    both = torch.stack((case.keys, case.values), dim=2)  # [blocks, block_size, 2, kv_heads, head_dim]
    case.keys, case.values = both[:, :, 0], both[:, :, 1]
    assert torch.equal(expected, run(made(LLAMA), case))
    by_head = torch.stack((case.keys, case.values)).transpose(2, 3).contiguous().transpose(2, 3)
    case.keys, case.values = by_head
    assert torch.equal(expected, run(made(LLAMA), case))
    wide = torch.zeros(170, 32 + 16, 128, dtype=BF16, device="cuda")
    wide[:, :32] = case.query
    case.query = wide[:, :32]
    out = torch.empty(170, 32, 128, dtype=BF16, device="cuda")
    attention = made(LLAMA)
    assert callable(attention)
    attention(*case.arguments(128**-0.5, None, out))
    assert torch.equal(expected, out)


def test_a_replayed_graph_sees_new_rows() -> None:
    first, second = Case(QWEN, [64, 64], [64, 600]), Case(QWEN, [7, 121], [3000, 470])
    attention = made(QWEN)
    assert callable(attention)
    out, tables = torch.empty_like(first.query), torch.zeros(2, 400, dtype=torch.int32, device="cuda")
    query, keys, values = (torch.empty_like(x) for x in (second.query, second.keys, second.values))
    starts, contexts = torch.zeros_like(first.starts), torch.ones_like(first.contexts)
    call = (query, keys, values, tables, starts, contexts, 128**-0.5, None, out)
    attention(*call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attention(*call)
    for case in (first, second):
        query.copy_(case.query)
        for pool, its in ((keys, case.keys), (values, case.values)):
            pool[: len(its)] = its
        tables[:, : case.tables.shape[1]] = case.tables
        starts.copy_(case.starts)
        contexts.copy_(case.contexts)
        out.fill_(float("nan"))
        graph.replay()
        assert_right(case, out=out)


def test_a_chain_of_early_launches_reads_what_the_one_before_wrote() -> None:
    case = Case(LLAMA, [200, 57], [800, 57])
    attention = made(LLAMA)
    assert callable(attention)
    outs = [torch.full_like(case.query, float("nan")) for _ in range(6)]
    chained = [torch.full_like(case.query, float("nan")) for _ in outs]
    rest = case.arguments(1.0, None, case.query)[1:-1]
    for waited, places in ((True, outs), (False, chained)):
        given = case.query
        for place in places:
            attention(given, *rest, place)
            given = place
            if waited:
                torch.cuda.synchronize()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(outs, chained, strict=True))


def test_large_scores_stay_finite() -> None:
    case = Case(LLAMA, [100], [300])
    case.query.fill_(1e4)
    case.keys.fill_(1e4)
    attention = made(LLAMA)
    assert callable(attention)
    out = torch.full_like(case.query, float("nan"))
    attention(*case.arguments(1.0, None, out))
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("shape", [LLAMA, Heads(14, 2, 64, FP16)], ids=str)
@pytest.mark.parametrize("window", [None, 100])
def test_the_candidate_of_torch(shape: Heads, window: int | None) -> None:
    case = Case(shape, [90, 1, 0, 333, 200], [90, 70, 0, 1333, 201])
    out = torch.full_like(case.query, float("nan"))
    from_torch(case.query, case.keys, case.values, case.tables, case.starts, case.contexts, 0.1, window, out)
    expected = case.expected(0.1, window)
    assert float((out.double() - expected).norm() / expected.norm()) < TOLERANCE[shape.dtype]


@pytest.mark.parametrize(
    "shape", [Heads(8, 8, 80, BF16), Heads(8, 8, 64, torch.float32), Heads(9, 2, 64, BF16)], ids=str
)
def test_other_shapes_are_refused(shape: Heads) -> None:
    with pytest.raises(ValueError, match="prefill_attention"):
        constants(shape)
