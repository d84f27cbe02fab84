"""Drafts of a draft model change how many steps an answer takes, and nothing of the answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from tokenspeed.backend.cpu import CpuBackend
from tokenspeed.backend.executor import Executor
from tokenspeed.backend.guessing import Guesser
from tokenspeed.core.plan import Capacity, Row, RowResult, StepPlan
from tokenspeed.core.request import Sampling
from tokenspeed.model.batch import Batch, Decoder
from tokenspeed.model.draft import Draft
from tokenspeed.model.sampler import sample
from tokenspeed.model.torch_decoder import TorchDecoder

GREEDY = Sampling(temperature=0.0)
SAMPLINGS = [
    GREEDY,
    Sampling(seed=4),
    Sampling(seed=5),
    Sampling(temperature=0.8, top_k=9, top_p=0.9, seed=2),
    Sampling(temperature=0.7, min_p=0.05, logit_bias=((3, 4.0), (9, -4.0)), seed=3),
    Sampling(temperature=0.0, frequency_penalty=3.0, repetition_penalty=1.2),
    Sampling(presence_penalty=0.6, repetition_penalty=1.1, seed=8),
]
NAMES = ["greedy", "sampled", "other seed", "top-p", "biased", "greedy penalties", "penalties"]
PROMPTS = [(1, 2, 3, 4, 5, 6, 7), (9,), tuple(range(20, 43)), (50, 51, 50), (8, 8, 8, 8), (30,), (14, 15)]
BLOCKS_EACH = 14
NEW = 16

each_sampling = pytest.mark.parametrize("sampling", SAMPLINGS, ids=NAMES)


class Spied:
    """A decoder that keeps the batches it is given; `spoil` may change the logits, or raise."""

    def __init__(self, decoder: Any, spoil: Callable[[int, torch.Tensor], None] = lambda n, x: None) -> None:
        self.decoder = decoder
        self.spoil = spoil
        self.batches: list[Batch] = []
        self.blocks = 0
        self.warm = False
        self.closed = 0

    @property
    def block_bytes(self) -> int:
        return int(self.decoder.block_bytes)

    def allocate(self, blocks: int) -> None:
        self.blocks = blocks
        self.decoder.allocate(blocks)

    def warm_up(self) -> None:
        self.warm = True

    def close(self) -> None:
        self.closed += 1

    def forward(self, batch: Batch) -> torch.Tensor:
        self.batches.append(batch)
        logits: torch.Tensor = self.decoder.forward(batch)
        self.spoil(len(self.batches) - 1, logits)
        return logits


class Generation(NamedTuple):
    """What came of one sequence, and what was found for it in each step that asked."""

    tokens: tuple[int, ...]
    guesses: list[tuple[int, ...]]
    accepted: int
    computed: int  # tokens that the draft model has


def blocks_of(sequence: int) -> tuple[int, ...]:
    """Scattered blocks of the pool, apart from those of other sequences."""
    return tuple((sequence * BLOCKS_EACH + block) * 37 % 64 for block in range(BLOCKS_EACH))


def similar(tiny: Any) -> Any:
    """A model that often, but not always, draws the same."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(tiny.weights.head.shape, generator=generator)
    return type(tiny)(replace(tiny.weights, head=tiny.weights.head + 0.5 * noise))


def draft_of(tiny: Any, decoder: Any = None) -> Draft:
    return Draft(decoder or tiny.decoder(), tiny.vocab, tiny.spec.max_context)


def executor_of(tiny: Any, draft: Draft | None, decoder: Decoder | None = None) -> Executor:
    decoder = decoder or tiny.decoder()
    decoder.allocate(tiny.blocks)
    guesser = None
    if draft is not None:
        draft.decoder.allocate(tiny.blocks)
        guesser = Guesser(draft, block_size=tiny.block_size, vocab_size=tiny.vocab)
    return Executor(decoder, block_size=tiny.block_size, vocab_size=tiny.vocab, guesser=guesser)


def run(executor: Executor, *rows: Row) -> tuple[RowResult, ...]:
    return executor.execute(StepPlan(0, rows)).rows


def asking(
    tiny: Any, sampling: Sampling, prompt: Sequence[int], known: Sequence[int], guess: int, computed: int
) -> Row:
    """The next row of a sequence, of which the draft model has computed so many tokens."""
    start = len(known) - 1
    behind = tuple(known[computed:start]) if guess else ()
    draw = tiny.draw(sampling, prompt, known)
    return Row(0, start, (known[-1],), blocks_of(0), draw, guess=guess, behind=behind, caught=computed)


