"""What the scheduler and a backend exchange: frozen plans one way, frozen results the other."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tokenspeed.core.constraint import Constraint
from tokenspeed.core.request import Sampling, TokenLogprob, Vector


class Held(NamedTuple):
    """What a draw is held to, behind so many tokens of its answer."""

    constraint: Constraint
    behind: int


class Draw(NamedTuple):
    """That a row samples, and with what: the draw depends on (`sampling`, `seed`, `position`) alone.

    `prompt` and `generated` are the tokens that penalties look at, given only where
    `sampling.penalised`; `generated` ends with the row's last token.
    """

    sampling: Sampling
    seed: int
    position: int  # index that the sampled token will have in its sequence
    prompt: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    banned: tuple[int, ...] = ()  # tokens that must not be drawn here (stop ids before `min_tokens`)
    held: Held | None = None  # says what may be drawn here and after drafts, where a grammar does


class Row(NamedTuple):
    """One sequence's part of a step: compute `tokens` at positions `start`.., then maybe sample.

    `source` >= 0: the row has one token, which row `source` of the plan before this one samples; it is not
    on the host yet, and `tokens` holds a single placeholder 0. `drafts` ride behind `tokens` and are
    verified, all of them scored by the same draw. `blocks` is the block table; it covers every position up
    to and including the drafts, and is the same object from step to step until it grows. `score` asks for
    the log-probabilities of the tokens that follow each of `tokens` in the prompt (`targets`).

    The backend's draft model has computed the sequence up to position `caught`, in the same blocks of a pool
    of its own, and computes the tokens `behind` from there on, none of them at `start` or later. `guess` > 0:
    `behind` ends at `start`, and then it finds that many drafts itself, after the row's one token, which is
    on the host. With `guess` = 0 it only catches up, and `caught` matters only where there is a `behind`.

    `pooled` asks for the sum of the hidden states, after the final norm, of so many of its last `tokens`.
    """

    sequence: int
    start: int
    tokens: tuple[int, ...]
    blocks: tuple[int, ...]
    draw: Draw | None
    drafts: tuple[int, ...] = ()
    source: int = -1
    targets: tuple[int, ...] = ()
    score: int = 0  # alternatives wanted for each target
    guess: int = 0
    behind: tuple[int, ...] = ()
    caught: int = 0
    pooled: int = 0


class StepPlan(NamedTuple):
    """One step: rows of distinct sequences, in an order that the result repeats; `seconds` are predicted.

    `verifies`: some rows carry drafts, or guess them.
    """

    number: int
    rows: tuple[Row, ...]
    seconds: float = 0.0
    verifies: bool = False

    @property
    def prefills(self) -> bool:
        """Whether some row computes more than one token."""
        return any(len(row.tokens) > 1 for row in self.rows)


class RowResult(NamedTuple):
    """What one row gave: nothing, or 1..drafts+1 sampled tokens, with log-probabilities where asked.

    `guessed` are the drafts that the draft model found where it was asked to; fewer where it could not.
    `pooled` is the sum of hidden states where some were to be.
    `error` ends this row's sequence alone (its logits were not finite, say).
    """

    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    scored: tuple[TokenLogprob, ...] = ()
    error: str | None = None
    guessed: tuple[int, ...] = ()
    pooled: Vector | None = None


NOTHING = RowResult()


class StepResult(NamedTuple):
    """One `RowResult` for each row of the plan. `seconds` is the time that the device took.

    For `idle` seconds it had nothing to do since the end of the step before, for whatever reason.
    """

    rows: tuple[RowResult, ...]
    seconds: float
    idle: float = 0.0


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a backend holds: `blocks` of `block_size` tokens, and the longest sequence it can address."""

    blocks: int
    block_size: int
    max_context: int


class Backend(Protocol):
    """The only seam to the CPU, the GPU and the simulator. Steps run in the order of submission."""

    @property
    def capacity(self) -> Capacity: ...

    def submit(self, plan: StepPlan) -> Awaitable[StepResult]:
        """Enqueue a step without blocking. The awaitable raises if the whole step failed."""
        ...

    async def close(self) -> None:
        """Stop the device; steps in flight end first."""
        ...
