"""The response object, and the items of its output while they grow: what both ways of answering share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from tokenspeed.api.error_shapes import Problem
from tokenspeed.api.responses_input import seal
from tokenspeed.api.responses_tools import Home
from tokenspeed.generation.outputs import CallStart, Usage
from tokenspeed.generation.text import ScoredToken

Event = tuple[str, dict[str, Any]]  # what it is called, and what it tells beside its number
DONE, CUT = "completed", "incomplete"  # the status of an item


class Answer(NamedTuple):
    """What every picture of a response repeats: `fields` are those that the request decides."""

    id: str
    created: int  # Unix time
    fields: Mapping[str, Any]

    @classmethod
    def now(cls, response_id: str, fields: Mapping[str, Any]) -> Answer:
        return cls(response_id, int(time.time()), fields)

    def response(
        self,
        status: str,
        output: Sequence[Mapping[str, Any]] = (),
        usage: Usage | None = None,
        problem: Problem | None = None,
    ) -> dict[str, Any]:
        """The response as it is now; with a `problem` it has failed."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": None if problem is None else _error(problem),
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": list(output),
            "usage": None if usage is None else usage_object(usage),
            **self.fields,
        }


# What clients that come across a code of ours would not know what to do with.
_CODES: Mapping[int, str] = {429: "rate_limit_exceeded", 500: "server_error", 503: "server_error"}


def _error(problem: Problem) -> dict[str, Any]:
    return {
        "code": _CODES.get(problem.status, problem.code or "invalid_prompt"),
        "message": problem.message,
        "param": problem.param,
        "type": problem.type,
    }


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage of a response. Nobody pays for what is written to the cache, so none of it is told."""
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


class Growing(Protocol):
    """An item of the output that more may be added to. `delta` is the name of the event that adds to it, and
    `place` what its events say of where it stands."""

    id: str
    delta: str
    place: Mapping[str, Any]

    def item(self, status: str) -> dict[str, Any]:
        """As it is now."""
        ...

    def opening(self) -> Iterator[Event]:
        """What follows the event that there is such an item."""
        ...

    def closing(self) -> Iterator[Event]:
        """What comes before the event that it is whole."""
        ...


class Thinking:
    """What the model thinks, told as its summary: clients show that, and send it back."""

    delta = "response.reasoning_summary_text.delta"

    def __init__(self, item_id: str, index: int, *, sealed: bool) -> None:
        """`sealed` clients want it once more in the form that they would give back."""
        self.id = item_id
        self.place = {"item_id": item_id, "output_index": index, "summary_index": 0}
        self.pieces: list[str] = []
        self._sealed = sealed

    def _part(self) -> dict[str, Any]:
        return {"type": "summary_text", "text": "".join(self.pieces)}

    def item(self, status: str) -> dict[str, Any]:
        sealed = seal("".join(self.pieces)) if self._sealed and self.pieces else None
        summary = [self._part()] if self.pieces else []
        kept = {"encrypted_content": sealed, "status": status}
        return {"id": self.id, "type": "reasoning", "summary": summary, **kept}

    def opening(self) -> Iterator[Event]:
        yield "response.reasoning_summary_part.added", {**self.place, "part": self._part()}

    def closing(self) -> Iterator[Event]:
        part = self._part()
        yield "response.reasoning_summary_text.done", {**self.place, "text": part["text"]}
        yield "response.reasoning_summary_part.done", {**self.place, "part": part}


class Saying:
    """A message, of one text."""

    delta = "response.output_text.delta"

    def __init__(self, item_id: str, index: int) -> None:
        self.id = item_id
        self.place = {"item_id": item_id, "output_index": index, "content_index": 0}
        self.pieces: list[str] = []
        self.scores: list[dict[str, Any]] = []
        self._begun = False  # there is a text, of nothing yet

    def _part(self) -> dict[str, Any]:
        text = "".join(self.pieces)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self.scores)}

    def item(self, status: str) -> dict[str, Any]:
        content = [self._part()] if self._begun else []
        return {
            "id": self.id,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def opening(self) -> Iterator[Event]:
        self._begun = True
        yield "response.content_part.added", {**self.place, "part": self._part()}

    def closing(self) -> Iterator[Event]:
        part = self._part()
        text = {"text": part["text"], "logprobs": part["logprobs"]}
        yield "response.output_text.done", {**self.place, **text}
        yield "response.content_part.done", {**self.place, "part": part}


class Calling:
    """A call of a function, whose arguments grow."""

    delta = "response.function_call_arguments.delta"

    def __init__(self, item_id: str, index: int, call: CallStart, home: Home | None) -> None:
        """`home` is where the function is found, if it is in a namespace."""
        self.id = item_id
        self.place = {"item_id": item_id, "output_index": index}
        self.pieces: list[str] = []
        self._call_id = call.id
        self._name = call.name if home is None else home.name
        self._namespace = {} if home is None else {"namespace": home.namespace}

    def item(self, status: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "function_call",
            "status": status,
            "arguments": "".join(self.pieces),
            "call_id": self._call_id,
            "name": self._name,
            **self._namespace,
        }

    def opening(self) -> Iterator[Event]:
        yield from ()

    def closing(self) -> Iterator[Event]:
        done = {"name": self._name, "arguments": "".join(self.pieces)}
        yield "response.function_call_arguments.done", {**self.place, **done}


def scores_of(scores: Sequence[ScoredToken]) -> list[dict[str, Any]]:
    """Log-probabilities as those of a text are told."""
    return [
        {
            **_score(score.token, score.data, score.logprob),
            "top_logprobs": [_score(*alternative) for alternative in score.top],
        }
        for score in scores
    ]


def _score(token: str, data: bytes, logprob: float | None) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(data)}