def generate(
    tiny: Any,
    executor: Executor,
    prompt: tuple[int, ...],
    sampling: Sampling,
    *,
    guesses: Sequence[int] = (4,),
    new: int = NEW,
) -> Generation:
    """At least `new` tokens in steps that ask for so many drafts, in turns."""
    [first] = run(executor, Row(0, 0, prompt, blocks_of(0), tiny.draw(sampling, prompt, prompt)))
    known, computed, accepted, found = [*prompt, *first.tokens], 0, 0, []
    turn = 0
    while len(known) < len(prompt) + new:
        guess, turn = guesses[turn % len(guesses)], turn + 1
        row = asking(tiny, sampling, prompt, known, guess, computed)
        [result] = run(executor, row)
        assert result.error is None
        if guess:
            held = len(result.tokens) - 1
            assert result.guessed[:held] == result.tokens[:held]
            found.append(result.guessed)
            accepted += held
            computed = row.start + 1 + min(held, guess - 1)
        known += result.tokens
    return Generation(tuple(known[len(prompt) :]), found, accepted, computed)


@each_sampling
def test_every_draft_of_the_model_itself_holds(tiny: Any, sampling: Sampling) -> None:
    executor = executor_of(tiny, draft_of(tiny))
    for prompt in PROMPTS[:3]:
        got = generate(tiny, executor, prompt, sampling)
        assert got.tokens == tiny.continued(prompt, sampling, len(got.tokens))
        assert got.accepted == sum(map(len, got.guesses)) == 4 * len(got.guesses)


@each_sampling
@pytest.mark.parametrize("guesses", [(1,), (4,), (2, 0, 7, 0, 0, 1)], ids=["one", "four", "now and then"])
def test_drafts_of_another_model_leave_the_tokens_as_they_are(
    tiny: Any, sampling: Sampling, guesses: tuple[int, ...]
) -> None:
    executor = executor_of(tiny, draft_of(similar(tiny)))
    accepted, found = 0, 0
    for prompt in PROMPTS:
        got = generate(tiny, executor, prompt, sampling, guesses=guesses)
        assert got.tokens == tiny.continued(prompt, sampling, len(got.tokens))
        accepted += got.accepted
        found += sum(map(len, got.guesses))
    assert 0 < accepted < found


def test_a_draft_model_that_never_agrees_leaves_the_tokens_as_they_are(tiny: Any) -> None:
    contrary = type(tiny)(replace(tiny.weights, head=-tiny.weights.head))
    got = generate(tiny, executor_of(tiny, draft_of(contrary)), PROMPTS[0], GREEDY)
    assert got.tokens == tiny.continued(PROMPTS[0], GREEDY, NEW)
    assert got.accepted == 0


@each_sampling
def test_drafts_are_what_the_draft_model_itself_would_draw(tiny: Any, sampling: Sampling) -> None:
    other, prompt = similar(tiny), PROMPTS[0]
    got = generate(tiny, executor_of(tiny, draft_of(other)), prompt, sampling, guesses=(3,))
    at = 1
    for guessed in got.guesses:
        known = [*prompt, *got.tokens[:at]]
        for draft in guessed:
            [drawn] = sample(other.logits(known)[-1:], [tiny.draw(sampling, prompt, known)])
            assert draft == drawn.token
            known.append(draft)
        held = 0
        while held < len(guessed) and guessed[held] == got.tokens[at + held]:
            held += 1
        at += held + 1


@pytest.mark.parametrize("new", [1, 2, 5, 11])
def test_who_was_left_behind_gets_the_drafts_of_who_kept_up(tiny: Any, new: int) -> None:
    other, prompt = similar(tiny), PROMPTS[0]
    keeping = executor_of(tiny, draft_of(other))
    kept = generate(tiny, keeping, prompt, GREEDY, guesses=(1, 2), new=new)
    known = [*prompt, *kept.tokens]
    [kept_up] = run(keeping, asking(tiny, GREEDY, prompt, known, 4, kept.computed))

    spied = Spied(other.decoder())
    waiting = executor_of(tiny, draft_of(tiny, spied))
    generate(tiny, waiting, prompt, GREEDY, guesses=(0,), new=len(kept.tokens))
    assert spied.batches == []
    [caught_up] = run(waiting, asking(tiny, GREEDY, prompt, known, 4, 0))
    assert [len(batch.tokens) for batch in spied.batches] == [len(known), 1, 1, 1]
    assert caught_up == kept_up
    assert caught_up.guessed == other.continued(known, GREEDY, 4)


