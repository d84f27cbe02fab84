"""`GET /api/v0/models`: LM Studio's list of models, where its clients read how long the context is."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.endpoint import Names
from tokenspeed.api.media import JsonResponse
from tokenspeed.api.models import ServedModel
from tokenspeed.generation.wording import Wording


class LMStudioModels:
    """Answers from memory, whatever the engine is doing."""

    def __init__(self, model: ServedModel, names: Names, wording: Wording) -> None:
        self._names = names
        self._cards = [_card(name, model, wording) for name in model.names]

    async def list_all(self, _: Request) -> Response:
        return JsonResponse({"object": "list", "data": self._cards})

    async def get_one(self, http: Request) -> Response:
        name = self._names.resolve(http.path_params["id"])
        return JsonResponse({**self._cards[0], "id": name})


def _card(name: str, model: ServedModel, wording: Wording) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "type": "llm",
        "publisher": "tokenspeed",
        "arch": model.facts.family,
        "compatibility_type": "safetensors",
        "quantization": model.facts.dtype,
        "state": "loaded",
        "max_context_length": model.max_context,
        "loaded_context_length": model.max_context,
        "capabilities": ["tool_use"] if "tools" in wording.template else [],
    }
