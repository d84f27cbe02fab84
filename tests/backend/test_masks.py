"""Rows that are held to something draw what they draw alone, on the executor and on a device's stepper."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.backend.test_executor import Wrapped, blocks_of, executor_of
from tests.backend.test_stepper import SAMPLINGS
from tests.toys import FAULT, Toy
from tokenspeed.backend.executor import Executor
from tokenspeed.backend.masks import fill_masks
from tokenspeed.core.plan import Draw, Held, Row, RowResult, StepPlan
from tokenspeed.core.request import Sampling
from tokenspeed.model.cuda.network import Bounds
from tokenspeed.model.sampler import NOTHING_ALLOWED, TRIES, sample, sample_some

GREEDY = Sampling(temperature=0.0)
PROMPTS = [(1, 2, 3, 4, 5, 6, 7), (9,), tuple(range(20, 43)), (50, 51, 50), (8, 8, 8, 8)]
FILTERED = Sampling(temperature=1.3, top_k=9, top_p=0.9, seed=6)


def stepping(executor: Executor) -> Callable[..., tuple[RowResult, ...]]:
    return lambda *rows: executor.execute(StepPlan(0, rows)).rows


class Run(NamedTuple):
    """A backend, and how it draws one held token of logits [1, vocab]."""

    step: Callable[..., tuple[RowResult, ...]]
    draw: Callable[[torch.Tensor, Draw, NDArray[np.int32]], int]

    def __call__(self, *rows: Row) -> tuple[RowResult, ...]:
        return self.step(*rows)

    def continued(
        self, tiny: Any, prompt: Sequence[int], sampling: Sampling, count: int, toy: Toy
    ) -> tuple[int, ...]:
        """The `count` tokens that follow the prompt, one after the other, held to a toy."""
        tokens = list(prompt)
        for _ in range(count):
            bits = np.zeros(64, np.uint8)
            bits[list(toy.allowed())] = 1
            mask = np.packbits(bits, bitorder="little").view(np.int32)
            tokens.append(self.draw(tiny.logits(tokens)[-1:], tiny.draw(sampling, prompt, tokens), mask))
            toy.take(tokens[-1:])
        return tuple(tokens[len(prompt) :])


def of_the_allowed(logits: torch.Tensor, draw: Draw, mask: NDArray[np.int32]) -> int:
    return sample(logits, [draw], {0: mask})[0].token


def of_all_first(logits: torch.Tensor, draw: Draw, mask: NDArray[np.int32]) -> int:
    """A few times from everything, if no filter needs to know before; then from what is allowed."""
    if draw.sampling.top_k:
        return of_the_allowed(logits, draw, mask)
    for again in range(TRIES):
        token = sample_some(logits, {0: draw}, {}, again=again)[0].token
        if mask[token // 32] >> token % 32 & 1:
            return token
    return sample_some(logits, {0: draw}, {0: mask}, again=TRIES)[0].token


@pytest.fixture(params=["executor", "stepper", "few logits at once"])
def run(tiny: Any, make_stepper: Any, request: pytest.FixtureRequest) -> Run:
    """Both backends; a stepper's passes are made in parts where there is room for few logits."""
    if request.param == "executor":
        executor = executor_of(tiny, tiny.decoder())
        return Run(stepping(executor), of_all_first)
    stepper = make_stepper(Bounds(64, 8, 5 if "few" in request.param else 8, 48, few=4))
    return Run(lambda *rows: stepper.end(stepper.begin(StepPlan(0, rows))).rows, of_the_allowed)


def held(tiny: Any, sampling: Sampling, prompt: Sequence[int], tokens: Sequence[int], toy: Toy) -> Draw:
    """The draw of the token that follows `tokens`."""
    return tiny.draw(sampling, prompt, tokens)._replace(held=Held(toy, len(toy.taken)))  # type: ignore[no-any-return]


def test_rows_in_chunks_beside_free_ones_are_held_as_alone(tiny: Any, run: Run) -> None:
    """Every other sequence is free."""
    known = [list(prompt) for prompt in PROMPTS]
    toys = [Toy(tiny.vocab, part=2 + n) if n % 2 == 0 else None for n in range(len(PROMPTS))]
    computed = [0] * len(known)
    while any(len(tokens) < len(prompt) + 12 for tokens, prompt in zip(known, PROMPTS, strict=True)):
        rows = []
        for number, (tokens, prompt) in enumerate(zip(known, PROMPTS, strict=True)):
            chunk = tuple(tokens[computed[number] : computed[number] + 5])
            draw = None
            if computed[number] + len(chunk) == len(tokens):
                draw = tiny.draw(SAMPLINGS[number], prompt, tokens)
                if (toy := toys[number]) is not None:
                    draw = draw._replace(held=Held(toy, len(toy.taken)))
            rows.append(Row(number, computed[number], chunk, blocks_of(number), draw))
            computed[number] += len(chunk)
        for number, result in enumerate(run(*rows)):
            assert result.error is None
            known[number] += result.tokens
            if (toy := toys[number]) is not None:
                toy.take(result.tokens)
    for number, (tokens, prompt) in enumerate(zip(known, PROMPTS, strict=True)):
        answer = tuple(tokens[len(prompt) :][:12])
        if number % 2 == 0:
            assert answer == run.continued(
                tiny, prompt, SAMPLINGS[number], 12, Toy(tiny.vocab, part=2 + number)
            )
        else:
            assert answer == tiny.continued(prompt, SAMPLINGS[number], 12)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
