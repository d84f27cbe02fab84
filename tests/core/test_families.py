"""Drafts out of other answers, against a search through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.test_lookup import furthest
from tokenspeed.core import families, lookup
from tokenspeed.core.families import FAMILIES, Beside, Families, Family
from tokenspeed.core.lookup import CANDIDATES, LEAST, LONGEST, Lookup
from tokenspeed.core.prospects import Source
from tokenspeed.core.request import Request
from tokenspeed.core.sequence import Sequence as Running

answers = st.lists(st.lists(st.integers(0, 3), max_size=40), max_size=4)
pieces = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), max_size=20)


class Silent:
    """A source that never proposes anything."""

    common = 0

    def extend(self, tokens: Sequence[int]) -> list[tuple[int, bool]]:
        return []

    def propose(self, most: int) -> tuple[int, ...]:
        return ()


SILENT = Silent()


def written(family: Family, text: Sequence[int], own: Source = SILENT) -> Beside:
    """By a request without a prompt, all at once."""
    return Beside(own, family, list(text), 0)


def best_of(others: Sequence[Sequence[int]], text: Sequence[int]) -> tuple[int, list[tuple[int, ...]]]:
    """How far back the best place in other texts agrees with the end of this one, and what follows such."""
    best, follow = 0, []
    for other in others:
        for place in range(LEAST, len(other)):
            common = 0
            while common < min(LONGEST, place, len(text)) and other[place - 1 - common] == text[-1 - common]:
                common += 1
            if common >= LEAST and common >= best:
                follow = [tuple(other[place:]), *(follow if common == best else [])]
                best = common
    return best, follow


@given(answers, pieces)
@settings(max_examples=300, deadline=None)
def test_it_follows_what_agrees_furthest_and_itself_where_others_agree_no_further(
    others: list[list[int]], more: list[list[int]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "CANDIDATES", 10_000)  # so that none is passed over
        patch.setattr(lookup, "CANDIDATES", 10_000)
        family = Family()
        for other in others:
            written(family, other)
        own, text = Lookup([]), list[int]()
        source = written(family, [], own)
        for piece in more:
            text += piece
            source.extend(piece)
            best, follow = best_of(others, text)
            assert source.common == max(best, furthest(text)[0])
            if best > own.common:
                proposed = source.propose(7)
                assert proposed in {after[:7] for after in follow}
            else:
                assert source.propose(7) == own.propose(7)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.lists(st.integers(0, 2), min_size=1, max_size=5)), max_size=40)
)
@settings(max_examples=200, deadline=None)
def test_answers_that_are_still_written_are_followed_as_far_as_they_have_come(
    turns: list[tuple[int, list[int]]],
) -> None:
    family = Family()
    sources = [written(family, []) for _ in range(4)]
    texts: list[list[int]] = [[] for _ in sources]
    for number, piece in turns:
        sources[number].extend(piece)
        texts[number] += piece
        for source, text in zip(sources, texts, strict=True):
            others = [other for other in texts if other is not text]
            proposed, common = source.propose(4), source.common
            assert bool(proposed) == bool(common)
            assert not common or any(
                tuple(other[place : place + 4]) == proposed
                and other[place - common : place] == text[-common:]
                for other in others
                for place in range(common, len(other))
            )


@given(answers, st.lists(st.integers(0, 3), max_size=30), pieces)
@settings(max_examples=200, deadline=None)
def test_what_it_foretells_is_what_it_would_have_proposed(
    others: list[list[int]], text: list[int], more: list[list[int]]
) -> None:
    family = Family()
    for other in others:
        written(family, other)
    source = written(family, text, Lookup(text))
    for piece in more:
        proposed, common = source.propose(len(piece)), source.common
        foretold = source.extend(piece)
        held = 0
        while held < len(proposed) and proposed[held] == piece[held]:
            held += 1
        told = min(held + 1, len(proposed))
        assert [true for _, true in foretold[:told]] == [True] * held + [False] * (held < told)
        assert [c for c, _ in foretold[:told]] == [min(common + n, LONGEST) for n in range(told)]


# -- whose answers -----------------------------------------------------------------------------------


class Client:
    """Runs sequences, whose first token is there when their source is made."""

    def __init__(self) -> None:
        self.families = Families()
        self._number = 0

    def begins(self, prompt: Sequence[int], first: int, account: str = "") -> Source:
        self._number += 1
        request = Request(f"r{self._number}", tuple(prompt), 1000, account=account)
        sequence = Running(self._number, request, 0, 0.0)
        sequence.tokens.append(first)
        return self.families.beside(Lookup(sequence.tokens), sequence)


PROMPT, ANSWER = range(1000, 1100), [*range(1, 50)]


@pytest.mark.parametrize(
    ("prompt", "account", "found"),
    [
        (PROMPT, "alice", (2, 3, 4)),
        (PROMPT, "bob", ()),
        (PROMPT, "", ()),
        ([*PROMPT[:70], *PROMPT[96:]], "alice", (2, 3, 4)),  # it begins alike, and ends alike
        ([0, *PROMPT], "alice", ()),
        (PROMPT[:63], "alice", ()),
    ],
)
def test_what_is_found_is_of_the_same_account_and_beginning(
    prompt: Sequence[int], account: str, found: tuple[int, ...]
) -> None:
    client = Client()
    client.begins(PROMPT, 1, "alice").extend(ANSWER[1:])
    assert client.begins(prompt, 1, account).propose(3) == found


def test_an_answer_is_found_from_its_first_tokens_on() -> None:
    client = Client()
    client.begins([7], 1).extend(ANSWER[1:])
    again = client.begins([7], 1)
    assert again.common == 0  # two tokens are no evidence
    again.extend([2])
    assert (again.common, again.propose(2)) == (LEAST, (3, 4))


def test_the_last_answer_wins_where_two_agree_as_far() -> None:
    client = Client()
    client.begins(PROMPT, 1).extend([2, 3, 4, 5])
    client.begins(PROMPT, 1).extend([2, 3, 4, 6])
    again = client.begins(PROMPT, 1)
    again.extend([2, 3, 4])
    assert again.propose(1) == (6,)


# -- its bounds --------------------------------------------------------------------------------------


def places(family: Family) -> list[families.Place]:
    found = []
    for generation in (family._young, family._old):
        for place in generation.values():
            latest: families.Place | None = place
            while latest is not None:
                found.append(latest)
                latest = latest.before
    return found


@pytest.mark.parametrize("period", [1, 7, 10_000])
def test_of_a_family_the_latest_tokens_alone_are_kept(period: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "TOKENS", 100)
    family = Family()
    sources = [written(family, []) for _ in range(3)]
    for start in range(0, 3000, 10):
        for source in sources:
            source.extend([n % period for n in range(start, start + 10)])
        kept = places(family)
        assert len(kept) <= 200
        assert max(len(place.text) for place in kept) <= 100 + LONGEST + 10
    assert len(kept) >= 100


def test_what_was_forgotten_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "TOKENS", 100)
    family = Family()
    written(family, [1, 2, 3, 4, 5])
    written(family, range(10, 120))
    assert written(family, [1, 2, 3]).propose(1) == (4,)
    written(family, range(200, 310))
    assert written(family, [1, 2, 3]).propose(1) == ()


def test_the_family_that_was_unused_for_longest_is_forgotten() -> None:
    client = Client()
    for number in range(FAMILIES):
        client.begins([number, 8, 9], 1).extend(ANSWER[1:])
    client.begins([0, 8, 9], 1)
    client.begins([FAMILIES, 8, 9], 1)
    assert client.begins([0, 8, 9], 1).propose(1) == (2,)
    assert client.begins([1, 8, 9], 1).propose(1) == ()
    assert len(client.families._known) == FAMILIES


def test_a_token_takes_the_same_time_however_much_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in places that are looked at, not in seconds."""
    looked_at: list[int] = []
    agreement = families.agreement

    def counting(other: Sequence[int], place: int, text: Sequence[int]) -> int:
        looked_at.append(place)
        return agreement(other, place, text)

    monkeypatch.setattr(families, "agreement", counting)
    family, costs = Family(), []
    for _ in range(4):
        for _ in range(20):
            written(family, [n % 5 for n in range(100)])
        source = written(family, [])
        looked_at.clear()
        for n in range(200):
            source.extend((n * n % 11,))
        costs.append(len(looked_at))
    assert max(costs) <= 200 * CANDIDATES
    assert all(later <= 1.5 * cost for cost, later in pairwise(costs[1:]))
