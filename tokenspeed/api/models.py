"""`GET /models`: what is served, with its context length under every name that some tool reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.media import JSON, JsonResponse
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
    aliases: tuple[str, ...] = ()
    any_name: bool = False  # whatever a client calls it, it means this model
    facts: ModelFacts = ModelFacts()

    @property
    def names(self) -> tuple[str, ...]:
        """What it is listed as: its own name first."""
        return (self.name, *self.aliases)

    def resolve(self, asked: str | None) -> str:
        """The name to answer with; raises where the client means another model."""
        if not asked:
            return self.name
        if self.any_name or asked in (*self.names, ALIAS):
            return asked
        raise NotFoundError(
            f"The model {asked[:200]!r} does not exist here; this server has {self.name!r} "
            f"(which {ALIAS!r} names as well).",
            param="model",
            code="model_not_found",
        )

    def card(self, name: str) -> dict[str, Any]:
        """The model under one of its names, as clients of several servers expect to read it."""
        return {
            "id": name,
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
        cards = [model.card(name) for name in model.names]
        self._list = orjson.dumps({"object": "list", "data": cards})

    async def list_all(self, _: Request) -> Response:
        return Response(self._list, media_type=JSON)

    async def get_one(self, request: Request) -> Response:
        name = self._model.resolve(request.path_params["id"])
        return JsonResponse(self._model.card(name))