@pytest.mark.parametrize("forbidden", [False, True])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_drafts_are_verified_under_the_masks_that_follow_them(
    tiny: Any, run: Run, sampling: Sampling, wrong: int | None, forbidden: bool
) -> None:
    verify(tiny, run, sampling, wrong, forbidden)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
@pytest.mark.parametrize("forbidden", [False, True])
def test_drafts_are_verified_so_where_filters_need_masks_before(
    tiny: Any, wrong: int | None, forbidden: bool
) -> None:
    executor = executor_of(tiny, tiny.decoder())
    verify(tiny, Run(stepping(executor), of_all_first), FILTERED, wrong, forbidden)
    executor.close()


def verify(tiny: Any, run: Run, sampling: Sampling, wrong: int | None, forbidden: bool) -> None:
    """A wrong draft may be forbidden as well: whatever the masks behind it say, nothing comes of it."""
    prompt = PROMPTS[0]
    expected = run.continued(tiny, prompt, sampling, 5, Toy(tiny.vocab))
    run(Row(0, 0, prompt, blocks_of(0), None))
    toy = Toy(tiny.vocab)
    toy.take(expected[:1])
    drafts = list(expected[1:4])
    if wrong is not None:
        right = drafts[wrong]
        others = [
            t for t in range(tiny.vocab) if (t in toy.allowed(drafts[:wrong])) != forbidden and t != right
        ]
        drafts[wrong] = others[0]
    draw = held(tiny, sampling, prompt, [*prompt, expected[0]], toy)
    beside = Row(1, 0, (4,), blocks_of(1), tiny.draw(GREEDY, (4,), (4,)))
    result, other = run(Row(0, len(prompt), expected[:1], blocks_of(0), draw, tuple(drafts)), beside)
    assert result.tokens == expected[1 : 5 if wrong is None else wrong + 2]
    assert other.tokens == tiny.continued((4,), GREEDY, 1)
    toy.take(result.tokens)  # which checks that none was forbidden


def test_a_long_row_and_a_scored_one_are_held_as_well(tiny: Any, run: Run) -> None:
    prompt, other = PROMPTS[2], PROMPTS[0]
    first, second, third = run(
        Row(
            0,
            0,
            prompt,
            blocks_of(0),
            held(tiny, GREEDY, prompt, prompt, Toy(tiny.vocab)),
            targets=prompt[1:],
        ),
        Row(1, 0, other, blocks_of(1), None, pooled=2),
        Row(2, 0, other, blocks_of(2), held(tiny, GREEDY, other, other, Toy(tiny.vocab, part=9))),
    )
    assert first.tokens == run.continued(tiny, prompt, GREEDY, 1, Toy(tiny.vocab))
    assert len(first.scored) == len(prompt) - 1
    assert second.tokens == ()
    assert third.tokens == run.continued(tiny, other, GREEDY, 1, Toy(tiny.vocab, part=9))


def test_log_probabilities_of_held_rows_are_the_models_own(tiny: Any, run: Run) -> None:
    prompt, sampling = PROMPTS[0], Sampling(temperature=0.0, logprobs=2)
    [result] = run(
        Row(0, 0, prompt, blocks_of(0), held(tiny, sampling, prompt, prompt, Toy(tiny.vocab, part=30)))
    )
    logs = tiny.logits(prompt)[-1].log_softmax(-1)
    assert result.tokens == run.continued(tiny, prompt, sampling, 1, Toy(tiny.vocab, part=30))
    assert result.logprobs is not None
    assert result.logprobs[0].logprob == pytest.approx(float(logs[result.tokens[0]]), abs=1e-4)
    assert [token for token, _ in result.logprobs[0].top] == logs.topk(2).indices.tolist()


class Raises(Toy):
    def choose(self, count: int, last: int, tries: Sequence[int]) -> int | None:
        raise RuntimeError("lightning")

    def fill(self, masks: Any, count: int, last: int, drafts: Sequence[int]) -> str | None:
        raise RuntimeError("lightning")


