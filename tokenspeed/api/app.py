"""The ASGI application: the table of routes, and what wraps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from tokenspeed.api.access import Origins, cors
from tokenspeed.api.endpoint import Service
from tokenspeed.api.errors import ClientGoneError, handle_error, handle_http_error
from tokenspeed.api.keys import Keys
from tokenspeed.api.middleware import Boundary, DirectSend
from tokenspeed.api.models import ServedModel
from tokenspeed.api.openapi import described
from tokenspeed.api.options import KeyOptions, ServerOptions
from tokenspeed.api.pace import Pace
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.api.routes import Parts, table_of
from tokenspeed.api.served import routes_of
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
    service = Service(generator, model, options, Pace())
    parts = Parts(service, embedder, model, registry, ready, timeline, store)
    table = described(table_of(parts), keyed=bool(keys))
    app = Starlette(
        routes=routes_of(row for rows in table.values() for row in rows),
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
