"""The CUDA kernel of paged_attention against float64: its shapes, its edges, and a replayed graph."""

from __future__ import annotations

import pytest
import torch

from gpu.paged_attention.source import Heads
from gpu.table import PagedAttention
from tests.gpu.paged_cases import BF16, FP16, LLAMA, QWEN, Case, assert_near, check_replays

pytestmark = pytest.mark.gpu

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


def made(shape: Heads, most_tokens: int = 1) -> PagedAttention:
    kernel = pytest.importorskip("gpu.paged_attention.cupy_kernel")
    attention: PagedAttention = kernel.PagedAttention(shape, most_tokens=most_tokens)
    return attention


def assert_right(case: Case, most_tokens: int, window: int | None = None) -> None:
    assert_near(case.run(made(case.shape, most_tokens), window), case.expected(window))


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
    assert_right(Case(LLAMA, [1, 0, 1, 0, 0], [500, 0, 40, 0, 0]), 1)


def test_a_row_that_fits_in_one_tile() -> None:
    """Then nothing is joined."""
    assert_right(Case(LLAMA, [1], [15]), 1)


def test_a_replayed_graph_sees_new_contexts() -> None:
    check_replays(made(QWEN), [Case(QWEN, [1, 1], [20, 600]), Case(QWEN, [1, 1], [3000, 470])])


def test_large_scores_stay_finite() -> None:
    case = Case(LLAMA, [1], [100])
    case.query.fill_(1e4)
    case.keys.fill_(1e4)
    case.scale = 1.0
    assert torch.isfinite(case.run(made(LLAMA))).all()
