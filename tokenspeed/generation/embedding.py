"""From texts, or token ids, to vectors: each is a prompt that the engine pools and does not continue."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from tokenspeed.core.request import Finished, FinishReason, Pooled, Pooling, Request, Sampling, Vector
from tokenspeed.engine.engine import Engine
from tokenspeed.engine.streams import Stream
from tokenspeed.errors import EngineError, OverloadedError
from tokenspeed.generation.outputs import Usage
from tokenspeed.generation.request import (
    Limits,
    TextPrompt,
    TokenPrompt,
    check_ids,
    check_length,
    check_range,
    invalid,
)
from tokenspeed.generation.weight import is_long
from tokenspeed.options import option
from tokenspeed.text.tokenizer import Tokenizer

TOGETHER = 8  # inputs handed to the engine before the loop looks at anything else, such as the end of a step
GREEDY = Sampling(temperature=0.0)  # nothing is drawn


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """`[embeddings]`. How prompts become vectors where a request does not say, and how many at once."""

    pooling: str = option("last", choices=("last", "mean"))
    at_once: int = option(64, at_least=1, at_most=4096)  # inputs of one request that queue or run


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Prompts, each to become a vector.

    `pooling` None is the server's own. `dimensions` keeps so many elements of the front, None all; it is
    then that `normalise` makes the length 1. `priority` and `account` are as in a `GenerationRequest`.
    """

    id: str
    prompts: tuple[TextPrompt | TokenPrompt, ...]
    pooling: Pooling | None = None
    dimensions: int | None = None
    normalise: bool = True
    priority: int = 0
    account: str = ""
    names: Mapping[str, str] = field(default_factory=dict)

    def name(self, neutral: str) -> str:
        """The field as the client calls it."""
        return self.names.get(neutral, neutral)


class Embeddings(NamedTuple):
    """A vector, float32 [dimensions], for each prompt of a request, and what they took."""

    vectors: list[NDArray[np.float32]]
    usage: Usage


class _Embedded(NamedTuple):
    """One prompt's vector, as it is pooled, and how many of its tokens were remembered."""

    place: int
    vector: Vector
    cached: int


class Embedder:
    """Validates requests, turns them into tokens and has the engine pool them."""

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        options: EmbeddingOptions,
        limits: Limits,
        model_max_context: int,
        vocab_size: int,
        hidden_size: int,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._pooling = cast(Pooling, options.pooling)  # by its choices
        self._at_once = options.at_once
        self._limits = limits
        self._vocab_size = vocab_size
        self._hidden_size = hidden_size
        self._tokenising = asyncio.Semaphore(1)  # long inputs take one core, never all that decode
        self._max_context = min(model_max_context, engine.max_context)

    async def embed(self, request: EmbeddingRequest) -> Embeddings:
        """The vectors of all prompts. Whatever is wrong with any is raised before the first is computed.

        The first prompt has the request's id in the engine, the others have it with "-1", "-2", ... behind
        it. To cancel the call ends what is not over.
        """
        self._check(request)
        if is_long(request.prompts):
            async with self._tokenising:
                prompts = await asyncio.to_thread(self._encode_all, request)
        else:
            prompts = self._encode_all(request)
        found = await self._pool(request, prompts)
        vectors = [_shaped(request, each.vector) for each in found]
        return Embeddings(vectors, Usage(sum(map(len, prompts)), 0, sum(each.cached for each in found)))

    def _check(self, request: EmbeddingRequest) -> None:
        count, most = len(request.prompts), self._limits.max_inputs
        if not count:
            raise invalid(request, "prompts", "must not be empty")
        if count > most:
            raise invalid(request, "prompts", f"has {count} entries; the most is {most}")
        if request.dimensions is not None:
            check_range(request, "dimensions", request.dimensions, 1, self._hidden_size)

    def _encode_all(self, request: EmbeddingRequest) -> list[tuple[int, ...]]:
        return [self._encode(request, prompt) for prompt in request.prompts]

    def _encode(self, request: EmbeddingRequest, prompt: TextPrompt | TokenPrompt) -> tuple[int, ...]:
        """A prompt's ids. An empty text is an error even where the tokenizer adds tokens of its own."""
        match prompt:
            case TokenPrompt(ids):
                check_ids(request, "prompts", ids, self._vocab_size)
            case TextPrompt(text):
                name = request.name("prompts")
                ids = tuple(self._tokenizer.encode(text, add_special=True, param=name)) if text else ()
        if not ids:
            raise invalid(request, "prompts", "must not be empty, nor hold anything empty")
        check_length(request, len(ids), self._limits, self._max_context)
        return ids

    async def _pool(self, request: EmbeddingRequest, prompts: Sequence[tuple[int, ...]]) -> list[_Embedded]:
        """All prompts in their order, of which the engine has a few at a time: `at_once`, or as many as its
        queue takes."""
        waiting = deque(enumerate(prompts))
        reading: dict[asyncio.Task[_Embedded], Stream] = {}
        found: list[_Embedded] = []
        try:
            while waiting or reading:
                await self._submit(request, waiting, reading)
                done, _ = await asyncio.wait(reading, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del reading[task]
                    found.append(task.result())
        finally:
            for task, stream in reading.items():
                stream.cancel()
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        return sorted(found, key=lambda each: each.place)

    async def _submit(
        self,
        request: EmbeddingRequest,
        waiting: deque[tuple[int, tuple[int, ...]]],
        reading: dict[asyncio.Task[_Embedded], Stream],
    ) -> None:
        """Hand prompts over while there is room. Raises `OverloadedError` where none of them gets any."""
        while waiting and len(reading) < self._at_once:
            index, prompt = waiting[0]
            try:
                stream = self._engine.submit(self._core_request(request, index, prompt))
            except OverloadedError:
                if not reading:
                    raise
                return  # there is room when one of those has ended
            waiting.popleft()
            reading[asyncio.create_task(_read(index, stream))] = stream
            if not len(waiting) % TOGETHER:
                await asyncio.sleep(0)

    def _core_request(self, request: EmbeddingRequest, index: int, prompt: tuple[int, ...]) -> Request:
        """It arrives now: to have waited here for its own kind is no reason to go before others."""
        return Request(
            id=f"{request.id}-{index}" if index else request.id,
            prompt=prompt,
            max_tokens=0,
            sampling=GREEDY,
            priority=request.priority,
            account=request.account,
            arrival=self._engine.now(),
            speculation=False,
            pooling=request.pooling or self._pooling,
        )


async def _read(index: int, stream: Stream) -> _Embedded:
    """What the engine says of one prompt."""
    vector: Vector | None = None
    cached = 0
    async for events in stream:
        for event in events:
            if isinstance(event, Pooled):
                vector = event.vector
            elif isinstance(event, Finished):
                if event.reason in (FinishReason.ERROR, FinishReason.CANCELLED):
                    raise EngineError(event.error or "the request was cancelled")
                cached = event.cached_tokens
    if vector is None:
        raise EngineError("the engine gave no vector")
    return _Embedded(index, vector, cached)


def _shaped(request: EmbeddingRequest, vector: Vector) -> NDArray[np.float32]:
    """As long as the request wants it, in elements and in length."""
    kept = vector if request.dimensions is None else vector[: request.dimensions]
    length = float(np.linalg.norm(kept)) if request.normalise else 1.0
    return (kept / (length or 1.0)).astype(np.float32)
