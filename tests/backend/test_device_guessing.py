"""Drafts of a draft model that stay on the device; on the CPU, with the plain operations."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest

from bench.forced.backend import Verdicts, decide
from tests.backend.conftest import Tiny, weights_of
from tokenspeed.backend.device_guessing import Next
from tokenspeed.backend.stepper import Stepper
from tokenspeed.core.plan import Row, RowResult, StepPlan
from tokenspeed.core.request import Sampling
from tokenspeed.model.cuda.network import Bounds

GREEDY = Sampling(temperature=0.0)
SAMPLINGS = [
    GREEDY,
    Sampling(seed=4),
    Sampling(temperature=0.7, seed=2**63 + 5),
    Sampling(temperature=0.0, logit_bias=((3, 4.0), (4, -2.0))),
    Sampling(seed=9, logprobs=2),
]
PROMPTS = [(1, 2, 3, 4, 5, 6, 7), (9,), tuple(range(20, 43)), (50, 51, 50), (8, 8, 8, 8)]
NEW = 14
BOUNDS = Bounds(96, 8, 24, 48, few=4)
MakeStepper = Callable[..., Stepper]


def blocks_of(sequence: int) -> tuple[int, ...]:
    return tuple((sequence * 12 + block) * 37 % 64 for block in range(12))


def run(stepper: Stepper, *rows: Row) -> tuple[RowResult, ...]:
    return stepper.end(stepper.begin(StepPlan(0, rows))).rows


class Answer:
    """A sequence that is continued with drafts of the draft model, from its computed prompt on."""

    def __init__(self, tiny: Any, number: int, sampling: Sampling, caught: int = 0) -> None:
        self.tiny, self.number, self.sampling = tiny, number, sampling
        self.prompt = PROMPTS[number]
        self.known = list(self.prompt)
        self.caught = caught  # tokens that the draft model has computed
        self.guessed: list[int] = []  # how many of each row held

    def row(self, guess: int, late: int = 0) -> Row:
        """That asks for so many drafts, or else lets the draft model catch up by `late` tokens."""
        start = len(self.known) - 1
        draw = self.tiny.draw(self.sampling, self.prompt, self.known)
        end = start if guess else min(start, self.caught + late)
        row = Row(self.number, start, (self.known[start],), blocks_of(self.number), draw, guess=guess)
        return row._replace(behind=tuple(self.known[self.caught : end]), caught=self.caught)

    def take(self, row: Row, result: RowResult) -> None:
        assert result.error is None
        held = len(result.tokens) - 1
        assert result.guessed[:held] == result.tokens[:held]
        assert len(result.guessed) <= row.guess
        if row.guess:
            self.caught = row.start + 1 + min(held, len(result.guessed) - 1)
            self.guessed.append(held)
        else:
            self.caught += len(row.behind)
        self.known += result.tokens


def compute_prompts(stepper: Stepper, *answers: Answer) -> None:
    rows = [
        Row(each.number, 0, each.prompt[:-1], blocks_of(each.number), None)
        for each in answers
        if len(each.prompt) > 1
    ]
    run(stepper, *rows)


@pytest.fixture(params=["the same", "another"])
def draft(tiny: Tiny, request: pytest.FixtureRequest) -> Tiny:
    return tiny if request.param == "the same" else Tiny(weights_of(seed=6))


@pytest.mark.parametrize("guess", [1, 3, 5])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_what_is_drawn_is_what_the_model_draws_alone_and_drafts_are_what_the_draft_model_would(
    tiny: Tiny, draft: Tiny, make_stepper: MakeStepper, sampling: Sampling, guess: int
) -> None:
    stepper = make_stepper(BOUNDS, draft)
    answer = Answer(tiny, 0, sampling)
    compute_prompts(stepper, answer)
    plain = Sampling(sampling.temperature, seed=sampling.seed)
    while len(answer.known) < len(answer.prompt) + NEW:
        row, known = answer.row(guess), tuple(answer.known)
        [result] = run(stepper, row)
        assert result.guessed == draft.continued(known, plain, guess)
        answer.take(row, result)
    assert tuple(answer.known[len(answer.prompt) :][:NEW]) == tiny.continued(answer.prompt, sampling, NEW)
    if draft is tiny and not sampling.logit_bias:
        assert set(answer.guessed) == {guess}


def test_rows_that_ask_for_other_numbers_or_none_beside_each_other_get_what_they_get_alone(
    tiny: Tiny, draft: Tiny, make_stepper: MakeStepper
) -> None:
    """And beside prompts that come in chunks, so that steps are of every kind."""
    stepper = make_stepper(BOUNDS, draft)
    answers = [Answer(tiny, number, SAMPLINGS[number]) for number in (0, 1, 2, 4)]
    compute_prompts(stepper, *answers)
    late = tuple(range(5, 35))
    for turn in range(NEW):
        going = [answer for answer in answers if len(answer.known) < len(answer.prompt) + NEW]
        if not going:
            break
        rows = [answer.row((answer.number + turn) % 4) for answer in going]
        chunk = late[4 * turn : 4 * turn + 4] if turn % 2 else ()
        beside = [Row(6, 4 * turn, chunk, blocks_of(3), None)] if chunk else []
        results = run(stepper, *rows, *beside)
        for answer, row, result in zip(going, rows, results, strict=False):
            answer.take(row, result)
    for answer in answers:
        new = len(answer.known) - len(answer.prompt)
        assert new >= NEW
        expected = tiny.continued(answer.prompt, answer.sampling, NEW)
        assert tuple(answer.known[len(answer.prompt) :][:NEW]) == expected
    if stepper.passes.graphs is not None:
        assert any(shape.few for shape in stepper.passes.graphs.replayed)  # type: ignore[attr-defined]


def test_the_draft_model_may_catch_up_in_chunks_beside_rows_that_guess(
    tiny: Tiny, draft: Tiny, make_stepper: MakeStepper
) -> None:
    stepper = make_stepper(BOUNDS, draft)
    late, guessing = Answer(tiny, 2, GREEDY), Answer(tiny, 0, SAMPLINGS[1])
    compute_prompts(stepper, late, guessing)
    for turn in range(8):
        rows = [late.row(0, late=5), guessing.row(2)] if turn % 2 else [late.row(0, late=1)]
        results = run(stepper, *rows)
        late.take(rows[0], results[0])
        if turn % 2:
            guessing.take(rows[1], results[1])
    assert late.caught == 24  # all of it but what came since
    row, known = late.row(4), tuple(late.known)
    [result] = run(stepper, row)
    assert result.guessed == draft.continued(known, GREEDY, 4)
    assert tuple(late.known[23:]) == tiny.continued(late.prompt, GREEDY, 8)
    new = len(guessing.known) - len(guessing.prompt)
    expected = tiny.continued(guessing.prompt, guessing.sampling, new)
    assert tuple(guessing.known[len(guessing.prompt) :]) == expected


def test_drafts_end_where_the_draft_models_context_does(
    tiny: Tiny, draft: Tiny, make_stepper: MakeStepper
) -> None:
    stepper = make_stepper(BOUNDS, draft)
    assert stepper._guesser is not None
    stepper._guesser._max_context = 12
    answer = Answer(tiny, 0, GREEDY)
    compute_prompts(stepper, answer)
    for _ in count():
        row = answer.row(4)
        if row.start > 14:
            break
        [result] = run(stepper, row)
        assert len(result.guessed) == max(0, min(4, 12 - row.start))
        held = answer.caught
        answer.take(row, result)
        answer.caught = max(held, answer.caught)
    new = len(answer.known) - len(answer.prompt)
    assert tuple(answer.known[len(answer.prompt) :]) == tiny.continued(answer.prompt, GREEDY, new)


def test_a_draft_model_that_fails_costs_drafts_and_nothing_else(
    tiny: Tiny,
    draft: Tiny,
    make_stepper: MakeStepper,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stepper = make_stepper(BOUNDS, draft)
    assert stepper._guesser is not None
    answer = Answer(tiny, 0, GREEDY)
    compute_prompts(stepper, answer)

    def fail(*arguments: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(stepper._guesser.passes, "decode", fail)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            row = answer.row(3)
            [result] = run(stepper, row)
            assert result.guessed == ()
            answer.known += result.tokens
    assert [record.getMessage() for record in caplog.records] == [
        "the draft model failed and is not used any more: out of luck"
    ]
    assert tuple(answer.known[len(answer.prompt) :]) == tiny.continued(answer.prompt, GREEDY, 3)


def test_the_device_begins_a_step_with_the_draft_model_and_finds_the_next_first_draft_unasked(
    tiny: Tiny, draft: Tiny, make_stepper: MakeStepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make_stepper(BOUNDS, draft)
    assert stepper._guesser is not None
    answer = Answer(tiny, 0, GREEDY)
    compute_prompts(stepper, answer)
    asked: list[str] = []
    for started, ended in stepper._marks:
        monkeypatch.setattr(started, "set", lambda: asked.append("begins"))
        monkeypatch.setattr(ended, "set", lambda: asked.append("ends"))
    for name, passes in (("drafts", stepper._guesser.passes), ("verifies", stepper.passes)):
        send = passes._packer.send
        monkeypatch.setattr(
            passes._packer, "send", lambda packed, name=name, send=send: (asked.append(name), send(packed))
        )
    for _ in range(2):
        row = answer.row(3)
        answer.take(row, run(stepper, row)[0])
    alone = ["begins", "drafts", "drafts", "drafts", "verifies", "ends", "drafts"]
    assert asked == [*alone, "begins", "drafts", "drafts", "verifies", "ends", "drafts"]


def test_a_draft_that_was_found_unasked_is_for_the_very_row_that_follows() -> None:
    blocks = blocks_of(0)[:3]
    found = Next(Row(0, 5, (1,), blocks, None), place=7, start=8, token=4)
    following = Row(0, 8, (4,), blocks, None)
    assert found.suits(following, 4)
    assert found.suits(following._replace(blocks=(*blocks, 60), behind=(3,)), 4)
    assert not found.suits(following._replace(start=7), 4)
    assert not found.suits(following._replace(tokens=(5,)), 4)
    assert not found.suits(following._replace(blocks=(*blocks[:2], 60)), 4)
    assert not found.suits(following._replace(behind=(2, 3)), 4)  # it was computed anew
    beyond = replace(found, start=12)  # whose keys had no place
    assert not beyond.suits(following._replace(start=12, blocks=(*blocks, 60)), 4)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_coins_may_decide_on_the_device_what_holds(
    tiny: Tiny, draft: Tiny, make_stepper: MakeStepper, chance: float
) -> None:
    """As the bench does; what is found unasked follows them."""
    stepper = make_stepper(BOUNDS, draft)
    decide(stepper.passes, Verdicts(chance))
    answer = Answer(tiny, 0, GREEDY)
    compute_prompts(stepper, answer)
    for _ in range(8):
        row, known = answer.row(3), tuple(answer.known)
        [result] = run(stepper, row)
        assert result.guessed == draft.continued(known, GREEDY, 3)
        answer.take(row, result)
    if chance in (0.0, 1.0):
        assert set(answer.guessed) == {3 * chance}
    else:
        assert len(set(answer.guessed)) > 1
