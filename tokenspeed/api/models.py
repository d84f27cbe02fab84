"""`GET /models`: what is served, with its context length under every name that some tool reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tokenspeed.errors import NotFoundError

ALIAS = "local"  # always means the served model


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What clients show of a model. `size` is that of its weights as they are stored, in bytes."""

    family: str = "unknown"
    parameters: int = 0
    dtype: str = "unknown"
    size: int = 0
    hidden_size: int = 0
    layers: int = 0


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The one model that this server has. `root` is where it came from, `created` a Unix time."""

    name: str
    root: str
    max_context: int
    created: int
    facts: ModelFacts = ModelFacts()

    def resolve(self, asked: str | None) -> str:
        """The name to answer with; raises where the client means another model."""
        if not asked or asked == self.name:
            return self.name
        if asked == ALIAS:
            return asked
        raise NotFoundError(
            f"The model {asked[:200]!r} does not exist here; this server has {self.name!r} "
            f"(which {ALIAS!r} names as well).",
            param="model",
            code="model_not_found",
        )

    def card(self) -> dict[str, Any]:
        """The model as clients of several servers expect to read it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "tokenspeed",
            "root": self.root,
            "max_model_len": self.max_context,
            "context_length": self.max_context,
            "context_window": self.max_context,
            "meta": {"n_ctx_train": self.max_context},
        }


class ModelsEndpoint:
    """Answers from memory, whatever the engine is doing."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._list = orjson.dumps({"object": "list", "data": [model.card()]})
        self._card = orjson.dumps(model.card())

    def routes(self) -> list[Route]:
        return [Route("/models", self.list_all), Route("/models/{id:path}", self.get_one)]

    async def list_all(self, _: Request) -> Response:
        return Response(self._list, media_type="application/json")

    async def get_one(self, request: Request) -> Response:
        self._model.resolve(request.path_params["id"])
        return Response(self._card, media_type="application/json")
