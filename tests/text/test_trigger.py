"""A grammar begins to hold at the same byte however the model spells what opens it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenspeed.text.trigger import Trigger
from tokenspeed.text.vocabulary import ByteTable

THINK = ("<think>", "</think>")
CALL = {"openers": ("<tool_call>",)}
LIST = {"openers": ("<|python_tag|>", "[CALL"), "starts": ('{"name"', "[get(")}


def cut(text: bytes, places: Sequence[int]) -> list[bytes]:
    """The text in pieces that end at these places."""
    ends = [0, *sorted({place for place in places if 0 < place < len(text)}), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


def first_opened(pieces: Sequence[bytes], **how: Any) -> tuple[int, bytes] | None:
    """After how many pieces it triggered, and with what."""
    trigger = Trigger(ByteTable(enumerate(pieces)), **how)
    for token in range(len(pieces)):
        if (opened := trigger.push(token)) is not None:
            return token + 1, opened
    return None


def opened_by(
    text: bytes,
    openers: Sequence[str] = (),
    starts: Sequence[str] = (),
    think: Any = None,
    thinking: bool = False,
) -> bytes | None:
    """What opens, of all of a text at once."""
    front = text.lstrip()
    if think is not None and (thinking or front.startswith(think[0].encode())):
        _, closed, text = (text if thinking else front.removeprefix(think[0].encode())).partition(
            think[1].encode()
        )
        if not closed:
            return None
        if not (openers or starts):
            return text
        front = text.lstrip()
    if any(front.startswith(start.encode()) for start in starts):
        return front
    places = [place for opener in openers if (place := text.find(opener.encode())) >= 0]
    return text[min(places) :] if places else None


def expected(pieces: Sequence[bytes], **how: Any) -> tuple[int, bytes] | None:
    for count in range(1, len(pieces) + 1):
        if (opened := opened_by(b"".join(pieces[:count]), **how)) is not None:
            return count, opened
    return None


@pytest.mark.parametrize("behind", ["\n", '\n{"name"', ""])
@pytest.mark.parametrize("before", ["", "Well: ", "<tool<tool_", "<", " "])
def test_an_opener_is_found_however_it_is_cut_in_two_or_three(before: str, behind: str) -> None:
    text = f"{before}<tool_call>{behind}".encode()
    end = len(before) + len("<tool_call>")
    for places in combinations(range(len(text)), 2):
        pieces = cut(text, places)
        count, opened = first_opened(pieces, **CALL) or (0, b"")
        assert len(b"".join(pieces[: count - 1])) < end <= len(b"".join(pieces[:count]))
        assert opened == b"<tool_call>" + b"".join(pieces[:count])[end:]


@pytest.mark.parametrize("how", [CALL, LIST])
def test_byte_by_byte_it_triggers_with_the_last_byte_of_the_opener(how: dict[str, Any]) -> None:
    opener = how["openers"][0]
    text = f"Ünïcode 🙂 {opener}\n".encode()
    assert first_opened(cut(text, range(len(text))), **how) == (len(text) - 1, opener.encode())


WAYS: list[dict[str, Any]] = [
    CALL,
    LIST,
    {**CALL, "think": THINK},
    {**LIST, "think": THINK},
    {**CALL, "think": THINK, "thinking": True},
    {**LIST, "think": THINK, "thinking": True},
    {"think": THINK, "thinking": True},
]
PIECES = [
    "<tool_call>",
    "<|python_tag|>",
    "[CALL",
    '{"name"',
    "[get(",
    "<think>",
    "</think>",
    "\n",
    " ",
    "x",
    "<",
    "</",
    "é",
    "🙂",
    "<tool_",
    "<think",
]


@given(
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.lists(st.integers(0, 80), max_size=20),
    st.sampled_from(WAYS),
)
@example('</think>\n{"name"', [], {**LIST, "think": THINK, "thinking": True})
@example('<think>x</think> {"name"', [9], {**LIST, "think": THINK})
@example("<think>x</think><think></think><tool_call>", [], {**CALL, "think": THINK})
@settings(max_examples=600, deadline=None)
def test_where_it_triggers_does_not_depend_on_how_the_text_is_cut(
    text: str, places: list[int], how: dict[str, Any]
) -> None:
    pieces = cut(text.encode(), places)
    assert first_opened(pieces, **how) == expected(pieces, **how)


@pytest.mark.parametrize("how", WAYS)
@given(text=st.lists(st.sampled_from(PIECES), max_size=8).map("".join), places=st.lists(st.integers(0, 80)))
@settings(max_examples=60, deadline=None)
def test_looking_at_drafts_changes_nothing(how: dict[str, Any], text: str, places: list[int]) -> None:
    pieces = cut(text.encode(), places)
    table = ByteTable(enumerate(pieces))
    for start in range(len(pieces)):
        trigger, plain = Trigger(table, **how), Trigger(table, **how)
        for token in range(start):
            if trigger.push(token) is not None:
                return
            plain.push(token)
        drafts = range(start, len(pieces))
        until = next((n for n, token in enumerate(drafts) if plain.push(token) is not None), len(drafts))
        assert trigger.before(drafts) == until
        assert trigger.before(drafts) == until


def test_an_opener_within_the_thinking_is_a_thought() -> None:
    pieces = [b"<think>", b"I could <tool_call>", b"\n</th", b"ink>", b"Hm. <tool", b"_call>\n"]
    assert first_opened(pieces, **CALL, think=THINK) == (6, b"<tool_call>\n")


def test_without_openers_the_end_of_the_thinking_triggers_with_what_came_behind_it() -> None:
    assert first_opened([b"so", b" be it</thi", b"nk>\n\n"], think=THINK, thinking=True) == (3, b"\n\n")
    assert first_opened([b"so", b"</think>"], think=THINK, thinking=True) == (2, b"")


def test_a_start_counts_at_the_beginning_alone() -> None:
    assert first_opened([b" ", b'{"na', b'me": '], **LIST) == (3, b'{"name": ')
    assert first_opened([b"So: ", b'{"na', b'me": '], **LIST) is None


def test_an_id_without_a_token_is_nothing() -> None:
    trigger = Trigger(ByteTable({1: b"<tool_", 2: b"call>"}), openers=("<tool_call>",))
    assert [trigger.push(token) for token in (1, 99, 2)] == [None, None, b"<tool_call>"]