def catching_up(tiny: Any, prompt: Sequence[int], known: Sequence[int], caught: int, reached: int) -> Row:
    """The next row of a sequence, with which the draft model only catches up that far."""
    behind = tuple(known[caught:reached])
    return asking(tiny, GREEDY, prompt, known, 0, 0)._replace(behind=behind, caught=caught)


@pytest.mark.parametrize("cuts", [(1,), (5, 6), (3, 8, 17, 22)])
def test_who_was_caught_up_with_in_chunks_gets_the_drafts_of_who_was_at_once(
    tiny: Any, cuts: tuple[int, ...]
) -> None:
    other, prompt = similar(tiny), PROMPTS[2]
    spied = Spied(other.decoder())
    executor = executor_of(tiny, draft_of(tiny, spied))
    run(executor, Row(0, 0, prompt[:-1], blocks_of(0), None))
    known, caught = list(prompt), 0
    for reached in cuts:
        [result] = run(executor, catching_up(tiny, prompt, known, caught, reached))
        assert result.guessed == ()
        known += result.tokens
        caught = reached
    [result] = run(executor, asking(tiny, GREEDY, prompt, known, 4, caught))
    assert result.guessed == other.continued(known, GREEDY, 4)
    assert tuple(known) == (*prompt, *tiny.continued(prompt, GREEDY, len(cuts)))
    chunks = [reached - before for before, reached in zip((0, *cuts), cuts, strict=False)]
    assert [len(batch.tokens) for batch in spied.batches[: len(cuts)]] == chunks


def test_rows_that_are_caught_up_with_share_the_first_pass_of_those_that_guess(tiny: Any) -> None:
    other = similar(tiny)
    spied = Spied(other.decoder())
    executor = executor_of(tiny, draft_of(tiny, spied))
    first, second = PROMPTS[0], PROMPTS[2]
    run(executor, Row(0, 0, first[:-1], blocks_of(0), None), Row(1, 0, second[:-1], blocks_of(1), None))
    late = catching_up(tiny, second, second, 0, 9)._replace(sequence=1, blocks=blocks_of(1))
    guessed, plain = run(executor, asking(tiny, GREEDY, first, first, 3, 0), late)
    assert guessed.guessed == other.continued(first, GREEDY, 3)
    assert plain == RowResult(tiny.continued(second, GREEDY, 1))
    assert [len(batch.tokens) for batch in spied.batches] == [len(first) + 9, 1, 1]


def test_a_row_whose_token_is_on_the_device_can_be_caught_up_with(tiny: Any) -> None:
    other, prompt = similar(tiny), PROMPTS[0]
    executor = executor_of(tiny, draft_of(tiny, other.decoder()))
    [first] = run(executor, Row(0, 0, prompt, blocks_of(0), tiny.draw(GREEDY, prompt, prompt)))
    row = catching_up(tiny, prompt, [*prompt, *first.tokens], 0, len(prompt))
    [second] = run(executor, row._replace(tokens=(0,), source=0))
    known = [*prompt, *first.tokens, *second.tokens]
    assert tuple(known[len(prompt) :]) == tiny.continued(prompt, GREEDY, 2)
    [third] = run(executor, asking(tiny, GREEDY, prompt, known, 4, len(prompt)))
    assert third.guessed == other.continued(known, GREEDY, 4)


def test_a_draft_model_catches_up_as_far_as_its_context_goes(tiny: Any) -> None:
    prompt, spied = PROMPTS[2], Spied(tiny.decoder())
    executor = executor_of(tiny, Draft(spied, tiny.vocab, 10))
    run(executor, Row(0, 0, prompt[:-1], blocks_of(0), None))
    for row in (
        catching_up(tiny, prompt, prompt, 0, 7),
        asking(tiny, GREEDY, prompt, prompt, 4, 7),
        catching_up(tiny, prompt, prompt, 12, 20),
    ):
        [result] = run(executor, row)
        assert result == RowResult(tiny.continued(prompt, GREEDY, 1))
    assert [len(batch.tokens) for batch in spied.batches] == [7, 3]


