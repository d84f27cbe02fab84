"""What both kinds of completion share: from a request's common fields, to the writing of its answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from tokenspeed import __version__
from tokenspeed.api.errors import describe
from tokenspeed.api.keys import Caller
from tokenspeed.api.openai_types import CommonRequest
from tokenspeed.api.sse import DONE
from tokenspeed.errors import RequestError
from tokenspeed.generation.generator import Delta, Ended, Generation, Output, Usage
from tokenspeed.generation.request import MOST_URGENT, SamplingFields
from tokenspeed.generation.text import ScoredToken

FINGERPRINT = f"tokenspeed-{__version__}"
NAMES = {"stops": "stop", "deadline": "deadline_ms"}  # what clients call the neutral fields


@dataclass(frozen=True, slots=True)
class Heading:
    """What every chunk of an answer repeats."""

    id: str
    created: int
    model: str

    def fields(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
        }


class ChunkShape(Protocol):
    """One member of a chunk's `choices`, as JSON."""

    kind: str

    def delta(self, delta: Delta) -> bytes: ...

    def end(self, ended: Ended) -> bytes: ...


@dataclass(slots=True)
class Whole:
    """A choice of an answer that is not streamed."""

    texts: list[str] = field(default_factory=list)
    scores: list[ScoredToken] = field(default_factory=list)
    reason: str = "stop"

    @property
    def text(self) -> str:
        return "".join(self.texts)


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
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def collect(generation: Generation) -> list[Whole]:
    """Every choice to its end."""
    choices = [Whole() for _ in range(generation.choices)]
    try:
        async for outputs in generation:
            for output in outputs:
                choice = choices[output.choice]
                if isinstance(output, Delta):
                    choice.texts.append(output.text)
                    choice.scores += output.scores
                else:
                    choice.reason = output.reason
    finally:
        generation.close()
    return choices


class ChunkWriter:
    """Writes outputs as events: all that repeats is encoded once, a chunk then costs its text."""

    def __init__(self, heading: Heading, shape: ChunkShape, usage: Callable[[], Usage] | None) -> None:
        """`usage` is told in every chunk, where given."""
        fields = orjson.dumps(heading.fields(shape.kind))
        self._head = b"data: " + fields[:-1] + b',"choices":['
        self._shape = shape
        self._usage = usage

    def write(self, outputs: list[Output]) -> bytes:
        tail = b"]}\n\n" if self._usage is None else self._usage_tail(self._usage())
        if len(outputs) == 1:
            return self._head + self._choice(outputs[0]) + tail
        return b"".join([self._head + self._choice(output) + tail for output in outputs])

    def write_usage(self, usage: Usage) -> bytes:
        """The chunk without choices that ends a stream which asked for its usage."""
        return self._head + self._usage_tail(usage)

    def _choice(self, output: Output) -> bytes:
        return self._shape.delta(output) if isinstance(output, Delta) else self._shape.end(output)

    def _usage_tail(self, usage: Usage) -> bytes:
        return b'],"usage":' + orjson.dumps(usage_object(usage)) + b"}\n\n"


async def stream_events(
    generation: Generation, writer: ChunkWriter, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The events of a stream up to `[DONE]`; a failure on the way is an event as well."""
    try:
        async for outputs in generation:
            yield writer.write(outputs)
        last = writer.write_usage(generation.usage) if include_usage else b""
    except Exception as error:  # the status is long sent; the client must still learn of it
        _, body = describe(error)
        last = b"data: " + body + b"\n\n"
    yield last + DONE


def answer_headers(heading: Heading, generation: Generation) -> dict[str, str]:
    """The id by which the request's timeline is found, and when its first token was predicted."""
    return {
        "x-request-id": heading.id,
        "x-tokenspeed-predicted-ttft-ms": f"{1000.0 * generation.predicted:.1f}",
    }


def whole_answer(
    heading: Heading, kind: str, choices: list[dict[str, Any]], usage: Usage
) -> Mapping[str, Any]:
    """The object of an answer that is not streamed."""
    return {**heading.fields(kind), "choices": choices, "usage": usage_object(usage)}
