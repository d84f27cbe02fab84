"""`POST /api/embed` and the older `POST /api/embeddings`: texts in, vectors out."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.body import parse
from tokenspeed.api.disconnect import unless_gone
from tokenspeed.api.endpoint import Service, new_id, read_request
from tokenspeed.api.keys import Caller
from tokenspeed.api.media import JsonResponse
from tokenspeed.api.ollama_answers import nanoseconds
from tokenspeed.api.ollama_types import EmbeddingsRequest, EmbedRequest
from tokenspeed.errors import RequestError
from tokenspeed.generation.embedding import Embedder, EmbeddingRequest
from tokenspeed.generation.request import TextPrompt, TokenPrompt


class OllamaEmbeddings:
    """Vectors of length 1 from `embed`, and as the model gives them from `embeddings`."""

    embed_decoder = msgspec.json.Decoder(EmbedRequest)
    embeddings_decoder = msgspec.json.Decoder(EmbeddingsRequest)

    def __init__(self, embedder: Embedder, service: Service, max_context: int) -> None:
        self._embedder = embedder
        self._service = service
        self._max_context = max_context

    async def embed(self, http: Request) -> Response:
        (asked, model, caller), arrival = await read_request(http, self._service, self._read_embed)
        texts = [asked.input] if isinstance(asked.input, str) else asked.input or []
        cut = asked.truncate is not False
        answer = {"model": model, "embeddings": [], "load_duration": 0, "prompt_eval_count": 0}
        if any(texts):
            vectors, answer["prompt_eval_count"] = await unless_gone(
                http.receive, self._vectors(texts, caller, dimensions=asked.dimensions, cut=cut)
            )
            answer["embeddings"] = vectors
        answer["total_duration"] = nanoseconds(self._service.generator.now() - arrival)
        return JsonResponse(answer)

    async def embeddings(self, http: Request) -> Response:
        (prompt, caller), _ = await read_request(http, self._service, self._read_embeddings)
        vectors: list[object] = [[]]
        if prompt:
            vectors, _ = await unless_gone(
                http.receive, self._vectors([prompt], caller, dimensions=None, cut=True, normalise=False)
            )
        return JsonResponse({"embedding": vectors[0]})

    def _read_embed(self, body: bytes, caller: Caller) -> tuple[EmbedRequest, str, Caller]:
        asked = parse(body, self.embed_decoder)
        model = self._service.model.resolve(asked.model)
        if asked.input is None:
            raise RequestError("input is required", param="input", code="missing_required_parameter")
        return asked, model, caller

    def _read_embeddings(self, body: bytes, caller: Caller) -> tuple[str, Caller]:
        asked = parse(body, self.embeddings_decoder)
        self._service.model.resolve(asked.model)
        return asked.prompt or "", caller

    async def _vectors(
        self,
        texts: Sequence[str],
        caller: Caller,
        *,
        dimensions: int | None,
        cut: bool,
        normalise: bool = True,
    ) -> tuple[list[object], int]:
        """A vector of each text, and how many tokens all have; texts that are too long are `cut`."""
        prompts = [await self._cut(text) if cut else TextPrompt(text) for text in texts]
        request = EmbeddingRequest(
            id=new_id("ollama-"),
            prompts=tuple(prompts),
            dimensions=dimensions,
            normalise=normalise,
            priority=caller.priority,
            account=caller.account,
            names={"prompts": "input"},
        )
        embedded = await self._embedder.embed(request)
        return list(embedded.vectors), embedded.usage.prompt

    async def _cut(self, text: str) -> TextPrompt | TokenPrompt:
        if len(text.encode()) + 2 <= self._max_context:  # every token but what is put around it has a byte
            return TextPrompt(text)
        (ids,) = await self._service.generator.wording.encode_all([text], add_special=True, param="input")
        return TokenPrompt(tuple(ids[: self._max_context]))
