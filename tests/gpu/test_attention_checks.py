"""What the CUDA kernels of attention refuse; no kernel runs."""

from __future__ import annotations

import pytest
import torch

from gpu.paged_attention import source as paged
from gpu.paged_attention.checks import check_pools, check_query
from gpu.paged_attention.source import Heads
from gpu.prefill_attention import source as prefill

BF16 = torch.bfloat16
SHARED_BYTES = 227 * 1024
SHAPE = Heads(4, 2, 64, BF16)


@pytest.mark.parametrize(
    "shape", [Heads(8, 8, 80, BF16), Heads(8, 8, 64, torch.float32), Heads(9, 2, 64, BF16)], ids=str
)
def test_heads_without_a_kernel(shape: Heads) -> None:
    with pytest.raises(ValueError, match=r"^prefill_attention: [^\n]*$"):
        prefill.constants(shape)
    with pytest.raises(ValueError, match=r"^paged_attention: [^\n]*$"):
        paged.constants(shape, 1, SHARED_BYTES)


def test_more_tokens_a_row_than_a_block_multiplies() -> None:
    with pytest.raises(ValueError, match=r"^paged_attention: [^\n]*verify fewer"):
        paged.constants(Heads(32, 8, 128, BF16), 99, SHARED_BYTES)


def test_queries_and_pools_of_another_model() -> None:
    query, keys = torch.zeros(3, 4, 64, dtype=BF16), torch.zeros(5, 16, 2, 64, dtype=BF16)
    check_query("op", SHAPE, query)
    check_pools("op", SHAPE, keys, keys, 16)
    for spoilt in (query.half(), query[:, :2]):
        with pytest.raises(ValueError, match="op: query is"):
            check_query("op", SHAPE, spoilt)
    for spoilt, told in (
        (keys.half(), "a pool is"),
        (keys[:, :, :1], "a pool is"),
        (keys[:, :8], "block size 8"),
        (keys.transpose(1, 2).contiguous().transpose(1, 2), "both pools alike"),
    ):
        with pytest.raises(ValueError, match=f"op: .*{told}"):
            check_pools("op", SHAPE, spoilt, keys, 16)
