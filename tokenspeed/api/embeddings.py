"""`POST /embeddings`: texts or token ids in, a vector for each of them out."""

from __future__ import annotations

import asyncio
import base64
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.body import parse
from tokenspeed.api.completions import prompts_of
from tokenspeed.api.disconnect import unless_gone
from tokenspeed.api.endpoint import Service, new_id, read_request
from tokenspeed.api.keys import Caller
from tokenspeed.api.media import JSON
from tokenspeed.api.unsupported import refuse_unsupported
from tokenspeed.core.request import Pooling
from tokenspeed.generation.embedding import Embedder, EmbeddingRequest, Embeddings

Encoding = Literal["float", "base64"]
WRITTEN_AT_ONCE = 50_000  # elements before the loop looks at anything else; some 5 ms as decimals


class EmbeddingsBody(msgspec.Struct, kw_only=True):
    """OpenAI's fields, and `pooling`. Unknown ones are ignored (so is `user`), explicit null is absence."""

    input: str | list[str | int | list[int]]
    model: str | None = None
    encoding_format: Encoding | None = None
    dimensions: int | None = None
    pooling: Pooling | None = None


class Asked(NamedTuple):
    """A request in neutral words, and how its answer is written."""

    request: EmbeddingRequest
    model: str
    encoding: Encoding


class EmbeddingsEndpoint:
    """Reads, embeds, and answers in one piece."""

    decoder = msgspec.json.Decoder(EmbeddingsBody)

    def __init__(self, embedder: Embedder, service: Service) -> None:
        self._embedder = embedder
        self._service = service

    async def create(self, http: Request) -> Response:
        asked, _ = await read_request(http, self._service, self._read)
        return await unless_gone(http.receive, self._answer(asked))

    def _read(self, body: bytes, caller: Caller) -> Asked:
        """All that can be told wrong without the model."""
        given = parse(body, self.decoder)
        refuse_unsupported(body)
        model = self._service.model.resolve(given.model)
        request = EmbeddingRequest(
            id=new_id("embd-"),
            prompts=prompts_of(given.input, "input"),
            pooling=given.pooling,
            dimensions=given.dimensions,
            priority=caller.priority,
            account=caller.account,
            names={"prompts": "input"},
        )
        return Asked(request, model, given.encoding_format or "float")

    async def _answer(self, asked: Asked) -> Response:
        embeddings = await self._embedder.embed(asked.request)
        body = await _written(embeddings, asked.model, asked.encoding)
        return Response(body, headers={"x-request-id": asked.request.id}, media_type=JSON)


async def _written(embeddings: Embeddings, model: str, encoding: Encoding) -> bytes:
    """The answer's object. It may have millions of numbers, so others get their turns meanwhile."""
    written: list[bytes] = []
    elements = 0
    for index, vector in enumerate(embeddings.vectors):
        written.append(
            b'{"object":"embedding","index":%d,"embedding":%b}' % (index, _encoded(vector, encoding))
        )
        elements += len(vector)
        if elements >= WRITTEN_AT_ONCE:
            elements = 0
            await asyncio.sleep(0)
    return b'{"object":"list","data":[' + b",".join(written) + b'],"model":' + _rest(embeddings, model)


def _rest(embeddings: Embeddings, model: str) -> bytes:
    tokens = embeddings.usage.prompt
    usage = orjson.dumps({"prompt_tokens": tokens, "total_tokens": tokens})
    return orjson.dumps(model) + b',"usage":' + usage + b"}"


def _encoded(vector: NDArray[np.float32], encoding: Encoding) -> bytes:
    """As JSON: numbers that read back as the same float32, or its little-endian bytes in base64."""
    if encoding == "float":
        return orjson.dumps(vector, option=orjson.OPT_SERIALIZE_NUMPY)
    return b'"' + base64.b64encode(vector.astype("<f4").tobytes()) + b'"'
