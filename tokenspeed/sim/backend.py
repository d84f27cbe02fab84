"""A device that is simulated down to its memory: wrong bookkeeping of blocks gives wrong tokens.

Its model is a hash. Each slot of the pool holds a mix of a token and its position; a row's next token is a
hash over all slots that its block table leads to, and so is the hidden state after each of its tokens.
Whoever reads a slot that was never written, was overwritten, or belongs to somebody else therefore has
something else than `continuation` or `embedding`, which compute the same from the tokens alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from tokenspeed.core.costs import Costs, Work
from tokenspeed.core.plan import NOTHING, Capacity, Draw, Row, RowResult, StepPlan, StepResult
from tokenspeed.core.request import Pooling, Sampling, TokenLogprob, Vector
from tokenspeed.errors import EngineError

_ODD = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)
_SHIFT = np.uint64(31)
_EMPTY = np.uint64(0)
Hashes = NDArray[np.uint64]
Allowed = NDArray[np.intp] | None
HIDDEN = 8  # elements of a hidden state: the bytes of a hash
LOST = "the draft model has not computed the sequence up to where the row says"


def _mix(values: Hashes) -> Hashes:
    values = (values ^ (values >> _SHIFT)) * _MIX
    return values ^ (values >> _SHIFT)


def _slot_values(tokens: NDArray[np.int64], start: int) -> Hashes:
    """What the pool holds of tokens at positions `start`..; never `_EMPTY`."""
    positions = np.arange(start, start + len(tokens), dtype=np.uint64)
    return _mix((tokens.astype(np.uint64) + np.uint64(1)) * _ODD + positions) | np.uint64(1)


def _weighted(context: Hashes) -> Hashes:
    weights = np.arange(1, 2 * len(context), 2, dtype=np.uint64)
    return np.multiply(context, weights, dtype=np.uint64)


def _summed(context: Hashes, count: int) -> Vector:
    """The sum of the hidden states after the last `count` slots, each a hash over those before it as well."""
    states = _mix(np.cumsum(_weighted(context), dtype=np.uint64))[len(context) - count :]
    elements = states.view(np.int8).reshape(-1, HIDDEN)
    pooled: Vector = elements.sum(axis=0, dtype=np.float64)
    return pooled


def embedding(prompt: tuple[int, ...], pooling: Pooling) -> Vector:
    """The vector that the simulated model gives for `prompt`, computed without any cache."""
    count = len(prompt) if pooling == "mean" else 1
    return _summed(_slot_values(np.array(prompt, np.int64), 0), count) / count


def _sampled(
    context: Hashes,
    sampling: Sampling,
    seed: int,
    vocabulary: int,
    banned: tuple[int, ...],
    allowed: Allowed = None,
) -> int:
    state = int(_mix(np.array([_weighted(context).sum(dtype=np.uint64)], np.uint64))[0])
    if sampling.temperature > 0:
        state = hash((state, seed))
    if allowed is not None:
        return int(allowed[state % len(allowed)]) if len(allowed) else 0
    token = state % vocabulary
    while token in banned:
        token = (token + 1) % vocabulary
    return token


def continuation(
    prompt: tuple[int, ...], count: int, vocabulary: int, sampling: Sampling | None = None
) -> list[int]:
    """The `count` tokens that the simulated model gives after `prompt`, computed without any cache."""
    sampling = sampling or Sampling(temperature=0.0)
    tokens = list(prompt)
    for _ in range(count):
        context = _slot_values(np.array(tokens, np.int64), 0)
        tokens.append(_sampled(context, sampling, sampling.seed, vocabulary, ()))
    return tokens[len(prompt) :]


# A step of 5 ms, and half a millisecond for each token, decoded or prefilled.
EVEN = Costs(base=0.005, row=0.0005, token=0.0005, attended=0.0, read=0.0)


POSITIONS = 1 << 32  # tokens kept for each seed


def token(seed: int, position: int) -> int:
    """What stands for the token that is drawn with `seed` at `position`; no other draw gives it."""
    return seed * POSITIONS + position


class SimBackend:
    """A `Backend` on the clock of the running loop; the steps that `fails` picks fail as a whole.

    A step takes what `costs` say. Its draft model is `guesses`: of a row that asks for drafts, and the ones
    that would hold, it makes drafts; its memory is checked as well. With `says` only time is simulated:
    nothing is hashed or checked, a row's token is what `says` makes of its draw, and `plans` stays empty, so
    that contexts of tens of thousands of tokens and hours of traffic fit.
    """

    def __init__(
        self,
        capacity: Capacity,
        *,
        vocabulary: int = 1000,
        costs: Costs = EVEN,
        says: Callable[[Draw], int] | None = None,
        guesses: Callable[[Row, tuple[int, ...]], tuple[int, ...]] = lambda row, right: (),
        fails: Callable[[StepPlan], bool] = lambda plan: False,
    ) -> None:
        self._capacity = capacity
        self._vocabulary = vocabulary
        self._costs = costs
        self._says = says
        self._fails = fails
        self._pool = np.zeros(capacity.blocks * capacity.block_size if says is None else 0, np.uint64)
        self._draft_pool = self._pool.copy()
        self._guesses = guesses
        self._free_at = 0.0
        self._last: list[int] = []
        self.plans: list[StepPlan] = []

    @property
    def capacity(self) -> Capacity:
        return self._capacity

    def submit(self, plan: StepPlan) -> asyncio.Future[StepResult]:
        loop = asyncio.get_running_loop()
        if self._says is None:
            self.plans.append(plan)
        seconds = self._costs.seconds(Work.of(plan.rows))
        self._free_at = max(self._free_at, loop.time()) + seconds
        future: asyncio.Future[StepResult] = loop.create_future()
        loop.call_at(self._free_at, self._finish, plan, seconds, future)
        return future

    async def close(self) -> None:
        """Nothing to stop: steps in flight end with the loop."""

    def _finish(self, plan: StepPlan, seconds: float, future: asyncio.Future[StepResult]) -> None:
        if future.done():
            return
        if self._fails(plan):
            self._last = [0] * len(plan.rows)
            future.set_exception(EngineError("the simulated device failed"))
            return
        if self._says is not None:
            says = self._says
            future.set_result(StepResult(tuple([_said(row, says) for row in plan.rows]), seconds))
            return
        self._check_writes(plan)
        lost = [not self._caught_up(row) for row in plan.rows]
        guessed = [self._guess(row) for row in plan.rows]
        rows = [
            row._replace(drafts=drafts) if row.guess else row
            for row, drafts in zip(plan.rows, guessed, strict=True)
        ]
        inputs = [self._write(row) for row in rows]  # all rows write before any attends, as on a device
        results = tuple(
            RowResult(error=LOST) if astray else self._row(row, tokens)._replace(guessed=drafts)
            for row, tokens, drafts, astray in zip(rows, inputs, guessed, lost, strict=True)
        )
        self._last = [result.tokens[0] if result.tokens else 0 for result in results]
        future.set_result(StepResult(results, seconds))

    def _check_writes(self, plan: StepPlan) -> None:
        """Rows run in any order, or at once: no two may write the same block."""
        size = self._capacity.block_size
        written: set[int] = set()
        for row in plan.rows:
            reached = row.caught + len(row.behind)
            if reached > row.start or (row.guess and reached < row.start):
                raise RuntimeError(f"step {plan.number}: the draft model is to catch up beyond its row")
            stop = row.start + len(row.tokens) + len(row.drafts) + row.guess
            if stop > len(row.blocks) * size:
                raise RuntimeError(f"step {plan.number}: a row's blocks do not cover its drafts")
            blocks = row.blocks[row.start // size : -(-stop // size)]
            if not written.isdisjoint(blocks):
                raise RuntimeError(f"step {plan.number}: two rows write the same block")
            written.update(blocks)

    def _slots(self, row: Row, start: int, stop: int) -> NDArray[np.int64]:
        size = self._capacity.block_size
        positions = np.arange(start, stop)
        return np.array(row.blocks, np.int64)[positions // size] * size + positions % size

    def _write(self, row: Row) -> tuple[int, ...]:
        tokens = row.tokens if row.source < 0 else (self._last[row.source],)
        written = np.array(tokens + row.drafts, np.int64)
        stop = row.start + len(written)
        self._pool[self._slots(row, row.start, stop)] = _slot_values(written, row.start)
        return tokens

    def _caught_up(self, row: Row) -> bool:
        """Let the draft model compute what the row says it lacks; whether it then has all of the sequence up
        to there, and nothing else."""
        if not (row.guess or row.behind):
            return True
        reached = row.caught + len(row.behind)
        behind = np.array(row.behind, np.int64)
        self._draft_pool[self._slots(row, row.caught, reached)] = _slot_values(behind, row.caught)
        before = self._slots(row, 0, reached)
        return np.array_equal(self._draft_pool[before], self._pool[before])

    def _guess(self, row: Row) -> tuple[int, ...]:
        """What the draft model makes of a row that asks it, which it has caught up with."""
        if not row.guess or row.draw is None:
            return ()
        token = np.array(row.tokens, np.int64)
        self._draft_pool[self._slots(row, row.start, row.start + 1)] = _slot_values(token, row.start)
        context, right = self._pool[self._slots(row, 0, row.start)], list(row.tokens)
        for ahead in range(row.guess):
            token = np.array([right[-1]], np.int64)
            context = np.append(context, _slot_values(token, row.start + ahead))
            right.append(self._draw(context, row.draw))
        drafts = self._guesses(row, tuple(right[1:]))[: row.guess]
        computed = np.array(drafts[:-1], np.int64)
        at = self._slots(row, row.start + 1, row.start + 1 + len(computed))
        self._draft_pool[at] = _slot_values(computed, row.start + 1)
        return drafts

    def _row(self, row: Row, tokens: tuple[int, ...]) -> RowResult:
        fault, allowed = self._allowed(row, tokens)
        if fault is not None:
            return RowResult(error=fault)
        if row.drafts and row.draw is not None:
            return self._verified(row, row.draw, allowed)
        stop = row.start + len(tokens)
        context = self._pool[self._slots(row, 0, stop)]
        if (context == _EMPTY).any():
            return RowResult(error="the row attends a slot that was never written")
        scored = tuple(TokenLogprob(target, -1.0) for target in row.targets)
        pooled = _summed(context, row.pooled) if row.pooled else None
        if row.draw is None:
            return RowResult(scored=scored, pooled=pooled)
        token = self._draw(context, row.draw, allowed[0])
        logprobs = None if row.draw.sampling.logprobs is None else (TokenLogprob(token, -1.0),)
        return RowResult((token,), logprobs, scored, pooled=pooled)

    def _verified(self, row: Row, draw: Draw, allowed: list[Allowed]) -> RowResult:
        """The drafts that hold, and the token after them."""
        context = self._pool[self._slots(row, 0, row.start + 1 + len(row.drafts))]
        if (context == _EMPTY).any():
            return RowResult(error="the row attends a slot that was never written")
        tokens: list[int] = []
        for ahead, draft in enumerate((*row.drafts, None)):
            tokens.append(self._draw(context[: row.start + 1 + ahead], draw, allowed[ahead]))
            if tokens[-1] != draft:
                break
        asked = draw.sampling.logprobs is not None
        logprobs = tuple(TokenLogprob(token, -1.0) for token in tokens) if asked else None
        return RowResult(tuple(tokens), logprobs)

    def _draw(self, context: Hashes, draw: Draw, allowed: Allowed = None) -> int:
        return _sampled(context, draw.sampling, draw.seed, self._vocabulary, draw.banned, allowed)

    def _allowed(self, row: Row, tokens: tuple[int, ...]) -> tuple[str | None, list[Allowed]]:
        """The tokens that a grammar allows after the row's own and after each of its drafts, or its fault."""
        held = None if row.draw is None else row.draw.held
        if held is None:
            return None, [None] * (1 + len(row.drafts))
        masks = np.zeros((1 + len(row.drafts), -(-self._vocabulary // 32)), np.int32)
        fault = held.constraint.fill(masks, held.behind, tokens[-1], row.drafts)
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, : self._vocabulary]
        return fault, list(map(np.flatnonzero, bits))


def _said(row: Row, says: Callable[[Draw], int]) -> RowResult:
    """What a row gives where only time is simulated."""
    draw = row.draw
    if row.pooled:
        return RowResult(() if draw is None else (says(draw),), pooled=np.zeros(HIDDEN))
    if draw is not None and not row.targets and draw.sampling.logprobs is None:
        return RowResult((says(draw),))
    scored = tuple(TokenLogprob(target, -1.0) for target in row.targets)
    if draw is None:
        return RowResult(scored=scored) if scored else NOTHING
    drawn = says(draw)
    logprobs = None if draw.sampling.logprobs is None else (TokenLogprob(drawn, -1.0),)
    return RowResult((drawn,), logprobs, scored)
