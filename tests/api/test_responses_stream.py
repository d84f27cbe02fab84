"""A response's events, each as the official client's types have it, in an order that its parser accepts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai import AsyncOpenAI, BaseModel
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tokenspeed.api.options import ServerOptions
from tokenspeed.api.responses_answers import Answer
from tokenspeed.api.responses_input import Conversation, unseal
from tokenspeed.api.responses_tools import Home
from tokenspeed.api.responses_writer import ResponseWriter
from tokenspeed.errors import ContextLengthError, EngineError
from tokenspeed.generation.outputs import (
    CallDelta,
    CallStart,
    Delta,
    Ended,
    Output,
    ReasoningDelta,
    Usage,
    Whole,
)
from tokenspeed.generation.text import Alternative, ScoredToken

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ID = "resp_" + "0123456789abcdef01234567"
USAGE = Usage(12, 7, 4, 2)
FIELDS = {
    "model": "m",
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
}
# What the client's types do not have, and its older ones, or its whole answers, do.
BEYOND = {"logprobs.bytes", "top_logprobs.bytes", "name", "store"}


def writer(sealed: bool = False, homes: dict[str, Home] | None = None) -> ResponseWriter:
    return ResponseWriter(Answer(ID, 1_700_000_000, FIELDS), homes=homes or {}, sealed=sealed)


def written(
    batches: Sequence[Sequence[Output]], by: ResponseWriter | None = None
) -> tuple[list[dict[str, Any]], Any]:
    """All events of a stream of `batches`, and the same as an answer in one piece."""
    by = by or writer()
    raw = by.start(USAGE._replace(completion=0))
    for batch in batches:
        raw += by.write(list(batch), lambda: USAGE)
    raw += by.end(USAGE)
    whole = Whole()
    for output in (output for batch in batches for output in batch):
        whole.add(output)
    again = ResponseWriter(by._answer, homes=by._homes, sealed=by._sealed)
    return events_of(raw), again.whole([whole], USAGE)


def events_of(raw: bytes) -> list[dict[str, Any]]:
    """The events of a stream, each held to the client's types and numbered without a gap."""
    assert b"[DONE]" not in raw
    found = []
    for number, block in enumerate(raw.decode().removesuffix("\n\n").split("\n\n")):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        check(event)
        found.append(event)
    return found


def last_of(raw: bytes) -> dict[str, Any]:
    """The last event of a stream, whose error may have a code that these types lack, but others know."""
    event: dict[str, Any] = json.loads(raw.rpartition(b"data: ")[2])
    return event


def check(event: dict[str, Any]) -> None:
    typed = EVENT.validate_python(event, strict=True)
    assert typed.type == event["type"]
    assert set(extras(typed, "")) <= BEYOND


def extras(value: Any, name: str) -> list[str]:
    """The fields that the client's types do not know, by the field that they are in."""
    if isinstance(value, list):
        return [extra for item in value for extra in extras(item, name)]
    if not isinstance(value, BaseModel):
        return []
    own = [f"{name}.{extra}" if "logprobs" in name else extra for extra in value.model_extra or {}]
    inner = [extra for field in type(value).model_fields for extra in extras(getattr(value, field), field)]
    return own + inner


