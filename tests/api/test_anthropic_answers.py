"""What a message's writer makes of everything that a model can say."""

from __future__ import annotations

import json

import pytest

from tests.api.anthropic_shapes import checked_events, checked_message, told
from tokenspeed.api.anthropic_answers import MessageWriter, Terms
from tokenspeed.errors import EngineError, EngineStoppedError
from tokenspeed.generation.outputs import CallDelta, CallStart, Delta, Ended, ReasoningDelta, Usage, Whole

USAGE = Usage(prompt=20, completion=7, cached=16, reasoning=3)
SIGNED = {"signature": "unsigned"}
THOUGHT = {"type": "thinking", "thinking": "Let me see.", **SIGNED}
HELLO = {"type": "text", "text": "Größe: 你好 🙂"}


def call(number, arguments):
    return {"type": "tool_use", "id": f"toolu_{number}", "name": f"f{number}", "input": arguments}


def said(*outputs, reason="stop", stop=None):
    return [*outputs, Ended(0, reason, stop)]


NOTHING = said()
TEXT = said(Delta(0, "Größe: "), Delta(0, "你好 🙂"))
THINKING = said(ReasoningDelta(0, "Let me "), ReasoningDelta(0, "see."), *TEXT[:-1])
CALLS = said(
    *THINKING[:-1],
    CallStart(0, 0, "call_1", "f1"),
    CallDelta(0, 0, '{"x": "a\\'),
    CallDelta(0, 0, 'nb"}'),
    CallStart(0, 1, "call_2", "f2"),
    CallDelta(0, 1, '{"y": [1, {}]}'),
    reason="tool_calls",
)
BARE = said(CallStart(0, 0, "call_1", "f1"), reason="tool_calls")
# Everything a model may say, and the content that it makes.
ANSWERS = [
    (NOTHING, []),
    (said(Delta(0, "")), []),
    (TEXT, [HELLO]),
    (THINKING, [THOUGHT, HELLO]),
    (said(ReasoningDelta(0, "Let me see.")), [THOUGHT]),
    (CALLS, [THOUGHT, HELLO, call(1, {"x": "a\nb"}), call(2, {"y": [1, {}]})]),
    (BARE, [call(1, {})]),
]


def writer(**terms):
    given = {"id": "msg_1", "model": "local", "max_tokens": 100, "max_context": 512}
    return MessageWriter(Terms(**given | terms))


def streamed(outputs, usage=USAGE, *, together=False, **terms):
    """The events, of which a step gives one output or all."""
    written = writer(**terms)
    steps = [outputs] if together else [[output] for output in outputs]
    begun = written.start(Usage(usage.prompt, 0, 0))
    return checked_events(
        begun + b"".join(written.write(step, lambda: usage) for step in steps) + written.end(usage)
    )


def whole(outputs, usage=USAGE, **terms):
    choice = Whole()
    for output in outputs:
        choice.add(output)
    return checked_message(json.dumps(writer(**terms).whole([choice], usage)).encode())


@pytest.mark.parametrize(("outputs", "content"), ANSWERS)
def test_a_stream_and_a_whole_answer_tell_the_same_content(outputs, content):
    assert whole(outputs)["content"] == content
    assert told(streamed(outputs)) == content
    assert told(streamed(outputs, together=True)) == content


def test_a_block_starts_empty_and_stops_before_the_next():
    kinds = [event["type"].removeprefix("content_block_") for event in streamed(CALLS)]
    block = ["start", "delta", "delta", "stop"]
    signed = ["start", "delta", "delta", "delta", "stop"]
    calls = [*block, "start", "delta", "stop"]
    assert kinds == ["message_start", *signed, *block, *calls, "message_delta", "message_stop"]


def test_a_thought_is_signed_last():
    deltas = [event["delta"]["type"] for event in streamed(THINKING) if "index" in event and "delta" in event]
    assert deltas == ["thinking_delta", "thinking_delta", "signature_delta", "text_delta", "text_delta"]


def test_text_behind_a_call_is_a_block_of_its_own():
    outputs = [*BARE[:-1], Delta(0, "Done."), BARE[-1]]
    assert told(streamed(outputs)) == [call(1, {}), {"type": "text", "text": "Done."}]


def test_thinking_that_is_not_to_be_told_is_still_noted():
    noted = {"type": "thinking", "thinking": "", **SIGNED}
    assert whole(THINKING, show_thinking=False)["content"] == [noted, HELLO]
    assert told(streamed(THINKING, show_thinking=False)) == [noted, HELLO]


def test_a_call_that_was_cut_off_is_not_among_what_may_be_run():
    outputs = said(*CALLS[:-2], CallDelta(0, 1, '{"y": [1'), reason="length")
    answer = whole(outputs)
    assert answer["content"] == [THOUGHT, HELLO, call(1, {"x": "a\nb"})]
    assert answer["stop_reason"] == "max_tokens"


@pytest.mark.parametrize(
    ("reason", "stop", "usage", "told_reason", "sequence"),
    [
        ("stop", None, USAGE, "end_turn", None),
        ("stop", 5, USAGE, "end_turn", None),
        ("stop", "END", USAGE, "stop_sequence", "END"),
        ("tool_calls", None, USAGE, "tool_use", None),
        ("length", None, Usage(20, 100, 0), "max_tokens", None),
        ("length", None, Usage(20, 90, 0), "max_tokens", None),  # the server's own limit
        ("length", None, Usage(422, 90, 0), "model_context_window_exceeded", None),
        ("length", None, Usage(412, 100, 0), "max_tokens", None),
    ],
)
def test_the_stop_reason_says_what_ended_it(reason, stop, usage, told_reason, sequence):
    outputs = said(Delta(0, "a"), reason=reason, stop=stop)
    expected = {"stop_reason": told_reason, "stop_sequence": sequence}
    assert streamed(outputs, usage)[-2]["delta"] == expected
    answer = whole(outputs, usage)
    assert {name: answer[name] for name in expected} == expected


def test_remembered_tokens_are_not_among_the_input_tokens():
    expected = {
        "input_tokens": 4,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 16,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 3},
    }
    assert whole(TEXT)["usage"] == expected
    assert streamed(TEXT)[-2]["usage"] == expected
    assert streamed(TEXT)[0]["message"]["usage"]["input_tokens"] == 20  # not known yet


@pytest.mark.parametrize(
    ("error", "kind"),
    [(EngineError("a step failed"), "api_error"), (EngineStoppedError(), "overloaded_error")],
)
def test_a_failure_on_the_way_is_the_last_event(error, kind):
    written = writer()
    raw = written.start(USAGE) + written.write([Delta(0, "Half a")], lambda: USAGE) + written.fail(error)
    events = checked_events(raw)
    assert events[-1]["error"]["type"] == kind
    assert "a step failed" not in events[-1]["error"]["message"]


def test_a_ping_is_an_event():
    assert writer().ping() == b'event: ping\ndata: {"type":"ping"}\n\n'
