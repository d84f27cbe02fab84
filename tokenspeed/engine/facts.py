"""What is noted about a request while it lives, in constant time, until someone asks for its timeline."""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

from tokenspeed.core import sequence as core
from tokenspeed.core.request import Request
from tokenspeed.engine.causes import Prefills

GAPS = 4  # the longest ones are told
CHUNKS = 128  # of a request that are told: half of them the first, half the last


class Pause(NamedTuple):
    """A gap as it is noted; `step` is the last one before its end that prefilled."""

    seconds: float
    ended: float
    choice: int
    step: Prefills | None


class Piece(NamedTuple):
    """A chunk as it is noted."""

    step: Prefills
    choice: int
    start: int
    tokens: int
    seconds: float


class Record:
    """The facts about one request. Nothing here refers to its tokens, so that a finished one is small."""

    __slots__ = (
        "account",
        "arrival",
        "arrived",
        "cached",
        "completion",
        "drafted",
        "ended",
        "error",
        "first",
        "first_token",
        "held",
        "id",
        "left_out",
        "open",
        "own",
        "pauses",
        "pieces",
        "predicted",
        "preemptions",
        "priority",
        "prompt",
        "reason",
        "sequences",
        "started",
        "stop",
        "submitted",
    )

    def __init__(
        self, request: Request, predicted: float, submitted: float, arrived: float, first: int
    ) -> None:
        self.id = request.id
        self.account = request.account
        self.priority = request.priority
        self.prompt = len(request.prompt)
        self.arrival = request.arrival
        self.arrived = arrived  # since the epoch
        self.submitted = submitted
        self.predicted = predicted  # from the arrival
        self.open = request.n  # choices that have not ended
        self.sequences: list[core.Sequence] = []  # of choices that were seen and have not ended
        self.first = first  # of the log's steps, the first that it waited for
        self.stop: int | None = None  # and the one after the last
        self.started: float | None = None
        self.first_token: float | None = None
        self.ended: float | None = None
        self.cached = 0
        self.completion = 0
        self.drafted = 0  # drafts that were verified for it
        self.held = 0  # of those, became tokens
        self.preemptions = 0
        self.own = 0.0
        self.reason: str | None = None
        self.error: str | None = None
        self.pieces: list[Piece] = []
        self.left_out = 0
        self.pauses: list[Pause] = []  # the longest of the choices that have ended

    def see(self, sequence: core.Sequence) -> None:
        """A choice of it is in a step, or gave a token."""
        if self.started is None:
            self.started = sequence.started
            self.cached = sequence.cached
        if sequence not in self.sequences:
            self.sequences.append(sequence)

    @property
    def reached(self) -> int:
        """Up to which token its latest chunk came."""
        return self.pieces[-1].start + self.pieces[-1].tokens if self.pieces else self.cached

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if len(self.pieces) > CHUNKS:
            del self.pieces[CHUNKS // 2]
            self.left_out += 1
        if self.first_token is None:
            self.own += piece.seconds


class Progress:
    """Of a choice that decodes: its latest token, and its longest gaps."""

    __slots__ = ("latest", "least", "pauses")

    def __init__(self, now: float) -> None:
        self.latest = now
        self.least = 0.0  # seconds; a shorter gap is not noted
        self.pauses: list[Pause] = []  # the shortest first

    def note(self, pause: Pause) -> None:
        pauses = self.pauses
        insort(pauses, pause)
        if len(pauses) > GAPS:
            del pauses[0]
            self.least = pauses[0].seconds


def preemptions(sequence: core.Sequence, *, ended: bool) -> int:
    """How often it lost its blocks: each time, and its end, began another epoch."""
    return sequence.epoch - (2 if ended else 1)
