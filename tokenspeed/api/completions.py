"""`POST /completions`: text or token ids in, the text that follows, or fills the gap, out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, cast

import msgspec
import orjson

from tokenspeed.api.endpoint import Asking, Job, new_id
from tokenspeed.api.openai_answers import NAMES, CompletionWriter, Heading, common_fields
from tokenspeed.api.openai_types import CompletionRequest
from tokenspeed.api.response_format import read_format
from tokenspeed.api.unsupported import OFF_IN_TEXT, refuse_unsupported
from tokenspeed.errors import RequestError
from tokenspeed.generation.outputs import Delta, Ended, Output, Whole
from tokenspeed.generation.request import (
    FillPrompt,
    GenerationRequest,
    Prompt,
    TextPrompt,
    TokenPrompt,
)
from tokenspeed.generation.text import ScoredToken


class CompletionDialect:
    """Reads requests of the legacy endpoint."""

    decoder = msgspec.json.Decoder(CompletionRequest)

    def read(self, asked: CompletionRequest, asking: Asking) -> Job:
        refuse_unsupported(asking.body, OFF_IN_TEXT)
        heading = Heading.now(new_id("cmpl-"), asking.model)
        common = common_fields(asked, asking.caller)
        wanted, drawn = common.get("n", 1), asked.best_of
        names = {**NAMES, "prompts": "prompt"}
        names["format"], format_wanted = read_format(asked)
        if drawn is not None and drawn != wanted:
            _check_best_of(drawn, wanted, asked)
            common["n"], names["n"] = drawn, "best_of"
        prompts = _with_suffix(prompts_of(asked.prompt, "prompt"), asked)
        ranked = common.get("n", 1) > wanted
        request = GenerationRequest(
            id=heading.id,
            prompts=prompts,
            logprobs=asked.logprobs or 0 if ranked else asked.logprobs,
            echo=bool(asked.echo),
            format=format_wanted,
            names=names,
            **common,
        )
        shape = CompletionShape(of=request.n, best=wanted, scored=asked.logprobs is not None)
        return Job(request, CompletionWriter(heading, shape, asked.stream_options), bool(asked.stream))


class CompletionShape:
    """Texts and the pieces of them; of each prompt's choices the `best`, as the model itself ranks them."""

    kind = "text_completion"
    chunk_kind = "text_completion"

    def __init__(self, *, of: int, best: int, scored: bool) -> None:
        """Each prompt has `of` choices; their log-probabilities are told if `scored`."""
        self._of = of
        self._best = best
        self._scored = scored

    def chunk(self, output: Output) -> bytes:
        match output:
            case Delta(choice, text, scores):
                logprobs = orjson.dumps(_scores_object(scores)) if scores else b"null"
                piece = b'{"index":%d,"text":' % choice + orjson.dumps(text) + b',"logprobs":' + logprobs
                return piece + b',"finish_reason":null}'
            case Ended(choice, reason):
                end = b'{"index":%d,"text":"","logprobs":null,"finish_reason":"' % choice
                return end + reason.encode() + b'"}'
        return b""  # a text has no calls and no thinking

    def choices(self, wholes: list[Whole]) -> list[dict[str, Any]]:
        prompts = [wholes[first : first + self._of] for first in range(0, len(wholes), self._of)]
        if self._best < self._of:
            prompts = [sorted(each, key=_mean_logprob, reverse=True)[: self._best] for each in prompts]
        return [
            {
                "index": index,
                "text": whole.text,
                "logprobs": _scores_object(whole.scores) if self._scored else None,
                "finish_reason": whole.reason,
            }
            for index, whole in enumerate(chain.from_iterable(prompts))
        ]


def _mean_logprob(whole: Whole) -> float:
    """Of a choice's tokens. With an echo the prompt's are among them, which all choices have in common."""
    known = [score.logprob for score in whole.scores if score.logprob is not None]
    return sum(known) / len(known) if known else 0.0


def _check_best_of(drawn: int, wanted: int, asked: CompletionRequest) -> None:
    if drawn < wanted:
        raise RequestError(
            f"best_of must be at least n, which is {wanted}, not {drawn}",
            param="best_of",
            code="invalid_value",
        )
    if asked.stream:
        raise RequestError(
            "best_of other than n cannot be streamed: the best is known at the end",
            param="best_of",
            code="invalid_value",
        )


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
