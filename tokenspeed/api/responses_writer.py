"""Writes a response: as events, each with its number, or in one piece."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from tokenspeed.api.errors import problem_of
from tokenspeed.api.media import SSE
from tokenspeed.api.responses_answers import CUT, DONE, Answer, Calling, Event, Saying, Thinking, scores_of
from tokenspeed.api.responses_items import output_id
from tokenspeed.api.responses_tools import Home
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
)

_CREATED, _IN_PROGRESS = "response.created", "response.in_progress"


class ResponseWriter:
    """One answer, item by item, of which the last one grows. Pieces of it cost little more than their text.

    `final` is the response once it is whole, for whoever wants to keep it; a failed one is not.
    """

    media_type = SSE

    def __init__(self, answer: Answer, *, homes: Mapping[str, Home], sealed: bool) -> None:
        """`homes` are those of functions in namespaces, by the names that the model has for them; thinking is
        `sealed` for clients that want it so."""
        self.final: dict[str, Any] | None = None
        self._answer = answer
        self._homes = homes
        self._sealed = sealed
        self._output: list[dict[str, Any]] = []  # what is whole
        self._growing: Thinking | Saying | Calling | None = None
        self._delta = b""  # what the event of a piece of it begins with, up to the event's number
        self._reason: Reason = "stop"
        self._number = 0
        self._state = b""  # the response in progress, as JSON, while there can be a sign of life

    def ping(self) -> bytes:
        """Clients that give up on silence hear events alone, never comments."""
        return self._in_state(_IN_PROGRESS) if self._state else b""

    def start(self, usage: Usage) -> bytes:
        self._state = orjson.dumps(self._answer.response("in_progress"))
        return self._in_state(_CREATED) + self._in_state(_IN_PROGRESS)

    def write(self, outputs: list[Output], usage: Callable[[], Usage]) -> bytes:
        if len(outputs) == 1:
            return self._take(outputs[0])
        return b"".join([self._take(output) for output in outputs])

    def end(self, usage: Usage) -> bytes:
        last = self._close_all()
        self.final = self._finished(usage)
        return last + self._event(f"response.{self.final['status']}", {"response": self.final})

    def fail(self, error: Exception) -> bytes:
        begun = b"" if self._state else self.start(Usage(0, 0, 0))
        self._state = b""
        failed = self._answer.response("failed", self._output, problem=problem_of(error))
        return begun + self._event("response.failed", {"response": failed})

    def whole(self, choices: list[Whole], usage: Usage) -> Mapping[str, Any]:
        for output in _outputs(choices[0]):
            self._take(output)
        self._close_all()
        self.final = self._finished(usage)
        return self.final

    def _take(self, output: Output) -> bytes:
        growing = self._growing
        match output:
            case Delta():
                if not output.text and not output.scores:
                    return b""
                begun = b"" if isinstance(growing, Saying) else self._open_message()
                return begun + self._piece_of_text(output)
            case ReasoningDelta():
                begun = b"" if isinstance(growing, Thinking) else self._open_thinking()
                return begun + self._piece(output.text)
            case CallStart():
                home = self._homes.get(output.name)
                return self._close(DONE) + self._open(Calling(*self._next("function_call"), output, home))
            case CallDelta():
                return self._piece(output.arguments)
            case Ended():
                self._reason = output.reason
                return b""

    def _open_message(self) -> bytes:
        return self._close(DONE) + self._open(Saying(*self._next("message")))

    def _open_thinking(self) -> bytes:
        return self._close(DONE) + self._open(Thinking(*self._next("reasoning"), sealed=self._sealed))

    def _next(self, kind: str) -> tuple[str, int]:
        """The id and the index of the item that comes next; the one that grows is to be closed before."""
        index = len(self._output)
        return output_id(self._answer.id, kind, index), index

    def _open(self, growing: Thinking | Saying | Calling) -> bytes:
        index = growing.place["output_index"]
        added = {"output_index": index, "item": growing.item("in_progress")}
        events: list[Event] = [("response.output_item.added", added), *growing.opening()]
        self._growing = growing
        unscored: dict[str, Any] = {"logprobs": []} if isinstance(growing, Saying) else {}
        fields = orjson.dumps({"type": growing.delta, **growing.place, **unscored})
        self._delta = _named(growing.delta) + fields[:-1] + b',"sequence_number":'
        return b"".join([self._event(*event) for event in events])

    def _piece(self, text: str) -> bytes:
        """More of the item that grows."""
        assert self._growing is not None
        self._growing.pieces.append(text)
        number = self._number
        self._number += 1
        return b'%b%d,"delta":%b}\n\n' % (self._delta, number, orjson.dumps(text))

    def _piece_of_text(self, output: Delta) -> bytes:
        if not output.scores:
            return self._piece(output.text)
        assert isinstance(self._growing, Saying)
        scores = scores_of(output.scores)
        self._growing.pieces.append(output.text)
        self._growing.scores += scores
        fields = {**self._growing.place, "delta": output.text, "logprobs": scores}
        return self._event(self._growing.delta, fields)

    def _close(self, status: str) -> bytes:
        """The item that grows is whole, or is cut off."""
        growing = self._growing
        if growing is None:
            return b""
        empty = isinstance(growing, Calling) and status == DONE and not any(growing.pieces)
        filled = self._piece("{}") if empty else b""  # a call without arguments has an empty object of them
        self._growing = None
        item = growing.item(status)
        self._output.append(item)
        done = ("response.output_item.done", {"output_index": growing.place["output_index"], "item": item})
        return filled + b"".join([self._event(*event) for event in [*growing.closing(), done]])

    def _close_all(self) -> bytes:
        """The end of the output, which has an item in any case: what follows it in a conversation needs a
        message to follow."""
        opened = b"" if self._output or self._growing else self._open_message()
        self._state = b""
        return opened + self._close(CUT if self._reason == "length" else DONE)

    def _finished(self, usage: Usage) -> dict[str, Any]:
        status = "incomplete" if self._reason == "length" else "completed"
        return self._answer.response(status, self._output, usage)

    def _event(self, name: str, fields: Mapping[str, Any]) -> bytes:
        event = {"type": name, "sequence_number": self._number, **fields}
        self._number += 1
        return _named(name) + orjson.dumps(event) + b"\n\n"

    def _in_state(self, name: str) -> bytes:
        """An event that shows the response in progress, whose JSON is there already."""
        number = self._number
        self._number += 1
        head = b'%b{"type":"%b","sequence_number":%d,"response":' % (_named(name), name.encode(), number)
        return head + self._state + b"}\n\n"


def _named(event: str) -> bytes:
    return b"event: " + event.encode() + b"\ndata: "


def _outputs(whole: Whole) -> list[Output]:
    """A choice in one piece as if it came in pieces, in the order in which models have them."""
    outputs: list[Output] = [ReasoningDelta(0, whole.reasoning)] if whole.reasoning else []
    outputs.append(Delta(0, whole.text, tuple(whole.scores)))
    for number, call in enumerate(whole.calls):
        outputs += [CallStart(0, number, call.id, call.name), CallDelta(0, number, "".join(call.pieces))]
    return [*outputs, Ended(0, whole.reason, whole.stop)]
