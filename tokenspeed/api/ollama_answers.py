"""Ollama's answers: a JSON object in each line of a stream, or one for the whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import orjson

from tokenspeed.api.error_shapes import ollama_error
from tokenspeed.api.errors import problem_of
from tokenspeed.api.media import NDJSON
from tokenspeed.generation.outputs import (
    CallDelta,
    CallStart,
    Delta,
    Ended,
    Output,
    ReasoningDelta,
    Usage,
    Whole,
    WholeCall,
)
from tokenspeed.generation.text import Alternative, ScoredToken


class Words(Protocol):
    """Where one of the two endpoints puts what the model says."""

    def __call__(self, text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]: ...


def chat_words(text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A message, or a piece of one."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        message["thinking"] = thinking
    if calls:
        message["tool_calls"] = calls
    return {"message": message}


def generate_words(text: str, thinking: str, calls: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Plain text; nothing is called here."""
    return {"response": text, "thinking": thinking} if thinking else {"response": text}


def now() -> str:
    """This moment, as RFC 3339 has it."""
    return datetime.now(UTC).isoformat().replace("+00:00", "Z")


MARK = "\0"  # where the text of a piece goes


class OllamaWriter:
    """Writes one answer. A call is told in one piece, as soon as it is whole."""

    media_type = NDJSON

    def __init__(self, model: str, words: Words, *, scored: bool) -> None:
        self._model = model
        self._words = words
        self._scored = scored
        # What is around the text of a piece, and the same in all of them.
        marked = orjson.dumps({**words(MARK, "", ()), "done": False})[1:] + b"\n"
        before, self._behind = marked.split(orjson.dumps(MARK))
        self._start = b'{"model":' + orjson.dumps(model) + b',"created_at":"'
        self._before = b'",' + before
        self._call: WholeCall | None = None  # the one that is being written
        self._calls = 0  # told so far
        self._reason = "stop"

    def ping(self) -> bytes:
        """A piece with nothing in it, for there are no comments here."""
        return self._line()

    def start(self, usage: Usage) -> bytes:
        return b""

    def write(self, outputs: list[Output], usage: Callable[[], Usage]) -> bytes:
        return b"".join([self._written(output) for output in outputs])

    def end(self, usage: Usage) -> bytes:
        return orjson.dumps({**self._head(), **self._words("", "", ()), **self._done(usage)}) + b"\n"

    def fail(self, error: Exception) -> bytes:
        return ollama_error(problem_of(error)) + b"\n"

    def whole(self, choices: list[Whole], usage: Usage) -> Mapping[str, Any]:
        (choice,) = choices
        self._reason = _reason(choice.reason)
        calls = [told for index, call in enumerate(choice.calls) if (told := call_object(call, index))]
        scores = {"logprobs": scores_of(choice.scores)} if self._scored else {}
        said = self._words(choice.text, choice.reasoning, calls)
        return {**self._head(), **said, **scores, **self._done(usage)}

    def _written(self, output: Output) -> bytes:
        match output:
            case Delta(scores=()):
                return self._told() + self._text_line(output.text)
            case Delta():
                return self._told() + self._line(text=output.text, scores=output.scores)
            case ReasoningDelta():
                return self._told() + self._line(thinking=output.text)
            case CallStart():
                told, self._call = self._told(), WholeCall(output.id, output.name)
                return told
            case CallDelta():
                if self._call is not None:
                    self._call.pieces.append(output.arguments)
                return b""
            case Ended():
                self._reason = _reason(output.reason)
                return self._told()

    def _told(self) -> bytes:
        """The call that has been written until now."""
        call, self._call = self._call, None
        told = None if call is None else call_object(call, self._calls)
        if told is None:
            return b""
        self._calls += 1
        return self._line(calls=[told])

    def _text_line(self, text: str) -> bytes:
        """What `_line` gives for text alone; nearly all lines are of that kind."""
        return self._start + now().encode() + self._before + orjson.dumps(text) + self._behind

    def _line(
        self,
        *,
        text: str = "",
        thinking: str = "",
        calls: Sequence[Mapping[str, Any]] = (),
        scores: Sequence[ScoredToken] = (),
    ) -> bytes:
        line = {**self._head(), **self._words(text, thinking, calls), "done": False}
        if scores:
            line["logprobs"] = scores_of(scores)
        return orjson.dumps(line) + b"\n"

    def _head(self) -> dict[str, Any]:
        return {"model": self._model, "created_at": now()}

    def _done(self, usage: Usage) -> dict[str, Any]:
        """How it ended, and what it took, in nanoseconds. The model was loaded before the request came."""
        return {
            "done": True,
            "done_reason": self._reason,
            "total_duration": nanoseconds(usage.last),
            "load_duration": 0,
            "prompt_eval_count": usage.prompt,
            "prompt_eval_duration": nanoseconds(usage.first),
            "eval_count": usage.completion,
            "eval_duration": nanoseconds(usage.last - usage.first),
        }


def loaded(model: str, words: Words, reason: str) -> dict[str, Any]:
    """The answer to a request that only loads the model, or unloads it; nothing of the kind is done."""
    head = {"model": model, "created_at": now()}
    return {**head, **words("", "", ()), "done": True, "done_reason": reason}


def nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def call_object(call: WholeCall, index: int) -> dict[str, Any] | None:
    """A call, its arguments as an object. None for one that was cut off amid them, which `done_reason` then
    tells."""
    try:
        arguments = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(arguments, dict):
        return None
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def scores_of(scores: Sequence[ScoredToken]) -> list[dict[str, Any]]:
    """Tokens with their log-probabilities."""
    return [
        {**_score(score.token, score.data, score.logprob), "top_logprobs": _alternatives(score.top)}
        for score in scores
    ]


def _alternatives(top: Sequence[Alternative]) -> list[dict[str, Any]]:
    return [_score(*alternative) for alternative in top]


def _score(token: str, data: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(data)}


def _reason(reason: str) -> str:
    """Ollama ends a message with calls as any other."""
    return "length" if reason == "length" else "stop"
