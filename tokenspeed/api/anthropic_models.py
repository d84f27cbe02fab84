"""`GET /models` for Anthropic's clients, which share the path with OpenAI's.

https://docs.anthropic.com/en/api/models-list
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tokenspeed.api.error_shapes import ANTHROPIC_VERSION
from tokenspeed.api.media import JsonResponse
from tokenspeed.api.models import ModelsEndpoint, ServedModel


class AnthropicModelsEndpoint:
    """Answers those that send a version of Anthropic's API; the others' requests are `others`'."""

    def __init__(self, model: ServedModel, others: ModelsEndpoint) -> None:
        self._model = model
        self._others = others

    async def list_all(self, http: Request) -> Response:
        """One page, whatever page was asked for: there is no other."""
        if ANTHROPIC_VERSION not in http.headers:
            return await self._others.list_all(http)
        cards = [card(self._model, name) for name in self._model.names]
        page = {"data": cards, "has_more": False, "first_id": cards[0]["id"], "last_id": cards[-1]["id"]}
        return JsonResponse(page)

    async def get_one(self, http: Request) -> Response:
        if ANTHROPIC_VERSION not in http.headers:
            return await self._others.get_one(http)
        name = self._model.resolve(http.path_params["id"])
        return JsonResponse(card(self._model, name))


def card(model: ServedModel, name: str) -> dict[str, Any]:
    """The model under one of its names.

    A request may ask for as many tokens as the context has: what there is no room for is cut.
    """
    created = datetime.fromtimestamp(model.created, UTC)
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": created.isoformat().replace("+00:00", "Z"),
        "lifecycle": "active",
        "max_input_tokens": model.max_context,
        "max_tokens": model.max_context,
    }
