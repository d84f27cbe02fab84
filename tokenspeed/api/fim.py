"""`POST /fim/completions`: what stands before and behind a gap in, what fills it out, shaped as a chat.

https://docs.mistral.ai/api/endpoint/fim
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import orjson

from tokenspeed.api.endpoint import Asking, Job, new_id
from tokenspeed.api.openai_answers import NAMES, CompletionWriter, Heading, common_fields
from tokenspeed.api.openai_types import CommonRequest
from tokenspeed.api.response_format import read_format
from tokenspeed.api.sse import DONE
from tokenspeed.api.unsupported import OFF_IN_TEXT, refuse_unsupported
from tokenspeed.generation.outputs import Delta, Ended, Output, Usage, Whole
from tokenspeed.generation.request import FillPrompt, GenerationRequest, Prompt, TextPrompt


class FimRequest(CommonRequest, kw_only=True):
    """Mistral's fields beside those of OpenAI's completions; `random_seed` is their `seed`."""

    prompt: str
    suffix: str | None = None
    random_seed: int | None = None


class FimDialect:
    """Reads gaps; without a suffix there is none, and the text just goes on."""

    decoder = msgspec.json.Decoder(FimRequest)

    def read(self, asked: FimRequest, asking: Asking) -> Job:
        refuse_unsupported(asking.body, OFF_IN_TEXT)
        heading = Heading.now(new_id("fim-"), asking.model)
        names = {**NAMES, "prompts": "prompt"}
        names["format"], wanted = read_format(asked)
        if asked.seed is None and asked.random_seed is not None:
            asked.seed, names["seed"] = asked.random_seed, "random_seed"
        prompt: Prompt = TextPrompt(asked.prompt)
        if asked.suffix:
            prompt = FillPrompt(asked.prompt, asked.suffix)
        request = GenerationRequest(
            id=heading.id,
            prompts=(prompt,),
            format=wanted,
            names=names,
            **common_fields(asked, asking.caller),
        )
        return Job(request, FimWriter(heading), bool(asked.stream))


class FimShape:
    """Every piece has a text, even the last: clients read it without a look whether it is there."""

    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def chunk(self, output: Output) -> bytes:
        match output:
            case Delta(choice, text):
                return orjson.dumps({"index": choice, "delta": _said(text), "finish_reason": None})
            case Ended(choice, reason):
                return orjson.dumps({"index": choice, "delta": _said(""), "finish_reason": reason})
        return b""  # a text has no calls and no thinking

    def choices(self, wholes: list[Whole]) -> list[dict[str, Any]]:
        return [
            {"index": index, "message": _said(whole.text), "finish_reason": whole.reason}
            for index, whole in enumerate(wholes)
        ]


class FimWriter(CompletionWriter):
    """The usage comes with what ends a choice: clients take every chunk to have one."""

    def __init__(self, heading: Heading) -> None:
        super().__init__(heading, FimShape(), None)

    def write(self, outputs: list[Output], usage: Callable[[], Usage]) -> bytes:
        self._continuous = any(isinstance(output, Ended) for output in outputs)
        return super().write(outputs, usage)

    def end(self, usage: Usage) -> bytes:
        return DONE


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