def rebuilt(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output, put together as a client does: what is told as done must be what was told in pieces."""
    items: dict[int, dict[str, Any]] = {}
    pieces: dict[int, str] = {}
    open_at: int | None = None
    for event in events:
        kind, index = event["type"], event.get("output_index")
        if kind == "response.output_item.added":
            assert open_at is None
            assert index == len(items)
            assert event["item"]["status"] == "in_progress"
            open_at, pieces[index] = index, ""
        elif index is not None:
            assert index == open_at, "one item at a time"
        if kind.endswith(".delta"):
            pieces[index] += event["delta"]
        elif kind.endswith("_text.done"):
            assert event["text"] == pieces[index]
        elif kind.endswith("arguments.done"):
            assert event["arguments"] == pieces[index]
        elif kind.endswith("_part.done"):
            assert event["part"]["text"] == pieces[index]
        elif kind == "response.output_item.done":
            items[index], open_at = event["item"], None
    assert open_at is None
    return list(items.values())


def timeless(response: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in response.items() if key not in ("completed_at", "created_at", "id")}


EVERYTHING = [
    [ReasoningDelta(0, "Let me ")],
    [ReasoningDelta(0, "think."), Delta(0, "I'll ")],
    [Delta(0, "look 🙂.")],
    [CallStart(0, 0, "call_1", "weather"), CallDelta(0, 0, '{"city":')],
    [CallDelta(0, 0, ' "Ærøskøbing"}'), CallStart(0, 1, "call_2", "now")],
    [Ended(0, "tool_calls", None)],
]


def test_thinking_text_and_two_calls_come_as_the_client_has_them() -> None:
    events, whole = written(EVERYTHING)
    short = [event["type"].removeprefix("response.") for event in events]
    thinking = ["reasoning_summary_text.delta"] * 2
    assert short == [
        "created",
        "in_progress",
        *["output_item.added", "reasoning_summary_part.added", *thinking],
        *["reasoning_summary_text.done", "reasoning_summary_part.done", "output_item.done"],
        *["output_item.added", "content_part.added", "output_text.delta", "output_text.delta"],
        *["output_text.done", "content_part.done", "output_item.done"],
        *["output_item.added", *["function_call_arguments.delta"] * 2],
        *["function_call_arguments.done", "output_item.done"],
        *["output_item.added", "function_call_arguments.delta"],
        *["function_call_arguments.done", "output_item.done"],
        "completed",
    ]
    output = rebuilt(events)
    final = events[-1]["response"]
    assert final["output"] == output == whole["output"]
    assert timeless(final) == timeless(whole)
    reasoning, message, weather, now = output
    assert reasoning["summary"] == [{"type": "summary_text", "text": "Let me think."}]
    assert reasoning["encrypted_content"] is None
    assert message["content"][0]["text"] == "I'll look 🙂."
    assert (weather["call_id"], weather["name"]) == ("call_1", "weather")
    assert json.loads(weather["arguments"]) == {"city": "Ærøskøbing"}
    assert (now["call_id"], now["arguments"]) == ("call_2", "{}")
    assert {item["status"] for item in output} == {"completed"}
    assert len({item["id"] for item in output}) == 4
    assert final["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


def test_what_is_begun_tells_no_output_yet() -> None:
    events, _ = written(EVERYTHING)
    for event in events[:2]:
        response = event["response"]
        assert (response["status"], response["output"], response["usage"]) == ("in_progress", [], None)


@pytest.mark.parametrize(
    "outputs",
    [
        [ReasoningDelta(0, "Hm")],
        [Delta(0, "So")],
        [CallStart(0, 0, "c", "f"), CallDelta(0, 0, '{"a')],
        [Delta(0, "So"), ReasoningDelta(0, "Hm")],
    ],
)
def test_what_the_token_limit_cuts_off_is_incomplete(outputs: list[Output]) -> None:
    events, whole = written([outputs, [Ended(0, "length", None)]])
    final = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    assert final["status"] == "incomplete"
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert final["completed_at"] is None
    assert rebuilt(events)[-1]["status"] == "incomplete"
    assert whole["status"] == "incomplete"
    assert [item["status"] for item in final["output"][:-1]] == ["completed"] * (len(final["output"]) - 1)


def test_an_answer_of_nothing_is_an_empty_message() -> None:
    events, whole = written([[Ended(0, "stop", None)]])
    (item,) = rebuilt(events)
    assert (item["type"], item["content"][0]["text"]) == ("message", "")
    assert whole["output"] == [item]


def test_text_after_a_call_is_a_message_of_its_own() -> None:
    batches = [[Delta(0, "a"), CallStart(0, 0, "c", "f"), CallDelta(0, 0, "{}"), Delta(0, "b")]]
    events, _ = written([*batches, [Ended(0, "tool_calls", None)]])
    assert [item["type"] for item in rebuilt(events)] == ["message", "function_call", "message"]


def test_empty_pieces_open_nothing() -> None:
    events, _ = written([[Delta(0, "")], [CallStart(0, 0, "c", "f")], [Ended(0, "tool_calls", None)]])
    assert [item["type"] for item in rebuilt(events)] == ["function_call"]


def test_log_probabilities_come_with_their_text() -> None:
    tokens = [
        ScoredToken("H", b"H", -0.5, (Alternative("H", b"H", -0.5), Alternative("h", b"h", -1.5)), 0),
        ScoredToken("i", b"i", -0.25, (), 1),
    ]
    batches = [[Delta(0, "H", (tokens[0],))], [Delta(0, "i", (tokens[1],))], [Ended(0, "stop", None)]]
    events, whole = written(batches)
    (message,) = rebuilt(events)
    scores = message["content"][0]["logprobs"]
    assert [(score["token"], score["logprob"]) for score in scores] == [("H", -0.5), ("i", -0.25)]
    assert [top["token"] for top in scores[0]["top_logprobs"]] == ["H", "h"]
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [score for delta in deltas for score in delta] == scores
    assert whole["output"] == [message]


def test_a_call_of_a_function_in_a_namespace_names_both() -> None:
    homes = {"files__read": Home("files", "read")}
    batches = [[CallStart(0, 0, "c", "files__read")], [Ended(0, "tool_calls", None)]]
    events, _ = written(batches, writer(homes=homes))
    (call,) = rebuilt(events)
    assert (call["namespace"], call["name"]) == ("files", "read")


def test_thinking_is_sealed_for_clients_that_would_give_back_nothing_else() -> None:
    batches = [[ReasoningDelta(0, "Größe?")], [Delta(0, "1 m")], [Ended(0, "stop", None)]]
    events, _ = written(batches, writer(sealed=True))
    sealed = rebuilt(events)[0]["encrypted_content"]
    assert unseal(sealed) == "Größe?"
    conversation = Conversation()
    conversation.add("input[0]", {"type": "reasoning", "summary": [], "encrypted_content": sealed})
    assert conversation.messages()[0]["reasoning_content"] == "Größe?"


def test_a_sign_of_life_is_an_event_in_its_turn() -> None:
    by = writer()
    raw = by.start(USAGE) + by.ping() + by.write([Delta(0, "a")], lambda: USAGE) + by.ping()
    raw += by.write([Delta(0, "b"), Ended(0, "stop", None)], lambda: USAGE) + by.end(USAGE)
    events = events_of(raw)
    assert [event["type"] for event in events].count("response.in_progress") == 3
    assert rebuilt(events)[0]["content"][0]["text"] == "ab"


def test_there_is_no_sign_of_life_before_or_after_the_stream() -> None:
    by = writer()
    assert by.ping() == b""
    by.start(USAGE)
    by.end(USAGE)
    assert by.ping() == b""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (EngineError("a step failed"), "server_error"),
        (RuntimeError("bug"), "server_error"),
        (ContextLengthError("too long", param="input"), "context_length_exceeded"),
    ],
)
def test_a_failure_is_told_in_the_response(error: Exception, code: str) -> None:
    by = writer()
    raw = by.start(USAGE) + by.write([Delta(0, "a")], lambda: USAGE) + by.fail(error)
    last = last_of(raw)
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["response"]["error"]["code"] == code
    assert "bug" not in last["response"]["error"]["message"]
    assert by.final is None
    assert by.ping() == b""


def test_what_fails_before_it_began_begins_and_fails() -> None:
    raw = writer().fail(EngineError("no"))
    types = [event["type"] for event in events_of(raw)]
    assert types == ["response.created", "response.in_progress", "response.failed"]


# -- over a real socket ---------------------------------------------------------------------------------


def openai_at(url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


async def streamed(client: Any, **asked: Any) -> list[dict[str, Any]]:
    stream = await client.responses.create(model="local", stream=True, **asked)
    return [event.model_dump(exclude_unset=True, by_alias=True) async for event in stream]


async def test_a_stream_is_the_whole_answer_in_pieces(server, client):
    asked = {"input": "Größe?", "max_output_tokens": 24, "extra_body": {"ignore_eos": True}}
    whole = await client.responses.create(model="local", **asked)
    events = await streamed(client, **asked)
    for number, event in enumerate(events):
        check(event)
        assert event["sequence_number"] == number
    (message,) = rebuilt(events)
    final = Response.model_validate(events[-1]["response"], strict=True)
    assert final.status == whole.status == "incomplete"
    assert message["content"][0]["text"] == final.output_text == whole.output_text
    assert final.usage.output_tokens == 24
    own = {"id", "created_at", "completed_at", "output", "usage"}
    assert final.model_dump(exclude=own) == whole.model_dump(exclude=own)
    assert server.idle()


async def test_the_clients_own_stream_helper_gives_the_final_response(serving, listening):
    async with (
        serving(script=["Größe, 你好 🙂"]) as server,
        listening(server.app) as url,
        openai_at(url) as client,
        client.responses.stream(model="local", input="hi") as stream,
    ):
        text = "".join([e.delta async for e in stream if e.type == "response.output_text.delta"])
        final = await stream.get_final_response()
        assert text == final.output_text == "Größe, 你好 🙂"
        assert final.status == "completed"


async def test_a_stream_is_named_lines_of_events_without_a_mark_at_its_end(server):
    answer = await server.post("/v1/responses", {"input": "hi", "max_output_tokens": 3, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert rebuilt(events_of(answer.body))
    assert (await server.get(f"/requests/{answer.headers['x-request-id']}/timeline")).status == 200


async def test_a_step_that_fails_ends_the_stream_with_a_failed_response(server):
    asked = {"input": "hi", "stream": True, "max_output_tokens": 300, "ignore_eos": True}
    call = server.call("/v1/responses", asked)
    raw = await call.chunk() + await call.chunk()
    server.failing.append("now")
    raw += await call.answer_after_chunks()
    *_, last = events_of(raw)
    assert (last["type"], last["response"]["error"]["code"]) == ("response.failed", "server_error")
    assert server.idle()


async def test_a_client_that_vanishes_frees_its_blocks(server):
    asked = {"input": "hi", "stream": True, "max_output_tokens": 300, "ignore_eos": True}
    call = server.call("/v1/responses", asked)
    await call.chunk()
    await call.chunk()
    server.gate.shut()
    call.disconnect()
    await call.task
    assert server.idle()


async def test_a_conversation_too_long_is_told_in_the_stream_that_was_asked_for(server):
    asked = {"input": "fox " * 2000}
    answer = await server.post("/v1/responses", asked)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
    assert answer.error["param"] == "input"
    answer = await server.post("/v1/responses", asked | {"stream": True})
    last = last_of(answer.body)
    assert (answer.status, last["type"]) == (200, "response.failed")
    assert last["response"]["error"]["code"] == "context_length_exceeded"
    assert "512" in last["response"]["error"]["message"]
    assert server.idle()


async def test_silence_is_filled_with_events_that_count_on(serving, listening):
    async with (
        serving(options=ServerOptions(ping_seconds=1.0), script=["done"]) as server,
        listening(server.app) as url,
        openai_at(url) as client,
    ):
        server.gate.shut()
        stream = await client.responses.create(model="local", input="hi", stream=True)
        events = []
        async for event in stream:
            events.append(event.model_dump(exclude_unset=True, by_alias=True))
            if len(events) == 4:  # two of them are signs of life
                server.gate.open()
        for number, event in enumerate(events):
            check(event)
            assert event["sequence_number"] == number
        assert [event["type"] for event in events[1:4]] == ["response.in_progress"] * 3
        assert events[-1]["response"]["output"][0]["content"][0]["text"] == "done"


def test_a_piece_of_text_costs_little_more_than_its_text() -> None:
    by = writer()
    by.start(USAGE)
    by.write([Delta(0, "x")], lambda: USAGE)
    chunk = by.write([Delta(0, "Hello")], lambda: USAGE)
    assert len(chunk) < 300
    assert chunk.endswith(b'"delta":"Hello"}\n\n')
