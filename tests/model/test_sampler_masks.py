"""What a mask forbids is never drawn, and of what it allows the draw is as if nothing else were there."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.model.test_sampler import logits_of, samplings
from tokenspeed.core.plan import Draw
from tokenspeed.core.request import Sampling
from tokenspeed.model.sampler import NOT_FINITE, NOTHING_ALLOWED, Sampled, sample

GREEDY = Sampling(temperature=0.0)
# Below, at and beside the words of a mask, and with many of them.
VOCABS = (1, 31, 32, 33, 67, 5003)
WAYS: dict[str, tuple[Sampling, dict[str, Any]]] = {
    "greedy": (GREEDY, {}),
    "free": (Sampling(temperature=0.8), {}),
    "hot": (Sampling(temperature=50.0), {}),
    "top-k": (Sampling(top_k=3), {}),
    "top-p": (Sampling(top_p=0.6), {}),
    "min-p": (Sampling(min_p=0.2), {}),
    "all filters": (Sampling(temperature=1.2, top_k=9, top_p=0.9, min_p=0.05), {}),
    "penalties": (Sampling(presence_penalty=1.0, repetition_penalty=1.3), {"generated": (0,)}),
    "greedy penalties": (Sampling(temperature=0.0, frequency_penalty=1.0), {"generated": (0, 0)}),
    "bias": (Sampling(logit_bias=((0, 4.0),)), {}),
    "log-probabilities": (Sampling(logprobs=2), {}),
    "greedy log-probabilities": (Sampling(temperature=0.0, logprobs=2), {}),
}


def mask_of(allowed: Iterable[int], vocab: int) -> NDArray[np.int32]:
    """With bits beyond the vocabulary, which nobody may heed."""
    bits = np.zeros(-(-vocab // 32) * 32, np.uint8)
    bits[vocab:] = 1
    bits[list(allowed)] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)


def drawn(logits: torch.Tensor, draw: Draw, allowed: Iterable[int]) -> Sampled:
    [sampled] = sample(logits.clone(), [draw], {0: mask_of(allowed, logits.shape[1])})
    return sampled


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("name", WAYS)
def test_only_what_is_allowed_is_drawn(name: str, vocab: int) -> None:
    sampling, seen = WAYS[name]
    logits = logits_of(vocab, seed=vocab)
    chance = np.random.default_rng(vocab)
    for position in range(40):
        allowed = {int(token) for token in chance.integers(0, vocab, chance.integers(1, 6))}
        draw = Draw(sampling, 3, position, **seen)
        sampled = drawn(logits, draw, allowed)
        assert sampled.error is None
        assert sampled.token in allowed


@pytest.mark.parametrize("name", WAYS)
def test_a_draw_is_as_from_logits_of_the_allowed_tokens_alone(name: str) -> None:
    sampling, seen = WAYS[name]
    vocab, allowed = 67, [0, 5, 31, 32, 40, 66]
    logits = logits_of(vocab)
    without = torch.full_like(logits, -math.inf)
    without[0, allowed] = logits[0, allowed]
    for position in range(60):
        draw = Draw(sampling, 3, position, **seen)
        [expected] = sample(without.clone(), [draw])
        assert drawn(logits, draw, allowed).token == expected.token


@pytest.mark.parametrize("name", WAYS)
def test_a_mask_that_allows_all_changes_nothing(name: str) -> None:
    sampling, seen = WAYS[name]
    logits = logits_of(67)
    for position in range(20):
        draw = Draw(sampling, 3, position, **seen)
        assert drawn(logits, draw, range(67)) == sample(logits.clone(), [draw])[0]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("vocab", VOCABS)
def test_the_one_token_that_is_allowed_is_drawn_however_unlikely(name: str, vocab: int) -> None:
    sampling, seen = WAYS[name]
    logits = logits_of(vocab)
    only = vocab - 1
    logits[0, only] = -1e4
    assert drawn(logits, Draw(sampling, 1, 2, **seen), [only]).token == only


def test_log_probabilities_are_the_models_own() -> None:
    logits = logits_of(67)
    expected = torch.log_softmax(logits[0].double(), dim=0)
    for temperature in (0.0, 1.0):
        draw = Draw(Sampling(temperature=temperature, logprobs=3), 1, 2)
        sampled = drawn(logits, draw, [60, 61])
        assert sampled.token in (60, 61)
        assert sampled.logprob is not None
        assert sampled.logprob.logprob == pytest.approx(float(expected[sampled.token]), abs=1e-5)
        assert [token for token, _ in sampled.logprob.top] == expected.topk(3).indices.tolist()


@given(
    sampling=samplings,
    vocab=st.integers(1, 200),
    seed=st.integers(0, 10),
    position=st.integers(0, 10**6),
    kept=st.sets(st.integers(0, 199), min_size=1, max_size=20),
)
@settings(max_examples=150, deadline=None)
def test_a_masked_draw_does_not_depend_on_the_batch_around_it(
    sampling: Sampling, vocab: int, seed: int, position: int, kept: set[int]
) -> None:
    allowed = {token % vocab for token in kept}
    mask, other = mask_of(allowed, vocab), mask_of([0], vocab)
    rows = torch.cat([logits_of(vocab, seed), logits_of(vocab, seed + 1), logits_of(vocab, seed + 2)])
    own = Draw(sampling, sampling.seed, position, prompt=(0,), generated=(vocab - 1,))
    free, greedy, filtered = Draw(Sampling(), 5, 7), Draw(GREEDY, 0, 0), Draw(Sampling(top_p=0.5), 1, 2)
    [alone] = sample(rows[:1].clone(), [own], {0: mask})
    assert alone.token in allowed
    assert sample(rows[[1, 0, 2]], [greedy, own, free], {1: mask})[1] == alone
    assert sample(rows[[1, 2, 0]], [free, filtered, own], {0: other, 2: mask})[2] == alone
    assert sample(rows[[0, 0, 0]], [own] * 3, dict.fromkeys(range(3), mask)) == [alone] * 3
    # And those beside it are none the wiser.
    beside = sample(rows[[1, 0, 2]], [greedy, own, free], {1: mask})
    assert beside[0] == sample(rows[1:2].clone(), [greedy])[0]
    assert beside[2] == sample(rows[2:].clone(), [free])[0]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.9), Sampling(logprobs=1)], ids=str)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_an_error_even_where_the_mask_would_hide_it(
    sampling: Sampling, value: float
) -> None:
    logits = logits_of(100).repeat(3, 1)
    logits[1, 17] = value
    mask = mask_of([3, 50], 100)
    sampled = sample(logits.clone(), [Draw(sampling, 1, 2)] * 3, dict.fromkeys(range(3), mask))
    assert [each.error for each in sampled] == [None, NOT_FINITE, None]
    assert sampled[0] == sampled[2]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(), Sampling(top_p=0.9), Sampling(logprobs=1)], ids=str)
def test_a_mask_that_leaves_nothing_is_an_error_of_its_row(sampling: Sampling) -> None:
    logits = logits_of(50).repeat(2, 1)
    logits[:, 7] = -math.inf
    draws = [Draw(sampling, 1, 2)] * 2
    none, some = sample(logits, draws, {0: mask_of([7], 50), 1: mask_of([8], 50)})
    assert none.error == NOTHING_ALLOWED
    assert (some.token, some.error) == (8, None)


def test_bans_and_masks_add_up() -> None:
    draw = Draw(GREEDY, 1, 2, banned=(3,))
    assert drawn(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), draw, [1, 3]).token == 1
    assert drawn(torch.tensor([[0.0, 1.0, 2.0, 3.0]]), draw, [3]).error == NOTHING_ALLOWED
