"""Anthropic's messages, in one piece and as events.

https://docs.anthropic.com/en/api/messages-streaming: a message starts, its blocks start, grow and stop one
after the other, its end is told in a `message_delta`, and it stops.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from tokenspeed.api.error_shapes import anthropic_error
from tokenspeed.api.errors import problem_of
from tokenspeed.api.media import SSE
from tokenspeed.generation.outputs import (
    CallDelta,
    CallStart,
    Delta,
    Ended,
    Output,
    Reason,
    ReasoningDelta,
    Usage,
    Whole,
    WholeCall,
)

# Blocks of thinking have one, for the server to know its own thoughts again. This server needs none, but some
# clients leave unsigned thoughts out when they send the conversation back.
SIGNATURE = "unsigned"
REASONS: Mapping[Reason, str] = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
END = b"}}\n\n"  # of an event whose delta ends with its text

# What a delta has in front of its text, and how a block begins, by the block's type.
_DELTAS = {
    "text": b'"delta":{"type":"text_delta","text":',
    "thinking": b'"delta":{"type":"thinking_delta","thinking":',
    "tool_use": b'"delta":{"type":"input_json_delta","partial_json":',
}
_TEXT = {"type": "text", "text": ""}
_THINKING = {"type": "thinking", "thinking": "", "signature": ""}


@dataclass(frozen=True, slots=True)
class Terms:
    """What a message's writer must know of its request: `max_tokens` as asked for, the tokens of the whole
    context, and whether the thinking is told or only that there was some."""

    id: str
    model: str
    max_tokens: int
    max_context: int
    show_thinking: bool = True


class MessageWriter:
    """Writes a message: a piece of text costs little beyond its own encoding."""

    media_type = SSE

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._index = -1  # of the latest block
        self._open = ""  # the type of the block that has not stopped yet
        self._head = b""  # what its deltas begin with
        self._ended: Ended | None = None

    def ping(self) -> bytes:
        """An event: there are clients that comments do not keep waiting."""
        return PING

    def start(self, usage: Usage) -> bytes:
        return _event("message_start", message=self._message([], None, None, usage))

    def write(self, outputs: list[Output], usage: Callable[[], Usage]) -> bytes:
        if len(outputs) == 1:
            return self._written(outputs[0])
        return b"".join([self._written(output) for output in outputs])

    def end(self, usage: Usage) -> bytes:
        ended = self._ended or Ended(0, "stop", None)
        delta = self._stop(ended.reason, ended.stop, usage)
        last = _event("message_delta", delta=delta, usage=usage_object(usage))
        return self._close() + last + _event("message_stop")

    def fail(self, error: Exception) -> bytes:
        return b"event: error\ndata: " + anthropic_error(problem_of(error)) + b"\n\n"

    def whole(self, choices: list[Whole], usage: Usage) -> Mapping[str, Any]:
        (whole,) = choices
        stop = self._stop(whole.reason, whole.stop, usage)
        return self._message(list(self._blocks(whole)), stop["stop_reason"], stop["stop_sequence"], usage)

    # -- events --------------------------------------------------------------------------------------

    def _written(self, output: Output) -> bytes:
        match output:
            case Delta():
                return self._grow(_TEXT, output.text) if output.text else b""
            case CallDelta():
                return self._head + orjson.dumps(output.arguments) + END
            case ReasoningDelta():
                return self._grow(_THINKING, output.text if self._terms.show_thinking else "")
            case CallStart():
                return self._begin(_call_block(output.id, output.name, {}))
            case Ended():
                self._ended = output
                return self._close()

    def _grow(self, block: Mapping[str, Any], text: str) -> bytes:
        """More text of the open block, or of a new one where the open one is another type."""
        begun = b"" if self._open == block["type"] else self._begin(block)
        return begun + self._head + orjson.dumps(text) + END if text else begun

    def _begin(self, block: Mapping[str, Any]) -> bytes:
        closed = self._close()
        self._index += 1
        self._open = block["type"]
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,' % self._index
        self._head = head + _DELTAS[self._open]
        return closed + _event("content_block_start", index=self._index, content_block=block)

    def _close(self) -> bytes:
        """The stop of the open block, if there is one; a thought is signed before."""
        if not self._open:
            return b""
        signed = b""
        if self._open == "thinking":
            delta = {"type": "signature_delta", "signature": SIGNATURE}
            signed = _event("content_block_delta", index=self._index, delta=delta)
        self._open = ""
        return signed + _event("content_block_stop", index=self._index)

    # -- objects -------------------------------------------------------------------------------------

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, sequence: str | None, usage: Usage
    ) -> dict[str, Any]:
        return {
            "id": self._terms.id,
            "type": "message",
            "role": "assistant",
            "model": self._terms.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage_object(usage),
        }

    def _stop(self, reason: Reason, stop: str | int | None, usage: Usage) -> dict[str, str | None]:
        """Why it ended: a stop sequence of the client's is told from the model's own end."""
        if reason == "stop" and isinstance(stop, str):
            return {"stop_reason": "stop_sequence", "stop_sequence": stop}
        full = usage.prompt + usage.completion >= self._terms.max_context
        if reason == "length" and full and usage.completion < self._terms.max_tokens:
            return {"stop_reason": "model_context_window_exceeded", "stop_sequence": None}
        return {"stop_reason": REASONS[reason], "stop_sequence": None}

    def _blocks(self, whole: Whole) -> Iterator[dict[str, Any]]:
        if whole.thoughts:
            thinking = whole.reasoning if self._terms.show_thinking else ""
            yield {"type": "thinking", "thinking": thinking, "signature": SIGNATURE}
        if text := whole.text:
            yield {"type": "text", "text": text}
        for call in whole.calls:
            arguments = _arguments(call)
            if arguments is not None:
                yield _call_block(call.id, call.name, arguments)


def usage_object(usage: Usage) -> dict[str, Any]:
    """Anthropic's usage, in which what was remembered of the prompt is not among `input_tokens`."""
    return {
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _call_block(call_id: str, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A call; its id is the neutral one with Anthropic's prefix, so that it stays unique."""
    return {
        "type": "tool_use",
        "id": "toolu_" + call_id.removeprefix("call_"),
        "name": name,
        "input": arguments,
    }


def _arguments(call: WholeCall) -> dict[str, Any] | None:
    """The arguments as an object; None for a call that `max_tokens` cut off, which nobody must run."""
    try:
        arguments = orjson.loads(call.arguments)
    except orjson.JSONDecodeError:
        return None
    return arguments if isinstance(arguments, dict) else None


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
