"""A step gives each row what it would get alone: however it is cut, batched, run ahead or speculated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tokenspeed.backend.executor import Executor
from tokenspeed.backend.results import SOURCE_FAILED
from tokenspeed.core.plan import Draw, Row, RowResult, StepPlan
from tokenspeed.core.request import Sampling
from tokenspeed.model.batch import Batch
from tokenspeed.model.sampler import NOT_FINITE

GREEDY = Sampling(temperature=0.0)
SAMPLINGS = [
    GREEDY,
    Sampling(seed=4),
    Sampling(temperature=0.8, top_k=9, top_p=0.9, seed=2),
    Sampling(temperature=0.0, frequency_penalty=3.0, repetition_penalty=1.2),
    Sampling(presence_penalty=0.6, seed=8),
]
PROMPTS = [(1, 2, 3, 4, 5, 6, 7), (9,), tuple(range(20, 43)), (50, 51, 50), (8, 8, 8, 8)]
REPETITIVE = (9,)  # is continued by one token over and over, which penalties forbid
BLOCKS_EACH = 12
NEW = 16


class Wrapped:
    """A decoder that does its work, for others to disturb."""

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self.forwards = 0

    def allocate(self, blocks: int) -> None:
        self.decoder.allocate(blocks)


class FailsOnce(Wrapped):
    """In its second pass."""

    def forward(self, batch: Batch) -> torch.Tensor:
        self.forwards += 1
        if self.forwards == 2:
            raise RuntimeError("lightning")
        result: torch.Tensor = self.decoder.forward(batch)
        return result


def blocks_of(sequence: int) -> tuple[int, ...]:
    """Scattered blocks of the pool, apart from those of other sequences."""
    return tuple((sequence * BLOCKS_EACH + block) * 37 % 64 for block in range(BLOCKS_EACH))


@pytest.fixture
def executor(tiny: Any) -> Executor:
    return executor_of(tiny, tiny.decoder())


def executor_of(tiny: Any, decoder: Any) -> Executor:
    decoder.allocate(tiny.blocks)
    return Executor(decoder, block_size=tiny.block_size, vocab_size=tiny.vocab)


def run(executor: Executor, *rows: Row) -> tuple[RowResult, ...]:
    return executor.execute(StepPlan(0, rows)).rows


def prefill(
    executor: Executor, tiny: Any, prompt: tuple[int, ...], sampling: Sampling, sequence: int = 0
) -> int:
    [result] = run(
        executor, Row(sequence, 0, prompt, blocks_of(sequence), tiny.draw(sampling, prompt, prompt))
    )
    return result.tokens[0]


def test_sequences_in_chunks_beside_each_other_are_continued_as_alone(tiny: Any, executor: Executor) -> None:
    known = [list(prompt) for prompt in PROMPTS]
    computed = [0] * len(known)
    while any(len(tokens) < len(prompt) + NEW for tokens, prompt in zip(known, PROMPTS, strict=True)):
        rows = []
        for number, (tokens, prompt) in enumerate(zip(known, PROMPTS, strict=True)):
            chunk = tuple(tokens[computed[number] : computed[number] + 5])
            ends = computed[number] + len(chunk) == len(tokens)
            draw = tiny.draw(SAMPLINGS[number], prompt, tokens) if ends else None
            rows.append(Row(number, computed[number], chunk, blocks_of(number), draw))
            computed[number] += len(chunk)
        for number, result in enumerate(run(executor, *rows)):
            assert result.error is None
            assert len(result.tokens) == (rows[number].draw is not None)
            known[number] += result.tokens
    for tokens, prompt, sampling in zip(known, PROMPTS, SAMPLINGS, strict=True):
        assert tuple(tokens[len(prompt) :][:NEW]) == tiny.continued(prompt, sampling, NEW)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_a_row_that_runs_ahead_takes_the_token_that_the_step_before_sampled(
    tiny: Any, executor: Executor, sampling: Sampling
) -> None:
    prompt, other = REPETITIVE, (9, 8)
    found = [prefill(executor, tiny, prompt, sampling)]
    run(executor, Row(0, 1, (found[0],), blocks_of(0), tiny.draw(sampling, prompt, [*prompt, found[0]])))
    tokens = [*prompt, *tiny.continued(prompt, sampling, 2)]
    for _ in range(6):
        at_source = 1 if len(tokens) > 3 else 0
        # The host knows all but the last token; a 0 stands where it will be.
        draw = tiny.draw(sampling, prompt, [*tokens[:-1], 0])
        row = Row(0, len(tokens) - 1, (0,), blocks_of(0), draw, source=at_source)
        results = run(executor, Row(1, 0, other, blocks_of(1), tiny.draw(GREEDY, other, other)), row)
        tokens += results[1].tokens
    assert tuple(tokens[1:]) == tiny.continued(prompt, sampling, 8)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_drafts_are_accepted_up_to_the_first_that_would_not_have_been_sampled(
    tiny: Any, executor: Executor, sampling: Sampling, wrong: int | None
) -> None:
    prompt = REPETITIVE
    expected = tiny.continued(prompt, sampling, 5)
    assert prefill(executor, tiny, prompt, sampling) == expected[0]
    drafts = list(expected[1:4])
    if wrong is not None:
        drafts[wrong] = (drafts[wrong] + 1) % tiny.vocab
    known = [*prompt, expected[0]]
    row = Row(0, len(prompt), (expected[0],), blocks_of(0), tiny.draw(sampling, prompt, known), tuple(drafts))
    [result] = run(executor, row)
    assert result.tokens == expected[1 : 5 if wrong is None else wrong + 2]
    # The next step computes over the slots of refused drafts.
    known += result.tokens
    [after] = run(
        executor,
        Row(0, len(known) - 1, (known[-1],), blocks_of(0), tiny.draw(sampling, prompt, known)),
    )
    assert (*known[len(prompt) :], *after.tokens) == tiny.continued(prompt, sampling, len(known))


def test_a_row_that_runs_ahead_of_drafts_takes_the_last_token_accepted(tiny: Any, executor: Executor) -> None:
    prompt = PROMPTS[0]
    expected = tiny.continued(prompt, GREEDY, 4)
    run(executor, Row(0, 0, prompt, blocks_of(0), tiny.draw(GREEDY, prompt, prompt), expected[:2]))
    at = len(prompt) + 2
    assert run(executor, Row(0, at, (0,), blocks_of(0), Draw(GREEDY, 0, at + 1), source=0)) == (
        RowResult(tokens=expected[3:]),
    )


def test_accepted_drafts_have_their_log_probabilities(tiny: Any, executor: Executor) -> None:
    prompt, sampling = PROMPTS[0], Sampling(temperature=0.0, logprobs=2)
    expected = tiny.continued(prompt, sampling, 3)
    row = Row(0, 0, prompt, blocks_of(0), tiny.draw(sampling, prompt, prompt), expected[:2])
    [result] = run(executor, row)
    assert result.tokens == expected
    logs = tiny.logits([*prompt, *expected]).log_softmax(-1)
    for ahead, logprob in enumerate(result.logprobs or ()):
        assert logprob.token == expected[ahead]
        assert logprob.logprob == pytest.approx(
            float(logs[len(prompt) - 1 + ahead, expected[ahead]]), abs=1e-4
        )
        assert len(logprob.top) == 2


def test_a_prompt_is_scored_in_chunks_as_in_one(tiny: Any, executor: Executor) -> None:
    prompt = PROMPTS[2]
    logs = tiny.logits(prompt).log_softmax(-1)
    scored = []
    for start, end in ((0, 1), (1, 9), (9, len(prompt))):
        last = end == len(prompt)
        row = Row(
            0,
            start,
            prompt[start:end],
            blocks_of(0),
            tiny.draw(GREEDY, prompt, prompt) if last else None,
            targets=prompt[start + 1 : end + 1],
            score=3,
        )
        # Beside a row that is scored too, and one that samples alone.
        other = Row(1, 0, (5, 6), blocks_of(1), None, targets=(6,))
        results = run(executor, other, row, Row(2, 0, (7,), blocks_of(2), tiny.draw(GREEDY, (7,), (7,))))
        assert len(results[0].scored) == 1
        assert results[2].tokens == tiny.continued((7,), GREEDY, 1)
        assert results[1].tokens == (tiny.continued(prompt, GREEDY, 1) if last else ())
        scored += results[1].scored
    assert [logprob.token for logprob in scored] == list(prompt[1:])
    expected = [float(logs[at, token]) for at, token in enumerate(prompt[1:])]
    assert [logprob.logprob for logprob in scored] == pytest.approx(expected, abs=1e-4)
    assert all(len(logprob.top) == 3 for logprob in scored)


@pytest.mark.parametrize("chunks", [(1, 8, 14), (23,), (22, 1)])
def test_hidden_states_are_summed_beside_rows_that_sample_in_chunks_as_in_one(
    tiny: Any, executor: Executor, chunks: tuple[int, ...]
) -> None:
    prompt, other = PROMPTS[2], PROMPTS[0]
    summed, start = np.zeros(tiny.spec.hidden_size), 0
    for count in chunks:
        tokens = prompt[start : start + count]
        first, none, drawn, last = run(
            executor,
            Row(0, start, tokens, blocks_of(0), None, pooled=count),
            Row(1, start, tokens, blocks_of(1), None),
            Row(2, 0, other, blocks_of(2), tiny.draw(GREEDY, other, other)),
            Row(3, 0, other, blocks_of(3), tiny.draw(GREEDY, other, other), pooled=1),
        )
        summed += first.pooled
        start += count
        assert none == RowResult()
        assert (drawn.tokens, drawn.pooled) == (tiny.continued(other, GREEDY, 1), None)
        assert last.tokens == drawn.tokens
        assert last.pooled.tolist() == pytest.approx(tiny.summed(other, 1), abs=1e-5)
    assert summed.tolist() == pytest.approx(tiny.summed(prompt, len(prompt)), abs=1e-5)


def test_hidden_states_that_are_not_finite_end_their_row_alone(tiny: Any) -> None:
    broken = tiny.vocab - 1
    tiny.weights.embedding[broken] = torch.nan
    executor = executor_of(tiny, tiny.decoder())
    sick, well, beyond = run(
        executor,
        Row(0, 0, (broken, 2), blocks_of(0), None, pooled=2),
        Row(1, 0, (1, 2), blocks_of(1), None, pooled=2),
        Row(2, 0, (1, tiny.vocab), blocks_of(2), None, pooled=2),
    )
    assert sick == RowResult(error=NOT_FINITE)
    assert well.pooled.tolist() == pytest.approx(tiny.summed((1, 2), 2), abs=1e-5)
    assert beyond == RowResult(error="a token is beyond the vocabulary of 61")


def test_logits_that_are_not_finite_end_their_row_alone(tiny: Any, executor: Executor) -> None:
    broken = tiny.vocab - 1
    tiny.weights.embedding[broken] = torch.nan
    executor = executor_of(tiny, tiny.decoder())
    results = run(
        executor,
        Row(0, 0, (1, 2), blocks_of(0), tiny.draw(GREEDY, (1, 2), (1, 2))),
        Row(1, 0, (1, broken), blocks_of(1), tiny.draw(GREEDY, (1, broken), (1, broken))),
        Row(2, 0, (broken, 1), blocks_of(2), None, targets=(1, 2)),
    )
    assert results[0] == RowResult(tokens=tiny.continued((1, 2), GREEDY, 1))
    assert results[1] == results[2] == RowResult(error=NOT_FINITE)
    # Nor does what follows it run on.
    [after] = run(executor, Row(1, 2, (0,), blocks_of(1), Draw(GREEDY, 0, 3), source=1))
    assert after == RowResult(error=SOURCE_FAILED)


def test_a_fault_behind_an_accepted_draft_leaves_what_came_before_it(tiny: Any) -> None:
    class LastIsNotFinite(Wrapped):
        def forward(self, batch: Batch) -> torch.Tensor:
            logits = self.decoder.forward(batch)
            logits[-1] = torch.nan
            return logits

    prompt = PROMPTS[0]
    expected = tiny.continued(prompt, GREEDY, 2)
    executor = executor_of(tiny, LastIsNotFinite(tiny.decoder()))
    row = Row(0, 0, prompt, blocks_of(0), tiny.draw(GREEDY, prompt, prompt), expected)
    assert run(executor, row) == (RowResult(tokens=expected),)


@pytest.mark.parametrize("token", [-1, 61, 2**40])
def test_a_token_beyond_the_vocabulary_ends_its_row_alone(tiny: Any, executor: Executor, token: int) -> None:
    results = run(
        executor,
        Row(0, 0, (1, token), blocks_of(0), tiny.draw(SAMPLINGS[3], (1, token), (1, token)), (1,)),
        Row(1, 0, (1, 2), blocks_of(1), Draw(GREEDY, 0, 2)),
        Row(2, 0, (1,), blocks_of(2), None, targets=(token,)),
        Row(3, 0, (1,), blocks_of(3), Draw(GREEDY, 0, 1), drafts=(1, token)),
    )
    for number in (0, 2, 3):
        assert results[number] == RowResult(error="a token is beyond the vocabulary of 61")
    assert results[1].tokens == tiny.continued((1, 2), GREEDY, 1)


def test_after_a_step_that_failed_rows_that_follow_it_end(tiny: Any) -> None:
    executor = executor_of(tiny, FailsOnce(tiny.decoder()))
    prefill(executor, tiny, (1, 2), GREEDY)
    with pytest.raises(RuntimeError, match="lightning"):
        run(executor, Row(0, 2, (0,), blocks_of(0), Draw(GREEDY, 0, 3), source=0))
    fresh = Row(1, 0, (1, 2), blocks_of(1), Draw(GREEDY, 0, 2))
    results = run(executor, Row(0, 3, (0,), blocks_of(0), Draw(GREEDY, 0, 4), source=0), fresh)
    assert results == (RowResult(error=SOURCE_FAILED), RowResult(tokens=tiny.continued((1, 2), GREEDY, 1)))


def test_a_step_tells_how_long_it_took_and_how_long_the_device_had_waited_for_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 10.5, 11.5, 13.5, 13.75, 14.0])  # start and end of each step
    monkeypatch.setattr("tokenspeed.backend.executor.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    executor = executor_of(tiny, FailsOnce(tiny.decoder()))
    plan = StepPlan(0, (Row(0, 0, (1, 2), blocks_of(0), Draw(GREEDY, 0, 2)),))
    first = executor.execute(plan)
    assert (first.seconds, first.idle) == (0.5, 0.0)
    with pytest.raises(RuntimeError, match="lightning"):
        executor.execute(plan)
    third = executor.execute(plan)
    assert (third.seconds, third.idle) == (0.25, 0.25)


def test_an_empty_plan_has_an_empty_result(executor: Executor) -> None:
    assert executor.execute(StepPlan(3, ())).rows == ()
