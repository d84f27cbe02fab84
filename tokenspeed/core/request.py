"""What a client asked for, parsed and frozen, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenspeed.core.constraint import Constraint

# Which hidden states after the final norm stand for a prompt: that of its last token, or the mean of all.
Pooling = Literal["last", "mean"]
Vector = NDArray[np.float64]  # [hidden]; sums of float32, so that chunks add up to what one step gives


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from the logits.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1 and `min_p` 0 switch their filter off. The penalties
    follow OpenAI (presence, frequency: over generated tokens, subtracted from the logits) and CTRL
    (repetition: over prompt and generated tokens, 1 is off). `logprobs` is how many alternatives to report
    beside each sampled token; None reports nothing, 0 only the sampled token. A draw depends on `seed` and
    the position alone, so a request repeats whatever runs beside it.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None

    @property
    def penalised(self) -> bool:
        """Whether a draw needs to know the tokens before it."""
        return self.presence_penalty != 0.0 or self.frequency_penalty != 0.0 or self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and the `n` choices that continue it.

    `stop_ids` end a choice when sampled; before `min_tokens` they cannot be. `priority` orders classes: lower
    runs first. `account` is whose fair share and caps it counts against. `arrival` and `deadline` are in
    seconds of the engine's clock; by the deadline its first token is wanted, or it is refused at once.
    `prompt_logprobs` asks for the log-probabilities of the prompt's own tokens with that many alternatives
    (None: not wanted). Choice i draws with `sampling.seed + i`. Without `speculation` it carries no drafts,
    which changes nothing but the time that it takes. `pooling` asks for the prompt's vector; that is all it
    gives if `max_tokens` is 0.
    Each choice is held to a `constraint` of its own.
    """

    id: str
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    priority: int = 0
    account: str = ""
    arrival: float = 0.0
    deadline: float | None = None
    prompt_logprobs: int | None = None
    speculation: bool = True
    constraint: Callable[[], Constraint] | None = None
    pooling: Pooling | None = None


class TokenLogprob(NamedTuple):
    """The log-probability of one token, and the `top` alternatives (id, log-probability), best first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class FinishReason(StrEnum):
    STOP = "stop"  # a stop id was sampled
    LENGTH = "length"  # max_tokens, or the end of the context
    CANCELLED = "cancelled"  # by the client, or by generation once a stop string is seen
    ERROR = "error"  # the step failed, or the logits were not finite


class TokenDelta(NamedTuple):
    """New tokens of one choice, the first `held` of which were drafts. A stop id that ended the choice is not
    among them."""

    choice: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None = None
    held: int = 0


class PromptScored(NamedTuple):
    """The log-probabilities of prompt tokens 1.. (the first has none), sent once before the first delta."""

    logprobs: tuple[TokenLogprob, ...]


class Pooled(NamedTuple):
    """The prompt's hidden states, pooled as its request asks; sent once, when all of it is computed."""

    vector: Vector


class Finished(NamedTuple):
    """The one last event of a choice. `cached_tokens` of the prompt were not computed again."""

    choice: int
    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    stop_id: int | None = None
    error: str | None = None


Event = TokenDelta | PromptScored | Pooled | Finished
