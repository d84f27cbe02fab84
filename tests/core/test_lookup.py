"""Drafts that are looked up, against a search through the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenspeed.core import lookup
from tokenspeed.core.lookup import LEAST, LONGEST, Lookup

texts = st.lists(st.integers(0, 3), max_size=60)
pieces = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=9), max_size=20)


def furthest(text: list[int]) -> tuple[int, list[int]]:
    """How far back the best earlier occurrence of the end agrees, and where the text went on after these."""
    best, places = 0, []
    for place in range(1, len(text)):
        common = 0
        while common < min(LONGEST, place) and text[place - 1 - common] == text[-1 - common]:
            common += 1
        if common >= LEAST and common >= best:
            places = [place, *(places if common == best else [])]
            best = common
    return best, places


@given(texts, pieces)
@settings(max_examples=300, deadline=None)
def test_it_follows_an_occurrence_that_agrees_furthest_back(text: list[int], more: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "CANDIDATES", 10_000)  # so that none is passed over
        index = Lookup(text)
        for piece in more:
            text = text + piece
            index.extend(piece)
            best, places = furthest(text)
            assert index.common == best
            if best:
                assert index.propose(1)[0] in {text[place] for place in places}
            else:
                assert index.propose(5) == ()


@given(texts, pieces, st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_what_it_foretells_is_what_it_would_have_proposed(
    text: list[int], more: list[list[int]], most: int
) -> None:
    index = Lookup(text)
    for piece in more:
        proposed, common = index.propose(len(piece)), index.common
        foretold = index.extend(piece)
        held = 0
        while held < len(proposed) and proposed[held] == piece[held]:
            held += 1
        assert [true for _, true in foretold[: held + 1]] == [True] * held + [False] * (
            held < len(piece) and bool(proposed)
        )
        assert [c for c, _ in foretold[: held + 1]] == [
            min(common + n, LONGEST) for n in range(min(held + 1, len(piece)) if proposed else 0)
        ]
        assert len(index.propose(most)) in (0, most)


@given(texts, pieces)
@settings(max_examples=100, deadline=None)
def test_a_text_that_is_there_at_once_is_found_in_as_one_that_came_token_by_token(
    text: list[int], more: list[list[int]]
) -> None:
    at_once, by_token = Lookup(text), Lookup([])
    for token in text:
        by_token.extend((token,))
    for piece in more:
        assert at_once.common == by_token.common
        assert at_once.extend(piece) == by_token.extend(piece)


def test_what_repeats_into_its_own_end_goes_on_repeating() -> None:
    assert Lookup([9, 1, 2, 1, 2, 1, 2]).propose(5) == (1, 2, 1, 2, 1)
    assert Lookup([7, 7, 7, 7]).propose(3) == (7, 7, 7)


def test_tokens_that_share_a_key_are_told_apart() -> None:
    big = 1 << lookup.BITS
    assert Lookup([5, 6, 7, 8, 5 + big, 6, 7]).common == 0
    assert Lookup([5 + big, 6, 7, 8, 5 + big, 6, 7]).propose(1) == (8,)


@pytest.mark.parametrize("period", [1, 5000])
def test_a_token_takes_the_same_time_in_a_long_text(period: int) -> None:
    """Counted in steps of the search, not in seconds."""
    searched: list[int] = []

    class Counting(Lookup):
        def _agreement(self, place: int) -> int:
            searched.append(place)
            return super()._agreement(place)

    index = Counting([n % period if period > 1 else n for n in range(20_000)])
    searched.clear()
    for n in range(1000):
        index.extend((n % period if period > 1 else -n,))
    assert len(searched) <= 1000 * lookup.CANDIDATES / 10
