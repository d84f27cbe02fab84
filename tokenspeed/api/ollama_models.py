"""What Ollama's clients ask about models: which there are, what each can do, which is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed import __version__
from tokenspeed.api.body import parse
from tokenspeed.api.endpoint import Service, read_request
from tokenspeed.api.media import NDJSON, JsonResponse
from tokenspeed.api.models import ServedModel
from tokenspeed.api.ollama_types import Named
from tokenspeed.errors import NotFoundError, RequestError
from tokenspeed.generation.wording import Wording

# Clients look here for what they can ask for: Codex wants 0.13.4, which had responses first.
OLLAMA_VERSION = "0.13.5"
LATEST = ":latest"  # the tag of a model that is named without one
FAR_OFF = "2318-01-01T00:00:00Z"  # when a model that stays loaded is unloaded
MANAGING = ("create", "copy", "delete", "push", "blobs/{digest}")
LEVELS = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
UNITS = ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "K"))

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class OllamaNames:
    """The names of the served model, each of which may have the tag `latest` behind it."""

    model: ServedModel

    def resolve(self, asked: str | None) -> str:
        """The name that was asked for, which is what Ollama answers with."""
        plain = (asked or "").removesuffix(LATEST)
        try:
            known = self.model.resolve(asked if asked in self.model.names else plain)
        except NotFoundError:
            raise NotFoundError(
                f'model "{(asked or "")[:200]}" not found; this server has "{self.model.name}"',
                param="model",
                code="model_not_found",
            ) from None
        return asked or known


class OllamaModels:
    """Answers from memory, whatever the engine is doing."""

    decoder = msgspec.json.Decoder(Named)

    def __init__(self, model: ServedModel, wording: Wording, service: Service) -> None:
        self._model = model
        self._wording = wording
        self._service = service
        self._modified = datetime.fromtimestamp(model.created, UTC).isoformat().replace("+00:00", "Z")

    async def version(self, _: Request) -> Response:
        return JsonResponse({"version": OLLAMA_VERSION, "server": f"tokenspeed/{__version__}"})

    async def tags(self, _: Request) -> Response:
        return self._listed({"modified_at": self._modified})

    async def running(self, _: Request) -> Response:
        facts = {
            "expires_at": FAR_OFF,
            "size_vram": self._model.facts.size,
            "context_length": self._model.max_context,
        }
        return self._listed(facts)

    async def show(self, http: Request) -> Response:
        await self._asked(http)
        context = self._model.max_context
        return JsonResponse(
            {
                "modelfile": f"# served by TokenSpeed {__version__}\nFROM {self._model.root}\n",
                "parameters": f"num_ctx {context}",
                "template": self._template(),
                "details": self._details(),
                "model_info": self._info(),
                "capabilities": self._capabilities(),
                "modified_at": self._modified,
            }
        )

    async def pull(self, http: Request) -> Response:
        """There is nothing to fetch: what is served is here, and nothing else can be had."""
        asked = await self._asked(http)
        if asked.stream is False:
            return JsonResponse({"status": "success"})
        lines = [{"status": "pulling manifest"}, {"status": "success"}]
        return Response(b"".join([orjson.dumps(line) + b"\n" for line in lines]), media_type=NDJSON)

    async def manage(self, http: Request) -> Response:
        what = http.url.path.rstrip("/").split("/api/", 1)[1].split("/", 1)[0]
        raise RequestError(
            f"this server has the one model that it was started with; {what} is not supported",
            code="unsupported",
        )

    async def _asked(self, http: Request) -> Named:
        """The body of a request about a model, which is this one."""
        asked, _ = await read_request(http, self._service, lambda body, _: parse(body, self.decoder))
        name = asked.model or asked.name
        if not name:
            raise RequestError("model is required", param="model", code="missing_required_parameter")
        self._service.model.resolve(name)
        return asked

    def _listed(self, facts: Mapping[str, Any]) -> Response:
        """The model under all its names, without a tag: clients look for the very name they were given."""
        return JsonResponse({"models": [{**self._summary(name), **facts} for name in self._model.names]})

    def _summary(self, name: str) -> dict[str, Any]:
        model = self._model
        identity = f"{model.name}\0{model.root}\0{model.facts}"
        return {
            "name": name,
            "model": name,
            "size": model.facts.size,
            "digest": hashlib.sha256(identity.encode()).hexdigest(),
            "details": self._details(),
        }

    def _details(self) -> dict[str, Any]:
        facts = self._model.facts
        return {
            "parent_model": "",
            "format": "safetensors",
            "family": facts.family,
            "families": [facts.family],
            "parameter_size": _rounded(facts.parameters),
            "quantization_level": LEVELS.get(facts.dtype, facts.dtype),
        }

    def _info(self) -> dict[str, Any]:
        facts, context = self._model.facts, self._model.max_context
        return {
            "general.architecture": facts.family,
            "general.basename": self._model.name,
            "general.parameter_count": facts.parameters,
            f"{facts.family}.context_length": context,
            f"{facts.family}.embedding_length": facts.hidden_size,
            f"{facts.family}.block_count": facts.layers,
        }

    def _capabilities(self) -> list[str]:
        wording = self._wording
        able = {
            "completion": True,
            "tools": "tools" in wording.template,
            "insert": wording.fills,
            "thinking": wording.thinks,
            "embedding": True,
        }
        return [name for name, can in able.items() if can]

    def _template(self) -> str:
        """What clients look through for what a request may have; what is rendered is the checkpoint's own."""
        tools = "{{ if .Tools }}{{ .Tools }}{{ end }}" if "tools" in self._wording.template else ""
        suffix = "{{ if .Suffix }}{{ .Suffix }}{{ end }}" if self._wording.fills else ""
        return "{{ .System }}" + tools + "{{ .Prompt }}" + suffix


def _rounded(count: int) -> str:
    """A number of parameters as people say it."""
    for unit, letter in UNITS:
        if count >= unit:
            return f"{count / unit:.1f}{letter}"
    return str(count)
