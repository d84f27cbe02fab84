"""Answers that are ended by their lines, however their text is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenspeed.generation.lines import Lines
from tokenspeed.generation.request import LineBounds


def shown(pieces: list[str], indent: int) -> tuple[str, bool]:
    lines = Lines(LineBounds(indent))
    text = "".join(lines.push(piece, 0.0, ended=False) for piece in pieces)
    return text + lines.push("", 0.0, ended=True), lines.over


def up_to_the_first_bad_line(text: str, indent: int) -> str:
    """The same, of a whole text."""
    first, *rest = text.split("\n")
    kept = [first]
    for line in rest:
        if line.strip(" ") and len(line) - len(line.lstrip(" ")) < indent:
            while len(kept) > 1 and not kept[-1].strip(" "):
                kept.pop()
            return "\n".join(kept)
        kept.append(line)
    return text


@given(st.lists(st.text("ab \n", max_size=6)), st.integers(0, 3))
def test_what_is_shown_does_not_depend_on_how_the_text_is_cut(pieces, indent):
    text = "".join(pieces)
    expected = up_to_the_first_bad_line(text, indent)
    assert shown(pieces, indent)[0] == shown([text], indent)[0] == expected
    assert shown(pieces, indent)[1] == (expected != text)


def test_nothing_is_held_back_without_need():
    lines = Lines(LineBounds(2))
    assert lines.push("a\n", 0.0, ended=False) == "a"
    assert lines.push("  ", 0.0, ended=False) == ""
    assert lines.push("b", 0.0, ended=False) == "\n  b"


def test_time_ends_an_answer_that_has_a_line_and_only_then():
    lines = Lines(LineBounds(seconds=1.0))
    assert lines.push("a", 2.0, ended=False) == "a"
    assert not lines.over
    assert lines.push("b\nc", 2.0, ended=False) == "b\nc"
    assert lines.over
    assert lines.push("d", 2.0, ended=False) == ""
