"""The table of routes: everything that this server answers, by protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prometheus_client import CollectorRegistry

from tokenspeed.api import shapes
from tokenspeed.api.anthropic import CountTokensEndpoint, MessagesDialect
from tokenspeed.api.anthropic_models import AnthropicModelsEndpoint
from tokenspeed.api.chat import ChatDialect
from tokenspeed.api.completions import CompletionDialect
from tokenspeed.api.embeddings import EmbeddingsEndpoint
from tokenspeed.api.endpoint import Dialect, Endpoint, Service, is_long
from tokenspeed.api.error_shapes import ANTHROPIC_VERSION
from tokenspeed.api.fim import FimDialect
from tokenspeed.api.health import HealthEndpoint
from tokenspeed.api.llamacpp import InfillDialect, LlamaCompletionDialect
from tokenspeed.api.llamacpp_tools import LlamaTools
from tokenspeed.api.lmstudio import LMStudioModels
from tokenspeed.api.media import JSON, NDJSON, PLAIN_TEXT, SSE
from tokenspeed.api.models import ModelsEndpoint, ServedModel
from tokenspeed.api.ollama import OllamaChatDialect, OllamaGenerateDialect
from tokenspeed.api.ollama_embeddings import OllamaEmbeddings
from tokenspeed.api.ollama_models import MANAGING, OllamaModels, OllamaNames
from tokenspeed.api.openapi import OWN
from tokenspeed.api.responses import ResponsesDialect, is_slow
from tokenspeed.api.responses_routes import MOST_LISTED, CountInputEndpoint, StoredResponsesEndpoint
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.api.served import Served, get, post
from tokenspeed.api.shapes import LINES, PLAIN, STREAM, TEXT, Shape
from tokenspeed.api.timeline import TimelineEndpoint
from tokenspeed.engine.timeline import Timeline
from tokenspeed.generation.embedding import Embedder

EVENTS: Mapping[str, Shape] = {SSE: STREAM}
OBJECTS: Mapping[str, Shape] = {NDJSON: LINES}


@dataclass(frozen=True, slots=True)
class Parts:
    """What the routes are made of; see `create_app`."""

    service: Service
    embedder: Embedder
    model: ServedModel
    registry: CollectorRegistry
    ready: Callable[[], bool]
    timeline: Callable[[str], Timeline | None]
    store: ResponseStore | None


def table_of(parts: Parts) -> dict[str, list[Served]]:
    """Every route by its protocol, but for what describes them."""
    return {
        "OpenAI": [*_openai(parts), *_responses(parts)],
        "Anthropic": _anthropic(parts),
        "Mistral": _mistral(parts),
        "Ollama": [*_ollama(parts), *_ollama_models(parts)],
        "LM Studio": _lmstudio(parts),
        "llama.cpp": _llamacpp(parts),
        OWN: _own(parts),
    }


def _generated(
    path: str,
    dialect: Dialect[Any],
    service: Service,
    summary: str,
    gives: Shape,
    streams: Mapping[str, Shape] = EVENTS,
    slow: Callable[[bytes], bool] = is_long,
) -> Served:
    """What the model answers, in one piece or as a stream."""
    endpoint = Endpoint(dialect, service, slow=slow)
    return post(path, endpoint.create, summary, dialect.decoder, gives, streams)


def _openai(parts: Parts) -> list[Served]:
    service = parts.service
    embeddings = EmbeddingsEndpoint(parts.embedder, service)
    models = AnthropicModelsEndpoint(parts.model, ModelsEndpoint(parts.model))
    version = {ANTHROPIC_VERSION: {**TEXT, "description": "With it, the answer is as Anthropic shapes it."}}
    return [
        _generated("/v1/chat/completions", ChatDialect(), service, "Chats", shapes.CHAT_COMPLETION),
        _generated("/v1/completions", CompletionDialect(), service, "Continues texts", shapes.COMPLETION),
        post("/v1/embeddings", embeddings.create, "Embeds texts", embeddings.decoder, shapes.EMBEDDINGS),
        get("/v1/models", models.list_all, "Lists what is served", shapes.MODELS, headers=version),
        get("/v1/models/{id:path}", models.get_one, "Tells of a model", shapes.MODEL, headers=version),
    ]


def _responses(parts: Parts) -> list[Served]:
    dialect = ResponsesDialect(parts.store)
    count, stored = CountInputEndpoint(dialect, parts.service), StoredResponsesEndpoint(parts.store)
    limit = {"type": "integer", "minimum": 1, "maximum": MOST_LISTED, "default": 20}
    pages = {"limit": limit, "order": {**shapes.is_("asc", "desc"), "default": "desc"}, "after": TEXT}
    path, one = "/v1/responses", "/v1/responses/{id}"
    kept, forgotten, items = shapes.RESPONSE, shapes.DELETED_RESPONSE, shapes.INPUT_ITEMS
    return [
        _generated(path, dialect, parts.service, "Responds", kept, slow=is_slow),
        post(f"{path}/input_tokens", count.create, "Counts tokens", dialect.decoder, shapes.INPUT_TOKENS),
        get(one, stored.get_one, "Gives a response that is kept", kept),
        Served("DELETE", one, stored.delete, "Forgets a response", gives={JSON: forgotten}),
        get(f"{one}/input_items", stored.input_items, "Lists what a response answers", items, query=pages),
        Served("POST", f"{one}/cancel", stored.cancel, "Is refused: none is in the background"),
    ]


def _anthropic(parts: Parts) -> list[Served]:
    dialect, service = MessagesDialect(parts.model.max_context), parts.service
    count, tokens = CountTokensEndpoint(service).create, shapes.MESSAGE_TOKENS
    return [
        _generated("/v1/messages", dialect, service, "Answers messages", shapes.MESSAGE),
        post("/v1/messages/count_tokens", count, "Counts tokens", dialect.decoder, tokens),
    ]


def _mistral(parts: Parts) -> list[Served]:
    given = shapes.CHAT_COMPLETION
    return [_generated("/v1/fim/completions", FimDialect(), parts.service, "Fills a gap", given)]


def _with_tags(parts: Parts) -> Service:
    """The service, which knows the model by Ollama's names as well."""
    return replace(parts.service, model=OllamaNames(parts.model))


