"""One `POST` from its body to its answer; a dialect says what differs between protocols."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.body import parse, read_body
from tokenspeed.api.disconnect import unless_gone
from tokenspeed.api.keys import Caller, caller_of
from tokenspeed.api.media import JsonResponse
from tokenspeed.api.options import ServerOptions
from tokenspeed.api.pace import Pace
from tokenspeed.api.sse import EventStream
from tokenspeed.generation.generation import Generation
from tokenspeed.generation.generator import Generator
from tokenspeed.generation.outputs import Output, Usage, Whole
from tokenspeed.generation.request import GenerationRequest

INLINE_BYTES = 256 * 1024  # longer bodies are read in a thread; below 2 ms of work


class Writer(Protocol):
    """Writes one answer in the words of its protocol, as a stream or in one piece."""

    media_type: str  # of the stream

    def ping(self) -> bytes:
        """What keeps a silent stream alive; empty: nothing does."""
        ...

    def start(self, usage: Usage) -> bytes:
        """What comes before all outputs, as soon as the request is taken; `usage` has the prompt's tokens."""
        ...

    def write(self, outputs: list[Output], usage: Callable[[], Usage]) -> bytes: ...

    def end(self, usage: Usage) -> bytes: ...

    def fail(self, error: Exception) -> bytes:
        """The end of a stream that failed: the status is long sent, the client must still learn of it."""
        ...

    def whole(self, choices: list[Whole], usage: Usage) -> Mapping[str, Any] | list[Any]:
        """The answer in one piece."""
        ...


async def nothing() -> None:
    """Keeps no answer."""


class Job(NamedTuple):
    """A request that was read: what to generate, and how to write it.

    Once the whole answer is written, `keep` is awaited before its end is sent. What is wrong with the request
    and found only as it starts is raised; what is `told_in_stream` is the end of a stream, which never began.
    """

    request: GenerationRequest
    writer: Writer
    stream: bool
    keep: Callable[[], Awaitable[None]] = nothing
    told_in_stream: tuple[type[Exception], ...] = ()


class Asking(NamedTuple):
    """What else a dialect is told of a request: its body, what the model is called, and whose it is."""

    body: bytes
    model: str
    caller: Caller


class HasModel(Protocol):
    """A parsed body names the model that it wants, or none."""

    @property
    def model(self) -> str | None: ...


Asked = TypeVar("Asked", bound=HasModel)
T = TypeVar("T")


class Dialect(Protocol[Asked]):
    """How one endpoint reads its requests."""

    decoder: msgspec.json.Decoder[Asked]

    def read(self, asked: Asked, asking: Asking) -> Job | Response:
        """The request in neutral words, or its answer where nothing is to be generated; raises what is wrong
        with it beyond types. It may run in a thread."""
        ...


class Names(Protocol):
    """Knows what clients may call the model."""

    def resolve(self, asked: str | None) -> str:
        """The name to answer with; raises where the client means another model."""
        ...


@dataclass(frozen=True, slots=True)
class Service:
    """What all endpoints share."""

    generator: Generator
    model: Names
    options: ServerOptions
    pace: Pace


def is_long(body: bytes) -> bool:
    return len(body) > INLINE_BYTES


class Endpoint(Generic[Asked]):
    """Reads, starts, and answers in one piece or as a stream."""

    def __init__(
        self, dialect: Dialect[Asked], service: Service, *, slow: Callable[[bytes], bool] = is_long
    ) -> None:
        """Bodies that are `slow` to read are read in a thread."""
        self._dialect = dialect
        self._service = service
        self._slow = slow

    async def create(self, http: Request) -> Response:
        job, arrival = await read_request(http, self._service, self._read, slow=self._slow)
        if isinstance(job, Response):
            return job
        if job.stream:
            return await self._stream(job, arrival)
        return await unless_gone(http.receive, self._answer(job, arrival))

    def _read(self, body: bytes, caller: Caller) -> Job | Response:
        """All that can be told wrong without the model."""
        asked = parse(body, self._dialect.decoder)
        return self._dialect.read(asked, Asking(body, self._service.model.resolve(asked.model), caller))

    async def _stream(self, job: Job, arrival: float) -> Response:
        try:
            generation = await self._service.generator.start(job.request, arrival)
        except job.told_in_stream as error:
            return Response(job.writer.fail(error), media_type=job.writer.media_type)
        return EventStream(
            stream_events(generation, job.writer, job.keep),
            headers=answer_headers(job.request.id, generation),
            ping_seconds=self._service.options.ping_seconds,
            close=generation.close,
            ping=job.writer.ping,
            media_type=job.writer.media_type,
        )

    async def _answer(self, job: Job, arrival: float) -> Response:
        generation = await self._service.generator.start(job.request, arrival)
        answer = job.writer.whole(await collect(generation), generation.usage)
        await job.keep()
        headers = answer_headers(job.request.id, generation)
        return JsonResponse(answer, headers=headers)


async def read_request(
    http: Request,
    service: Service,
    read: Callable[[bytes, Caller], T],
    *,
    slow: Callable[[bytes], bool] = is_long,
) -> tuple[T, float]:
    """What `read` makes of a request's body, and the request's arrival on the engine's clock. Bodies that are
    `slow` to read are read in a thread."""
    body = await read_body(http, service.options.max_body_bytes)
    arrival = service.generator.now()
    await service.pace.turn()
    if slow(body):
        return await asyncio.to_thread(read, body, caller_of(http)), arrival
    return read(body, caller_of(http)), arrival


def new_id(prefix: str) -> str:
    """An id that nobody guesses."""
    return prefix + secrets.token_hex(12)


def answer_headers(request_id: str, generation: Generation) -> dict[str, str]:
    """The id by which the request's timeline is found, and when its first token was predicted."""
    return {
        "x-request-id": request_id,
        "request-id": request_id,  # as Anthropic's clients read it
        "x-tokenspeed-predicted-ttft-ms": f"{1000.0 * generation.predicted:.1f}",
    }


async def collect(generation: Generation) -> list[Whole]:
    """Every choice to its end."""
    choices = [Whole() for _ in range(generation.choices)]
    try:
        async for outputs in generation:
            for output in outputs:
                choices[output.choice].add(output)
    finally:
        generation.close()
    return choices


async def stream_events(
    generation: Generation, writer: Writer, keep: Callable[[], Awaitable[None]] = nothing
) -> AsyncGenerator[bytes, None]:
    """All of a stream, each piece one or more whole events; a failure on the way is an event as well."""

    def usage() -> Usage:  # most writers ask at the end alone, and it is work
        return generation.usage

    try:
        if begun := writer.start(generation.usage):
            yield begun
        async for outputs in generation:
            if written := writer.write(outputs, usage):
                yield written
        last = writer.end(generation.usage)
        await keep()
    except Exception as error:  # whatever it is, the client must learn that this is no whole answer
        last = writer.fail(error)
    if last:
        yield last
