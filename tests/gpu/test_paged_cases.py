"""The references of attention over a paged cache against the float64 that its kernels are held to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gpu.paged_attention.reference import paged_attention
from gpu.paged_attention.source import Heads
from gpu.prefill_attention.torch_kernel import prefill_attention
from gpu.table import PagedAttention
from tests.gpu.paged_cases import BF16, F32, FP16, Case, assert_near


@pytest.mark.parametrize("attention", [paged_attention, prefill_attention], ids=["reference", "torch"])
@pytest.mark.parametrize(
    "shape", [Heads(6, 2, 20, F32), Heads(4, 4, 16, BF16), Heads(4, 1, 8, FP16)], ids=str
)
@pytest.mark.parametrize("window", [None, 1, 6])
@pytest.mark.parametrize(
    ("counts", "contexts"),
    [([1, 5, 0, 3, 0], [1, 5, 0, 70, 9]), ([1], [16]), ([17], [17])],
    ids=["ragged", "decode", "prompt"],
)
def test_they_agree(
    attention: PagedAttention,
    shape: Heads,
    window: int | None,
    counts: Sequence[int],
    contexts: Sequence[int],
) -> None:
    case = Case(shape, counts, contexts, 4, padding=1 << 30, device="cpu")
    assert_near(case.run(attention, window), case.expected(window))


def test_a_wrong_token_is_noticed() -> None:
    case = Case(Heads(2, 1, 8, F32), [1, 40], [300, 300], device="cpu")
    expected, found = case.expected(), case.run(paged_attention)
    found[0] += 1e-3
    with pytest.raises(AssertionError):
        assert_near(found, expected)
