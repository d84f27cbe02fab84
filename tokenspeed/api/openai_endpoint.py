"""One `POST` of OpenAI's API from its body to its answer; a dialect says what differs between them."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.body import parse, read_body
from tokenspeed.api.disconnect import unless_gone
from tokenspeed.api.keys import Caller, caller_of
from tokenspeed.api.models import ServedModel
from tokenspeed.api.openai_answers import (
    ChunkShape,
    ChunkWriter,
    Heading,
    Whole,
    answer_headers,
    collect,
    stream_events,
    whole_answer,
)
from tokenspeed.api.openai_types import CommonRequest
from tokenspeed.api.options import ServerOptions
from tokenspeed.api.pace import Pace
from tokenspeed.api.sse import EventStream
from tokenspeed.api.unsupported import refuse_unsupported
from tokenspeed.generation.generator import Generator
from tokenspeed.generation.request import GenerationRequest

Asked = TypeVar("Asked", bound=CommonRequest)

INLINE_BYTES = 256 * 1024  # longer bodies are read in a thread; below 2 ms of work


class Dialect(Protocol[Asked]):
    """How one endpoint reads its requests and shapes its answers."""

    decoder: msgspec.json.Decoder[Asked]
    id_prefix: str
    kind: str  # of an answer that is not streamed

    def generation_request(self, asked: Asked, request_id: str, caller: Caller) -> GenerationRequest:
        """The request in neutral words; raises what is wrong with it beyond types."""
        ...

    def chunk_shape(self, choices: int) -> ChunkShape: ...

    def choice(self, index: int, whole: Whole, scored: bool) -> dict[str, Any]:
        """One member of `choices` of an answer that is not streamed."""
        ...


class OpenAIEndpoint(Generic[Asked]):
    """Reads, starts, and answers in one piece or as a stream."""

    def __init__(
        self,
        dialect: Dialect[Asked],
        generator: Generator,
        model: ServedModel,
        options: ServerOptions,
        pace: Pace,
    ) -> None:
        self._dialect = dialect
        self._generator = generator
        self._model = model
        self._options = options
        self._pace = pace

    async def create(self, http: Request) -> Response:
        body = await read_body(http, self._options.max_body_bytes)
        arrival = self._generator.now()
        await self._pace.turn()
        caller = caller_of(http)
        if len(body) > INLINE_BYTES:
            asked, heading, request = await asyncio.to_thread(self._read, body, caller)
        else:
            asked, heading, request = self._read(body, caller)
        if asked.stream:
            return await self._stream(asked, heading, request, arrival)
        return await unless_gone(http.receive, self._answer(heading, request, arrival))

    def _read(self, body: bytes, caller: Caller) -> tuple[Asked, Heading, GenerationRequest]:
        """All that can be told wrong without the model."""
        asked = parse(body, self._dialect.decoder)
        refuse_unsupported(body)
        model = self._model.resolve(asked.model)
        heading = Heading(self._dialect.id_prefix + secrets.token_hex(12), int(time.time()), model)
        return asked, heading, self._dialect.generation_request(asked, heading.id, caller)

    async def _stream(
        self, asked: Asked, heading: Heading, request: GenerationRequest, arrival: float
    ) -> Response:
        generation = await self._generator.start(request, arrival)
        options = asked.stream_options
        include_usage = options is not None and bool(options.include_usage)
        continuous = include_usage and options is not None and bool(options.continuous_usage_stats)
        writer = ChunkWriter(
            heading,
            self._dialect.chunk_shape(generation.choices),
            (lambda: generation.usage) if continuous else None,
        )
        events = stream_events(generation, writer, include_usage=include_usage)
        return EventStream(
            events,
            headers=answer_headers(heading, generation),
            ping_seconds=self._options.ping_seconds,
            close=generation.close,
        )

    async def _answer(self, heading: Heading, request: GenerationRequest, arrival: float) -> Response:
        generation = await self._generator.start(request, arrival)
        wholes = await collect(generation)
        scored = request.logprobs is not None
        choices = [self._dialect.choice(index, whole, scored) for index, whole in enumerate(wholes)]
        answer = whole_answer(heading, self._dialect.kind, choices, generation.usage)
        return Response(
            orjson.dumps(answer), headers=answer_headers(heading, generation), media_type="application/json"
        )
