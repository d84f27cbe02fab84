"""Writes down what came and what was planned, so that the simulator can ask "what if".

A recording is JSON, one value a line. The first is a `Header`; then come, as they happen, a `Came` for each
request, a `Ran` for each step and an `Ended` for each choice, each as an array that begins with its name.
Requests are numbered in the order of their lines, from 0. Times are seconds since the recording began.

No text, no token and no hash of either is written. That prompts begin alike is told as numbers: the first so
many tokens of this one are those of that earlier request.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from collections.abc import Sequence as ListOf
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from tokenspeed.core.accounts import Account
from tokenspeed.core.plan import Capacity, StepPlan
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.core.request import Finished, Request, TokenDelta
from tokenspeed.core.sequence import Sequence
from tokenspeed.core.taking import Happening
from tokenspeed.engine.observer import Step
from tokenspeed.errors import ConfigError, OverloadedError, RequestError

log = logging.getLogger(__name__)

FORMAT = "tokenspeed-recording/1"
FLUSH_SECONDS = 1.0  # what a killed server may lose
REMEMBERED_BLOCKS = 1 << 19  # of which a later prompt can be told to share them; some 60 MB
BUFFER = 1 << 18
DIGITS = 6  # behind the point, of seconds

Chunk = tuple[int, int, int, int]  # request, choice, first position, tokens


REFUSED = "refused"  # the reason of a choice that was never taken


class Header(msgspec.Struct, forbid_unknown_fields=True):
    """The server that was recorded; `accounts` are [share, max_running, max_waiting] of number 1, 2, ..."""

    format: str
    capacity: dict[str, int]
    scheduler: dict[str, Any]
    prefix_cache: bool
    accounts: list[tuple[float, int, int]]


class Came(msgspec.Struct, array_like=True, tag="came", forbid_unknown_fields=True):
    """A request was queued. Its first `shared` tokens are those of choice `choice` of request `like`."""

    at: float
    prompt: int  # tokens
    max_tokens: int
    n: int
    priority: int
    account: int  # 0: none that the header lists
    deadline: float | None  # seconds from its arrival
    penalised: bool
    scored: bool  # log-probabilities, or the mean, of its prompt were asked for: no cache serves it
    predicted: float  # seconds to its first token
    like: int = -1
    choice: int = 0
    shared: int = 0


class Ran(msgspec.Struct, array_like=True, tag="ran", forbid_unknown_fields=True):
    """A step ran: `decodes` rows of one token, which attended `read` keys, and chunks of prompts."""

    at: float  # when the device could begin
    seconds: float
    predicted: float
    decodes: int
    read: int
    chunks: list[Chunk]


class Ended(msgspec.Struct, array_like=True, tag="ended", forbid_unknown_fields=True):
    """A choice of a request has had its last token."""

    request: int
    choice: int
    at: float
    reason: str
    tokens: int  # generated; a stop id counts
    cached: int  # of the prompt
    first: float | None  # seconds from the request's arrival to its first token


Line = Came | Ran | Ended


class Sharing:
    """Which earlier request each prompt begins like, to the block."""

    def __init__(self, block_size: int, remembered: int = REMEMBERED_BLOCKS) -> None:
        self._size = block_size
        self._remembered = remembered
        # hash of a chain of blocks -> request and choice that had it first; the last used at the end
        self._owners: dict[int, tuple[int, int]] = {}

    def place(self, tokens: ListOf[int], request: int, choice: int = 0) -> tuple[int, int, int]:
        """Whose first tokens `tokens` begin with, and how many: (request, choice, tokens), or (-1, 0, 0).

        Blocks that nobody had are those of `request` from here on. Once a choice has ended, its prompt and
        its answer are given, so that a next turn is told to go on from there.
        """
        owners, size = self._owners, self._size
        like, shared, chain = (-1, 0), 0, 0
        for start in range(0, len(tokens) - size + 1, size):
            chain = hash((chain, *tokens[start : start + size]))
            owner = owners.pop(chain, None)
            if owner is None:
                owner = (request, choice)
            elif shared == start:
                like, shared = owner, start + size
            owners[chain] = owner
        while len(owners) > self._remembered:
            del owners[next(iter(owners))]
        return (*like, shared)


@dataclass(slots=True)
class _Running:
    number: int
    left: int  # choices that have not ended
    firsts: dict[int, float]  # choice -> when its first token came


class Recorder:
    """An observer of the engine that appends to a file; what is left in memory is written by `close`.

    A disk that fails ends the recording with a line in the log, not the server.
    """

    def __init__(
        self,
        path: Path,
        *,
        capacity: Capacity,
        options: SchedulerOptions,
        accounts: Mapping[str, Account],
        prefix_cache: bool,
    ) -> None:
        """Raises `ConfigError` if the file is there already or cannot be made."""
        try:
            self._file: BinaryIO | None = path.open("xb", buffering=BUFFER)
        except FileExistsError:
            raise ConfigError(f"--record {path}: the file exists; remove it or name another") from None
        except OSError as error:
            raise ConfigError(f"--record {path}: cannot be written: {error.strerror}") from None
        self._path = path
        self._accounts = {name: number for number, name in enumerate(accounts, 1)}
        self._sharing = Sharing(capacity.block_size)
        self._block_size = capacity.block_size
        self._running: dict[str, _Running] = {}
        self._requests = 0
        self._began: float | None = None
        self._flushed = 0.0
        shares = [(a.share, a.max_running, a.max_waiting) for a in accounts.values()]
        self._write(Header(FORMAT, asdict(capacity), asdict(options), prefix_cache, shares))

    def submitted(self, request: Request, predicted: float, now: float) -> None:
        self._came(request, predicted)

    def refused(self, request: Request, error: RequestError, now: float) -> None:
        """Another policy, or device, might have taken it; what no server could take is left out."""
        if isinstance(error, OverloadedError):
            self._came(request, 0.0)
            number = self._running.pop(request.id).number
            for choice in range(request.n):
                self._write(Ended(number, choice, self._since(now), REFUSED, 0, 0, None))

    def _came(self, request: Request, predicted: float) -> None:
        number, self._requests = self._requests, self._requests + 1
        self._running[request.id] = _Running(number, request.n, {})
        deadline = request.deadline
        self._write(
            Came(
                self._since(request.arrival),
                len(request.prompt),
                request.max_tokens,
                request.n,
                request.priority,
                self._accounts.get(request.account, 0),
                None if deadline is None else round(deadline - request.arrival, DIGITS),
                request.sampling.penalised,
                request.prompt_logprobs is not None or request.pooling == "mean",
                round(predicted, DIGITS),
                *self._sharing.place(request.prompt, number),
            )
        )

    def stepped(self, step: Step) -> None:
        decodes = read = 0
        chunks: list[Chunk] = []
        for row, sequence in zip(step.plan.rows, step.sequences, strict=True):
            if len(row.tokens) == 1:
                decodes += 1
                read += row.start + 1
            else:
                running = self._running.get(sequence.request.id)  # None: it ended while the step ran
                number = -1 if running is None else running.number
                chunks.append((number, sequence.choice, row.start, len(row.tokens)))
        seconds, predicted = round(step.result.seconds, DIGITS), round(step.plan.seconds, DIGITS)
        self._write(Ran(self._since(step.began), seconds, predicted, decodes, read, chunks))
        if step.ended - self._flushed >= FLUSH_SECONDS:
            self._flushed = step.ended
            self._flush()

    def step_failed(self, plan: StepPlan, now: float) -> None:
        """Its requests end with an error, which is written down then."""

    def delivered(self, happenings: ListOf[Happening], now: float) -> None:
        for sequence, event in happenings:
            if isinstance(event, TokenDelta):
                if sequence.generated == len(event.tokens):
                    self._running[sequence.request.id].firsts[sequence.choice] = now
            elif isinstance(event, Finished):
                self._ended(sequence, event, now)

    def close(self) -> None:
        """Write what is left; call it once the engine has stopped."""
        self._flush()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _ended(self, sequence: Sequence, event: Finished, now: float) -> None:
        request, choice = sequence.request, sequence.choice
        running = self._running[request.id]
        first = running.firsts.get(choice)
        self._write(
            Ended(
                running.number,
                choice,
                self._since(now),
                str(event.reason),
                event.completion_tokens,
                event.cached_tokens,
                None if first is None else round(first - request.arrival, DIGITS),
            )
        )
        if len(sequence.tokens) // self._block_size > len(request.prompt) // self._block_size:
            self._sharing.place(sequence.tokens, running.number, choice)
        running.left -= 1
        if not running.left:
            del self._running[request.id]

    def _since(self, moment: float) -> float:
        if self._began is None:
            self._began = moment
        return round(max(0.0, moment - self._began), DIGITS)

    def _write(self, line: Header | Line) -> None:
        if self._file is not None:
            try:
                self._file.write(msgspec.json.encode(line) + b"\n")
            except OSError as error:
                self._give_up(error)

    def _flush(self) -> None:
        if self._file is not None:
            try:
                self._file.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        log.error("%s: the recording ends here: %s", self._path, error.strerror)
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):
                file.close()
