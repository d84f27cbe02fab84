"""Why a request was slow: what it waited for, who ran instead, what held its tokens up.

While a request lives only facts are noted, in constant time for each token and each chunk: a reference to the
step, never a walk over who else waits. The story is put together when somebody asks for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenspeed.core import sequence as core
from tokenspeed.core.plan import StepPlan
from tokenspeed.core.request import Finished, Request, TokenDelta
from tokenspeed.core.taking import Happening
from tokenspeed.engine.causes import (
    HIDDEN,
    Others,
    Part,
    PrefillLog,
    Prefills,
    milliseconds,
    others,
    prefilling,
)
from tokenspeed.engine.facts import GAPS, Pause, Piece, Progress, Record, preemptions
from tokenspeed.engine.observer import Step
from tokenspeed.errors import RequestError

LOGGED = 65_536  # parts of steps that are remembered to tell who ran instead


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of the prompt, or of what was lost to a preemption, that one step computed.

    Times are in seconds since the arrival; `seconds` is its part of the step, `beside` who prefilled in the
    same step.
    """

    step: int
    choice: int
    began: float
    ended: float
    start: int  # position of its first token
    tokens: int
    seconds: float
    beside: Others


@dataclass(frozen=True, slots=True)
class Gap:
    """A pause between two tokens of a choice, in seconds since the arrival, and who prefilled in it.

    `recomputed` are tokens of its own that were lost to a preemption and computed again meanwhile.
    """

    choice: int
    began: float
    ended: float
    recomputed: int
    prefills: Others

    @property
    def cause(self) -> str:
        if self.recomputed:
            return "preempted"
        return "prefill" if self.prefills.tokens else "decode"


@dataclass(frozen=True, slots=True)
class Timeline:
    """What happened to one request so far. Times are in seconds, `arrived` since the epoch, others as named.

    `waited_for` is what others prefilled between its submission and its first token (or the end, or now);
    `complete` is false where the wait began before what is remembered of that. Choices of the request count
    together.
    """

    id: str
    account: str
    priority: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    drafted_tokens: int  # drafts that were verified
    accepted_tokens: int  # of the answer, those that were drafts
    arrived: float
    predicted: float  # from arrival to the first token, as foretold at the submission
    queued: float | None  # from arrival to its first step
    first_token: float | None  # from arrival
    total: float  # from arrival to its end, or so far
    reason: str | None  # why it ended; None while it runs
    error: str | None
    preemptions: int
    own: float  # seconds of steps that its own prefill took until the first token
    waited_for: Others
    complete: bool
    chunks: tuple[Chunk, ...]
    chunks_left_out: int
    gaps: tuple[Gap, ...]  # the longest first

    def to_dict(self, account: str | None) -> dict[str, Any]:
        """As JSON, times in milliseconds, for a reader who may see the ids of `account`'s requests.

        None may see all; "" is an account as any other, that of requests without a key. In place of an id
        that may not be seen stands `HIDDEN`.
        """
        wait = self.total if self.first_token is None else self.first_token
        return {
            "id": self.id,
            "state": self.state,
            "why": self.why(account),
            "priority": self.priority,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": self.completion_tokens,
            "drafted_tokens": self.drafted_tokens,
            "accepted_tokens": self.accepted_tokens,
            "arrived": round(self.arrived, 3),
            "predicted_ttft_ms": milliseconds(self.predicted),
            "queued_ms": milliseconds(self.queued),
            "ttft_ms": milliseconds(self.first_token),
            "total_ms": milliseconds(self.total),
            "finish_reason": self.reason,
            "error": self.error,
            "preemptions": self.preemptions,
            "wait": {
                "ms": milliseconds(wait),
                "own_prefill_ms": milliseconds(self.own),
                "others_prefill_ms": milliseconds(self.waited_for.seconds),
                "rest_ms": milliseconds(max(0.0, wait - self.own - self.waited_for.seconds)),
                "complete": self.complete,
            },
            "ran_instead": self.waited_for.to_dict(account),
            "chunks": [_chunk_dict(chunk, account) for chunk in self.chunks],
            "chunks_left_out": self.chunks_left_out,
            "longest_gaps": [_gap_dict(gap, account) for gap in self.gaps],
        }

    @property
    def state(self) -> str:
        """What it does now, or the reason it ended for."""
        if self.reason is not None:
            return self.reason
        if self.queued is None:
            return "queued"
        return "prefilling" if self.first_token is None else "decoding"

    def why(self, account: str | None) -> str:
        """One sentence on the wait for the first token."""
        if self.first_token is None:
            said = f"no first token after {self.total * 1e3:.0f} ms"
        else:
            said = f"first token after {self.first_token * 1e3:.0f} ms"
        said += f": {self.own * 1e3:.0f} ms were its own prefill"
        others = self.waited_for
        if not others.named:
            return said + ", none that of others"
        most = others.named[0]
        name = most.request if account in (None, most.account) else HIDDEN
        return (
            f"{said}, {others.seconds * 1e3:.0f} ms that of others, "
            f"most of it {name} ({most.tokens} tokens, {most.seconds * 1e3:.0f} ms)"
        )


