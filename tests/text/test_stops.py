"""Stop strings end a text at the same place however it is cut, and never show a part of themselves."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenspeed.errors import RequestError
from tokenspeed.text.stops import StopStrings

unhurried = settings(deadline=None)  # a busy machine may take its time
# Few letters, so that stops overlap themselves, each other and the text.
PIECES = st.lists(st.text("ab\n", max_size=6), max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def whole(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """What is left of `text` and the stop that ended it, by trying every end."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


@unhurried
@given(pieces=PIECES, stops=STOPS, include=st.booleans())
@example(pieces=["ab", "cd"], stops=["abcd", "bc"], include=False)
@example(pieces=["a", "b"], stops=["b", "ab"], include=False)
@example(pieces=["aab", "aaab"], stops=["aaab"], include=True)
def test_pieces_are_stopped_as_the_whole_text_is(pieces: list[str], stops: list[str], include: bool) -> None:
    stream = StopStrings(stops, include=include)
    out = "".join([stream.push(piece) for piece in pieces]) + stream.flush()
    assert (out, stream.hit) == whole("".join(pieces), stops, include)


@unhurried
@given(pieces=PIECES, stops=STOPS)
def test_only_what_may_become_a_stop_is_held_back(pieces: list[str], stops: list[str]) -> None:
    stream = StopStrings(stops)
    known, out = "", ""
    for piece in pieces:
        known += piece
        out += stream.push(piece)
        if stream.hit is not None:
            return
        held = known[len(out) :]
        begins = [
            known[-n:] for n in range(1, len(known) + 1) if any(s.startswith(known[-n:]) for s in stops)
        ]
        assert held == max(begins, key=len, default="")


def test_nothing_follows_a_stop() -> None:
    stream = StopStrings(["\n\n"])
    assert stream.push("one\n") == "one"
    assert stream.push("\ntwo") == ""
    assert (stream.hit, stream.push("three"), stream.flush()) == ("\n\n", "", "")


def test_a_stop_that_never_ends_is_text() -> None:
    stream = StopStrings(["</done>"])
    assert stream.push("text </do") == "text "
    assert stream.flush() == "</do"
    assert stream.hit is None


def test_without_stops_text_passes_at_once() -> None:
    stream = StopStrings([])
    text = "anything"
    assert stream.push(text) is text
    assert stream.flush() == ""


def test_an_empty_stop_is_the_requests_error() -> None:
    with pytest.raises(RequestError, match="empty") as caught:
        StopStrings(["a", ""])
    assert caught.value.param == "stop"


def test_a_long_stop_that_nearly_repeats_costs_a_step_for_each_character() -> None:
    stop = "a" * 65_536 + "b"
    stream = StopStrings([stop])
    out = [stream.push("a") for _ in range(200_000)]
    assert len("".join(out)) == 200_000 - 65_536
    assert stream.push("b") == ""
    assert stream.hit == stop


@unhurried
@given(text=st.text("^]-[&~|\\", max_size=12), data=st.data())
def test_no_character_of_a_stop_is_special(text: str, data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.text("^]-[&~|\\", min_size=1, max_size=3), max_size=8))
    stream = StopStrings(stops)
    out = stream.push(text) + stream.flush()
    assert (out, stream.hit) == whole(text, stops, include=False)
