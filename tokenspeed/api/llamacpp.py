"""`POST /completion` and `POST /infill`: llama.cpp's prompts, and gaps in files, in; text out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import inf
from typing import Any

import msgspec

from tokenspeed.api.endpoint import Asking, Job, new_id
from tokenspeed.api.llama_options import names_of, refuse, sampling_fields, stops_of
from tokenspeed.api.llamacpp_answers import LlamaWriter, Terms
from tokenspeed.api.llamacpp_samplers import only_samplers
from tokenspeed.api.llamacpp_types import CompletionBody, InfillBody, LlamaRequest
from tokenspeed.api.response_format import as_schema
from tokenspeed.api.tools import wrong
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import (
    FillPrompt,
    GenerationRequest,
    LineBounds,
    Prompt,
    SamplingFields,
    TextPrompt,
    TokenPrompt,
)
from tokenspeed.generation.wording import Wording
from tokenspeed.text.fim import File
from tokenspeed.text.formats import Format, JsonSchema, Lark

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
    ("lora", "return_tokens", "return_progress", "post_sampling_probs", "grammar_lazy"), ()
)
INT32 = 2**31
NEVER = -100.0  # the bias of a token that is not to be drawn


class LlamaCompletionDialect:
    """Reads prompts: a text, ids, or a mix of both."""

    decoder = msgspec.json.Decoder(CompletionBody)

    def __init__(self, wording: Wording) -> None:
        self._wording = wording

    def read(self, asked: CompletionBody, asking: Asking) -> Job:
        return _job(asked, asking, self._prompt(asked.prompt), "prompt")

    def _prompt(self, given: Any) -> Prompt:
        match given:
            case str() | [str()]:
                return TextPrompt(given if isinstance(given, str) else given[0])
            case {"prompt_string": str(text)} if not given.get("multimodal_data"):
                return TextPrompt(text)
            case list() if given and all(type(part) in (int, str) for part in given):
                if not all(isinstance(part, str) for part in given):
                    return TokenPrompt(mixed_ids(given, self._wording, add_special=True))
                raise wrong("prompt", "has several texts; send a request for each of them")
            case None:
                raise RequestError("prompt is required", param="prompt", code="missing_required_parameter")
        raise wrong("prompt", "must be a text, a list of token ids, or a list that mixes both")


class InfillDialect:
    """Reads gaps in files."""

    decoder = msgspec.json.Decoder(InfillBody)

    def read(self, asked: InfillBody, asking: Asking) -> Job:
        files = tuple(File(extra.filename or "file", extra.text) for extra in asked.input_extra or ())
        prefix = (asked.input_prefix or "") + (asked.prompt or "")
        return _job(asked, asking, FillPrompt(prefix, asked.input_suffix or "", files), "input_prefix")


def mixed_ids(
    parts: list[Any], wording: Wording, *, add_special: bool, parse_special: bool = True
) -> tuple[int, ...]:
    """The ids of texts and ids in their order; what the checkpoint puts around a text is added to a text that
    comes first."""
    ids: list[int] = []
    for index, part in enumerate(parts):
        if isinstance(part, str):
            special = add_special and index == 0
            ids += wording.encode(part, add_special=special, parse_special=parse_special, param="prompt")
        else:
            ids.append(part)
    return tuple(ids)


def _job(asked: LlamaRequest, asking: Asking, prompt: Prompt, field: str) -> Job:
    """The prompt, which `field` holds, with all that both endpoints spell alike."""
    refuse(asked, UNSUPPORTED)
    most = asked.max_tokens if asked.n_predict is None else asked.n_predict
    if most is not None and abs(most) >= INT32:
        raise wrong("n_predict" if asked.n_predict is not None else "max_tokens", "must have 32 bits at most")
    choices = asked.n if asked.n_cmpl is None else asked.n_cmpl
    sampling = only_samplers(sampling_fields(asked), asked.samplers)
    request = GenerationRequest(
        id=new_id("llama-"),
        prompts=(prompt,),
        sampling=replace(sampling, logit_bias=_biases(asked.logit_bias)),
        n=1 if choices is None else choices,
        max_tokens=0 if most == 0 else None,
        most_tokens=most if most is not None and most > 0 else None,
        stops=stops_of(asked),
        ignore_eos=bool(asked.ignore_eos),
        logprobs=asked.n_probs or None,
        priority=asking.caller.priority,
        account=asking.caller.account,
        format=_format(asked),
        lines=_lines(asked),
        names=names_of("", prompts=field, n="n_cmpl", logprobs="n_probs", format=_format_field(asked)),
    )
    terms = Terms(
        model=asking.model,
        settings=_settings(request, request.sampling, most),
        fields=asked.response_fields or (),
        timed=bool(asked.timings_per_token),
        scored=request.logprobs is not None,
    )
    return Job(request, LlamaWriter(terms), bool(asked.stream))


def _lines(asked: LlamaRequest) -> LineBounds | None:
    indent, limit = asked.n_indent or 0, asked.t_max_predict_ms or 0.0
    if indent <= 0 and limit <= 0.0:
        return None
    return LineBounds(max(indent, 0), limit / 1000.0 if limit > 0.0 else inf)


def _format_field(asked: LlamaRequest) -> str:
    return "grammar" if asked.grammar else "json_schema"


def _format(asked: LlamaRequest) -> Format | None:
    schema = asked.json_schema
    if asked.grammar and schema is not None:
        raise wrong("grammar", "cannot be combined with json_schema: they hold the same answer")
    if asked.grammar:
        return Lark(asked.grammar)
    return None if schema is None else JsonSchema(as_schema("json_schema", schema))


def _biases(given: Any) -> Mapping[str, float] | None:
    """By token id, from an object or a list of pairs; false is the bias of what is never to be drawn."""
    pairs = list(given.items()) if isinstance(given, dict) else given or []
    if not isinstance(pairs, list):
        raise wrong("logit_bias", "must be an object, or a list of pairs")
    biases: dict[str, float] = {}
    for pair in pairs:
        match pair:
            case [int() | str() as token, bool() | int() | float() as bias] if bias is not True:
                biases[str(token)] = NEVER if bias is False else float(bias)
            case _:
                raise wrong("logit_bias", "must be pairs of a token id and a number, or false")
    return biases or None


def _settings(request: GenerationRequest, sampling: SamplingFields, most: int | None) -> dict[str, Any]:
    """What the request asked for; what it left to the model is not told."""
    settings = {
        "n_predict": -1 if most is None else most,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "seed": sampling.seed,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "stop": list(request.stops),
        "ignore_eos": request.ignore_eos,
        "n_probs": request.logprobs or 0,
        "n_cmpl": request.n,
    }
    return {name: value for name, value in settings.items() if value is not None}
