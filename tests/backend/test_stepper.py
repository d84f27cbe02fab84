"""Steps that are enqueued give what the plain executor gives; on the CPU, with the plain operations."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from gpu.table import REFERENCE, Ops
from tokenspeed.backend import graphs as graphs_module
from tokenspeed.backend.graphs import (
    REST,
    Agenda,
    Graph,
    Graphs,
    _replay_of,
    coarse,
    decode_shapes,
    mixed_shapes,
    verify_shapes,
)
from tokenspeed.backend.packing import Columns, columns_of
from tokenspeed.backend.results import SOURCE_FAILED
from tokenspeed.backend.stepper import IN_FLIGHT, Begun, Stepper
from tokenspeed.core.plan import Draw, Row, RowResult, StepPlan
from tokenspeed.core.request import Sampling
from tokenspeed.model.cuda.network import Bounds, Shape
from tokenspeed.model.sampler import NOT_FINITE, NOTHING_ALLOWED

GREEDY = Sampling(temperature=0.0)
# What is drawn alike on every device: filters leave sets that are walked in another order.
SAMPLINGS = [
    GREEDY,
    Sampling(seed=4),
    Sampling(temperature=0.7, seed=2**63 + 5),
    Sampling(temperature=0.0, frequency_penalty=3.0, repetition_penalty=1.2),
    Sampling(temperature=0.0, presence_penalty=9.0, logit_bias=((3, 4.0), (4, -2.0))),
]
PROMPTS = [(1, 2, 3, 4, 5, 6, 7), (9,), tuple(range(20, 43)), (50, 51, 50), (8, 8, 8, 8)]
REPETITIVE = (9,)  # is continued by one token over and over
NEW = 12
BLOCKS_EACH = 12
CPU = torch.device("cpu")
MakeStepper = Callable[[Bounds], Stepper]


def blocks_of(sequence: int) -> tuple[int, ...]:
    """Scattered blocks of the pool, apart from those of other sequences."""
    return tuple((sequence * BLOCKS_EACH + block) * 37 % 64 for block in range(BLOCKS_EACH))


@pytest.fixture
def stepper(make_stepper: MakeStepper) -> Stepper:
    return make_stepper(Bounds(64, 8, 8, 48, few=4))


def run(stepper: Stepper, *rows: Row) -> tuple[RowResult, ...]:
    return stepper.end(stepper.begin(StepPlan(0, rows))).rows


def test_sequences_in_chunks_beside_each_other_are_continued_as_alone(tiny: Any, stepper: Stepper) -> None:
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
        for number, result in enumerate(run(stepper, *rows)):
            assert result.error is None
            assert len(result.tokens) == (rows[number].draw is not None)
            known[number] += result.tokens
    for tokens, prompt, sampling in zip(known, PROMPTS, SAMPLINGS, strict=True):
        assert tuple(tokens[len(prompt) :][:NEW]) == tiny.continued(prompt, sampling, NEW)
    if stepper.passes.graphs is not None:  # both kinds of them were used
        assert {shape.singles == shape.rows for shape in stepper.passes.graphs.replayed} == {False, True}


def test_long_prompts_whose_last_layer_has_only_last_tokens_give_what_they_give_alone(
    tiny: Any, stepper: Stepper
) -> None:
    """Beside a row that decodes, one that ends within its prompt, and what pads the step."""
    ending, decoding, unfinished = tuple(range(30, 53)), PROMPTS[0], tuple(range(20))
    run(stepper, Row(1, 0, decoding[:-1], blocks_of(1), None))
    first, none, second = run(
        stepper,
        Row(1, len(decoding) - 1, decoding[-1:], blocks_of(1), tiny.draw(GREEDY, decoding, decoding)),
        Row(2, 0, unfinished, blocks_of(2), None),
        Row(0, 0, ending, blocks_of(0), tiny.draw(GREEDY, ending, ending)),
    )
    assert first.tokens == tiny.continued(decoding, GREEDY, 1)
    assert none.tokens == ()
    assert second.tokens == tiny.continued(ending, GREEDY, 1)
    if stepper.passes.graphs is not None:
        assert stepper.passes.graphs.replayed[-1].narrow


@pytest.mark.parametrize("sampling", SAMPLINGS[:3], ids=range(3))
def test_a_step_begun_before_the_one_ahead_has_ended_takes_its_tokens_on_the_device(
    tiny: Any, stepper: Stepper, sampling: Sampling
) -> None:
    prompt, other = REPETITIVE, (9, 8)
    last = stepper.begin(StepPlan(1, (Row(0, 0, prompt, blocks_of(0), tiny.draw(sampling, prompt, prompt)),)))
    found: list[int] = []
    for ahead in range(1, 8):
        # A row before it, and one behind it that has more tokens, change its place in the step.
        beside = Row(1, 0, other[:ahead], blocks_of(1), None)
        draw = Draw(sampling, sampling.seed, len(prompt) + ahead)
        source = 0 if ahead == 1 else 1
        row = Row(0, len(prompt) + ahead - 1, (0,), blocks_of(0), draw, source=source)
        behind = Row(2, 0, (5, 6, 7), blocks_of(2), Draw(GREEDY, 0, 3))
        begun = stepper.begin(StepPlan(ahead + 1, (beside, row, behind)))
        found += stepper.end(last).rows[source].tokens if ahead > 1 else stepper.end(last).rows[0].tokens
        last = begun
    found += stepper.end(last).rows[1].tokens
    assert tuple(found) == tiny.continued(prompt, sampling, 8)


@pytest.mark.parametrize("wrong", [None, 0, 1, 2])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=range(len(SAMPLINGS)))
def test_drafts_are_accepted_up_to_the_first_that_would_not_have_been_sampled(
    tiny: Any, stepper: Stepper, sampling: Sampling, wrong: int | None
) -> None:
    prompt = REPETITIVE
    expected = tiny.continued(prompt, sampling, 5)
    run(stepper, Row(0, 0, prompt, blocks_of(0), None))
    drafts = list(expected[1:4])
    if wrong is not None:
        drafts[wrong] = (drafts[wrong] + 1) % tiny.vocab
    known = [*prompt, expected[0]]
    row = Row(0, 1, (expected[0],), blocks_of(0), tiny.draw(sampling, prompt, known), tuple(drafts))
    beside = Row(1, 0, (4,), blocks_of(1), tiny.draw(GREEDY, (4,), (4,)))
    result, other = run(stepper, row, beside)
    assert result.tokens == expected[1 : 5 if wrong is None else wrong + 2]
    assert other.tokens == tiny.continued((4,), GREEDY, 1)


def test_more_draws_than_there_is_room_for_logits_are_made_in_parts(
    tiny: Any, make_stepper: MakeStepper
) -> None:
    stepper = make_stepper(Bounds(64, 8, 3, 48))
    rows = [
        Row(n, 0, prompt, blocks_of(n), tiny.draw(GREEDY, prompt, prompt), score=2, targets=prompt[1:])
        for n, prompt in enumerate(PROMPTS)
    ]
    results = run(stepper, *rows)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.tokens == tiny.continued(prompt, GREEDY, 1)
        assert len(result.scored) == len(prompt) - 1


def test_log_probabilities_are_the_models_own_whatever_is_changed_before_the_draw(
    tiny: Any, stepper: Stepper
) -> None:
    prompt = (1, 2, 3, 4)
    sampling = Sampling(temperature=0.0, logprobs=3, logit_bias=((17, 90.0),))
    plain = Sampling(temperature=0.0, logprobs=1)
    rows = [
        Row(0, 0, prompt, blocks_of(0), tiny.draw(sampling, prompt, prompt), targets=prompt[1:], score=2),
        Row(1, 0, prompt, blocks_of(1), tiny.draw(plain, prompt, prompt)),
    ]
    biased, other = run(stepper, *rows)
    expected = tiny.logits(prompt).log_softmax(-1)
    assert biased.tokens == (17,)
    assert biased.logprobs is not None
    assert other.logprobs is not None
    assert biased.logprobs[0].logprob == pytest.approx(float(expected[-1, 17]), abs=1e-4)
    best = expected[-1].topk(3)
    assert [token for token, _ in biased.logprobs[0].top] == best.indices.tolist()
    assert other.logprobs[0].top[0][0] == other.tokens[0] == int(best.indices[0])
    assert len(other.logprobs[0].top) == 1
    for place, (target, scored) in enumerate(zip(prompt[1:], biased.scored, strict=True)):
        assert scored.token == target
        assert scored.logprob == pytest.approx(float(expected[place, target]), abs=1e-4)
        assert [token for token, _ in scored.top] == expected[place].topk(2).indices.tolist()


@pytest.mark.parametrize("chunks", [(1, 8, 14), (23,), (22, 1)])
def test_hidden_states_are_summed_beside_rows_that_sample_in_chunks_as_in_one(
    tiny: Any, make_stepper: MakeStepper, chunks: tuple[int, ...]
) -> None:
    stepper = make_stepper(Bounds(64, 8, 5, 48, few=4))  # sums are made in parts of five tokens
    prompt, other = PROMPTS[2], PROMPTS[0]
    summed, start = np.zeros(tiny.spec.hidden_size), 0
    for count in chunks:
        tokens = prompt[start : start + count]
        first, none, drawn, last = run(
            stepper,
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


def test_rows_of_one_token_each_draw_their_own_beside_one_that_is_pooled_and_one_that_is_scored(
    tiny: Any, stepper: Stepper
) -> None:
    """And the step behind takes what they drew on the device."""
    first = stepper.begin(
        StepPlan(
            1,
            (
                Row(0, 0, (5,), blocks_of(0), None, pooled=1),
                Row(1, 0, (6,), blocks_of(1), None, targets=(8,)),
                Row(2, 0, (9,), blocks_of(2), tiny.draw(GREEDY, (9,), (9,))),
                Row(3, 0, (4,), blocks_of(3), tiny.draw(GREEDY, (4,), (4,)), pooled=1),
            ),
        )
    )
    behind = tuple(Row(n, 1, (0,), blocks_of(n), Draw(GREEDY, 0, 2), source=n) for n in (2, 3))
    second = stepper.begin(StepPlan(2, behind))
    pooled, scored, drawn, both = stepper.end(first).rows
    expected = [tiny.continued(prompt, GREEDY, 2) for prompt in ((9,), (4,))]
    assert (pooled.tokens, drawn.tokens, both.tokens) == ((), expected[0][:1], expected[1][:1])
    assert scored.scored[0].logprob == pytest.approx(float(tiny.logits((6,)).log_softmax(-1)[0, 8]), abs=1e-4)
    assert pooled.pooled.tolist() == pytest.approx(tiny.summed((5,), 1), abs=1e-5)
    assert both.pooled.tolist() == pytest.approx(tiny.summed((4,), 1), abs=1e-5)
    assert [row.tokens for row in stepper.end(second).rows] == [tokens[1:] for tokens in expected]


def test_hidden_states_are_pooled_beside_drafts_that_are_verified(tiny: Any, stepper: Stepper) -> None:
    expected = tiny.continued(REPETITIVE, GREEDY, 4)
    run(stepper, Row(0, 0, REPETITIVE, blocks_of(0), None))
    draw = tiny.draw(GREEDY, REPETITIVE, (*REPETITIVE, expected[0]))
    verified, pooled = run(
        stepper,
        Row(0, 1, (expected[0],), blocks_of(0), draw, expected[1:3]),
        Row(1, 0, (4, 5), blocks_of(1), None, pooled=2),
    )
    assert verified.tokens == expected[1:]
    assert pooled.pooled.tolist() == pytest.approx(tiny.summed((4, 5), 2), abs=1e-5)


def test_hidden_states_that_are_not_finite_end_their_row_alone(tiny: Any, stepper: Stepper) -> None:
    stepper._network._weights.embedding[7] = float("nan")
    sick, well, beyond = run(
        stepper,
        Row(0, 0, (7, 2), blocks_of(0), None, pooled=2),
        Row(1, 0, (1, 2), blocks_of(1), None, pooled=2),
        Row(2, 0, (1, tiny.vocab), blocks_of(2), None, pooled=2),
    )
    assert sick == RowResult(error=NOT_FINITE)
    assert well.pooled.tolist() == pytest.approx(tiny.summed((1, 2), 2), abs=1e-5)
    assert beyond.error == f"a token is beyond the vocabulary of {tiny.vocab}"


def test_a_row_without_finite_logits_ends_alone_and_so_does_what_follows_it(
    tiny: Any, stepper: Stepper
) -> None:
    other = Row(0, 0, (1, 2), blocks_of(0), tiny.draw(GREEDY, (1, 2), (1, 2)))
    stepper._network._weights.embedding[7] = float("nan")
    spoilt = Row(1, 0, (7, 7), blocks_of(1), tiny.draw(GREEDY, (7, 7), (7, 7)))
    first = stepper.begin(StepPlan(1, (spoilt, other)))
    rows = tuple(
        Row(n, 2, (0,), blocks_of(n), Draw(GREEDY, 0, 3), source=source) for n, source in ((1, 0), (0, 1))
    )
    second = stepper.begin(StepPlan(2, rows))
    assert stepper.end(first).rows[0] == RowResult(error=NOT_FINITE)
    after = stepper.end(second).rows
    assert after[0] == RowResult(error=SOURCE_FAILED)
    assert after[1].tokens == tiny.continued((1, 2), GREEDY, 2)[1:]


def test_what_a_row_names_that_there_is_not_is_its_own_error(tiny: Any, stepper: Stepper) -> None:
    fine = Row(0, 0, (1, 2), blocks_of(0), tiny.draw(GREEDY, (1, 2), (1, 2)))
    beyond = Row(1, 0, (3, tiny.vocab), blocks_of(1), tiny.draw(GREEDY, (3,), (3,)))
    biased = Row(2, 0, (3,), blocks_of(2), Draw(Sampling(logit_bias=((tiny.vocab, 1.0),)), 0, 1))
    orphan = Row(3, 0, (0,), blocks_of(3), Draw(GREEDY, 0, 1), source=5)
    banned = Row(4, 0, (3,), blocks_of(4), Draw(GREEDY, 0, 1, banned=tuple(range(tiny.vocab))))
    results = run(stepper, beyond, biased, fine, orphan, banned)
    told = f"a token is beyond the vocabulary of {tiny.vocab}"
    assert [result.error for result in results] == [told, told, None, SOURCE_FAILED, NOTHING_ALLOWED]
    assert results[2].tokens == tiny.continued((1, 2), GREEDY, 1)


def test_a_captured_step_that_decodes_takes_one_copy_a_graph_and_one_copy_back(
    tiny: Any, make_stepper: MakeStepper, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make_stepper(Bounds(64, 16, 16, 48))
    if stepper.passes.graphs is None or not stepper.passes._captures_draw:
        pytest.skip("not captured as a whole")
    asked: list[str] = []
    begun: list[Begun] = []

    def noted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def note(*arguments: Any, **keywords: Any) -> object:
            asked.append(name)
            return call(*arguments, **keywords)

        return note

    rows = range(9)  # padded to 10
    sampling = Sampling(seed=4)
    for n in rows:
        run(stepper, Row(n, 0, (n,), blocks_of(n)[:1], None))
    first = tuple(Row(n, 1, (n,), blocks_of(n)[:1], Draw(sampling, 4, 2)) for n in rows)
    begun.append(stepper.begin(StepPlan(0, first)))
    started, ended = stepper._marks[stepper._turn]
    monkeypatch.setattr(started, "set", noted("begins", started.set))
    monkeypatch.setattr(ended, "set", noted("ends", ended.set))
    packer = stepper.passes._packer
    monkeypatch.setattr(packer, "decode", noted("packed", packer.decode))
    monkeypatch.setattr(packer._staging, "_copy", noted("there", packer._staging._copy))
    monkeypatch.setattr(stepper._returned, "_copy", noted("back", stepper._returned._copy))
    monkeypatch.setattr(
        stepper.passes.graphs, "_replay", lambda passes, shape: asked.append(f"graph of {shape.rows}")
    )
    ops = Ops(**{field.name: noted(field.name, getattr(REFERENCE, field.name)) for field in fields(Ops)})
    monkeypatch.setattr(stepper.passes, "ops", ops)
    monkeypatch.setattr(stepper._network, "_ops", ops)
    second = tuple(row._replace(start=2, source=n, draw=Draw(sampling, 4, 3)) for n, row in enumerate(first))
    begun.append(stepper.begin(StepPlan(1, second)))
    assert asked == ["packed", "begins", "there", "graph of 10", "back", "ends"]
    assert len(stepper.end(begun[0]).rows) == len(stepper.end(begun[1]).rows) == 9


def test_a_row_that_draws_nothing_gives_nothing_to_the_step_behind_it(tiny: Any, stepper: Stepper) -> None:
    drawing = Row(0, 0, (9,), blocks_of(0), tiny.draw(GREEDY, (9,), (9,)))
    first = stepper.begin(StepPlan(0, (Row(1, 0, (8,), blocks_of(1), None), drawing)))
    behind = [
        Row(n, 1, (0,), blocks_of(n), Draw(GREEDY, 0, 2), source=source) for n, source in ((1, 0), (0, 1))
    ]
    second = stepper.begin(StepPlan(1, tuple(behind)))
    expected = tiny.continued((9,), GREEDY, 2)
    assert stepper.end(first).rows == (RowResult(), RowResult(expected[:1]))
    assert stepper.end(second).rows == (RowResult(error=SOURCE_FAILED), RowResult(expected[1:]))


def test_the_device_has_the_block_tables_of_the_rows_whatever_it_had_before(
    tiny: Any, make_stepper: MakeStepper
) -> None:
    stepper, chance = make_stepper(Bounds(64, 16, 16, 48)), random.Random(4)
    tables = [blocks_of(n)[:1] for n in range(20)]
    for number in range(100):
        for grown in chance.sample(range(20), 4):
            tables[grown] = (*tables[grown], chance.randrange(64))[-BLOCKS_EACH:]
        for anew in chance.sample(range(20), 2):
            tables[anew] = tuple(chance.sample(range(64), chance.randint(1, BLOCKS_EACH)))
        chosen = chance.sample(range(20), chance.randint(1, 16)) if number % 3 == 0 else range(12)
        run(stepper, *[Row(n, 4 * len(tables[n]) - 1, (7,), tables[n], None) for n in chosen])
        if number % 10 == 0:  # others take their places
            run(stepper, Row(0, 0, (1, 2, 3), blocks_of(3), None), Row(1, 0, (1,), blocks_of(5), None))
            run(stepper, *[Row(n, 4 * len(tables[n]) - 1, (7,), tables[n], None) for n in chosen])
        for place, n in enumerate(chosen):
            assert tuple(stepper._network._tables[place, : len(tables[n])].tolist()) == tables[n]


def test_columns_are_the_fields_of_rows() -> None:
    rows = [Row(n, n, (n,), (n, n), None, source=n, score=3) for n in range(3)]
    assert Columns._fields == Row._fields
    assert [Row(*fields) for fields in zip(*columns_of(rows), strict=True)] == rows


def test_what_pads_a_step_is_nobodys_result_nor_error(tiny: Any, make_stepper: MakeStepper) -> None:
    stepper = make_stepper(Bounds(64, 16, 16, 48))
    stepper._network._weights.embedding[0] = float("nan")  # of the tokens that pad
    rows = [Row(n, 0, (n + 1,), blocks_of(n), tiny.draw(GREEDY, (n + 1,), (n + 1,))) for n in range(9)]
    for result, row in zip(run(stepper, *rows), rows, strict=True):
        assert result.tokens == tiny.continued(row.tokens, GREEDY, 1)


def test_no_more_steps_are_begun_than_there_are_buffers_for(tiny: Any, stepper: Stepper) -> None:
    plan = StepPlan(0, (Row(0, 0, (1,), blocks_of(0), None),))
    begun = [stepper.begin(plan) for _ in range(IN_FLIGHT)]
    with pytest.raises(RuntimeError, match="in flight"):
        stepper.begin(plan)
    assert stepper.end(begun[0]).rows == (RowResult(),)
    stepper.begin(plan)


def test_a_step_that_cannot_be_begun_leaves_the_next_ones_to_run(tiny: Any, stepper: Stepper) -> None:
    with pytest.raises(ValueError, match="blocks"):
        stepper.begin(StepPlan(0, (Row(0, 0, (1, 2, 3, 4, 5), (3,), None),)))
    row = Row(0, 0, (1, 2), blocks_of(0), tiny.draw(GREEDY, (1, 2), (1, 2)))
    assert run(stepper, row)[0].tokens == tiny.continued((1, 2), GREEDY, 1)


def idle_graphs(bounds: Bounds, short_keys: int = 1000) -> Graphs:
    """That capture nothing."""
    return Graphs(bounds, short_keys, lambda shape: None, lambda tokens: None, device=CPU, budget_bytes=1)


def test_steps_are_padded_to_the_smallest_shape_that_has_room() -> None:
    graphs = idle_graphs(Bounds(8192, 256, 256, 8192))
    for shape in graphs.shapes:
        graphs._graphs[shape] = Graph(shape, lambda: None)
    assert [found.shape.rows for n in (1, 7, 8, 9, 100, 256) if (found := graphs.decode(n, 5000))] == [
        *(1, 7, 8, 10, 112, 256)
    ]
    assert graphs.decode(257, 5000) is None
    assert [graphs.decode(*step).shape.short for step in ((3, 1000), (3, 1001), (16, 9), (17, 9))] == [
        *(True, False, True, False)
    ]

    def tokens_of(*step: int) -> int | None:
        found = graphs.mixed(*step)
        return None if found is None else found.shape.tokens

    assert tokens_of(17, 3, 2) == 32
    assert tokens_of(257, 256, 1) == 320
    assert tokens_of(1_921, 0, 1) == 1_984
    assert tokens_of(64, 0, 17) is None  # more rows than it has room for
    assert tokens_of(2049, 0, 1) is None


def test_steps_with_drafts_are_padded_to_the_smallest_shape_that_has_room() -> None:
    graphs = idle_graphs(Bounds(8192, 256, 256, 8192, few=8))
    assert graphs.verify(4, 1) is None  # none is captured
    for shape in graphs.shapes:
        graphs._graphs[shape] = Graph(shape, lambda: None)
    found = [graphs.verify(*step).shape for step in ((2, 1), (7, 1), (8, 1), (9, 2), (11, 8), (33, 9))]
    assert all(shape.few and shape.draws and not shape.singles for shape in found)
    assert [(shape.tokens, shape.rows) for shape in found] == [
        *((2, 1), (7, 1), (8, 1), (10, 8), (12, 8), (40, 64))
    ]
    assert graphs.verify(257, 40) is None  # more logits than there is memory for
    assert graphs.verify(70, 65) is None  # more rows
    small = idle_graphs(Bounds(64, 3, 64, 64, few=4), 0)
    assert max(shape.rows for shape in small.shapes if shape.few) == 3
    assert not any(shape.few for shape in verify_shapes(256, 256, 1))


def test_captures_do_not_hurry_for_steps_with_drafts_of_which_only_coarse_ones_come_first() -> None:
    shapes = [*decode_shapes(16), *verify_shapes(16, 64, 8)]
    first = coarse(shapes)
    assert [shape.tokens for shape in first if shape.few and shape.rows == 1] == [2, 4, 8]
    agenda = Agenda(shapes)
    wanted = next(shape for shape in shapes if shape.few and shape.tokens == 7)
    agenda.ask(wanted, 0.0, None)
    assert not agenda._news.is_set()
    taken = [agenda.take() for _ in range(len(first) + 1)]
    assert taken == [*first, wanted]


def test_steps_take_a_larger_graph_until_theirs_is_captured() -> None:
    """Twice the rows that decode at most, and few more tokens than there are."""
    graphs = idle_graphs(Bounds(8192, 256, 256, 8192))
    for shape in coarse(graphs.shapes):
        graphs._graphs[shape] = Graph(shape, lambda: None)
    for rows in range(1, 257):
        found = graphs.decode(rows, 5000)
        assert rows <= found.shape.rows < 2 * rows or rows == found.shape.rows == 1
        assert not found.shape.short
        assert graphs.decode(rows, 1000).shape.short == (found.shape.rows <= 16)
    for tokens in range(17, 2049):
        assert tokens <= graphs.mixed(tokens, 3, 2).shape.tokens < tokens + 256
    assert graphs.mixed(100, 0, 17) is None  # none has room for so many rows


def test_every_shape_is_captured_once_the_coarse_ones_first() -> None:
    shapes = [*decode_shapes(100), *mixed_shapes(100, 1024)]
    taken = list(iter(Agenda(shapes).take, None))
    assert sorted(taken) == sorted(shapes)
    first = [shape.tokens for shape in taken[: len(coarse(shapes))]]
    assert first == [1, 2, 4, 8, 16, 32, 64, 100, 256, 512, 768, 1024]


def test_what_steps_have_no_graph_for_is_captured_next_and_what_they_pad_for_after_the_coarse() -> None:
    shapes = decode_shapes(32)
    by_rows = {shape.rows: shape for shape in shapes}
    agenda = Agenda(shapes)
    assert agenda.take() == by_rows[1]
    agenda.ask(by_rows[3], 0.0, by_rows[4])
    for rows in (7, 24, 7, 1, 7):
        agenda.ask(by_rows[rows], 0.0, None)
    agenda.ask(Shape(99, 99, 99), 0.0, None)  # is not to be captured
    for _ in range(1000):
        agenda.ask(by_rows[12], 0.0, by_rows[16])
    assert [agenda.take().rows for _ in range(9)] == [7, 24, 2, 4, 8, 16, 32, 12, 3]


def test_capturing_rests_while_steps_run_unless_one_has_no_graph() -> None:
    shape = Shape(1, 1, 1)
    agenda = Agenda([shape])
    waits: list[float] = []
    agenda._news.wait = waits.append  # type: ignore[assignment, method-assign]
    agenda.rest(0.02, now=1.0)
    assert waits == []
    agenda.ask(shape, 5.0, Shape(2, 2, 2))
    agenda.rest(0.02, now=6.0)
    assert waits == []
    agenda.rest(0.02, now=5.05)
    assert waits == [REST * 0.02]
    assert not agenda._news.is_set()
    agenda.ask(shape, 5.0, None)
    assert agenda._news.is_set()  # so it would not have waited
    agenda.take()
    assert not agenda._news.is_set()
    agenda.close()
    agenda.rest(0.02, now=5.05)
    assert waits == [REST * 0.02]
    assert agenda.take() is None


@pytest.fixture
def make_graphs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Shape], None]], Graphs]:
    """Make graphs whose captures are calls, on the thread that they are captured on."""
    for name in ("device", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda what: nullcontext())
    monkeypatch.setattr(torch.cuda, "Stream", lambda: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(graphs_module, "Driver", lambda device: None)

    def make(capture: Callable[[Shape], None]) -> Graphs:
        made = Graphs(
            Bounds(64, 32, 64, 64), 1000, lambda shape: None, lambda tokens: None, device=CPU, budget_bytes=1
        )

        def captured(shape: Shape, driver: None) -> None:
            capture(shape)
            made._graphs[shape] = Graph(shape, lambda: None)

        monkeypatch.setattr(made, "_capture", captured)
        return made

    return make


def test_the_thread_captures_every_shape_and_those_first_that_steps_ask_for(
    make_graphs: Callable[[Callable[[Shape], None]], Graphs],
) -> None:
    captured: list[Shape] = []

    def capture(shape: Shape) -> None:
        if not captured:  # a step comes amid the first
            assert graphs.decode(20, 5000) is None
        captured.append(shape)

    graphs = make_graphs(capture)
    graphs.start()
    graphs.wait()
    assert set(captured) == set(graphs.shapes)
    assert len(captured) == len(graphs) == len(graphs.shapes)
    assert captured[1] == graphs.decode(20, 5000).shape


def test_closing_ends_a_rest_amid_captures(
    make_graphs: Callable[[Callable[[Shape], None]], Graphs], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    monkeypatch.setattr(graphs_module, "REST", 1e9)  # for ever, once a step has run

    def capture(shape: Shape) -> None:
        graphs.decode(1, 1)
        begun.set()

    graphs = make_graphs(capture)
    graphs.start()
    assert begun.wait(30)
    graphs.close()
    assert len(graphs) == 1


def test_a_step_without_a_graph_asks_for_the_one_that_it_would_have_had() -> None:
    graphs = Graphs(
        Bounds(512, 64, 64, 512), 1000, lambda shape: None, lambda tokens: None, device=CPU, budget_bytes=1
    )
    assert graphs.decode(3, 900) is None
    assert graphs.decode(3, 2000) is None
    assert graphs.mixed(100, 3, 1) is None
    wanted = [graphs._agenda.take() for _ in range(3)]
    assert wanted == [Shape(3, 3, 3, short=True), Shape(3, 3, 3), Shape(128, 64, 80)]


def test_prompts_are_not_captured_where_what_attends_them_cannot_be() -> None:
    bounds = Bounds(0, 8, 8, 0)
    graphs = Graphs(bounds, 0, lambda shape: None, lambda tokens: None, device=CPU, budget_bytes=1)
    assert all(shape.singles == shape.rows and not shape.short for shape in graphs.shapes)
    assert graphs.mixed(16, 0, 1) is None


def test_the_shapes_of_graphs_reach_from_one_row_to_all() -> None:
    for most in (1, 5, 8, 9, 64, 256, 1000):
        rows = [shape.rows for shape in decode_shapes(most)]
        assert rows == sorted(set(rows))
        assert rows[-1] == most
        assert all(b <= max(a + 2, 1.26 * a) for a, b in pairwise(rows))


@pytest.mark.parametrize(("rows", "tokens"), [(9, 1), (1, 65)])
def test_a_step_beyond_the_memory_there_is_fails_before_anything_is_enqueued(
    tiny: Any, stepper: Stepper, rows: int, tokens: int
) -> None:
    plan = StepPlan(0, tuple(Row(n, 0, (1,) * tokens, blocks_of(n) * 2, None) for n in range(rows)))
    with pytest.raises(ValueError, match="exceeds 8 and 64"):
        stepper.begin(plan)
    assert run(stepper, Row(0, 0, (1,), blocks_of(0), None)) == (RowResult(),)


def test_a_graph_is_launched_by_its_handle_where_torch_tells_it() -> None:
    class Old:
        def replay(self) -> None:
            raise NotImplementedError

    class New(Old):
        def raw_cuda_graph_exec(self) -> int:
            return 0x99

    class Launches:
        handles: ClassVar[list[int]] = []

        def launch_graph(self, executable: int) -> None:
            self.handles.append(executable)

    old, driver = Old(), Launches()
    _replay_of(New(), driver)()  # type: ignore[arg-type]
    assert driver.handles == [0x99]
    assert _replay_of(old, driver) == old.replay  # type: ignore[arg-type]
