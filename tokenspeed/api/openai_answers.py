"""What both kinds of OpenAI's completions share: common fields of requests, and the writing of answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from tokenspeed import __version__
from tokenspeed.api.error_shapes import openai_error
from tokenspeed.api.errors import problem_of
from tokenspeed.api.keys import Caller
from tokenspeed.api.media import SSE
from tokenspeed.api.openai_types import CommonRequest, StreamOptions
from tokenspeed.api.sse import DONE, PING
from tokenspeed.errors import RequestError
from tokenspeed.generation.outputs import Output, Usage, Whole
from tokenspeed.generation.request import MOST_URGENT, SamplingFields

FINGERPRINT = f"tokenspeed-{__version__}"
NAMES = {"stops": "stop", "deadline": "deadline_ms"}  # what clients call the neutral fields


@dataclass(frozen=True, slots=True)
class Heading:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    model: str

    @classmethod
    def now(cls, answer_id: str, model: str) -> Heading:
        return cls(answer_id, int(time.time()), model)

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


class Shape(Protocol):
    """How one kind of completion writes its choices."""

    kind: str  # of an answer in one piece
    chunk_kind: str

    def chunk(self, output: Output) -> bytes:
        """A member of a chunk's `choices`, as JSON; nothing where the output says nothing here."""
        ...

    def choices(self, wholes: list[Whole]) -> list[dict[str, Any]]:
        """The `choices` of an answer in one piece."""
        ...


def common_fields(asked: CommonRequest, caller: Caller) -> dict[str, Any]:
    """What both kinds of completion spell alike of a `GenerationRequest`; null takes its default."""
    given = {
        "sampling": sampling_fields(asked),
        "n": asked.n,
        "max_tokens": asked.max_tokens,
        "min_tokens": asked.min_tokens,
        "stops": (asked.stop,) if isinstance(asked.stop, str) else asked.stop and tuple(asked.stop),
        "stop_token_ids": asked.stop_token_ids and tuple(asked.stop_token_ids),
        "include_stop": asked.include_stop_str_in_output,
        "ignore_eos": asked.ignore_eos,
        "priority": _priority(asked, caller),
        "account": caller.account,
        "deadline": None if asked.deadline_ms is None else asked.deadline_ms / 1000.0,
        "speculation": asked.speculation,
    }
    return {name: value for name, value in given.items() if value is not None and value != []}


def _priority(asked: CommonRequest, caller: Caller) -> int:
    if asked.priority is None:
        return caller.priority
    if MOST_URGENT <= asked.priority < caller.most_urgent:  # what is outside of all classes is told later
        raise RequestError(
            f"priority must be at least {caller.most_urgent}, that of your API key, not {asked.priority}; "
            "lower runs first",
            param="priority",
            code="invalid_value",
        )
    return asked.priority


def sampling_fields(asked: CommonRequest) -> SamplingFields:
    return SamplingFields(
        temperature=asked.temperature,
        top_k=asked.top_k,
        top_p=asked.top_p,
        min_p=asked.min_p,
        seed=asked.seed,
        presence_penalty=asked.presence_penalty,
        frequency_penalty=asked.frequency_penalty,
        repetition_penalty=asked.repetition_penalty,
        logit_bias=asked.logit_bias,
    )


def usage_object(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage."""
    return {
        "prompt_tokens": usage.prompt,
        "completion_tokens": usage.completion,
        "total_tokens": usage.prompt + usage.completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


class CompletionWriter:
    """Writes chunks or a whole answer: all that repeats is encoded once, a chunk then costs its text."""

    media_type = SSE

    def __init__(self, heading: Heading, shape: Shape, options: StreamOptions | None) -> None:
        """The usage is told at the end of a stream, or in every chunk, as `options` say."""
        fields = orjson.dumps(heading.fields(shape.chunk_kind))
        self._head = b"data: " + fields[:-1] + b',"choices":['
        self._heading = heading
        self._shape = shape
        self._include_usage = options is not None and bool(options.include_usage)
        self._continuous = (
            self._include_usage and options is not None and bool(options.continuous_usage_stats)
        )

    def ping(self) -> bytes:
        return PING

    def start(self, usage: Usage) -> bytes:
        """Nothing: clients take the first chunk for the first token."""
        return b""

    def write(self, outputs: list[Output], usage: Callable[[], Usage]) -> bytes:
        tail = self._usage_tail(usage()) if self._continuous else b"]}\n\n"
        if len(outputs) == 1:
            choice = self._shape.chunk(outputs[0])
            return self._head + choice + tail if choice else b""
        choices = [choice for output in outputs if (choice := self._shape.chunk(output))]
        return b"".join([self._head + choice + tail for choice in choices])

    def end(self, usage: Usage) -> bytes:
        """The chunk without choices that tells the usage, where that was asked for, and the mark."""
        return self._head + self._usage_tail(usage) + DONE if self._include_usage else DONE

    def fail(self, error: Exception) -> bytes:
        return b"data: " + openai_error(problem_of(error)) + b"\n\n" + DONE

    def whole(self, choices: list[Whole], usage: Usage) -> Mapping[str, Any]:
        fields = self._heading.fields(self._shape.kind)
        return {**fields, "choices": self._shape.choices(choices), "usage": usage_object(usage)}

    def _usage_tail(self, usage: Usage) -> bytes:
        return b'],"usage":' + orjson.dumps(usage_object(usage)) + b"}\n\n"
