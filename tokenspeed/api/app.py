"""The ASGI application: every route, and what wraps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp

from tokenspeed.api.access import Origins, cors
from tokenspeed.api.anthropic import CountTokensEndpoint, MessagesDialect
from tokenspeed.api.anthropic_models import AnthropicModelsEndpoint
from tokenspeed.api.chat import ChatDialect
from tokenspeed.api.completions import CompletionDialect
from tokenspeed.api.embeddings import EmbeddingsEndpoint
from tokenspeed.api.endpoint import Endpoint, Service
from tokenspeed.api.errors import ClientGoneError, handle_error, handle_http_error
from tokenspeed.api.fim import FimDialect
from tokenspeed.api.health import HealthEndpoint
from tokenspeed.api.keys import Keys
from tokenspeed.api.llamacpp import InfillDialect, LlamaCompletionDialect
from tokenspeed.api.llamacpp_tools import LlamaTools
from tokenspeed.api.middleware import Boundary, DirectSend
from tokenspeed.api.models import ModelsEndpoint, ServedModel
from tokenspeed.api.ollama_routes import ollama_routes
from tokenspeed.api.options import KeyOptions, ServerOptions
from tokenspeed.api.pace import Pace
from tokenspeed.api.responses import ResponsesDialect, is_slow
from tokenspeed.api.responses_routes import InputTokensEndpoint, StoredResponsesEndpoint
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.api.timeline import TimelineEndpoint
from tokenspeed.engine.timeline import Timeline
from tokenspeed.errors import TokenSpeedError
from tokenspeed.generation.embedding import Embedder
from tokenspeed.generation.generator import Generator


def create_app(
    generator: Generator,
    embedder: Embedder,
    *,
    model: ServedModel,
    options: ServerOptions,
    registry: CollectorRegistry,
    ready: Callable[[], bool],
    keys: Mapping[str, KeyOptions],
    timeline: Callable[[str], Timeline | None],
    store: ResponseStore | None = None,
) -> ASGIApp:
    """The whole server but its socket.

    `ready` says whether a request would be taken now. `keys` are who may use it, by the account that their
    requests count against; with none, everybody may. `timeline` gives that of a request by its id;
    `store` keeps responses that clients come back to.
    """
    pace = Pace()
    service = Service(generator, model, options, pace)
    embeddings = EmbeddingsEndpoint(embedder, model, options, pace)
    responses = ResponsesDialect(store)
    endpoints: list[tuple[str, Endpoint[Any]]] = [
        ("/chat/completions", Endpoint(ChatDialect(), service)),
        ("/completions", Endpoint(CompletionDialect(), service)),
        ("/messages", Endpoint(MessagesDialect(model.max_context), service)),
        ("/responses", Endpoint(responses, service, slow=is_slow)),
    ]
    endpoints += [
        ("/completion", Endpoint(LlamaCompletionDialect(generator.wording), service)),
        ("/infill", Endpoint(InfillDialect(), service)),
        ("/fim/completions", Endpoint(FimDialect(), service)),
    ]
    routes = [
        *(Route(path, endpoint.create, methods=["POST"]) for path, endpoint in endpoints),
        Route("/embeddings", embeddings.create, methods=["POST"]),
        Route("/messages/count_tokens", CountTokensEndpoint(service).create, methods=["POST"]),
        Route("/responses/input_tokens", InputTokensEndpoint(responses, service).create, methods=["POST"]),
        *StoredResponsesEndpoint(store).routes(),
        *AnthropicModelsEndpoint(model, ModelsEndpoint(model)).routes(),
        *LlamaTools(model, service).routes(),
        *ollama_routes(service, embedder, model),
        *TimelineEndpoint(timeline).routes(),
        *HealthEndpoint(registry, ready).routes(),
    ]
    app = Starlette(
        routes=routes,
        middleware=[
            Middleware(Boundary),
            Middleware(Origins, options=options),
            *cors(options),
            Middleware(Keys, keys=keys),
        ],
        exception_handlers={
            TokenSpeedError: handle_error,
            ClientGoneError: handle_error,
            HTTPException: handle_http_error,
        },
    )
    app.router.redirect_slashes = False
    return DirectSend(app)
