"""Held tokens that were drawn from everything first are what draws from the allowed ones would be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.model.test_sampler import assert_distributed, described, logits_of
from tokenspeed.backend.redraws import Drawn, may_redraw
from tokenspeed.backend.results import draws_of
from tokenspeed.core.constraint import Masks
from tokenspeed.core.plan import Draw, Held, Row
from tokenspeed.core.request import Sampling
from tokenspeed.model.sampler import NOT_FINITE, Sampled, sample

VOCAB = 70
GREEDY = Sampling(temperature=0.0)


class Allows:
    """The same tokens everywhere."""

    active = True

    def __init__(self, tokens: Iterable[int]) -> None:
        self.tokens = frozenset(tokens)
        self.filled = 0

    def take(self, tokens: Sequence[int]) -> int:
        return len(tokens)

    def fitting(self, drafts: Sequence[int]) -> int:
        return len(drafts)

    def choose(self, count: int, last: int, tries: Sequence[int]) -> int | None:
        return next((token for token in tries if token in self.tokens), None)

    def fill(self, masks: Masks, count: int, last: int, drafts: Sequence[int]) -> str | None:
        self.filled += 1
        bits = np.zeros(96, np.uint8)
        bits[list(self.tokens)] = 1
        masks[:] = np.packbits(bits, bitorder="little").view(np.int32)
        return None


def drawn(logits: torch.Tensor, rows: Sequence[Row]) -> tuple[list[Sampled], dict[int, str]]:
    """What rows that are all held draw, each from a row of logits for itself and for each of its drafts."""
    draws = [draw for row in rows for draw in draws_of(row)]
    firsts = np.cumsum([0, *(1 + len(row.drafts) for row in rows)]).tolist()
    made = Drawn(rows, firsts, logits, draws, sample(logits, draws))
    return made.sampled, made.redraw(range(len(rows)))


def row_of(sampling: Sampling, allows: Allows, position: int = 5, drafts: tuple[int, ...] = ()) -> Row:
    draw = Draw(sampling, sampling.seed, position, held=Held(allows, 3))
    return Row(0, position - 1, (1,), (0,), draw, drafts=drafts)


ALLOWED: dict[str, Callable[[NDArray[np.float64]], Iterable[int]]] = {
    "nearly all": lambda shares: set(range(VOCAB)) - {int(shares.argmax())},
    "every other": lambda shares: range(0, VOCAB, 2),
    "rare ones": lambda shares: np.argsort(shares)[:12].tolist(),
}


@pytest.mark.parametrize("which", ALLOWED)
@pytest.mark.parametrize(
    "sampling", [Sampling(seed=2), Sampling(temperature=0.6, seed=3, logprobs=0)], ids=str
)
def test_tokens_are_distributed_as_if_drawn_from_what_is_allowed(which: str, sampling: Sampling) -> None:
    logits, count = logits_of(VOCAB, seed=1), 4000
    shares = described(logits, Draw(sampling, 0, 0))
    allows = Allows(ALLOWED[which](shares))
    expected = np.where([token in allows.tokens for token in range(VOCAB)], shares, 0.0)
    expected /= expected.sum()
    rows = [row_of(sampling, allows, position) for position in range(count)]
    sampled, faults = drawn(logits.repeat(count, 1), rows)
    assert not faults
    assert_distributed([each.token for each in sampled], expected)


def test_nothing_is_filled_where_what_was_drawn_may_follow() -> None:
    logits, allows = logits_of(VOCAB).repeat(50, 1), Allows(range(VOCAB))
    rows = [row_of(Sampling(seed=seed), allows) for seed in range(50)]
    sampled, _ = drawn(logits, rows)
    assert [each.token for each in sampled] == [
        each.token for each in sample(logits, [draw for row in rows for draw in draws_of(row)])
    ]
    assert allows.filled == 0


def test_asking_for_log_probabilities_changes_no_token_and_tells_those_of_the_model() -> None:
    logits = logits_of(VOCAB)
    logs = torch.log_softmax(logits[0].double(), dim=0)
    allows = Allows(range(0, VOCAB, 7))
    filled = []
    for seed in range(60):
        [plain], [told] = (
            drawn(logits.clone(), [row_of(Sampling(seed=seed, logprobs=asked), allows)])[0]
            for asked in (None, 2)
        )
        assert plain.token == told.token
        assert told.logprob is not None
        assert told.logprob.token == told.token
        assert told.logprob.logprob == pytest.approx(float(logs[told.token]), abs=1e-5)
        assert [token for token, _ in told.logprob.top] == logs.topk(2).indices.tolist()
        filled.append(allows.filled)
    assert 0 < filled[-1] < 120  # some were allowed at once or at a further try, some never


def test_a_row_depends_on_itself_alone() -> None:
    rows = [row_of(Sampling(seed=seed), Allows(range(seed % 5, VOCAB, 5))) for seed in range(12)]
    rows[3] = row_of(GREEDY, Allows([7]))
    rows[5] = row_of(Sampling(seed=9, presence_penalty=1.0), Allows([7, 8]))
    logits = torch.cat([logits_of(VOCAB, seed) for seed in range(12)])
    together, _ = drawn(logits.clone(), rows)
    alone = [drawn(logits[n : n + 1].clone(), [row])[0][0] for n, row in enumerate(rows)]
    assert [each.token for each in together] == [each.token for each in alone]


def test_what_is_drawn_again_may_be_the_next_draft_and_then_those_behind_it_count() -> None:
    """Where only one token may ever follow, drafts of it hold to the last."""
    logits = logits_of(VOCAB).repeat(4, 1)
    only = int(logits[0].argmin())
    for sampling in (GREEDY, Sampling(seed=4)):
        allows = Allows([only])
        sampled, faults = drawn(logits.clone(), [row_of(sampling, allows, drafts=(only, only, only))])
        assert [each.token for each in sampled] == [only] * 4
        assert not faults
        assert allows.filled == 4
        allows = Allows([only])
        drawn(logits.clone(), [row_of(sampling, allows, drafts=(only, (only + 1) % VOCAB, only))])
        assert allows.filled == 2  # nothing behind a draft that does not hold


def test_rows_whose_logits_are_not_finite_ask_nothing() -> None:
    logits = logits_of(VOCAB).repeat(2, 1)
    logits[0, 3] = math.nan
    allows = Allows([5])
    sampled, faults = drawn(logits, [row_of(GREEDY, allows), row_of(GREEDY, allows)])
    assert (sampled[0].error, sampled[1].token, faults) == (NOT_FINITE, 5, {})


def test_filters_need_to_know_before() -> None:
    for sampling in (Sampling(), GREEDY, Sampling(temperature=0.0, top_k=3), Sampling(presence_penalty=1.0)):
        assert may_redraw(Draw(sampling, 0, 0))
    for sampling in (Sampling(top_k=3), Sampling(top_p=0.9), Sampling(min_p=0.1)):
        assert not may_redraw(Draw(sampling, 0, 0))
