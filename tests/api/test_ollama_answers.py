"""What Ollama's clients read of every output, silence and failure, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.ollama_asking import (
    CHAT,
    USAGE,
    lines_of,
)
from tokenspeed.api.ollama_answers import OllamaWriter, chat_words, generate_words
from tokenspeed.api.options import ServerOptions
from tokenspeed.errors import EngineError
from tokenspeed.generation.outputs import CallDelta, CallStart, Delta, Ended, ReasoningDelta, Whole
from tokenspeed.generation.text import Alternative, ScoredToken


def written(words, *batches) -> list[dict[str, Any]]:
    writer = OllamaWriter("m", words, scored=False)
    raw = b"".join([writer.write(list(batch), lambda: USAGE) for batch in batches])
    lines = lines_of(raw + writer.end(USAGE))
    for line in lines:
        assert line.pop("model") == "m"
        assert line.pop("created_at").endswith("Z")
    return lines


LAST = {
    "done": True,
    "total_duration": 1_500_000_000,
    "load_duration": 0,
    "prompt_eval_count": 7,
    "prompt_eval_duration": 250_000_000,
    "eval_count": 5,
    "eval_duration": 1_250_000_000,
}


def message(**fields: Any) -> dict[str, Any]:
    return {"message": {"role": "assistant", "content": "", **fields}}


def call(index: int, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": f"id{index}", "function": {"index": index, "name": name, "arguments": arguments}}


def test_calls_are_held_back_until_they_are_whole():
    lines = written(
        chat_words,
        [ReasoningDelta(0, "Hm."), Delta(0, "So: ")],
        [CallStart(0, 0, "id0", "f")],
        [CallDelta(0, 0, '{"x":')],
        [CallDelta(0, 0, "[1]}"), CallStart(0, 1, "id1", "g")],
        [Ended(0, "tool_calls", None)],
    )
    assert lines == [
        {**message(thinking="Hm."), "done": False},
        {**message(content="So: "), "done": False},
        {**message(tool_calls=[call(0, "f", {"x": [1]})]), "done": False},
        {**message(tool_calls=[call(1, "g", {})]), "done": False},
        {**message(), "done_reason": "stop", **LAST},
    ]


def test_a_call_that_was_cut_off_is_not_told_and_the_reason_says_why():
    lines = written(
        chat_words, [CallStart(0, 0, "id0", "f"), CallDelta(0, 0, '{"x":')], [Ended(0, "length", None)]
    )
    assert lines == [{**message(), "done_reason": "length", **LAST}]


def test_text_ends_a_call():
    lines = written(
        chat_words,
        [CallStart(0, 0, "id0", "f"), CallDelta(0, 0, '{"x":1}'), Delta(0, "!")],
        [Ended(0, "stop", None)],
    )
    assert [line["message"].get("content") for line in lines] == ["", "!", ""]
    assert lines[0]["message"]["tool_calls"] == [call(0, "f", {"x": 1})]


def test_generated_text_has_fields_of_its_own():
    lines = written(generate_words, [ReasoningDelta(0, "Hm."), Delta(0, "Yes")], [Ended(0, "length", None)])
    assert lines == [
        {"response": "", "thinking": "Hm.", "done": False},
        {"response": "Yes", "done": False},
        {"response": "", "done_reason": "length", **LAST},
    ]


def test_a_whole_answer_has_calls_and_thinking():
    whole = Whole()
    for output in (
        ReasoningDelta(0, "Hm."),
        Delta(0, "So"),
        CallStart(0, 0, "id0", "f"),
        CallDelta(0, 0, '{"x":1}'),
        CallStart(0, 1, "id1", "broken"),
        CallDelta(0, 1, "["),
        Ended(0, "tool_calls", None),
    ):
        whole.add(output)
    answer = OllamaWriter("m", chat_words, scored=False).whole([whole], USAGE)
    assert answer["message"] == {
        "role": "assistant",
        "content": "So",
        "thinking": "Hm.",
        "tool_calls": [call(0, "f", {"x": 1})],
    }
    assert {name: answer[name] for name in LAST} == LAST


def test_a_score_has_its_alternatives():
    top = (Alternative("b", b"b", -2.0),)
    writer = OllamaWriter("m", generate_words, scored=True)
    (line,) = lines_of(writer.write([Delta(0, "a", (ScoredToken("a", b"a", -0.5, top, 0),))], lambda: USAGE))
    assert line["logprobs"] == [
        {
            "token": "a",
            "logprob": -0.5,
            "bytes": [97],
            "top_logprobs": [{"token": "b", "logprob": -2.0, "bytes": [98]}],
        }
    ]


def test_a_failure_amid_a_stream_is_a_line():
    writer = OllamaWriter("m", chat_words, scored=False)
    (line,) = lines_of(writer.fail(EngineError("a secret")))
    assert line.keys() == {"error"}
    assert "secret" not in line["error"]


async def test_a_step_that_fails_amid_a_stream_is_the_last_line(server):
    call = server.call("/api/chat", CHAT | {"options": {"num_predict": 60}})
    first = await call.chunk()
    server.failing.append("now")
    lines = lines_of(first + await call.answer_after_chunks())
    assert lines[-1].keys() == {"error"}
    assert server.idle()


async def test_silence_is_broken_by_a_piece_with_nothing_in_it(serving):
    async with serving(options=ServerOptions(ping_seconds=0.01), script=["Yes."]) as server:
        server.gate.shut()
        call = server.call("/api/chat", CHAT)
        (ping,) = lines_of(await call.chunk())
        assert (ping["message"], ping["done"]) == ({"role": "assistant", "content": ""}, False)
        server.gate.open()
        lines = lines_of(await call.answer_after_chunks())
    assert "".join(line["message"]["content"] for line in lines) == "Yes."


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), [("/api/chat", CHAT), ("/api/generate", {"prompt": "hi"})])
async def test_a_client_that_vanishes_ends_the_work(server, path, body, stream):
    server.gate.shut()
    call = server.call(path, body | {"stream": stream})
    await server.until(lambda: server.engine.held_blocks > 0)
    call.disconnect()
    await call.task
    assert server.idle()
