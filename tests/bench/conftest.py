"""A tiny OpenAI-compatible endpoint on a real socket, as strange as a test wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp.web
import pytest

from bench.serve.recording import SCHEMA, Endpoint, Objective, Outcome, Recording, Repeat

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
AROUND = 7  # tokens that it counts around a prompt
PER_WORD = 2  # tokens


@dataclass
class Server:
    """Counts two tokens a word and seven around a prompt, and answers with words."""

    model: str = "tiny"
    paths: tuple[str, ...] = (CHAT, COMPLETIONS)
    refuses: tuple[str, ...] = ()  # fields
    usage: str = "last"  # where it tells tokens: "last" chunk of its own, with "each" chunk, or "never"
    tokens_a_chunk: int = 1
    pause: float = 0.001  # seconds before each chunk
    answer_tokens: int | None = None  # of each answer, whatever was asked for
    context: int = 100_000
    fails_at: int | None = None  # the number of the request that gets a 500
    breaks_at: int | None = None  # whose stream ends in an error
    dies_at: int | None = None  # at which the endpoint is gone, with all that it was answering
    held: range = range(0)  # numbers of requests that are answered once the last of them has arrived
    raw: bytes | None = None  # sent instead of any stream
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of everything that was asked
    url: str = ""
    on_request: Callable[[int], None] = lambda number: None
    _all_arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _server: asyncio.Server | None = None
    _open: set[asyncio.Transport] = field(default_factory=set)

    async def handle(self, request: aiohttp.web.BaseRequest) -> aiohttp.web.StreamResponse:
        if self._server is None and request.transport is not None:  # gone, whoever is still connected
            request.transport.abort()
        if request.path == "/v1/models":
            return aiohttp.web.json_response({"object": "list", "data": [{"id": self.model}]})
        if request.path not in self.paths:
            return _error(404, "Not Found")
        body = json.loads(await request.read())
        self.bodies.append(body)
        number = len(self.bodies) - 1
        self.on_request(number)
        if number in self.held:
            if number == self.held[-1]:
                self._all_arrived.set()
            await self._all_arrived.wait()
        refusal = self._refusal(body, number)
        if refusal is not None:
            return refusal
        if not body.get("stream"):
            return aiohttp.web.json_response({"choices": [{"text": "w"}], "usage": self._usage(body, 1)})
        assert isinstance(request.transport, asyncio.Transport)
        self._open.add(request.transport)
        return await self._stream(request, body, number)

    def _refusal(self, body: dict[str, Any], number: int) -> aiohttp.web.Response | None:
        if body["model"] != self.model:
            return _error(404, f"no model {body['model']!r}")
        for name in self.refuses:
            if name in body:
                return _error(400, f"Unrecognized request argument supplied: {name}")
        if self._prompt_tokens(body) > self.context:
            return _error(400, f"maximum context length is {self.context} tokens")
        return _error(500, "out of\nmemory") if number == self.fails_at else None

    async def _stream(
        self, request: aiohttp.web.BaseRequest, body: dict[str, Any], number: int
    ) -> aiohttp.web.StreamResponse:
        answer = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await answer.prepare(request)
        if self.raw is not None:
            await answer.write(self.raw)
            return answer
        if number == self.dies_at:
            self.die()
        with contextlib.suppress(ConnectionResetError):
            for event in self._events(body, broken=number == self.breaks_at):
                await asyncio.sleep(self.pause)
                await answer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await answer.write(b"data: [DONE]\n\n")
        return answer

    def _events(self, body: dict[str, Any], broken: bool) -> list[dict[str, Any]]:
        wanted = body.get("max_tokens") or body.get("max_completion_tokens")
        left = self.answer_tokens or wanted
        chats = "messages" in body
        events: list[dict[str, Any]] = []
        if chats:
            events.append({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
        sent = 0
        while left > 0:
            tokens = min(left, self.tokens_a_chunk)
            left, sent = left - tokens, sent + tokens
            text = "w " * tokens
            said = {"delta": {"content": text}} if chats else {"text": text}
            event = {"choices": [{"index": 0, **said, "finish_reason": None if left else "length"}]}
            events.append(event | ({"usage": self._usage(body, sent)} if self.usage == "each" else {}))
        if broken:
            return [*events[:-1], {"error": {"message": "the device is lost"}}]
        if self.usage == "last" and (body.get("stream_options") or {}).get("include_usage"):
            events.append({"choices": [], "usage": self._usage(body, sent)})
        return events

    def _usage(self, body: dict[str, Any], tokens: int) -> dict[str, int]:
        return {"prompt_tokens": self._prompt_tokens(body), "completion_tokens": tokens}

    def _prompt_tokens(self, body: dict[str, Any]) -> int:
        text = body["prompt"] if "prompt" in body else " ".join(m["content"] for m in body["messages"])
        return AROUND + PER_WORD * len(text.split())

    def die(self) -> None:
        """Close the port and every connection."""
        if self._server is not None:
            self._server.close()
        self._server = None
        for transport in self._open:
            transport.abort()

    @asynccontextmanager
    async def served(self) -> AsyncIterator[Server]:
        answering = aiohttp.web.Server(self.handle)
        self._server = await asyncio.get_running_loop().create_server(answering, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        try:
            yield self
        finally:
            self.die()
            await answering.shutdown(1.0)


def _error(status: int, message: str) -> aiohttp.web.Response:
    return aiohttp.web.json_response({"error": {"message": message}}, status=status)


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """`await serve(usage="never")` is an endpoint that listens until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(**strange: Any) -> Server:
            return await stack.enter_async_context(Server(**strange).served())

        yield start


def answered(kind: str, at: float, wait: float, gap: float, tokens: int = 5) -> Outcome:
    """A request that waited, then got a token with every gap."""
    first = at + wait
    chunks = [first + gap * number for number in range(tokens)]
    sent = at + 0.001
    return Outcome(kind, 0, at, tokens, sent, chunks[-1], chunks, 100, tokens, "length")


def one_repeat(endpoint: int, number: int, wait: float) -> Repeat:
    """Ten short requests, one every 0.5 s, and two long ones; every later repeat 1% slower."""
    slower = 1 + 0.01 * number
    short = [answered("short", 0.5 * n, wait * (1 + n / 10) * slower, 0.02) for n in range(10)]
    long = [answered("long", at, 1.5 * slower, 0.02) for at in (1.0, 3.0)]
    outcomes = sorted([*short, *long], key=lambda outcome: outcome.scheduled)
    return Repeat(endpoint, number, 5.0, 0.1, True, outcomes)


@pytest.fixture
def recording() -> Recording:
    """Three repeats of two endpoints: the second waits ten times as long for its short requests."""
    endpoints = [
        Endpoint(name, f"http://{name}/v1", "tiny", "/chat/completions", usage=True)
        for name in ("quick", "slow <&>")
    ]
    repeats = [one_repeat(index, n, wait) for n in range(3) for index, wait in enumerate((0.01, 0.1))]
    return Recording(
        schema=SCHEMA,
        made="2026-01-01T00:00:00+00:00",
        workload="mixed",
        settings="rate 2",
        kinds=["short", "long"],
        seed=0,
        repeats_wanted=3,
        objective=Objective(),
        endpoints=endpoints,
        client={},
        prompt_tokens={"short": 100.0, "long": 100.0},
        repeats=repeats,
    )
