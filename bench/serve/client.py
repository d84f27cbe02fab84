"""Sends one request to an OpenAI-compatible endpoint and notes when each piece of its answer arrives."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec

from bench.client import BenchError
from bench.serve.recording import Outcome

IDLE_SECONDS = 2.0  # that a connection is kept: less than servers do, so that none closes under a request
ERROR_LETTERS = 200  # of what a server says
GONE = "cannot connect"  # how the error of a request begins whose endpoint does not answer at all
CUT = "the server closed the connection before the end of its answer"
UNFINISHED = "interrupted"
UNREACHABLE = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)


@dataclass(slots=True)
class Tally:
    """What is going on, for whoever looks."""

    announce: Callable[[str], None] = lambda turn: None  # is told every turn as it begins
    turn: str = ""
    total: int = 0
    sent: int = 0
    done: int = 0
    failed: int = 0
    chunks: int = 0
    refused_in_a_row: int = 0
    outcomes: list[Outcome] = field(default_factory=list)  # of this turn, those that have ended

    def begin(self, turn: str, total: int) -> None:
        """Count from zero."""
        self.turn, self.total, self.outcomes = turn, total, []
        self.sent = self.done = self.failed = self.chunks = self.refused_in_a_row = 0
        self.announce(turn)


class StreamError(Exception):
    """The answer is not one; the message tells why."""


class Delta(msgspec.Struct):
    """What a piece of a chat adds. Servers differ in what they call thoughts."""

    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: Any = None


class Choice(msgspec.Struct):
    text: str | None = None  # of a completion
    delta: Delta | None = None  # of a chat
    finish_reason: str | None = None

    def says(self) -> bool:
        """Whether it brings anything of an answer: a role alone is nothing."""
        if self.delta is None:
            return bool(self.text)
        delta = self.delta
        return bool(delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls)


class Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Event(msgspec.Struct):
    """One event of a stream, as far as it is looked at."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None


EVENTS = msgspec.json.Decoder(Event)


class Client:
    """Connections to one endpoint."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url

    async def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON body (None if it is none). Raises BenchError where nothing answers."""
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Like `get`."""
        return await self._ask("POST", path, msgspec.json.encode(body))

    async def stream(self, path: str, body: bytes, outcome: Outcome, start: float, tally: Tally) -> None:
        """Fill the outcome with what happens to the request. `start`: perf_counter() of its times' zero."""
        tally.sent += 1
        outcome.sent = time.perf_counter() - start
        try:
            await self._stream(path, body, outcome, start, tally)
        except (aiohttp.ClientError, TimeoutError, OSError, StreamError) as error:
            outcome.error = reason(error)
        except asyncio.CancelledError:
            outcome.error = UNFINISHED
            raise
        finally:
            outcome.ended = time.perf_counter() - start
            gone = outcome.error is not None and outcome.error.startswith(GONE)
            tally.refused_in_a_row = tally.refused_in_a_row + 1 if gone else 0
            tally.done += 1
            tally.failed += outcome.error is not None
            tally.outcomes.append(outcome)

    async def _ask(self, method: str, path: str, body: bytes | None) -> tuple[int, Any]:
        try:
            async with self._session.request(method, self.url + path, data=body) as response:
                return response.status, _json(await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BenchError(f"{self.url}: {reason(error)}") from None

    async def _stream(self, path: str, body: bytes, outcome: Outcome, start: float, tally: Tally) -> None:
        async with self._session.post(self.url + path, data=body) as response:
            if response.status != 200:
                raise StreamError(f"status {response.status}: {error_text(await response.read())}")
            async for at, event in _events(response.content):
                _note(event, at - start, outcome, tally)
        if outcome.finish is None:
            raise StreamError("the stream ended without a finish_reason")


@asynccontextmanager
async def connected(url: str, api_key: str | None, timeout_s: float) -> AsyncIterator[Client]:
    """A client of the endpoint; `timeout_s` is for one request, connecting and the whole answer."""
    headers = {"Content-Type": "application/json"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS)
    timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(10.0, timeout_s))
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:
        yield Client(session, url)


def error_text(body: bytes) -> str:
    """What a server says in its error, in one line."""
    raw = _json(body)
    error = raw.get("error", raw) if isinstance(raw, dict) else raw
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    said = error if isinstance(error, str) else json.dumps(error) if error else body.decode(errors="replace")
    return " ".join(said.split())[:ERROR_LETTERS]


def reason(error: Exception) -> str:
    """What went wrong, in one line; what aiohttp says of a connection is long and names no cause."""
    if isinstance(error, aiohttp.ClientSSLError):
        return f"{GONE}: {error}"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        number = cause.errno or 0  # that of a name that is not known is negative, and none of the system's
        return f"{GONE}: {os.strerror(number) if number > 0 else cause.strerror or cause}"
    if isinstance(error, TimeoutError):
        return f"{GONE}: timeout" if isinstance(error, UNREACHABLE) else "timeout"
    if isinstance(error, (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, ConnectionResetError)):
        return CUT
    return str(error) or type(error).__name__


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[tuple[float, bytes]]:
    """The data of each event, and the perf_counter() at which the last of its bytes arrived."""
    at, waiting = 0.0, b""
    async for data in content.iter_any():
        at = time.perf_counter()
        *lines, waiting = (waiting + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield at, line[5:].strip()
    if waiting.startswith(b"data:"):  # the last line of some servers has no end
        yield at, waiting[5:].strip()


def _note(event: bytes, at: float, outcome: Outcome, tally: Tally) -> None:
    """Read one event of a stream. An answer that a server keeps to itself until its end arrives with that."""
    if event == b"[DONE]":
        return
    try:
        told = EVENTS.decode(event)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StreamError(f"the stream holds {event[:ERROR_LETTERS]!r}: {error}") from None
    if told.error:
        raise StreamError(error_text(event))
    if told.usage is not None:
        outcome.prompt_tokens = told.usage.prompt_tokens
        outcome.completion_tokens = told.usage.completion_tokens
    for choice in told.choices or ():
        if choice.says() or (choice.finish_reason and not outcome.chunks):
            outcome.chunks.append(at)
            tally.chunks += 1
        outcome.finish = choice.finish_reason or outcome.finish


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
