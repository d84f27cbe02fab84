"""Draws follow the distribution that the request describes, and depend on nothing else."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenspeed.core.plan import Draw
from tokenspeed.core.request import Sampling
from tokenspeed.model.sampler import NOT_FINITE, sample, score

GREEDY = Sampling(temperature=0.0)
VOCABS = (5, 64, 67, 5003)  # below, at and beside the block sizes of the selection, and beyond them


def logits_of(vocab: int, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return spread * torch.randn(1, vocab, generator=torch.Generator().manual_seed(seed))


def token_of(logits: torch.Tensor, sampling: Sampling, position: int = 0, **draw: Any) -> int:
    [sampled] = sample(logits, [Draw(sampling, sampling.seed, position, **draw)])
    assert sampled.error is None
    return sampled.token


def described(logits: torch.Tensor, draw: Draw) -> NDArray[np.float64]:
    """The distribution in float64, step by step as the request describes it."""
    sampling = draw.sampling
    row = logits[0].double().numpy().copy()
    for token in {*draw.prompt, *draw.generated}:
        penalty = sampling.repetition_penalty
        row[token] = row[token] / penalty if row[token] > 0 else row[token] * penalty
    for token, count in Counter(draw.generated).items():
        row[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    for token, bias in sampling.logit_bias:
        row[token] += bias
    row[list(draw.banned)] = -math.inf
    weights = np.exp((row - row.max()) / sampling.temperature)
    ranked = sorted(range(len(row)), key=lambda token: (-row[token], token))
    if sampling.top_k:
        ranked = ranked[: sampling.top_k]
    if sampling.top_p < 1.0:
        reached = np.cumsum(weights[ranked]) / weights[ranked].sum()
        ranked = ranked[: int(np.argmax(reached >= sampling.top_p)) + 1]
    ranked = [token for token in ranked if weights[token] >= sampling.min_p]
    kept = np.zeros_like(weights)
    kept[ranked] = weights[ranked]
    return kept / kept.sum()


DESCRIPTIONS: dict[str, tuple[Sampling, dict[str, Any]]] = {
    "temperature": (Sampling(temperature=0.7), {}),
    "top-k": (Sampling(top_k=7), {}),
    "top-p": (Sampling(top_p=0.8), {}),
    "min-p": (Sampling(min_p=0.1), {}),
    "all filters": (Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.05), {}),
    "top-p and min-p": (Sampling(top_p=0.9, min_p=0.2), {}),
    "a flat nucleus": (Sampling(temperature=5.0, top_p=0.95), {}),
    "penalties": (
        Sampling(presence_penalty=0.5, frequency_penalty=0.8, repetition_penalty=1.3),
        {"prompt": (0, 1, 1), "generated": (2, 2, 3, 1)},
    ),
    "logit bias": (Sampling(logit_bias=((0, 3.0), (4, -100.0), (2, -1.0))), {}),
    "bans": (Sampling(), {"banned": (1, 3)}),
    "bias on a filtered draw": (Sampling(top_k=3, logit_bias=((4, 8.0),)), {"banned": (0,)}),
}


@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_draws_are_distributed_as_described(name: str, vocab: int) -> None:
    sampling, context = DESCRIPTIONS[name]
    logits = logits_of(vocab, seed=vocab)
    expected = described(logits, Draw(sampling, 0, 0, **context))
    count = 3000
    draws = [Draw(sampling, 11, position, **context) for position in range(count)]
    tokens = [sampled.token for sampled in sample(logits.expand(count, vocab), draws)]
    assert_distributed(tokens, expected)


def assert_distributed(tokens: list[int], expected: NDArray[np.float64]) -> None:
    count, observed = len(tokens), np.bincount(tokens, minlength=len(expected))
    assert observed[expected == 0].sum() == 0
    # Chi-square over the tokens that are frequent enough, the rest taken together.
    frequent = expected * count >= 5
    expects = np.append(expected[frequent], expected[~frequent].sum()) * count
    observes = np.append(observed[frequent], observed[~frequent].sum())
    terms = (observes - expects)[expects > 0] ** 2 / expects[expects > 0]
    freedom = max(len(terms) - 1, 1)
    assert terms.sum() < freedom + 5 * math.sqrt(2 * freedom)


samplings = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 1e-40, 0.3, 1.0, 4.0]),
    top_k=st.sampled_from([0, 1, 3, 50, 1000]),
    top_p=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(-(2**70), 2**70),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    logprobs=st.sampled_from([None, 0, 3]),
)


@given(sampling=samplings, vocab=st.integers(1, 300), seed=st.integers(0, 10), position=st.integers(0, 10**6))
def test_a_draw_does_not_depend_on_the_batch_around_it(
    sampling: Sampling, vocab: int, seed: int, position: int
) -> None:
    rows = torch.cat([logits_of(vocab, seed), logits_of(vocab, seed + 1), logits_of(vocab, seed + 2)])
    others = [Draw(GREEDY, 0, 0), Draw(Sampling(), 5, 7), Draw(Sampling(top_p=0.5), 1, 2)]
    own = Draw(sampling, sampling.seed, position, prompt=(0,), generated=(vocab - 1,))
    [alone] = sample(rows[:1], [own])
    assert sample(rows[[1, 0, 2]], [others[0], own, others[1]])[1] == alone
    assert sample(rows[[1, 2, 0]], [others[1], others[2], own])[2] == alone
    assert sample(rows[:1].expand(3, vocab), [own] * 3) == [alone] * 3
    assert 0 <= alone.token < vocab


@given(
    values=st.lists(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=200),
    sampling=samplings.filter(lambda sampling: sampling.temperature >= 0.3 and not sampling.penalised),
)
def test_only_tokens_that_the_filters_leave_are_drawn_even_among_equals(
    values: list[float], sampling: Sampling
) -> None:
    logits = torch.tensor([values])
    expected = described(logits, Draw(sampling, 0, 0))
    assert expected[token_of(logits, sampling)] > 0


def test_asking_for_log_probabilities_does_not_change_the_tokens() -> None:
    logits = logits_of(5003)
    for position in range(50):
        tokens = {token_of(logits, Sampling(seed=3, logprobs=asked), position) for asked in (None, 0, 5)}
        assert len(tokens) == 1


def test_seeds_and_positions_draw_apart() -> None:
    logits = torch.zeros(1, 1000)
    draws = {(seed, at): token_of(logits, Sampling(seed=seed), at) for seed in range(20) for at in range(20)}
    assert len(set(draws.values())) > 250  # 400 draws of 1000 equal tokens name about 330


def test_greedy_takes_the_lowest_id_of_equals() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert [sampled.token for sampled in sample(logits, [Draw(GREEDY, 0, 0)] * 2)] == [1, 0]
    with_logprobs = Draw(Sampling(temperature=0.0, logprobs=2), 0, 0)
    assert [sampled.token for sampled in sample(logits, [with_logprobs] * 2)] == [1, 0]


def test_greedy_heeds_penalties_bias_and_bans() -> None:
    logits = torch.tensor([[3.0, 2.5, 2.0, -1.0]])
    assert token_of(logits, Sampling(temperature=0.0, repetition_penalty=2.0), prompt=(0,)) == 1
    assert token_of(logits, Sampling(temperature=0.0, frequency_penalty=0.3), generated=(0, 0)) == 1
    assert token_of(logits, Sampling(temperature=0.0, logit_bias=((3, 9.0),))) == 3
    assert token_of(logits, GREEDY, banned=(0, 1)) == 2


def test_presence_and_frequency_count_generated_tokens_alone() -> None:
    logits = torch.tensor([[3.0, 2.5]])
    assert token_of(logits, Sampling(temperature=0.0, presence_penalty=2.0), prompt=(0,)) == 0


BROKEN = [
    pytest.param(math.nan, id="nan"),
    pytest.param(math.inf, id="inf"),
]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize(
    "sampling", [GREEDY, Sampling(), Sampling(top_p=0.9), Sampling(temperature=0.0, logprobs=1)], ids=str
)
def test_a_row_that_is_not_finite_is_an_error_of_that_row_alone(value: float, sampling: Sampling) -> None:
    logits = logits_of(100).repeat(3, 1)
    logits[1, 17] = value
    draw = Draw(sampling, 1, 2)
    sampled = sample(logits, [draw] * 3)
    assert [each.error for each in sampled] == [None, NOT_FINITE, None]
    assert sampled[0] == sampled[2] == sample(logits[:1], [draw])[0]


def test_tokens_of_no_probability_are_no_error() -> None:
    logits = torch.full((1, 10), -math.inf)
    assert sample(logits, [Draw(Sampling(), 0, 0)])[0].error == NOT_FINITE
    logits[0, 4] = 1.0
    for sampling in (GREEDY, Sampling(), Sampling(top_p=0.5), Sampling(top_k=3), Sampling(logprobs=2)):
        assert token_of(logits, sampling) == 4


def test_banning_all_tokens_is_an_error_of_the_row() -> None:
    [sampled] = sample(logits_of(3), [Draw(Sampling(), 0, 0, banned=(0, 1, 2))])
    assert sampled.error == "no token is left to sample: all are banned"


def test_a_ban_beyond_the_vocabulary_bans_nothing() -> None:
    logits = torch.tensor([[3.0, 2.5, 2.0]])
    assert token_of(logits, GREEDY, banned=(-1, 3, 0)) == 1


@pytest.mark.parametrize("bias", [math.nan, math.inf])
def test_a_bias_that_is_not_finite_is_an_error_of_the_row(bias: float) -> None:
    for sampling in (Sampling(logit_bias=((1, bias),)), Sampling(temperature=0.0, logit_bias=((1, bias),))):
        assert sample(logits_of(5), [Draw(sampling, 0, 0)])[0].error == NOT_FINITE


def test_a_bias_beyond_the_vocabulary_is_an_error_of_the_row() -> None:
    draws = [Draw(Sampling(logit_bias=((100, 1.0),)), 0, 0), Draw(GREEDY, 0, 0)]
    sampled = sample(logits_of(100).repeat(2, 1), draws)
    assert sampled[0].error == "logit_bias names token 100, but the vocabulary has 100"
    assert sampled[1].error is None


@pytest.mark.parametrize("vocab", VOCABS)
def test_log_probabilities_are_the_models_own(vocab: int) -> None:
    logits = logits_of(vocab)
    expected = torch.log_softmax(logits[0].double(), dim=0)
    sampling = Sampling(temperature=0.3, top_k=2, logit_bias=((vocab - 1, 50.0),), logprobs=4)
    [sampled] = sample(logits, [Draw(sampling, 0, 0)])
    assert sampled.logprob is not None
    assert sampled.logprob.token == sampled.token == vocab - 1
    assert sampled.logprob.logprob == pytest.approx(float(expected[-1]), abs=1e-5)
    best = expected.topk(4)
    assert [token for token, _ in sampled.logprob.top] == best.indices.tolist()
    assert [value for _, value in sampled.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_no_alternatives_are_reported_where_none_are_asked() -> None:
    [sampled] = sample(logits_of(50), [Draw(Sampling(logprobs=0), 0, 0)])
    assert sampled.logprob is not None
    assert sampled.logprob.top == ()


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    [sampled] = sample(logits_of(5), [Draw(Sampling(logprobs=20), 0, 0)])
    assert sampled.logprob is not None
    assert len(sampled.logprob.top) == 5


def test_scores_are_the_log_probabilities_of_the_targets() -> None:
    logits = torch.cat([logits_of(200, seed) for seed in range(3)])
    logits[1, 3] = math.nan
    expected = torch.log_softmax(logits.double(), dim=1)
    scored = score(logits, [5, 6, 7], 2)
    assert scored[1] is None
    for row, target in ((0, 5), (2, 7)):
        found = scored[row]
        assert found is not None
        assert found.token == target
        assert found.logprob == pytest.approx(float(expected[row, target]), abs=1e-5)
        assert [token for token, _ in found.top] == expected[row].topk(2).indices.tolist()


def test_nothing_to_sample_is_nothing() -> None:
    assert sample(torch.empty(0, 100), []) == []
    assert score(torch.empty(0, 100), [], 0) == []