def _chunk_dict(chunk: Chunk, account: str | None) -> dict[str, Any]:
    return {
        "step": chunk.step,
        "choice": chunk.choice,
        "began_ms": milliseconds(chunk.began),
        "ended_ms": milliseconds(chunk.ended),
        "start": chunk.start,
        "tokens": chunk.tokens,
        "ms": milliseconds(chunk.seconds),
        "beside": chunk.beside.to_dict(account),
    }


def _gap_dict(gap: Gap, account: str | None) -> dict[str, Any]:
    return {
        "choice": gap.choice,
        "began_ms": milliseconds(gap.began),
        "ended_ms": milliseconds(gap.ended),
        "ms": milliseconds(gap.ended - gap.began),
        "cause": gap.cause,
        "recomputed_tokens": gap.recomputed,
        "prefills": gap.prefills.to_dict(account),
    }


class Timelines:
    """An observer that keeps the timelines of the requests that live and of the last `keep` that ended.

    `wall` gives seconds since the epoch, to tell when a request arrived.
    """

    def __init__(
        self, keep: int = 1024, *, logged: int = LOGGED, wall: Callable[[], float] = time.time
    ) -> None:
        self._keep = keep
        self._wall = wall
        self._log = PrefillLog(logged)
        self._prefills: Prefills | None = None  # the last step that prefilled
        self._latest: Step | None = None
        self._live: dict[str, Record] = {}
        self._ended: dict[str, Record] = {}  # the first ended first
        self._progress: dict[int, Progress] = {}  # by sequence, from its first token to its end
        self._now = 0.0

    def get(self, request_id: str) -> Timeline | None:
        """The timeline of a request, as of the last step; None if it is unknown or no longer kept."""
        record = self._live.get(request_id) or self._ended.get(request_id)
        return None if record is None else self._timeline(record)

    # -- told by the engine -------------------------------------------------------------------------

    def submitted(self, request: Request, predicted: float, now: float) -> None:
        self._now = now
        arrived = self._wall() - (now - request.arrival)
        self._live[request.id] = Record(request, predicted, now, arrived, self._log.next)

    def refused(self, request: Request, error: RequestError, now: float) -> None:
        """Its client was told why; there is nothing more to tell."""

    def stepped(self, step: Step) -> None:
        self._now = step.ended
        self._latest = step
        if step.plan.verifies:
            self._drafts(step)
        found = prefilling(step)
        if not found:
            return
        parts = tuple(
            [Part(s.request.id, s.request.account, len(row.tokens), seconds) for s, row, seconds in found]
        )
        logged = self._prefills = self._log.add(step.plan.number, step.began, step.ended, parts)
        for sequence, row, seconds in found:
            record = self._live.get(sequence.request.id)
            if record is not None and sequence.blocks:  # else it ended, or lost them, while the step ran
                record.see(sequence)
                record.add(Piece(logged, sequence.choice, row.start, len(row.tokens), seconds))

    def _drafts(self, step: Step) -> None:
        for sequence, row, given in zip(step.sequences, step.plan.rows, step.result.rows, strict=True):
            record = self._live.get(sequence.request.id)
            if record is not None and (row.drafts or row.guess):
                record.drafted += len(row.drafts) or len(given.guessed)
                record.held += max(0, len(given.tokens) - 1)

    def step_failed(self, plan: StepPlan, now: float) -> None:
        """Those who were in it are told to have ended, with its error."""

    def delivered(self, happenings: Sequence[Happening], now: float) -> None:
        self._now = now
        progress, step = self._progress.get, self._prefills
        for sequence, event in happenings:
            if type(event) is TokenDelta:
                seen = progress(sequence.id)
                if seen is None:
                    self._first_token(sequence, now)
                    continue
                gap = now - seen.latest
                seen.latest = now
                if gap > seen.least:
                    seen.note(Pause(gap, now, sequence.choice, step))
            elif type(event) is Finished:
                self._finish(sequence, event, now)

    def _first_token(self, sequence: core.Sequence, now: float) -> None:
        record = self._live[sequence.request.id]
        record.see(sequence)
        if record.first_token is None:
            self._last_token_of_prompt(record, sequence)
            record.first_token = now
            record.stop = self._log.next
        self._progress[sequence.id] = Progress(now)

    def _last_token_of_prompt(self, record: Record, sequence: core.Sequence) -> None:
        """Note it as a chunk where it was computed alone, which is a decode row."""
        start = sequence.prompt_length - 1
        step = self._latest
        if step is not None and record.reached == start:
            logged = self._prefills
            if logged is None or logged.number != step.plan.number:
                logged = Prefills(self._log.next, step.plan.number, step.began, step.ended, ())
            record.add(Piece(logged, sequence.choice, start, 1, step.costs.decode(start + 1)))

    def _finish(self, sequence: core.Sequence, event: Finished, now: float) -> None:
        record = self._live[sequence.request.id]
        record.completion += event.completion_tokens
        record.cached = max(record.cached, event.cached_tokens)
        record.preemptions += preemptions(sequence, ended=True)
        if record.reason is None or sequence.choice == 0:
            record.reason = str(event.reason)
        record.error = record.error or event.error
        progress = self._progress.pop(sequence.id, None)
        if progress is not None:
            record.pauses = sorted(record.pauses + progress.pauses)[-GAPS:]
        if sequence in record.sequences:
            record.sequences.remove(sequence)
        record.open -= 1
        if record.open == 0:
            self._end(record, now)

    def _end(self, record: Record, now: float) -> None:
        record.ended = now
        if record.stop is None:
            record.stop = self._log.next
        del self._live[record.id]
        self._ended.pop(record.id, None)  # of an earlier request by that id
        self._ended[record.id] = record
        if len(self._ended) > self._keep:
            del self._ended[next(iter(self._ended))]

    # -- told to whoever asks -----------------------------------------------------------------------

    def _timeline(self, record: Record) -> Timeline:
        def since(at: float | None) -> float | None:
            return None if at is None else at - record.arrival

        stop = self._log.next if record.stop is None else record.stop
        return Timeline(
            id=record.id,
            account=record.account,
            priority=record.priority,
            prompt_tokens=record.prompt,
            cached_tokens=record.cached,
            completion_tokens=record.completion + sum(s.generated for s in record.sequences),
            drafted_tokens=record.drafted,
            accepted_tokens=record.held,
            arrived=record.arrived,
            predicted=record.predicted,
            queued=since(record.started),
            first_token=since(record.first_token),
            total=(self._now if record.ended is None else record.ended) - record.arrival,
            reason=record.reason if record.open == 0 else None,
            error=record.error,
            preemptions=record.preemptions + sum(preemptions(s, ended=False) for s in record.sequences),
            own=record.own,
            waited_for=others(self._log.between(record.first, stop), record.id, record.submitted),
            complete=record.first >= self._log.oldest,
            chunks=tuple(_chunk(piece, record) for piece in record.pieces),
            chunks_left_out=record.left_out,
            gaps=tuple(self._gap(pause, record) for pause in self._longest(record)),
        )

    def _longest(self, record: Record) -> list[Pause]:
        """The longest gaps of its choices, the longest first."""
        pauses = record.pauses + [
            pause
            for sequence in record.sequences
            if (progress := self._progress.get(sequence.id)) is not None
            for pause in progress.pauses
        ]
        return sorted(pauses, reverse=True)[:GAPS]

    def _gap(self, pause: Pause, record: Record) -> Gap:
        began = pause.ended - pause.seconds
        steps = list(self._log.back(pause.step, began))
        again = [
            piece.tokens
            for piece in record.pieces
            if piece.choice == pause.choice and began < piece.step.ended <= pause.ended
        ]
        return Gap(
            pause.choice,
            began - record.arrival,
            pause.ended - record.arrival,
            sum(again),
            others(steps, record.id, began),
        )


def _chunk(piece: Piece, record: Record) -> Chunk:
    step = piece.step
    return Chunk(
        step.number,
        piece.choice,
        step.began - record.arrival,
        step.ended - record.arrival,
        piece.start,
        piece.tokens,
        piece.seconds,
        others([step], record.id, step.began),
    )
