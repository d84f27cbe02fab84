"""`POST /completions`: text or token ids in, the text that follows, or fills the gap, out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import msgspec
import orjson

from tokenspeed.api.keys import Caller
from tokenspeed.api.openai_answers import NAMES, Whole, common_fields
from tokenspeed.api.openai_types import CompletionRequest
from tokenspeed.errors import RequestError
from tokenspeed.generation.generator import Delta, Ended
from tokenspeed.generation.request import (
    FillPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from tokenspeed.generation.text import ScoredToken


class CompletionDialect:
    """The legacy endpoint's own part."""

    decoder = msgspec.json.Decoder(CompletionRequest)
    id_prefix = "cmpl-"
    kind = "text_completion"

    def generation_request(
        self, asked: CompletionRequest, request_id: str, caller: Caller
    ) -> GenerationRequest:
        common = common_fields(asked, caller)
        if asked.best_of is not None and asked.best_of != common.get("n", 1):
            raise RequestError(
                "best_of other than n is not supported", param="best_of", code="unsupported_parameter"
            )
        return GenerationRequest(
            id=request_id,
            prompts=_with_suffix(prompts_of(asked.prompt, "prompt"), asked),
            logprobs=asked.logprobs,
            echo=bool(asked.echo),
            names={**NAMES, "prompts": "prompt"},
            **common,
        )

    def chunk_shape(self, choices: int) -> CompletionChunks:
        return CompletionChunks(choices)

    def choice(self, index: int, whole: Whole, scored: bool) -> dict[str, Any]:
        return {
            "index": index,
            "text": whole.text,
            "logprobs": _scores_object(whole.scores) if scored else None,
            "finish_reason": whole.reason,
        }


class CompletionChunks:
    """The choices of chunks."""

    kind = "text_completion"

    def __init__(self, choices: int) -> None:
        self._start = [b'{"index":%d,"text":' % index for index in range(choices)]

    def delta(self, delta: Delta) -> bytes:
        start = self._start[delta.choice]
        if not delta.scores:
            return start + orjson.dumps(delta.text) + b',"logprobs":null,"finish_reason":null}'
        scores = orjson.dumps(_scores_object(delta.scores))
        return start + orjson.dumps(delta.text) + b',"logprobs":' + scores + b',"finish_reason":null}'

    def end(self, ended: Ended) -> bytes:
        reason = ended.reason.encode()
        return self._start[ended.choice] + b'"","logprobs":null,"finish_reason":"' + reason + b'"}'


def prompts_of(given: str | list[str | int | list[int]], name: str) -> tuple[TextPrompt | TokenPrompt, ...]:
    """What the field `name` holds: one text, one list of ids, or a list of either."""
    if isinstance(given, str):
        return (TextPrompt(given),)
    kinds = set(map(type, given))  # a list of ids may be long
    if len(kinds) > 1:
        raise RequestError(
            f"{name} mixes kinds; it is a text, a list of texts, a list of token ids, "
            "or a list of such lists",
            param=name,
            code="invalid_type",
        )
    if kinds == {int}:
        return (TokenPrompt(tuple(cast("list[int]", given))),)
    if kinds == {str}:
        return tuple(map(TextPrompt, cast("list[str]", given)))
    return tuple(TokenPrompt(tuple(item)) for item in cast("list[list[int]]", given))


def _with_suffix(prompts: Sequence[TextPrompt | TokenPrompt], asked: CompletionRequest) -> tuple[Prompt, ...]:
    """Fill in the middle where there is text behind the gap."""
    if not asked.suffix:
        return tuple(prompts)
    if asked.echo:
        raise RequestError("suffix cannot be combined with echo", param="suffix", code="invalid_value")
    filled: list[Prompt] = []
    for prompt in prompts:
        if not isinstance(prompt, TextPrompt):
            raise RequestError("suffix needs prompts that are text", param="suffix", code="invalid_value")
        filled.append(FillPrompt(prompt.text, asked.suffix))
    return tuple(filled)


def _scores_object(scores: Sequence[ScoredToken]) -> dict[str, Any]:
    return {
        "tokens": [score.token for score in scores],
        "token_logprobs": [score.logprob for score in scores],
        "top_logprobs": [_top(score) for score in scores],
        "text_offset": [score.offset for score in scores],
    }


def _top(score: ScoredToken) -> dict[str, float] | None:
    """The alternatives by their text, and the token itself even where it is not among the best."""
    if score.logprob is None:
        return None
    top = {token: logprob for token, _, logprob in score.top}
    return top | {score.token: score.logprob}
