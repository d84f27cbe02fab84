"""A streaming client that costs next to nothing: it notes when bytes arrive, and reads them afterwards.

The servers that it measures share its cores, so what it spends while they compute would be measured too.
"""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, NamedTuple

HOST = "127.0.0.1"
TIMEOUT = 180.0  # seconds for one answer


class BenchError(Exception):
    """The measurement cannot go on; the message tells why."""


class Answer(NamedTuple):
    """A streamed completion. Times are seconds since the request was sent, one for each chunk with text."""

    text: str
    times: tuple[float, ...]
    prompt_tokens: int | None  # None where the server does not tell
    tokens: int
    sent: float  # time.perf_counter() at the start

    @property
    def ttft(self) -> float:
        return self.times[0]

    @property
    def decode_rate(self) -> float:
        """Tokens a second after the first."""
        return (self.tokens - 1) / (self.times[-1] - self.times[0])


class _Recorder(asyncio.Protocol):
    """Keeps what arrives and when, until the server closes."""

    def __init__(self) -> None:
        self.arrivals: list[tuple[float, bytes]] = []
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.arrivals.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(None)


async def complete(port: int, prompt: str, tokens: int) -> Answer:
    """Stream a greedy completion of exactly so many tokens."""
    body = {
        "model": "local",
        "prompt": prompt,
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    request = _request("POST", "/v1/completions", json.dumps(body).encode())
    recorder, sent = await _exchange(port, request, TIMEOUT)
    return _answer(recorder.arrivals, sent, tokens)


async def complete_all(port: int, prompts: list[str], tokens: int) -> list[Answer]:
    """Stream completions of all prompts at once."""
    return await asyncio.gather(*(complete(port, prompt, tokens) for prompt in prompts))


async def answers(port: int, path: str) -> bool:
    """Whether a GET of the path succeeds."""
    try:
        recorder, _ = await _exchange(port, _request("GET", path, b""), 5.0)
    except (OSError, BenchError):
        return False
    head = b"".join(data for _, data in recorder.arrivals)[:16]
    return head.startswith(b"HTTP/1.1 200")


def decode_rate_together(answers: list[Answer]) -> float:
    """Tokens a second of all streams while all of them decode: last first token to first last token."""
    begin = max(answer.sent + answer.times[0] for answer in answers)
    end = min(answer.sent + answer.times[-1] for answer in answers)
    if end <= begin:
        raise BenchError("a stream ended before the last one began; nothing ran together")
    tokens = 0.0
    for answer in answers:
        inside = sum(begin < answer.sent + at <= end for at in answer.times)
        tokens += inside * answer.tokens / len(answer.times)
    return tokens / (end - begin)


def _request(method: str, path: str, body: bytes) -> bytes:
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _exchange(port: int, request: bytes, timeout_s: float) -> tuple[_Recorder, float]:
    loop = asyncio.get_running_loop()
    transport, recorder = await loop.create_connection(_Recorder, HOST, port)
    try:
        async with asyncio.timeout(timeout_s):
            sent = time.perf_counter()
            transport.write(request)
            await recorder.closed
    except TimeoutError:
        raise BenchError(f"no answer within {timeout_s:g} s") from None
    finally:
        transport.abort()
    return recorder, sent


def _answer(arrivals: list[tuple[float, bytes]], sent: float, asked: int) -> Answer:
    times: list[float] = []
    texts: list[str] = []
    usage: dict[str, Any] = {}
    reason = None
    for at, event in _events(arrivals):
        if "error" in event:
            raise BenchError(f"the server says {event['error']}")
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            reason = choice.get("finish_reason") or reason
            if choice["text"]:
                times.append(at - sent)
                texts.append(choice["text"])
    tokens = usage.get("completion_tokens", asked)
    if reason != "length" or tokens != asked or not times:
        raise BenchError(f"asked for {asked} tokens, got {tokens} in {len(times)} chunks ending in {reason}")
    return Answer("".join(texts), tuple(times), usage.get("prompt_tokens"), tokens, sent)


def _events(arrivals: list[tuple[float, bytes]]) -> Iterator[tuple[float, dict[str, Any]]]:
    """Each event of a stream, and when the last of its bytes arrived."""
    waiting = b""
    for at, data in _chunks(arrivals):
        waiting += data
        *lines, waiting = waiting.split(b"\n")
        for line in lines:
            if line.startswith(b"data: {"):
                yield at, json.loads(line[6:])


def _chunks(arrivals: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The pieces of a body in chunked transfer coding, and when each had arrived."""
    raw = b"".join(data for _, data in arrivals)
    ends = list(accumulate(len(data) for _, data in arrivals))
    head, separator, _ = raw.partition(b"\r\n\r\n")
    if not (head.startswith(b"HTTP/1.1 200") and b"chunked" in head.lower()):
        raise BenchError(f"the server answered {raw[:400]!r}")
    position = len(head) + len(separator)
    while True:
        line = raw.find(b"\r\n", position)
        if line < 0:
            raise BenchError("the server closed in the middle of an answer")
        size = int(raw[position:line].split(b";")[0], 16)
        if size == 0:
            return
        position = line + 2 + size + 2
        at = arrivals[min(bisect_right(ends, position - 3), len(arrivals) - 1)][0]
        yield at, raw[line + 2 : line + 2 + size]
