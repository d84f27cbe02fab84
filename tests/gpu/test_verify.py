"""The reference of verify, by example. Its kernel is held to it by numba_cases.py."""

from __future__ import annotations

import torch

import gpu.verify
from gpu.verify.reference import verify


def accepted(sampled: list[list[int]], drafts: list[list[int]]) -> list[int]:
    bounds = [sum(map(len, sampled[:row])) for row in range(len(sampled) + 1)]
    found = torch.full((len(sampled),), -7, dtype=torch.int32)
    verify(
        torch.tensor([token for row in sampled for token in row], dtype=torch.int32),
        torch.tensor(bounds, dtype=torch.int32),
        torch.tensor([draft for row in drafts for draft in (*row, -1)], dtype=torch.int32),
        found,
    )
    return found.tolist()


def test_tokens_stand_up_to_the_first_draft_that_was_wrong() -> None:
    sampled = [[5], [5, 6, 7], [5, 6, 7], [5, 6, 7], [5, 6, 7]]
    drafts = [[], [5, 6], [5, 9], [9, 6], [9, 9]]
    assert accepted(sampled, drafts) == [1, 3, 2, 1, 1]


def test_what_stands_in_a_rows_last_place_counts_for_nothing() -> None:
    found, starts = torch.zeros(2, dtype=torch.int32), torch.tensor([0, 2, 4], dtype=torch.int32)
    tokens = torch.tensor([1, 2, 1, 2], dtype=torch.int32)
    verify(tokens, starts, tokens, found)
    assert found.tolist() == [2, 2]


def test_a_row_without_places_accepts_nothing() -> None:
    found = torch.full((2,), -7, dtype=torch.int32)
    one, starts = torch.tensor([3], dtype=torch.int32), torch.tensor([0, 1, 1], dtype=torch.int32)
    verify(one, starts, one, found)
    assert found.tolist() == [1, 0]


def test_it_has_a_contract() -> None:
    assert (gpu.verify.__doc__ or "").startswith("verify(")
    assert "| tensor" in (gpu.verify.__doc__ or "")
