"""The cost model: what it knows at first, how it learns, and what it does not believe."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.core.costs import TYPICAL, CostModel, Costs, Work, attended_by
from tokenspeed.core.plan import Row

CPU = Costs(base=3e-3, row=1.2e-3, token=7e-4, attended=5e-7, read=1e-6)
GPU = Costs(base=4.5e-3, row=1.2e-5, token=2.33e-5, attended=8.6e-10, read=3.1e-8)


def mixed_step(random: Random, costs: Costs) -> Work:
    """Some decodes, and now and then chunks of prompts that make it about 50 ms long."""
    decodes = random.randint(0, 24)
    work = Work(rows=decodes, read=sum(random.randint(20, 2000) for _ in range(decodes)))
    for _ in range(random.choice([0, 0, 1, 1, 2])):
        start = random.randint(0, 4000)
        work = work.plus(start, max(2, int(costs.tokens_within(random.uniform(0.005, 0.05), start))))
    return work if work.rows else Work(rows=1, read=100)


def teach(model: CostModel, costs: Costs, steps: int, *, noise: float = 0.05, seed: int = 1) -> list[float]:
    """The relative errors of the predictions, each made before its step was measured."""
    random = Random(seed)
    errors = []
    for _ in range(steps):
        work = mixed_step(random, costs)
        seconds = costs.seconds(work) * random.lognormvariate(0.0, noise)
        errors.append(abs(model.costs.seconds(work) / seconds - 1.0))
        model.observe(work, seconds)
    return errors


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@given(st.integers(0, 9000), st.integers(1, 9000))
def test_a_chunk_attends_each_token_and_all_before_it(start: int, count: int) -> None:
    assert attended_by(start, count) == sum(range(start + 1, start + count + 1))


@given(st.integers(0, 30_000), st.integers(1, 9000), st.sampled_from([CPU, GPU, TYPICAL]))
def test_as_many_tokens_fit_into_a_time_as_take_that_time(start: int, count: int, costs: Costs) -> None:
    assert costs.tokens_within(costs.prefill(start, count), start) == pytest.approx(count, rel=1e-6)


def test_no_token_fits_into_no_time_and_all_into_eternity() -> None:
    assert CPU.tokens_within(CPU.row, 0) == 0.0
    assert CPU.tokens_within(inf, 0) == inf


def test_the_work_of_a_step_is_that_of_its_rows() -> None:
    rows = (Row(1, 9, (5,), (), None), Row(2, 4, (1, 2, 3), (), None), Row(3, 0, (7,), (), None))
    assert Work.of(rows) == Work(rows=3, tokens=3, attended=5 + 6 + 7, read=10 + 1)
    assert Work().plus(9, 1).plus(4, 3).plus(0, 1) == Work.of(rows)


def test_the_prior_is_what_is_predicted_before_the_first_step() -> None:
    assert CostModel(GPU).costs == GPU


@pytest.mark.parametrize("truth", [CPU, GPU], ids=["cpu", "gpu"])
def test_fifty_mixed_steps_teach_what_a_step_costs(truth: Costs) -> None:
    model = CostModel(TYPICAL)
    teach(model, truth, 50)
    assert median(teach(model, truth, 100, seed=2)) < 0.15


def test_even_the_first_measured_step_corrects_the_scale() -> None:
    model = CostModel(TYPICAL)
    slow = Costs(*[10 * coefficient for coefficient in (5e-3, 2e-4, 8e-4, 1e-7, 1e-7)])
    work = Work(rows=4, tokens=30, attended=1000, read=300)
    model.observe(work, slow.seconds(work))
    assert model.costs.seconds(work) == pytest.approx(slow.seconds(work), rel=0.5)


def test_steps_that_hung_teach_next_to_nothing() -> None:
    model, random = CostModel(CPU), Random(3)
    teach(model, CPU, 200)
    for _ in range(100):
        work = mixed_step(random, CPU)
        hung = 20.0 if random.random() < 0.1 else 1.0
        model.observe(work, CPU.seconds(work) * hung)
    work = Work(rows=5, tokens=40, attended=40_000, read=2000)
    assert model.costs.seconds(work) == pytest.approx(CPU.seconds(work), rel=0.2)


@pytest.mark.parametrize("seconds", [0.0, -1.0, inf, float("nan")])
def test_a_clock_that_cannot_be_right_teaches_nothing(seconds: float) -> None:
    model = CostModel(CPU)
    model.observe(Work(rows=1, read=10), seconds)
    assert (model.costs, model.steps) == (CPU, 0)


def test_a_device_that_turns_slow_is_followed_within_some_tens_of_steps() -> None:
    model = CostModel(CPU)
    teach(model, CPU, 500)
    slow = Costs(*[2 * c for c in (CPU.base, CPU.row, CPU.token, CPU.attended, CPU.read)])
    teach(model, slow, 80, seed=4)
    assert median(teach(model, slow, 50, seed=5)) < 0.15


def test_an_hour_of_decoding_does_not_unlearn_what_a_prefill_costs() -> None:
    model, random = CostModel(TYPICAL), Random(6)
    teach(model, CPU, 200)
    for _ in range(5000):
        work = Work(rows=random.randint(1, 8), read=random.randint(10, 9000))
        model.observe(work, CPU.seconds(work) * random.lognormvariate(0.0, 0.05))
    prefill = Work(rows=1, tokens=60, attended=attended_by(500, 60))
    assert model.costs.seconds(prefill) == pytest.approx(CPU.seconds(prefill), rel=0.2)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 500), st.floats(1e-6, 1e3)), max_size=40))
def test_no_cost_ever_becomes_nothing_or_endless(steps: list[tuple[int, int, float]]) -> None:
    model = CostModel(TYPICAL)
    for rows, tokens, seconds in steps:
        model.observe(Work(rows + 1, tokens, tokens * tokens, rows * 100), seconds)
        costs = model.costs
        assert all(0.0 < c < inf for c in (costs.base, costs.row, costs.token, costs.attended, costs.read))


def test_one_slow_step_with_drafts_among_many_without_is_not_believed_of_each_of_its_parts() -> None:
    """What follows corrects it, as long as drafts are sent at all."""
    costs = Costs(3.6e-3, 2e-6, 2e-5, 1e-9, 3e-8, draft=3e-5, verify=1e-4, round=6e-4, guess=2e-5, late=2e-5)
    model = CostModel(costs)
    for _ in range(900):
        work = Work(rows=1, read=300)
        model.observe(work, costs.seconds(work))
    first = Work(rows=1, read=300).with_drafts(0, 4, 200)
    model.observe(first, 3.0 * costs.seconds(first))
    for _ in range(40):  # until the coefficients are fitted again
        model.observe(Work(rows=1, read=300), costs.seconds(Work(rows=1, read=300)))
    later = Work(rows=1, read=300).with_drafts(0, 4)
    assert model.costs.seconds(later) < 1.8 * costs.seconds(later)
    for _ in range(40):
        model.observe(later, costs.seconds(later))
    assert model.costs.seconds(later) == pytest.approx(costs.seconds(later), rel=0.1)


def test_a_row_with_which_the_draft_model_catches_up_takes_a_pass_of_it_and_verifies_nothing() -> None:
    late = Row(0, 50, (1,), (0, 1, 2, 3), None, behind=(5,) * 20, caught=7)
    guessing = Row(1, 9, (1,), (4,), None, guess=3, behind=(5, 5), caught=7)
    plain = Work.of([late._replace(behind=())])
    assert Work.of([late]) == plain._replace(rounds=1, late=20)
    both = Work.of([late, guessing])
    assert (both.rounds, both.guesses, both.late, both.drafts, both.verifies) == (3, 3, 21, 3, 1)
