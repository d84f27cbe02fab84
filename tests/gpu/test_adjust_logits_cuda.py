"""adjust_logits in CUDA C++ against its reference, bit by bit, on a device."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("cupy")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from gpu.adjust_logits.cupy_kernel import AdjustLogits
from gpu.adjust_logits.reference import adjust_logits as reference
from tests.gpu.logit_cases import adjustments

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def op() -> AdjustLogits:
    return AdjustLogits()


@pytest.mark.parametrize("masked", [False, True], ids=["entries", "masked"])
@pytest.mark.parametrize(
    ("rows", "vocab", "most"),
    [(1, 1, 1), (3, 33, 20), (2, 8193, 3000), (40, 32_000, 700), (3, 151_936, 20_000)],
)
@pytest.mark.parametrize("padding", [0, 3])
def test_rows(op: AdjustLogits, rows: int, vocab: int, most: int, padding: int, masked: bool) -> None:
    given = adjustments(rows, vocab, most, masked=masked)
    whole = 4 * torch.randn(rows, vocab + padding, device="cuda")
    found, expected = whole.clone(), whole.clone()
    kept = torch.full((2, len(given.tokens)), 7.0, device="cuda")
    op(found[:, :vocab], *given, kept[0])
    reference(expected[:, :vocab], *given, kept[1])
    assert torch.equal(found, expected)  # and the padding is as it was
    assert torch.equal(kept[0].nan_to_num(99.0), kept[1].nan_to_num(99.0))

    again = whole.clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(again[:, :vocab], *given, kept[1])
    again.copy_(whole)
    kept[1].fill_(7.0)
    graph.replay()
    assert torch.equal(again, found)
    assert torch.equal(kept[0].nan_to_num(99.0), kept[1].nan_to_num(99.0))


@pytest.mark.parametrize("masked", [False, True], ids=["entries", "masked"])
def test_a_replay_reads_the_starts_anew(op: AdjustLogits, masked: bool) -> None:
    given = adjustments(5, 20_000, 400, masked=masked)
    logits, kept = torch.randn(5, 20_000, device="cuda"), torch.zeros(len(given.tokens), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        op(logits, *given, kept)
    given.starts[3:].fill_(int(given.starts[3]))  # the last rows have no entries any more
    logits.normal_()
    expected = logits.clone()
    reference(expected, *given, kept.clone())
    graph.replay()
    assert torch.equal(logits, expected)


def test_without_entries_only_the_mask_counts(op: AdjustLogits) -> None:
    given = adjustments(2, 1000, 0, masked=True)
    empty = given._replace(
        starts=torch.zeros_like(given.starts),
        tokens=given.tokens[:0],
        counts=given.counts[:0],
        biases=given.biases[:0],
    )
    logits, kept = torch.randn(2, 1000, device="cuda"), torch.empty(0, device="cuda")
    before = logits.clone()
    op(logits, *empty._replace(mask=None), kept)
    assert torch.equal(logits, before)
    op(logits, *empty, kept)
    reference(before, *empty, kept)
    assert torch.equal(logits, before)


def test_what_does_not_fit_is_refused_before_a_launch(op: AdjustLogits) -> None:
    given = adjustments(2, 100, 10, masked=True)
    logits, kept = torch.randn(2, 100, device="cuda"), torch.empty(len(given.tokens), device="cuda")
    for spoilt, told in (
        (given._replace(tokens=given.tokens.long()), r"tokens is torch.int64"),
        (given._replace(starts=given.starts[1:]), r"starts is torch.int32\[2\]; make it .*\[3\]"),
        (given._replace(mask=given.mask[:, :3] if given.mask is not None else None), r"mask is"),
    ):
        with pytest.raises(ValueError, match=told):
            op(logits, *spoilt, kept)
    with pytest.raises(ValueError, match="rows contiguous"):
        op(logits.T.contiguous().T, *given, kept)
    with pytest.raises(ValueError, match="kept is"):
        op(logits, *given, kept[1:])
