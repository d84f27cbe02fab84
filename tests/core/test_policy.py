"""How a step's time is divided, who is eldest, and when a step ends early."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.core.costs import Costs
from tokenspeed.core.policy import POLICIES, Budget, SchedulerOptions, due, hurry, split, step_budget
from tokenspeed.core.request import Request
from tokenspeed.core.sequence import Sequence

EVEN = Costs(base=5e-3, row=0.0, token=1e-3, attended=0.0, read=0.0)
DEVICES = st.builds(
    Costs,
    base=st.floats(1e-4, 1e-2),
    row=st.floats(0.0, 1e-3),
    token=st.floats(1e-6, 1e-3),
    attended=st.floats(0.0, 1e-6),
    read=st.floats(0.0, 1e-6),
)
WANTS = st.lists(st.tuples(st.floats(0, 9), st.integers(2, 3000)), min_size=1, max_size=9)


def prefill(number: int, due_at: float, tokens: int) -> Sequence:
    return Sequence(number, Request(f"r{number}", (1,) * tokens, 1, arrival=due_at), 0, due_at)


def prefills(asked: list[tuple[float, int]]) -> list[Sequence]:
    return [prefill(number, due_at, tokens) for number, (due_at, tokens) in enumerate(asked)]


def cost(sequences: list[Sequence], chunks: list[int], costs: Costs) -> float:
    return sum(costs.prefill(s.planned, n) for s, n in zip(sequences, chunks, strict=True) if n)


budgets = st.builds(
    lambda seconds, tokens, share: Budget(seconds, tokens, share * seconds, tokens),
    st.floats(1e-4, 0.2),
    st.integers(1, 5000),
    st.floats(0.01, 0.9),
)


@given(WANTS, budgets, DEVICES)
def test_a_split_stays_within_seconds_and_tokens_but_for_what_is_rounded(
    asked: list[tuple[float, int]], budget: Budget, costs: Costs
) -> None:
    sequences = prefills(asked)
    chunks = split(budget, sequences, costs)
    assert all(0 <= chunk <= s.pending for chunk, s in zip(chunks, sequences, strict=True))
    assert 1 <= sum(chunks) <= budget.tokens
    longest = max(s.pending for s in sequences)
    rounding = len(sequences) * (costs.row + costs.token + costs.attended * longest)
    assert cost(sequences, chunks, costs) <= budget.seconds + rounding


@given(WANTS, budgets, DEVICES)
def test_a_split_leaves_no_time_that_a_prompt_could_use(
    asked: list[tuple[float, int]], budget: Budget, costs: Costs
) -> None:
    sequences = prefills(asked)
    chunks = split(budget, sequences, costs)
    if sum(chunks) == budget.tokens:
        return
    cut = [i for i, sequence in enumerate(sequences) if chunks[i] < sequence.pending]
    if cut:  # not even one token more of the most urgent of them
        more = [chunk + (i == cut[0]) for i, chunk in enumerate(chunks)]
        assert cost(sequences, more, costs) >= budget.seconds * (1 - 1e-9)


@given(WANTS, budgets, DEVICES)
def test_the_eldest_is_certain_of_its_share(
    asked: list[tuple[float, int]], budget: Budget, costs: Costs
) -> None:
    sequences = prefills(asked)
    eldest = min(range(len(sequences)), key=lambda i: (sequences[i].due, i))
    chunk = split(budget, sequences, costs)[eldest]
    enough = costs.prefill(0, chunk) >= budget.certain_seconds * (1 - 1e-9)
    assert enough or chunk in (sequences[eldest].pending, budget.certain_tokens)


def test_the_most_urgent_get_what_the_eldest_leaves() -> None:
    sequences = prefills([(5.0, 30), (6.0, 50), (0.0, 1000)])
    assert split(Budget(0.1, 10_000, 0.025, 10_000), sequences, EVEN) == [30, 45, 25]


def test_tokens_alone_divide_a_step_without_a_target() -> None:
    sequences = prefills([(5.0, 30), (6.0, 50), (0.0, 1000)])
    assert split(Budget(inf, 100, inf, 25), sequences, EVEN) == [30, 45, 25]
    assert split(Budget(inf, 100), sequences, EVEN) == [30, 50, 20]


@given(WANTS, budgets, DEVICES, st.floats(1e-4, 0.05), st.floats(0.01, 0.9))
def test_a_hurried_step_keeps_who_finishes_and_gives_the_eldest_its_share_of_it(
    asked: list[tuple[float, int]], budget: Budget, costs: Costs, decodes: float, share: float
) -> None:
    sequences = prefills(asked)
    whole = split(budget, sequences, costs)
    step = decodes + budget.seconds
    cut = hurry(whole, sequences, costs, decodes=decodes, whole=step, share=share)
    assert all(few <= many for few, many in zip(cut, whole, strict=True))
    done = [many == s.pending for many, s in zip(whole, sequences, strict=True)]
    assert all(cut[i] == whole[i] for i, ends in enumerate(done) if ends)
    if not any(done):
        assert cut == whole
    eldest = min(range(len(sequences)), key=lambda i: (sequences[i].due, i))
    if not done[eldest] and cut[eldest] < whole[eldest]:
        assert costs.prefill(0, cut[eldest]) >= share * (decodes + cost(sequences, cut, costs)) * 0.5


def test_a_step_in_which_a_short_prompt_finishes_has_only_its_share_of_the_long_one() -> None:
    sequences = prefills([(5.0, 10), (0.0, 1000)])
    chunks = split(Budget(0.1, 10_000, 0.025, 10_000), sequences, EVEN)
    assert chunks == [10, 90]
    assert hurry(chunks, sequences, EVEN, decodes=0.0055, whole=0.02, share=0.25) == [10, 6]
    assert hurry(chunks, sequences, EVEN, decodes=0.0055, whole=0.101, share=0.25) == [10, 35]


def test_a_step_budget_is_what_the_target_leaves_beside_decodes() -> None:
    options = SchedulerOptions(target_step_ms=50.0, eldest_share=0.25)
    budget = step_budget(options, EVEN, decodes=0.02, rows=8, alone=False, shares=True)
    assert budget.seconds == pytest.approx(0.03)
    assert budget.certain_seconds == pytest.approx(0.0125)
    assert budget.tokens == options.step_tokens - 8


def test_decodes_that_fill_the_target_still_leave_prefills_their_share() -> None:
    options = SchedulerOptions(target_step_ms=50.0, eldest_share=0.25)
    budget = step_budget(options, EVEN, decodes=0.09, rows=8, alone=False, shares=True)
    assert budget.seconds == pytest.approx(0.03)  # a quarter of 120 ms


def test_who_is_alone_gets_a_step_whose_beginning_costs_it_little() -> None:
    options = SchedulerOptions(target_step_ms=50.0, lone_overhead=0.05)
    budget = step_budget(options, EVEN, decodes=EVEN.base, rows=0, alone=True, shares=True)
    assert budget.seconds == pytest.approx(0.095)


def test_a_level_of_priority_is_worth_so_many_seconds_of_waiting() -> None:
    patient = Request("a", (1,), 1, arrival=0.0, priority=1)
    pressing = Request("b", (1,), 1, arrival=1.9)
    assert due(patient, 2.0) > due(pressing, 2.0)
    assert due(patient, 1.0) < due(pressing, 1.0)


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        ("short-first", "short"),
        ("shortest-first", "short, patient"),
        ("first-come", "long"),
        ("priority", "long"),
    ],
)
def test_each_policy_has_its_own_first(policy: str, first: str) -> None:
    options = SchedulerOptions(policy=policy)
    sequences = {}
    for number, (name, arrival, left, priority) in enumerate(
        [("long", 0.0, 900, 0), ("short", 1.0, 20, 0), ("short, patient", 2.0, 10, 1)]
    ):
        request = Request(name, (1,) * left, 1, arrival=arrival, priority=priority)
        sequence = Sequence(number, request, 0, due(request, POLICIES[policy].level(options)))
        sequence.left = left
        sequences[POLICIES[policy].order(sequence)] = name
    assert sequences[min(sequences)] == first
