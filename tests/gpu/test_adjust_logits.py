"""The reference of adjust_logits: the penalties, biases and bans of the CPU's sampler."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import gpu.adjust_logits
from gpu.adjust_logits.reference import adjust_logits

VOCAB = 70


def adjusted(
    logits: Tensor,
    rows: list[list[tuple[int, int, float]]],
    penalties: list[tuple[float, float, float]],
    mask: Tensor | None = None,
) -> tuple[Tensor, list[float]]:
    """Rows of entries (token, count, bias), and (repetition, frequency, presence) a row."""
    entries = [entry for row in rows for entry in row]
    tokens, counts, biases = zip(*entries, strict=True) if entries else ((), (), ())
    bounds = [sum(map(len, rows[:row])) for row in range(len(rows) + 1)]
    logits, kept = logits.clone(), torch.full((len(entries),), 7.0)
    adjust_logits(
        logits,
        torch.tensor(bounds, dtype=torch.int32),
        torch.tensor(tokens, dtype=torch.int32),
        torch.tensor(counts, dtype=torch.int32),
        torch.tensor(biases, dtype=torch.float32),
        *torch.tensor(penalties).T.contiguous(),
        mask,
        kept,
    )
    return logits, kept.tolist()


def logits_of(rows: int) -> Tensor:
    return 4 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(rows))


OFF = (1.0, 0.0, 0.0)


def test_each_row_is_adjusted_by_its_own_entries() -> None:
    logits = logits_of(3)
    logits[0, 3], logits[0, 4] = 2.0, -2.0
    rows = [[(3, 0, 0.0), (4, 2, 1.0)], [], [(9, -1, 5.0), (3, 1, -math.inf)]]
    found, kept = adjusted(logits, rows, [(2.0, 0.5, 0.25), (3.0, 1.0, 1.0), (2.0, 0.0, 0.5)])
    expected = logits.clone()
    expected[0, 3], expected[0, 4] = 1.0, -4.0 - 1.25 + 1.0
    expected[2, 9] += 5.0
    expected[2, 3] = -math.inf
    assert torch.equal(found, expected)
    assert kept == [2.0, -2.0, float(logits[2, 9]), float(logits[2, 3])]


@pytest.mark.parametrize(
    "penalties", [OFF, (1.5, 0.0, 0.0), (1.0, 0.25, 0.0), (1.0, 0.0, -0.5), (0.75, 0.3, 0.7)]
)
def test_penalties_are_those_of_the_cpu(penalties: tuple[float, float, float]) -> None:
    logits = logits_of(1)
    prompt, generated, bias, banned = (1, 2, 2, 5), (2, 6, 6, 6, 69), {6: 1.5, 40: -2.0}, (69, 8)
    seen = {*prompt, *generated}
    entries = [
        (
            token,
            generated.count(token) if token in seen else -1,
            -math.inf if token in banned else bias.get(token, 0.0),
        )
        for token in sorted(seen | {*bias, *banned})
    ]
    found, _ = adjusted(logits, [entries], [penalties])
    wide = logits[0].double()
    repetition, frequency, presence = penalties
    for token in seen:
        wide[token] = wide[token] / repetition if wide[token] > 0 else wide[token] * repetition
    for token in {*generated}:
        wide[token] -= generated.count(token) * frequency + presence
    for token, by in bias.items():
        wide[token] += by
    wide[list(banned)] = -math.inf
    torch.testing.assert_close(found[0].double(), wide, rtol=1e-6, atol=1e-6)


def test_a_mask_bans_at_last() -> None:
    logits = logits_of(2)
    allowed = torch.zeros(2, 96, dtype=torch.bool)
    allowed[0, [0, 31, 32, 63, 69]] = True
    allowed[1] = True
    bits = (allowed.view(2, 3, 32).long() << torch.arange(32)).sum(2)
    mask = torch.where(bits >= 2**31, bits - 2**32, bits).int()
    found, kept = adjusted(logits, [[(31, -1, 1.0), (33, -1, 99.0)], []], [OFF, OFF], mask)
    assert (found[0].isfinite() == allowed[0, :VOCAB]).all()
    assert found[0, 31] == logits[0, 31] + 1.0
    assert torch.equal(found[1], logits[1])
    assert kept == [float(logits[0, 31]), float(logits[0, 33])]


def test_tokens_beyond_the_vocabulary_are_passed_over() -> None:
    logits = logits_of(1)
    found, kept = adjusted(logits, [[(-1, -1, 3.0), (VOCAB, 2, 3.0)]], [(2.0, 1.0, 1.0)])
    assert torch.equal(found, logits)
    assert all(map(math.isnan, kept))


def test_entries_of_no_row_are_left_alone() -> None:
    logits, kept = logits_of(1), torch.full((4,), 7.0)
    expected = logits.clone()
    expected[0, 2] += 1.0
    ones = torch.ones(1)
    tokens = torch.tensor([1, 2, 3, 4], dtype=torch.int32)
    starts = torch.tensor([1, 2], dtype=torch.int32)
    adjust_logits(logits, starts, tokens, -torch.ones(4).int(), torch.ones(4), ones, ones, ones, None, kept)
    assert torch.equal(logits, expected)
    assert kept.tolist() == [7.0, float(logits_of(1)[0, 2]), 7.0, 7.0]


def test_nothing_to_adjust_is_nothing() -> None:
    logits = logits_of(2)
    found, kept = adjusted(logits, [[], []], [OFF, OFF])
    assert torch.equal(found, logits)
    assert kept == []


def test_it_has_a_contract() -> None:
    assert (gpu.adjust_logits.__doc__ or "").startswith("adjust_logits(")
    assert "| tensor" in (gpu.adjust_logits.__doc__ or "")