class Nothing(Toy):
    def allowed(self, more: Sequence[int] = ()) -> set[int]:
        return set()


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        (lambda vocab: Toy(vocab, breaks=0), FAULT),
        (Raises, "the grammar failed: lightning"),
        (Nothing, NOTHING_ALLOWED),
    ],
)
def test_a_fault_of_one_constraint_ends_its_row_alone(
    tiny: Any, run: Run, broken: Callable[[int], Toy], told: str
) -> None:
    """Drafts or none, and in whichever place of the step."""
    prompt, other = PROMPTS[0], PROMPTS[3]
    bad = Row(0, 0, prompt, blocks_of(0), held(tiny, GREEDY, prompt, prompt, broken(tiny.vocab)))
    good = Row(1, 0, other, blocks_of(1), held(tiny, GREEDY, other, other, Toy(tiny.vocab)))
    short = Row(2, 0, (9,), blocks_of(2), held(tiny, GREEDY, (9,), (9,), broken(tiny.vocab)), drafts=(3, 4))
    free = Row(3, 0, (4,), blocks_of(3), tiny.draw(GREEDY, (4,), (4,)))
    for rows in ((bad, good, short, free), (free, short, good, bad)):
        results = dict(zip([row.sequence for row in rows], run(*rows), strict=True))
        assert results[0] == results[2] == RowResult(error=told)
        assert results[1].tokens == run.continued(tiny, other, GREEDY, 1, Toy(tiny.vocab))
        assert results[3].tokens == tiny.continued((4,), GREEDY, 1)


def test_steps_with_and_without_held_rows_take_turns(tiny: Any, run: Run) -> None:
    """What one step was told of its draws does not stay with the next."""
    prompt = PROMPTS[1]
    run(Row(0, 0, prompt, blocks_of(0), None))
    row = Row(0, 0, prompt, blocks_of(0), tiny.draw(GREEDY, prompt, prompt))
    bound = row._replace(draw=held(tiny, GREEDY, prompt, prompt, Toy(tiny.vocab, part=40)))
    expected = [
        tiny.continued(prompt, GREEDY, 1),
        run.continued(tiny, prompt, GREEDY, 1, Toy(tiny.vocab, part=40)),
    ]
    assert expected[0] != expected[1]
    for step in range(6):
        assert run(bound if step % 2 else row)[0].tokens == expected[step % 2]


def test_masks_that_filters_need_are_filled_on_another_thread_while_the_decoder_runs(tiny: Any) -> None:
    """The decoder here ends only once they are."""
    filled = threading.Event()

    class Tells(Toy):
        def fill(self, masks: Any, count: int, last: int, drafts: Sequence[int]) -> str | None:
            told = super().fill(masks, count, last, drafts)
            filled.set()
            return told

    class Waits(Wrapped):
        def forward(self, batch: Any) -> Any:
            assert filled.wait(30.0)
            return self.decoder.forward(batch)

    executor = executor_of(tiny, Waits(tiny.decoder()))
    prompt = PROMPTS[0]
    row = Row(0, 0, prompt, blocks_of(0), held(tiny, FILTERED, prompt, prompt, Tells(tiny.vocab)))
    [result] = executor.execute(StepPlan(0, (row,))).rows
    assert result.tokens == Run(stepping(executor), of_all_first).continued(
        tiny, prompt, FILTERED, 1, Toy(tiny.vocab)
    )
    executor.close()


@pytest.mark.parametrize("sampling", [*SAMPLINGS[:3], FILTERED], ids=range(4))
def test_a_row_that_runs_ahead_is_held_behind_a_token_that_nobody_took_yet(
    tiny: Any, sampling: Sampling
) -> None:
    executor = executor_of(tiny, tiny.decoder())
    prompt, toy = PROMPTS[0], Toy(tiny.vocab)
    draw = held(tiny, sampling, prompt, prompt, toy)
    [last] = executor.execute(StepPlan(0, (Row(0, 0, prompt, blocks_of(0), draw),))).rows
    found = list(last.tokens)
    for ahead in range(1, 8):
        position = len(prompt) + ahead
        draw = Draw(sampling, sampling.seed, position, held=Held(toy, ahead))
        [row] = executor.execute(
            StepPlan(ahead, (Row(0, position - 1, (0,), blocks_of(0), draw, source=0),))
        ).rows
        toy.take(last.tokens)  # the loop hears of it while the step behind runs
        last = row
        found += row.tokens
    assert tuple(found) == Run(stepping(executor), of_all_first).continued(
        tiny, prompt, sampling, 8, Toy(tiny.vocab)
    )


def test_masks_of_rows_that_no_grammar_holds_allow_everything() -> None:
    free = Row(0, 0, (1,), (0,), Draw(GREEDY, 0, 1))
    bound = free._replace(draw=Draw(GREEDY, 0, 1, held=Held(Toy(70), 0)), drafts=(0, 3))
    numbers, masks, faults = fill_masks([free, bound, free], [1], [0, 1, 4], np.zeros((5, 3), np.int32))
    assert (numbers, faults) == ([1, 2, 3], {})
    assert (masks[[0, 4]] == -1).all()
    assert not (masks[1:3] == -1).all(axis=1).any()
