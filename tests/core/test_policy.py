"""How a step's tokens are divided, and who is eldest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.core.policy import due, split
from tokenspeed.core.request import Request
from tokenspeed.core.sequence import Sequence


def sequence(number: int, arrival: float) -> Sequence:
    return Sequence(number, Request(f"r{number}", (1,), 1, arrival=arrival), 0, arrival)


wants = st.lists(st.tuples(st.floats(0, 9), st.integers(1, 300)), max_size=9)


@given(wants, st.integers(0, 500), st.floats(0.01, 1.0))
def test_a_split_spends_the_whole_budget_and_never_more_than_is_wanted(
    asked: list[tuple[float, int]], budget: int, share: float
) -> None:
    pairs = [(sequence(i, arrival), want) for i, (arrival, want) in enumerate(asked)]
    given_out = split(budget, pairs, share)
    assert sum(given_out) == min(budget, sum(want for _, want in pairs))
    assert all(0 <= given <= want for given, (_, want) in zip(given_out, pairs, strict=True))


@given(wants.filter(bool), st.integers(1, 500), st.floats(0.01, 1.0))
def test_the_eldest_is_certain_of_its_share(
    asked: list[tuple[float, int]], budget: int, share: float
) -> None:
    pairs = [(sequence(i, arrival), want) for i, (arrival, want) in enumerate(asked)]
    eldest = min(range(len(pairs)), key=lambda i: (pairs[i][0].due, i))
    assert split(budget, pairs, share)[eldest] >= min(pairs[eldest][1], max(1, int(budget * share)))


def test_the_most_urgent_get_what_the_eldest_leaves() -> None:
    pairs = [(sequence(1, 5.0), 30), (sequence(2, 6.0), 50), (sequence(3, 0.0), 1000)]
    assert split(100, pairs, 0.25) == [30, 45, 25]


def test_a_level_of_priority_is_worth_so_many_seconds_of_waiting() -> None:
    patient = Request("a", (1,), 1, arrival=0.0, priority=1)
    pressing = Request("b", (1,), 1, arrival=1.9)
    assert due(patient, 2.0) > due(pressing, 2.0)
    assert due(patient, 1.0) < due(pressing, 1.0)