def test_rows_that_ask_for_more_less_and_nothing_share_a_step(tiny: Any) -> None:
    spied = Spied(similar(tiny).decoder())
    executor = executor_of(tiny, draft_of(tiny, spied))
    wanted = [3, 0, 1, 5, 0]
    for number, prompt in enumerate(PROMPTS[:4]):
        draw = tiny.draw(SAMPLINGS[number], prompt, prompt)
        run(executor, Row(number, 0, prompt[:-1] or prompt, blocks_of(number), None if prompt[1:] else draw))
    rows = []
    for number, prompt in enumerate(PROMPTS[:5]):
        draw = tiny.draw(SAMPLINGS[number], prompt, prompt)
        if number == 4:  # a prompt beside them
            rows.append(Row(number, 0, prompt, blocks_of(number), draw))
            continue
        behind = prompt[:-1] if wanted[number] else ()
        start = len(prompt) - 1
        rows.append(
            Row(number, start, prompt[-1:], blocks_of(number), draw, guess=wanted[number], behind=behind)
        )
    results = run(executor, *rows)
    assert [len(batch.row_starts) - 1 for batch in spied.batches] == [3, 2, 2, 1, 1]
    assert [len(result.guessed) for result in results] == wanted
    for number, result in enumerate(results):
        expected = tiny.continued(PROMPTS[number], SAMPLINGS[number], len(result.tokens))
        assert result.tokens == expected
        guessed = similar(tiny).continued(PROMPTS[number], SAMPLINGS[number], wanted[number])
        assert result.guessed == guessed