def _ollama(parts: Parts) -> list[Served]:
    service, wording = _with_tags(parts), parts.service.generator.wording
    vectors = OllamaEmbeddings(parts.embedder, service, parts.model.max_context)
    chat, generate = OllamaChatDialect(wording), OllamaGenerateDialect(wording)
    embed, embedding = vectors.embed_decoder, vectors.embeddings_decoder
    return [
        _generated("/api/chat", chat, service, "Chats", shapes.OLLAMA_CHAT, OBJECTS),
        _generated("/api/generate", generate, service, "Continues a text", shapes.OLLAMA_GENERATE, OBJECTS),
        post("/api/embed", vectors.embed, "Embeds texts", embed, shapes.OLLAMA_EMBED),
        post("/api/embeddings", vectors.embeddings, "Embeds a text", embedding, shapes.OLLAMA_EMBEDDING),
    ]


def _ollama_models(parts: Parts) -> list[Served]:
    models = OllamaModels(parts.model, parts.service.generator.wording, _with_tags(parts))
    listed, done, named = shapes.OLLAMA_MODELS, shapes.OLLAMA_STATUS, models.decoder
    refused = "Is refused: the model is the one that the server was started with"
    return [
        get("/api/version", models.version, "Tells the version", shapes.VERSION),
        get("/api/tags", models.tags, "Lists what is served", listed),
        get("/api/ps", models.running, "Lists what is loaded", listed),
        post("/api/show", models.show, "Tells of a model", named, shapes.OLLAMA_MODEL),
        post("/api/pull", models.pull, "Fetches what is there already", named, done, OBJECTS),
        *(
            Served(method, f"/api/{path}", models.manage, refused)
            for path in MANAGING
            for method in ("POST", "DELETE", "HEAD")
        ),
    ]


def _lmstudio(parts: Parts) -> list[Served]:
    models = LMStudioModels(parts.model, OllamaNames(parts.model), parts.service.generator.wording)
    path, many, one = "/api/v0/models", shapes.LMSTUDIO_MODELS, shapes.LMSTUDIO_MODEL
    return [
        get(path, models.list_all, "Lists what is served", many),
        get(f"{path}/{{id:path}}", models.get_one, "Tells of a model", one),
    ]


def _llamacpp(parts: Parts) -> list[Served]:
    service = parts.service
    tools = LlamaTools(parts.model, service)
    text, fill = LlamaCompletionDialect(service.generator.wording), InfillDialect()
    chat, given = ChatDialect.decoder, shapes.LLAMA_COMPLETION
    return [
        _generated("/completion", text, service, "Continues a text", given),
        _generated("/infill", fill, service, "Fills a gap", given),
        post("/tokenize", tools.tokenize, "Splits texts", tools.tokenize_decoder, shapes.TOKENS),
        post("/detokenize", tools.detokenize, "Joins tokens", tools.detokenize_decoder, shapes.CONTENT),
        post("/apply-template", tools.apply_template, "Writes the prompt of a chat", chat, shapes.RENDERED),
        get("/props", tools.props, "Tells of the server", shapes.PROPS),
        get("/slots", tools.slots, "Tells what runs", shapes.SLOTS),
    ]


def _own(parts: Parts) -> list[Served]:
    health, timeline = HealthEndpoint(parts.registry, parts.ready), TimelineEndpoint(parts.timeline)
    plain, unready = {PLAIN_TEXT: PLAIN}, {503: shapes.STATUS}
    why = "Tells why a request took so long"
    return [
        Served("GET", "/", health.root, "Says that it is there", gives=plain),
        get("/health", health.health, "Tells whether the server lives", shapes.STATUS),
        get("/ready", health.ready, "Tells whether requests are taken", shapes.STATUS, also=unready),
        Served("GET", "/metrics", health.metrics, "Counts, for Prometheus", gives=plain),
        get("/version", health.version, "Tells the version", shapes.VERSION),
        get("/v1/requests/{id}/timeline", timeline.get_one, why, shapes.TIMELINE),
    ]
