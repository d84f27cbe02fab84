"""Answers that a grammar holds: the same whatever runs beside them, and never a token that it forbids."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.test_engine import VOCABULARY, Server, finishes, request, tokens_of
from tokenspeed.core.constraint import Masks
from tokenspeed.core.lookup import Lookup
from tokenspeed.core.plan import Row
from tokenspeed.core.request import FinishReason, Request, Sampling
from tokenspeed.core.speculation import Speculation, SpeculationOptions
from tokenspeed.sim.clock import run


class Stride:
    """Behind a token only those may follow that differ from it by a multiple of `step`. It begins to hold
    behind a multiple of `opener`; 1 is from the first token on."""

    def __init__(self, step: int, opener: int = 1) -> None:
        self._step, self._opener = step, opener
        self._tokens: list[int] = []
        self.active = opener == 1

    def take(self, tokens: Sequence[int]) -> int:
        for index, token in enumerate(tokens):
            if self.active:
                self._check(token)
            self._tokens.append(token)
            if not self.active and token % self._opener == 0:
                self.active = True
                return index + 1
        return len(tokens)

    def fitting(self, drafts: Sequence[int]) -> int:
        if not self.active:
            return next((at for at, token in enumerate(drafts) if token % self._opener == 0), len(drafts))
        known = [self._tokens[-1] if self._tokens else 0, *drafts]
        pairs = zip(known, drafts, strict=False)
        return next((at for at, (a, b) in enumerate(pairs) if (b - a) % self._step), len(drafts))

    def fill(self, masks: Masks, count: int, last: int, drafts: Sequence[int]) -> str | None:
        assert self.active
        assert count in (len(self._tokens), len(self._tokens) + 1)
        if count == len(self._tokens) and count:
            assert last == self._tokens[-1]
        for row, token in zip(masks, (last if count else 0, *drafts), strict=True):
            bits = np.zeros(32 * len(row), np.uint8)
            bits[token % self._step : VOCABULARY : self._step] = 1
            row[:] = np.packbits(bits, bitorder="little").view(np.int32)
        return None

    def _check(self, token: int) -> None:
        last = self._tokens[-1] if self._tokens else 0
        assert (token - last) % self._step == 0, "a forbidden token was taken"


def fits(tokens: Sequence[int], step: int, opener: int) -> bool:
    """Whether the answer keeps to the grammar from where it holds on."""
    held = (
        0 if opener == 1 else next((i for i, token in enumerate(tokens) if token % opener == 0), len(tokens))
    )
    known = [0, *tokens] if opener == 1 else list(tokens[held:])
    return all((b - a) % step == 0 for a, b in pairwise(known))


def answers(work: Sequence[Request], **options: Any) -> list[list[list[int]]]:
    """By request and choice; every choice ends once."""

    async def main() -> list[list[list[int]]]:
        async with Server(**options) as server:
            told = await asyncio.gather(*map(server.events, work))
        found = []
        for made, events in zip(work, told, strict=True):
            assert sorted(each.choice for each in finishes(events)) == list(range(made.n))
            assert all(each.reason is FinishReason.LENGTH for each in finishes(events))
            found.append([tokens_of(events, choice) for choice in range(made.n)])
        return found

    return run(main())


@st.composite
def workloads(draw: st.DrawFn) -> list[tuple[Request, tuple[int, int] | None]]:
    """Requests, and the step and the opener of what holds each; None: nothing does."""
    made = []
    for number in range(draw(st.integers(1, 8))):
        grammar = draw(st.none() | st.tuples(st.integers(2, 9), st.sampled_from([1, 1, 2, 5])))
        make: Callable[[], Stride] | None = None
        if grammar is not None:
            make = lambda grammar=grammar: Stride(*grammar)  # noqa: E731
        asked = request(
            f"r{number}",
            draw(st.lists(st.integers(0, 5), min_size=1, max_size=20)),
            draw(st.integers(1, 24)),
            n=draw(st.integers(1, 2)),
            sampling=draw(st.sampled_from([Sampling(temperature=0.0), Sampling(seed=7)])),
            constraint=make,
        )
        made.append((asked, grammar))
    return made


def right(row: Row, tokens: tuple[int, ...]) -> tuple[int, ...]:
    return tokens


def mostly(row: Row, tokens: tuple[int, ...]) -> tuple[int, ...]:
    """Wrong from the third draft on, in a way that a grammar may forbid."""
    return tuple(token if at < 2 else (token + 1) % VOCABULARY for at, token in enumerate(tokens))


def drafting(kind: str) -> dict[str, Any]:
    if kind == "off":
        return {}
    if kind == "lookup":
        options = SpeculationOptions(drafter="ngram", control="always")
        return {"speculation": Speculation(options, look_up=Lookup)}
    options = SpeculationOptions(drafter="model", control="always")
    return {
        "speculation": Speculation(options, guesses=True),
        "guesses": right if kind == "guesses" else mostly,
    }


@settings(max_examples=120, deadline=None)
@given(
    workloads(),
    st.integers(24, 80),
    st.sampled_from([16, 64]),
    st.integers(0, 1),
    st.sampled_from(["off", "lookup", "guesses", "wrong guesses"]),
)
def test_an_answer_that_is_held_is_the_same_whatever_runs_beside_it(
    work: list[tuple[Request, tuple[int, int] | None]], blocks: int, step_tokens: int, ahead: int, drafts: str
) -> None:
    """Batched, chunked, preempted, ahead of its tokens or behind drafts."""
    alone = [answers([made], run_ahead=0, blocks=80)[0] for made, _ in work]
    together = answers(
        [made for made, _ in work],
        blocks=blocks,
        step_tokens=step_tokens,
        run_ahead=ahead,
        **drafting(drafts),
    )
    assert together == alone
    for found, (_, grammar) in zip(together, work, strict=True):
        assert grammar is None or all(fits(tokens, *grammar) for tokens in found)


@pytest.mark.parametrize("opener", [1, 3])
def test_rows_that_are_held_run_ahead(opener: int) -> None:
    """A step for each token, and one more where the grammar began to hold amid the answer."""

    async def main() -> int:
        async with Server(run_ahead=1) as server:
            made = request("r", (1, 2, 3), 20, constraint=lambda: Stride(4, opener))
            tokens = await server.tokens(made)
            assert len(tokens) == 20
            assert fits(tokens, 4, opener)
            return len(server.backend.plans)

    assert run(main()) == 20 + (opener > 1)


def test_what_was_drawn_too_early_is_never_shown() -> None:
    """The step behind the opener was planned before anybody knew that it is one."""
    made = request("r", (4, 4), 24, constraint=lambda: Stride(5, 2))
    ahead, behind = (answers([made], run_ahead=depth)[0][0] for depth in (1, 0))
    assert ahead == behind
    assert fits(ahead, 5, 2)