@pytest.mark.parametrize("forward", [0, 1, 6])
def test_a_draft_model_that_fails_costs_drafts_alone_and_is_told_of_once(
    tiny: Any, caplog: pytest.LogCaptureFixture, forward: int
) -> None:
    def fail(number: int, logits: torch.Tensor) -> None:
        if number >= forward:
            raise RuntimeError("out of luck\nand more of it")

    spied = Spied(tiny.decoder(), fail)
    executor = executor_of(tiny, draft_of(tiny, spied))
    got = []
    with caplog.at_level(logging.WARNING):
        prompt = PROMPTS[0]
        known = [*prompt]
        [first] = run(executor, Row(0, 0, prompt, blocks_of(0), tiny.draw(GREEDY, prompt, prompt)))
        known += first.tokens
        for _ in range(8):
            [result] = run(executor, asking(tiny, GREEDY, prompt, known, 4, 0))
            got.append(result)
            known += result.tokens
    assert tuple(known[len(prompt) :]) == tiny.continued(prompt, GREEDY, len(known) - len(prompt))
    assert all(result.error is None for result in got)
    assert [len(result.guessed) for result in got] == [4] * (forward // 4) + [0] * (8 - forward // 4)
    assert len(spied.batches) == forward + 1
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == "the draft model failed and is not used any more: out of luck"


def test_a_draft_that_cannot_be_drawn_ends_the_drafts_of_its_row_alone(tiny: Any) -> None:
    def spoil(number: int, logits: torch.Tensor) -> None:
        if number == 2:
            logits[0] = torch.nan  # of the first row that goes on

    executor = executor_of(tiny, draft_of(tiny, Spied(tiny.decoder(), spoil)))
    rows = []
    for number in (1, 5):
        [token] = PROMPTS[number]
        rows.append(
            Row(number, 0, (token,), blocks_of(number), tiny.draw(GREEDY, (token,), (token,)), guess=4)
        )
    first, second = run(executor, *rows)
    assert first == RowResult(tiny.continued(PROMPTS[1], GREEDY, 3), guessed=first.tokens[:2])
    assert second == RowResult(tiny.continued(PROMPTS[5], GREEDY, 5), guessed=second.tokens[:4])


@each_sampling
@pytest.mark.parametrize("vocab", [45, 70])
def test_a_draft_model_may_have_less_or_more_vocabulary_than_the_model(
    tiny: Any, sampling: Sampling, vocab: int
) -> None:
    embedding, head = torch.zeros(vocab, 24), torch.zeros(vocab, 24)
    shared = min(vocab, tiny.vocab)
    embedding[:shared], head[:shared] = tiny.weights.embedding[:shared], tiny.weights.head[:shared]
    # It would like best to draw what the model has no token for.
    head[shared:] = 100 * tiny.weights.norm
    weights = replace(tiny.weights, embedding=embedding, head=head)
    decoder = TorchDecoder(replace(tiny.spec, vocab_size=vocab), weights, block_size=tiny.block_size)
    spied = Spied(decoder)
    draft = Draft(spied, vocab, tiny.spec.max_context)
    executor = executor_of(tiny, draft)
    accepted = 0
    for prompt in ((60, 50, 3), (1, 2, 3)):
        got = generate(tiny, executor, prompt, sampling)
        assert got.tokens == tiny.continued(prompt, sampling, len(got.tokens))
        assert all(draft < shared for drafts in got.guesses for draft in drafts)
        assert all(len(drafts) == 4 for drafts in got.guesses)
        accepted += got.accepted
    assert accepted > 0
    assert all(batch.tokens.max() < vocab for batch in spied.batches)


def test_a_sequence_beyond_the_context_of_the_draft_model_goes_on_without_it(tiny: Any) -> None:
    spied = Spied(tiny.decoder())
    executor = executor_of(tiny, Draft(spied, tiny.vocab, 20))
    got = generate(tiny, executor, PROMPTS[0], GREEDY, guesses=(4,), new=30)
    assert got.tokens == tiny.continued(PROMPTS[0], GREEDY, len(got.tokens))
    # Positions 7, 12 and 17 are where the steps start that may ask.
    assert [len(drafts) for drafts in got.guesses[:4]] == [4, 4, 3, 0]
    assert not any(got.guesses[3:])
    assert max(batch.positions.max() for batch in spied.batches) == 19


def test_log_probabilities_are_told_of_the_tokens_and_not_made_for_drafts(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def spy(logits: torch.Tensor, draws: Sequence[Any]) -> Any:
        asked.extend(draw.sampling.logprobs for draw in draws)
        return sample(logits, draws)

    monkeypatch.setattr("tokenspeed.backend.guessing.sample", spy)
    prompt, sampling = PROMPTS[1], Sampling(seed=4, logprobs=2)
    draw = tiny.draw(sampling, prompt, prompt)
    [result] = run(executor_of(tiny, draft_of(tiny)), Row(0, 0, prompt, blocks_of(0), draw, guess=3))
    assert asked == [None] * 3
    assert result.tokens == tiny.continued(prompt, sampling, 4)
    assert tuple(logprob.token for logprob in result.logprobs or ()) == result.tokens


@pytest.mark.parametrize("token", [-1, 61, 2**40])
def test_a_row_at_fault_gets_no_drafts(tiny: Any, token: int) -> None:
    spied = Spied(tiny.decoder())
    draw = tiny.draw(GREEDY, (token,), (token,))
    [result] = run(executor_of(tiny, draft_of(tiny, spied)), Row(0, 0, (token,), blocks_of(0), draw, guess=3))
    assert result == RowResult(error="a token is beyond the vocabulary of 61")
    assert spied.batches == []


def test_a_row_that_asks_where_there_is_no_draft_model_runs_without_drafts(tiny: Any) -> None:
    got = generate(tiny, executor_of(tiny, None), PROMPTS[0], GREEDY)
    assert got.tokens == tiny.continued(PROMPTS[0], GREEDY, NEW)
    assert not any(got.guesses)


def test_the_next_step_may_run_ahead_of_drafts(tiny: Any) -> None:
    executor, prompt = executor_of(tiny, draft_of(tiny)), PROMPTS[1]
    run(executor, Row(0, 0, prompt, blocks_of(0), tiny.draw(GREEDY, prompt, prompt), guess=3))
    known = [*prompt, *tiny.continued(prompt, GREEDY, 4)]
    draw = tiny.draw(GREEDY, prompt, known)
    [after] = run(executor, Row(0, len(known) - 1, (0,), blocks_of(0), draw, source=0))
    assert after.tokens == tiny.continued(prompt, GREEDY, 5)[4:]


async def test_a_backend_with_a_draft_model_owns_both_decoders(tiny: Any) -> None:
    model, draft = Spied(tiny.decoder()), Spied(similar(tiny).decoder())
    capacity = Capacity(tiny.blocks, tiny.block_size, tiny.spec.max_context)
    backend = CpuBackend(model, capacity, vocab_size=tiny.vocab, threads=1, draft=draft_of(tiny, draft))
    assert model.blocks == draft.blocks == tiny.blocks
    assert model.warm
    assert draft.warm
    prompt, sampling = PROMPTS[2], SAMPLINGS[1]
    first = await backend.submit(
        StepPlan(0, (Row(0, 0, prompt, blocks_of(0), tiny.draw(sampling, prompt, prompt)),))
    )
    known, steps = [*prompt, *first.rows[0].tokens], 0
    while len(known) < len(prompt) + NEW:
        row = asking(tiny, sampling, prompt, known, 4, 0)
        step = await backend.submit(StepPlan(steps + 1, (row,)))
        assert step.seconds > 0.0
        assert step.idle > 0.0
        assert len(step.rows[0].guessed) == 4
        known += step.rows[0].tokens
        steps += 1
    assert tuple(known[len(prompt) :]) == tiny.continued(prompt, sampling, len(known) - len(prompt))
    assert steps < NEW - 1
    await backend.close()
    assert model.closed == draft.closed == 1
