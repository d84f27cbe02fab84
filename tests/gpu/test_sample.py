"""The reference of sample: greedy, seeded and filtered draws as the CPU's sampler makes them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import gpu.sample
from gpu.sample.reference import chances, left, sample
from gpu.sample.source import (
    BLOCKS,
    MOST_CHUNKS,
    MOST_PEAK_PARTS,
    MOST_VOCAB,
    PEAK_THREADS,
    THREADS,
    chunks,
    parts,
    peak_parts,
)
from tokenspeed.core.plan import Draw
from tokenspeed.core.request import Sampling
from tokenspeed.model.randomness import uniform
from tokenspeed.model.sampler import sample as sampled_on_cpu


def drawn(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seeds: Tensor | int = 0,
    positions: Tensor | None = None,
) -> tuple[list[int], list[int]]:
    """Tokens and status of rows that are sampled alike."""
    rows = len(logits)
    tokens, status = torch.full((2, rows), -7, dtype=torch.int32)
    each = torch.arange(rows, dtype=torch.int32) if positions is None else positions
    seed = seeds if isinstance(seeds, Tensor) else torch.full((rows,), seeds)
    sample(
        logits,
        torch.full((rows,), temperature),
        torch.full((rows,), top_k, dtype=torch.int32),
        torch.full((rows,), top_p),
        torch.full((rows,), min_p),
        seed,
        each,
        tokens,
        status,
    )
    return tokens.tolist(), status.tolist()


def logits_of(rows: int, vocab: int, seed: int = 0, spread: float = 2.0) -> Tensor:
    return spread * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


def test_chances_are_those_of_the_cpu() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 1234567890123]
    positions = [0, 5, 2**31 - 1, 7, 0, 1_000_000]
    found = chances(torch.tensor(seeds), torch.tensor(positions, dtype=torch.int32))
    expected = [uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    assert found.tolist() == expected


@pytest.mark.parametrize("vocab", [1, 2, 67, 5003])
@pytest.mark.parametrize("temperature", [0.0, 1e-40, 0.7, 3.0])
def test_unfiltered_tokens_are_those_of_the_cpu(vocab: int, temperature: float) -> None:
    logits, seed = logits_of(40, vocab), 77
    sampling = Sampling(temperature=temperature, seed=seed)
    expected = sampled_on_cpu(logits, [Draw(sampling, seed, position) for position in range(40)])
    tokens, status = drawn(logits, temperature, seeds=seed)
    assert tokens == [each.token for each in expected]
    assert status == [0] * 40


@pytest.mark.parametrize("rounded", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    ("top_k", "top_p", "min_p"),
    [
        (7, 1.0, 0.0),
        (0, 0.8, 0.0),
        (0, 1.0, 0.1),
        (20, 0.9, 0.05),
        (500, 0.5, 0.0),
        (1, 0.5, 1.0),
        (3, 0.0, 0.0),
    ],
)
def test_filters_leave_what_a_sort_leaves(top_k: int, top_p: float, min_p: float, rounded: bool) -> None:
    logits = logits_of(5, 131)
    scaled = logits.round() if rounded else logits
    scaled = scaled - scaled.amax(1, keepdim=True)
    given = (torch.tensor([top_k] * 5), torch.tensor([top_p] * 5), torch.tensor([min_p] * 5))
    found = left(scaled, *given)
    for row, values in enumerate(scaled.double().tolist()):
        ranked = sorted(range(131), key=lambda token, values=values: (-values[token], token))
        ranked = ranked[: top_k or 131]
        target = float(given[1][0]) * math.fsum(math.exp(values[token]) for token in ranked)
        expected, reached = [], 0.0
        for token in ranked:
            if expected and reached >= target:
                break
            expected.append(token)
            reached += math.exp(values[token])
        expected = [token for token in expected if math.exp(values[token]) >= min_p]
        assert found[row].nonzero()[:, 0].tolist() == sorted(expected)


@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 4}, {"top_p": 0.8}, {"min_p": 0.2}, {"top_k": 6, "top_p": 0.9, "min_p": 0.05}]
)
def test_draws_are_distributed_as_described(filters: dict[str, Any]) -> None:
    count, logits = 4000, logits_of(1, 40)
    tokens, _ = drawn(logits.expand(count, 40), 1.3, seeds=5, **filters)
    scaled = (logits - logits.max()) / 1.3
    given = {"top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    kept = left(scaled, *(torch.tensor([given[name]]) for name in ("top_k", "top_p", "min_p")))[0]
    expected = scaled[0].double().exp() * kept
    expected *= count / expected.sum()
    observed = torch.bincount(torch.tensor(tokens), minlength=40)
    assert not observed[~kept].any()
    frequent = expected >= 5
    terms = (observed - expected)[frequent].square() / expected[frequent]
    assert terms.sum() < len(terms) + 5 * math.sqrt(2 * len(terms))


def test_equal_logits_rank_by_id() -> None:
    logits = torch.zeros(200, 64)
    assert set(drawn(logits, top_k=5)[0]) == set(range(5))
    assert set(drawn(logits, top_p=0.125)[0]) == set(range(8))
    logits[:, ::2] = -0.0
    assert drawn(logits, 0.0)[0] == [0] * 200


def test_strict_filters_are_greedy() -> None:
    logits = logits_of(50, 300)
    greedy = logits.argmax(1).tolist()
    assert drawn(logits, 0.0)[0] == greedy
    for filters in ({"top_k": 1}, {"top_p": 1e-6}, {"top_p": 0.0}, {"min_p": 1.0}):
        assert drawn(logits, **filters)[0] == greedy


def test_a_filter_of_the_whole_vocabulary_changes_nothing() -> None:
    logits = logits_of(50, 300)
    assert drawn(logits, top_k=300) == drawn(logits, top_k=10_000) == drawn(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_cannot_be_sampled_are_told_alone(temperature: float) -> None:
    logits = logits_of(5, 20)
    expected, _ = drawn(logits, temperature)
    logits[1, 7], logits[2, 0], logits[3] = math.nan, math.inf, -math.inf
    tokens, status = drawn(logits, temperature)
    assert status == [0, 1, 1, 2, 0]
    assert tokens == [expected[0], 0, 0, 0, expected[4]]


@pytest.mark.parametrize("vocab", [1, 33, 2048, 32_000, 128_256, 151_936, MOST_VOCAB])
@pytest.mark.parametrize("rows", [1, 2, 13, 256, 2000])
def test_blocks_share_out_the_rows(rows: int, vocab: int) -> None:
    of_peaks = peak_parts(rows, vocab, 132)
    size = -(-vocab // (4 * of_peaks)) * 4
    assert 1 <= of_peaks <= MOST_PEAK_PARTS
    assert of_peaks * size >= vocab
    assert size >= min(4 * PEAK_THREADS, vocab) or of_peaks * 4 * PEAK_THREADS < vocab + 4 * PEAK_THREADS
    each = chunks(rows, vocab, 132)
    assert parts(vocab, each) * each * 4 * THREADS >= vocab
    assert parts(vocab, each) <= 132
    assert each == MOST_CHUNKS or rows * parts(vocab, each) <= BLOCKS * 132


def test_it_has_a_contract() -> None:
    assert (gpu.sample.__doc__ or "").startswith("sample(")
    assert "| tensor" in (gpu.sample.__doc__ or "")
