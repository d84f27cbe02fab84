"""Whether the server lives, whether it can serve, and what it counts."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from tokenspeed import __version__
from tokenspeed.api.media import JsonResponse


class HealthEndpoint:
    """`/health` answers as long as the process does; `/ready` only while requests are taken."""

    def __init__(self, registry: CollectorRegistry, ready: Callable[[], bool]) -> None:
        self._registry = registry
        self._ready = ready

    async def root(self, _: Request) -> Response:
        return PlainTextResponse("TokenSpeed is running\n")

    async def health(self, _: Request) -> Response:
        return JsonResponse({"status": "ok"})

    async def ready(self, _: Request) -> Response:
        if self._ready():
            return JsonResponse({"status": "ready"})
        return JsonResponse({"status": "not ready"}, status_code=503)

    async def metrics(self, _: Request) -> Response:
        body = generate_latest(self._registry)
        return Response(body, headers={"content-type": CONTENT_TYPE_LATEST})

    async def version(self, _: Request) -> Response:
        return JsonResponse({"version": __version__})
