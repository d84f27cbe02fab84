"""All that begins with `/api`: Ollama's API, and LM Studio's list of models."""

from __future__ import annotations

from dataclasses import replace

from starlette.routing import Route

from tokenspeed.api.endpoint import Endpoint, Service
from tokenspeed.api.lmstudio import LMStudioModels
from tokenspeed.api.models import ServedModel
from tokenspeed.api.ollama import OllamaChatDialect, OllamaGenerateDialect
from tokenspeed.api.ollama_embeddings import OllamaEmbeddings
from tokenspeed.api.ollama_models import OllamaModels, OllamaNames
from tokenspeed.generation.embedding import Embedder


def ollama_routes(service: Service, embedder: Embedder, model: ServedModel) -> list[Route]:
    """The routes, which know the model by Ollama's names as well."""
    wording = service.generator.wording
    ours = replace(service, model=OllamaNames(model))
    embeddings = OllamaEmbeddings(embedder, ours, model.max_context)
    handlers = {
        "chat": Endpoint(OllamaChatDialect(wording), ours).create,
        "generate": Endpoint(OllamaGenerateDialect(wording), ours).create,
        "embed": embeddings.embed,
        "embeddings": embeddings.embeddings,
    }
    return [
        *(Route(f"/api/{name}", handler, methods=["POST"]) for name, handler in handlers.items()),
        *OllamaModels(model, wording, ours).routes(),
        *LMStudioModels(model, ours.model, wording).routes(),
    ]
