"""What llama.cpp's clients ask beside text: tokens, prompts, and facts about the server."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from tokenspeed import __version__
from tokenspeed.api.body import parse
from tokenspeed.api.chat import ChatDialect
from tokenspeed.api.disconnect import unless_gone
from tokenspeed.api.endpoint import Asking, Service, read_request
from tokenspeed.api.keys import Caller
from tokenspeed.api.llamacpp_types import DetokenizeBody, TokenizeBody
from tokenspeed.api.media import JsonResponse
from tokenspeed.api.models import ServedModel
from tokenspeed.api.tools import wrong
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import ChatPrompt

INT32 = 2**31  # as much as an id may be, to be looked for in the vocabulary


class LlamaTools:
    """Answers without the engine."""

    tokenize_decoder = msgspec.json.Decoder(TokenizeBody)
    detokenize_decoder = msgspec.json.Decoder(DetokenizeBody)

    def __init__(self, model: ServedModel, service: Service) -> None:
        self._model = model
        self._service = service
        self._wording = service.generator.wording

    async def tokenize(self, http: Request) -> Response:
        asked, _ = await read_request(http, self._service, lambda body, _: parse(body, self.tokenize_decoder))
        if asked.content is None:
            raise RequestError("content is required", param="content", code="missing_required_parameter")
        parts: Sequence[str | int] = [asked.content] if isinstance(asked.content, str) else asked.content
        tokens = await unless_gone(http.receive, self._ids(parts, asked))
        if not asked.with_pieces:
            return JsonResponse({"tokens": tokens})
        return JsonResponse({"tokens": [{"id": token, "piece": self._piece(token)} for token in tokens]})

    async def detokenize(self, http: Request) -> Response:
        asked, _ = await read_request(
            http, self._service, lambda body, _: parse(body, self.detokenize_decoder)
        )
        ids = asked.tokens or []
        self._check(ids)
        return JsonResponse({"content": await unless_gone(http.receive, self._wording.decode_aside(ids))})

    async def apply_template(self, http: Request) -> Response:
        prompt, _ = await read_request(http, self._service, self._read_chat)
        return JsonResponse({"prompt": await unless_gone(http.receive, self._wording.render_aside(prompt))})

    async def props(self, _: Request) -> Response:
        model, generator = self._model, self._service.generator
        defaults = generator.defaults
        sampling = {
            "temperature": defaults.temperature,
            "top_k": defaults.top_k,
            "top_p": defaults.top_p,
            "min_p": defaults.min_p,
            "repeat_penalty": defaults.repetition_penalty,
        }
        return JsonResponse(
            {
                "default_generation_settings": {"n_ctx": model.max_context, "params": sampling},
                "total_slots": generator.load.most,
                "model_alias": model.name,
                "model_path": model.root,
                "chat_template": self._wording.template,
                "bos_token": self._wording.special("bos_token"),
                "eos_token": self._wording.special("eos_token"),
                "modalities": {"vision": False, "audio": False},
                "build_info": f"tokenspeed-{__version__}",
            }
        )

    async def slots(self, _: Request) -> Response:
        """As many as sequences can run at once. They have no place of their own, so the first ones stand for
        those that do."""
        load, context = self._service.generator.load, self._model.max_context
        return JsonResponse(
            [
                {"id": index, "n_ctx": context, "speculative": False, "is_processing": index < load.running}
                for index in range(load.most)
            ]
        )

    async def _ids(self, parts: Sequence[str | int], asked: TokenizeBody) -> list[int]:
        texts = [part for part in parts if isinstance(part, str)]
        encoded = await self._wording.encode_all(
            texts,
            add_special=bool(asked.add_special) and isinstance(next(iter(parts), None), str),
            parse_special=asked.parse_special is not False,
            param="content",
        )
        of_texts = iter(encoded)
        ids: list[int] = []
        for part in parts:
            ids += next(of_texts) if isinstance(part, str) else [part]
        self._check(ids)
        return ids

    def _check(self, ids: list[int]) -> None:
        most = self._wording.vocab_size
        if ids and (min(ids) < 0 or max(ids) >= most):  # there may be very many
            bad = next(token for token in ids if not 0 <= token < most)
            shown = str(bad) if abs(bad) < INT32 else "a huge number"
            raise wrong("tokens", f"has {shown}; the vocabulary has ids 0 to {most - 1}")

    def _piece(self, token: int) -> str | list[int]:
        """Its text, or its bytes where these are only a part of a character."""
        data = self._wording.piece(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return list(data)

    def _read_chat(self, body: bytes, caller: Caller) -> ChatPrompt:
        """The prompt that a chat with this body would have."""
        asked = parse(body, ChatDialect.decoder)
        model = self._service.model.resolve(asked.model)
        (prompt,) = ChatDialect().read(asked, Asking(body, model, caller)).request.prompts
        assert isinstance(prompt, ChatPrompt)
        return prompt
