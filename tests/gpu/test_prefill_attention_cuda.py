"""The CUDA kernel of prefill_attention against float64: its shapes, its edges, and a replayed graph."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from gpu.paged_attention.source import Heads
from gpu.prefill_attention.torch_kernel import prefill_attention as from_torch
from gpu.table import PagedAttention
from tests.gpu.paged_cases import BF16, FP16, LLAMA, QWEN, Case, assert_near, check_replays

pytestmark = pytest.mark.gpu

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

NO_BLOCK = 1 << 30  # no pool has it: what a table names past a row's blocks is not read


def drawn(shape: Heads, counts: Sequence[int], contexts: Sequence[int], block_size: int = 16) -> Case:
    return Case(shape, counts, contexts, block_size, padding=NO_BLOCK)


def made(shape: Heads) -> PagedAttention:
    kernel = pytest.importorskip("gpu.prefill_attention.cupy_kernel")
    attention: PagedAttention = kernel.PrefillAttention(shape)
    return attention


def assert_right(case: Case, window: int | None = None) -> None:
    assert_near(case.run(made(case.shape), window), case.expected(window))


@pytest.fixture(autouse=True)
def _device() -> None:
    pytest.importorskip("cupy")
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("no Hopper device")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("block_size", [16, 48, 128])
def test_prompts_from_their_first_token(shape: Heads, block_size: int) -> None:
    counts = [1, 16, 130, 700, 127, 128]
    assert_right(drawn(shape, counts, counts, block_size))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 5, 128, 200])
def test_ragged_chunks_of_longer_prompts(shape: Heads, window: int | None) -> None:
    assert_right(drawn(shape, [40, 1, 300, 33, 7, 128], [40, 900, 1111, 34, 1500, 256]), window)


@pytest.mark.parametrize("window", [None, 1, 300])
def test_a_long_prompt(window: int | None) -> None:
    assert_right(drawn(LLAMA, [2500], [2500]), window)


def test_a_chunk_far_into_a_prompt() -> None:
    assert_right(drawn(QWEN, [300], [20_001]))


@pytest.mark.parametrize(("rows", "most"), [(40, 200), (300, 60), (1024, 3)])
def test_many_rows_of_many_lengths(rows: int, most: int) -> None:
    counts = torch.randint(1, most + 1, (rows,))
    past = torch.randint(0, 400, (rows,)) * torch.randint(0, 2, (rows,))
    assert_right(drawn(QWEN, counts.tolist(), (counts + past).tolist()))


def test_rows_without_tokens_are_passed_over() -> None:
    assert_right(drawn(LLAMA, [0, 200, 0, 40, 0], [0, 500, 77, 40, 0]))


def test_tokens_of_no_row_are_left_alone() -> None:
    case = drawn(LLAMA, [100, 70, 50], [300, 70, 50])
    out = torch.full_like(case.query, 7.0)
    later = (case.tables[1:], case.starts[1:], case.contexts[1:])
    made(LLAMA)(case.query, case.keys, case.values, *later, case.scale, None, out)
    assert bool((out[:100] == 7).all())
    assert_near(out[100:], case.expected()[100:])


def test_a_row_does_not_depend_on_the_others_nor_on_its_chunks() -> None:
    case = drawn(LLAMA, [90, 333, 200], [90, 1333, 200])
    attention = made(LLAMA)
    together, alone = case.run(attention), torch.zeros_like(case.query)
    row = (case.tables[1:2], case.starts[1:3], case.contexts[1:2])
    attention(case.query, case.keys, case.values, *row, case.scale, None, alone)
    assert torch.equal(together[90:423], alone[90:423])
    assert torch.equal(together, case.run(attention))
    first = (case.tables[1:2], case.starts[1:3] - case.starts.new_tensor([0, 203]), case.contexts[1:2] - 203)
    rest = (case.tables[1:2], case.starts[1:3] + case.starts.new_tensor([130, 0]), case.contexts[1:2])
    for chunk in (first, rest):
        attention(case.query, case.keys, case.values, *chunk, case.scale, None, alone)
    assert torch.equal(together[90:423], alone[90:423])


def test_pools_of_other_layouts() -> None:
    case = drawn(LLAMA, [150, 20], [400, 20])
    expected = case.run(made(LLAMA))
    both = torch.stack((case.keys, case.values), dim=2)  # [blocks, block_size, 2, kv_heads, head_dim]
    case.keys, case.values = both[:, :, 0], both[:, :, 1]
    assert torch.equal(expected, case.run(made(LLAMA)))
    by_head = torch.stack((case.keys, case.values)).transpose(2, 3).contiguous().transpose(2, 3)
    case.keys, case.values = by_head
    assert torch.equal(expected, case.run(made(LLAMA)))
    wide = torch.zeros(170, 32 + 16, 128, dtype=BF16, device="cuda")
    wide[:, :32] = case.query
    case.query = wide[:, :32]
    assert torch.equal(expected, case.run(made(LLAMA)))


def test_a_replayed_graph_sees_new_rows() -> None:
    check_replays(made(QWEN), [drawn(QWEN, [64, 64], [64, 600]), drawn(QWEN, [7, 121], [3000, 470])])


def test_a_chain_of_early_launches_reads_what_the_one_before_wrote() -> None:
    case = drawn(LLAMA, [200, 57], [800, 57])
    attention = made(LLAMA)
    outs = [torch.full_like(case.query, float("nan")) for _ in range(6)]
    chained = [torch.full_like(case.query, float("nan")) for _ in outs]
    case.scale = 1.0
    rest = case.arguments(None, case.query)[1:-1]
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
    case = drawn(LLAMA, [100], [300])
    case.query.fill_(1e4)
    case.keys.fill_(1e4)
    case.scale = 1.0
    assert torch.isfinite(case.run(made(LLAMA))).all()


@pytest.mark.parametrize("shape", [LLAMA, Heads(14, 2, 64, FP16)], ids=str)
@pytest.mark.parametrize("window", [None, 100])
def test_the_candidate_of_torch(shape: Heads, window: int | None) -> None:
    case = drawn(shape, [90, 1, 0, 333, 200], [90, 70, 0, 1333, 201])
    assert_near(case.run(from_torch, window), case.expected(window))
