"""One running continuation of a request."""

from __future__ import annotations

from tokenspeed.core.prefix import ROOT
from tokenspeed.core.prospects import Prospects
from tokenspeed.core.request import Pooling, Request, TokenLogprob, Vector


class Sequence:
    """Choice `choice` of `request`: what is known, what is computed, and the blocks that hold it.

    A step lets `computed` catch up with `len(tokens)`; there is no other state. `planned` runs ahead of
    `computed` by what is in flight, and `in_flight` counts the tokens that in-flight steps will sample. So
    many tokens the draft model has `caught` up with, the steps in flight included.
    A result that was planned in another `epoch` is of a past life (before a preemption or the end).
    """

    __slots__ = (
        "blocks",
        "cached",
        "caught",
        "choice",
        "computed",
        "constraint",
        "due",
        "epoch",
        "foretold",
        "id",
        "in_flight",
        "leader",
        "left",
        "limit",
        "node",
        "penalised",
        "planned",
        "pooling",
        "prompt_length",
        "prospects",
        "published",
        "request",
        "row",
        "scores",
        "scoring",
        "seed",
        "siblings",
        "speculates",
        "started",
        "summed",
        "table",
        "tokens",
        "urgency",
    )

    def __init__(self, number: int, request: Request, choice: int, due: float) -> None:
        self.id = number
        self.request = request
        self.choice = choice
        self.due = due
        self.penalised = request.sampling.penalised
        self.seed = request.sampling.seed + choice
        self.constraint = None if request.constraint is None else request.constraint()
        self.tokens = list(request.prompt)
        self.prompt_length = len(request.prompt)
        self.limit = self.prompt_length + request.max_tokens  # most tokens it may have
        self.left = 0  # tokens to prefill, when it was last ranked
        self.urgency: tuple[float, ...] = ()
        self.leader: Sequence | None = None  # the choice that computes the prompt for this one
        self.siblings: list[Sequence] = []  # choices that wait for this one to compute their prompt
        self.scores: list[TokenLogprob] | None = None  # of the prompt, once they are all known
        # How its prompt is pooled, until its vector is told; the first choice does so for all.
        self.pooling: Pooling | None = request.pooling if choice == 0 else None
        self.started = 0.0  # when it first left the queue
        self.cached = 0  # prompt tokens found computed when it first started
        self.epoch = 0
        self.row = -1  # its row in the plan that samples its token in flight
        self.speculates = request.speculation
        self.prospects: Prospects | None = None  # of drafts, once it has a token of its own
        self.foretold = 0  # how much speaks for drafts that were looked up; 0: there are none
        self.forget()

    def forget(self) -> None:
        """Back to nothing computed; results in flight are of a past life."""
        self.epoch += 1
        self.computed = 0
        self.planned = 0
        self.caught = 0
        self.in_flight = 0
        self.blocks: list[int] = []
        self.table: tuple[int, ...] = ()
        self.published = 0  # of its blocks, how many others may find
        self.node = ROOT
        self.scoring: list[TokenLogprob] = []  # log-probabilities of the prompt so far
        self.summed: Vector | None = None  # of the prompt's hidden states, what is pooled so far

    def recall(self) -> None:
        """What is in flight was drawn from more than may follow: as if it had not been planned."""
        self.epoch += 1
        self.planned = self.computed
        self.in_flight = 0

    @property
    def held(self) -> bool:
        """Whether its next draw is from less than the whole vocabulary."""
        return self.constraint is not None and self.constraint.active

    @property
    def pending(self) -> int:
        """Tokens, known or in flight, that no planned step computes: one is decode, more is prefill."""
        return len(self.tokens) + self.in_flight - self.planned

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def wants_scores(self) -> bool:
        """Whether the log-probabilities of the prompt are still to be computed, by this choice."""
        return self.request.prompt_logprobs is not None and self.scores is None and self.choice == 0
