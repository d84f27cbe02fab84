"""llama.cpp's answers to `/completion` and `/infill`: an object for each choice, or one in each event."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from tokenspeed.api.error_shapes import llamacpp_error
from tokenspeed.api.errors import problem_of
from tokenspeed.api.media import SSE
from tokenspeed.api.sse import PING
from tokenspeed.generation.outputs import Delta, Ended, Output, Usage, Whole
from tokenspeed.generation.text import Alternative, ScoredToken

NO_SLOT = -1  # nothing here belongs to a slot
# The event of a text, as `LlamaWriter._event` has it.
_TEXT = (
    b'data: {"index":%d,"content":%b,"tokens":[],"stop":false,"id_slot":-1,'
    b'"tokens_predicted":%d,"tokens_evaluated":%d}\n\n'
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What an answer tells beside the text: `settings` are those that the request had. Of a whole answer,
    or the end of a stream, only `fields` are sent, where there are any."""

    model: str
    settings: Mapping[str, Any]
    fields: Sequence[str] = ()
    timed: bool = False  # in every event
    scored: bool = False


class LlamaWriter:
    """Writes one answer, which may have several choices."""

    media_type = SSE

    def __init__(self, terms: Terms) -> None:
        self._terms = terms

    def ping(self) -> bytes:
        return PING

    def start(self, usage: Usage) -> bytes:
        return b""

    def write(self, outputs: list[Output], usage: Callable[[], Usage]) -> bytes:
        known = usage()
        return b"".join([self._written(output, known) for output in outputs])

    def end(self, usage: Usage) -> bytes:
        """Nothing: every choice has ended with an event of its own."""
        return b""

    def fail(self, error: Exception) -> bytes:
        return b"data: " + llamacpp_error(problem_of(error)) + b"\n\n"

    def whole(self, choices: list[Whole], usage: Usage) -> Mapping[str, Any] | list[Any]:
        answers = [self._answer(index, choice, usage) for index, choice in enumerate(choices)]
        return answers if len(answers) > 1 else answers[0]

    def _written(self, output: Output, usage: Usage) -> bytes:
        match output:
            case Delta(choice, text, ()) if not self._terms.timed:  # nearly all: written without a detour
                counts = (usage.choices[choice], usage.prompt)
                return _TEXT % (choice, orjson.dumps(text), *counts)
            case _:
                event = self._event(output, usage)
                return b"" if event is None else _data(event)

    def _event(self, output: Output, usage: Usage) -> Mapping[str, Any] | None:
        match output:
            case Delta(choice, text, scores):
                timings = {"timings": timings_of(usage, choice)} if self._terms.timed else {}
                return {
                    "index": choice,
                    "content": text,
                    "tokens": [],
                    "stop": False,
                    "id_slot": NO_SLOT,
                    "tokens_predicted": usage.choices[choice],
                    "tokens_evaluated": usage.prompt,
                    **self._probabilities(scores),
                    **timings,
                }
            case Ended(choice, reason, stop):
                return self._answer(choice, Whole(reason=reason, stop=stop), usage)
        return None  # a text has no calls and no thinking

    def _answer(self, index: int, choice: Whole, usage: Usage) -> Mapping[str, Any]:
        terms = self._terms
        stop_type, word = stop_of(choice)
        answer = {
            "index": index,
            "content": choice.text,
            "tokens": [],
            "id_slot": NO_SLOT,
            "stop": True,
            "model": terms.model,
            "tokens_predicted": usage.choices[index],
            "tokens_evaluated": usage.prompt,
            "tokens_cached": usage.prompt + usage.choices[index],
            "generation_settings": terms.settings,
            "truncated": False,
            "stop_type": stop_type,
            "stopping_word": word,
            **self._probabilities(choice.scores),
            "timings": timings_of(usage, index),
        }
        return picked(answer, terms.fields) if terms.fields else answer

    def _probabilities(self, scores: Sequence[ScoredToken]) -> dict[str, Any]:
        return {"completion_probabilities": _scores_of(scores)} if self._terms.scored and scores else {}


def stop_of(choice: Whole) -> tuple[str, str]:
    """Why it ended, in llama.cpp's words, and the stop string."""
    if choice.reason == "length":
        return "limit", ""
    return ("word", choice.stop) if isinstance(choice.stop, str) else ("eos", "")


def timings_of(usage: Usage, choice: int) -> dict[str, Any]:
    """What it took. The prompt's part counts from the request's arrival, so it has the wait in the queue."""
    prompt, predicted = usage.prompt - usage.cached, usage.choices[choice]
    prompt_ms, predicted_ms = 1000.0 * usage.first, 1000.0 * (usage.last - usage.first)
    return {
        "cache_n": usage.cached,
        **_rates("prompt", prompt, prompt_ms),
        **_rates("predicted", predicted, predicted_ms),
    }


def _rates(name: str, count: int, milliseconds: float) -> dict[str, Any]:
    return {
        f"{name}_n": count,
        f"{name}_ms": milliseconds,
        f"{name}_per_token_ms": milliseconds / count if count else 0.0,
        f"{name}_per_second": 1000.0 * count / milliseconds if milliseconds else 0.0,
    }


def picked(answer: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Only these fields, those that are there; `a/b` is the field b of a, and keeps that name."""
    found: dict[str, Any] = {}
    for path in fields:
        value: Any = answer
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found[path] = value
    return found


def _scores_of(scores: Sequence[ScoredToken]) -> list[dict[str, Any]]:
    return [
        {**_score(score.token, score.data, score.logprob), "top_logprobs": _alternatives(score.top)}
        for score in scores
    ]


def _alternatives(top: Sequence[Alternative]) -> list[dict[str, Any]]:
    return [_score(*alternative) for alternative in top]


def _score(token: str, data: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "bytes": list(data), "logprob": logprob}


def _data(event: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(event) + b"\n\n"
