"""Ollama's conversations and prompts, judged by its own client over a real socket and line by line."""

from __future__ import annotations

import json
from typing import Any

import httpx
import ollama
import pytest

from tests.api.ollama_asking import (
    CALL,
    CHAT,
    HI,
    SPEECH,
    THINKS,
    WEATHER,
    check_end,
    streamed,
)


@pytest.fixture
async def speaking(serving):
    """A server whose model says `SPEECH` whatever it is asked."""
    async with serving(script=[SPEECH] * 9) as server:
        yield server


@pytest.fixture
async def client(speaking, listening):
    """Ollama's own client over a real socket."""
    async with listening(speaking.app) as url, ollama.AsyncClient(host=url) as made:
        yield made


async def test_ollamas_client_gets_a_whole_answer(client):
    answer = await client.chat(model="local", messages=HI, options={"temperature": 0, "num_ctx": 4096})
    assert (answer.message.role, answer.message.content) == ("assistant", SPEECH)
    assert (answer.model, answer.done, answer.done_reason) == ("local", True, "stop")
    assert answer.prompt_eval_count > 0
    assert answer.eval_count > 0
    assert answer.total_duration >= answer.prompt_eval_duration > 0


async def test_ollamas_client_streams_what_the_whole_answer_says(client):
    parts = [part async for part in await client.chat(model="local", messages=HI, stream=True)]
    assert "".join(part.message.content for part in parts) == SPEECH
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].done_reason == "stop"


async def test_ollamas_client_completes_a_prompt_whole_and_streamed(client):
    whole = await client.generate(model="local", prompt="hi")
    parts = [part async for part in await client.generate(model="local", prompt="hi", stream=True)]
    assert whole.response == SPEECH == "".join(part.response for part in parts)
    assert (whole.done_reason, parts[-1].done_reason) == ("stop", "stop")


async def test_a_stream_is_what_is_sent_unless_it_is_switched_off(speaking):
    chat = await streamed(speaking, "/api/chat", CHAT)
    assert [line["done"] for line in chat] == [False] * (len(chat) - 1) + [True]
    assert "".join(line["message"]["content"] for line in chat) == SPEECH
    check_end(chat[-1])
    text = await streamed(speaking, "/api/generate", {"model": "local", "prompt": "hi"})
    assert "".join(line["response"] for line in text) == SPEECH
    check_end(text[-1])
    whole = await speaking.post("/api/chat", CHAT | {"stream": False})
    assert whole.headers["content-type"] == "application/json"
    check_end(whole.json())
    assert whole.json()["message"] == {"role": "assistant", "content": SPEECH}


async def test_a_client_that_reads_lines_over_a_socket_sees_an_object_in_each(speaking, listening):
    async with (
        listening(speaking.app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/api/chat", content=json.dumps(CHAT).encode()) as response,
    ):
        lines = [json.loads(line) async for line in response.aiter_lines()]
    assert "".join(line["message"]["content"] for line in lines) == SPEECH


async def test_durations_are_told_from_measured_times(server):
    server.gate.shut()
    call = server.call("/api/chat", CHAT | {"stream": False, "options": {"num_predict": 20}})
    await server.until(lambda: server.unfinished == 1)
    held = server.engine.now()
    await server.until(lambda: server.engine.held_blocks > 0)
    server.gate.open()
    answer = (await call.answer()).json()
    assert 0 < answer["prompt_eval_duration"] < answer["total_duration"]
    assert answer["total_duration"] <= (server.engine.now() - held + 1.0) * 1e9
    assert answer["eval_count"] == 20


async def test_the_prompt_is_what_the_template_makes_of_the_messages(serving):
    async with serving(script=["ok"] * 2, template=THINKS) as server:
        messages = [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": "Weather?", "images": []},
            {
                "role": "assistant",
                "content": "",
                "thinking": "hm",
                "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}],
            },
            {"role": "tool", "tool_name": "weather", "content": "sunny"},
        ]
        answer = await server.post("/api/chat", {"messages": messages, "stream": False})
        assert answer.status == 200, answer.body
        rendered = (
            "<|im_start|>system\nBe short.<|im_end|><|im_start|>user\nWeather?<|im_end|>"
            '<|im_start|>assistant\n[hm]<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}'
            "</tool_call><|im_end|><|im_start|>tool\nsunny<|im_end|><|im_start|>assistant\n"
        )
        count = len(server.tokenizer.encode(rendered, add_special=False))
    assert answer.json()["prompt_eval_count"] == count


async def test_a_call_is_told_whole_with_its_arguments_as_an_object(serving, listening):
    async with (
        serving(script=[CALL] * 2) as server,
        listening(server.app) as url,
        ollama.AsyncClient(host=url) as client,
    ):
        whole = await client.chat(model="local", messages=HI, tools=[WEATHER])
        parts = [
            part async for part in await client.chat(model="local", messages=HI, tools=[WEATHER], stream=True)
        ]
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    for call in (*whole.message.tool_calls, *calls):
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Köln"})
    assert len(calls) == len(whole.message.tool_calls) == 1
    assert whole.done_reason == parts[-1].done_reason == "stop"


async def test_thinking_has_a_field_of_its_own(serving, listening):
    said = "<think>\nIt is easy.\n</think>\n\nYes."
    async with (
        serving(script=[said] * 4, template=THINKS) as server,
        listening(server.app) as url,
        ollama.AsyncClient(host=url) as client,
    ):
        whole = await client.chat(model="local", messages=HI, think=True)
        parts = [
            part async for part in await client.chat(model="local", messages=HI, think="high", stream=True)
        ]
        text = await client.generate(model="local", prompt="hi", think=True)
        pieces = [part async for part in await client.generate(model="local", prompt="hi", stream=True)]
    assert (whole.message.thinking, whole.message.content) == ("It is easy.", "Yes.")
    assert "".join(part.message.thinking or "" for part in parts) == "It is easy."
    assert "".join(part.message.content or "" for part in parts) == "Yes."
    assert (text.thinking, text.response) == ("It is easy.", "Yes.")
    assert "".join(part.thinking or "" for part in pieces) == "It is easy."
    assert "".join(part.response for part in pieces) == "Yes."


async def test_thinking_can_be_switched_off(serving):
    async with serving(script=["Yes."] * 2, template=THINKS) as server:
        on = (await server.post("/api/chat", CHAT | {"stream": False})).json()
        off = (await server.post("/api/chat", CHAT | {"stream": False, "think": False})).json()
    assert off["prompt_eval_count"] > on["prompt_eval_count"]


async def test_a_model_that_does_not_think_is_not_asked_to(speaking):
    answer = await speaking.post("/api/chat", CHAT | {"think": True})
    assert answer.status == 400
    assert "does not support thinking" in answer.json()["error"]
    assert (await speaking.post("/api/chat", CHAT | {"think": False})).status == 200


@pytest.mark.parametrize(
    "wanted", ["json", {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}]
)
async def test_a_format_holds_the_answer(server, wanted):
    body = CHAT | {"format": wanted, "stream": False, "options": {"num_predict": 100, "seed": 1}}
    answer = (await server.post("/api/chat", body)).json()
    if answer["done_reason"] == "stop":
        assert isinstance(json.loads(answer["message"]["content"]), dict)
    assert answer["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize("wanted", [None, ""])
async def test_an_empty_format_holds_nothing(speaking, wanted):
    answer = await speaking.post("/api/chat", CHAT | {"format": wanted, "stream": False})
    assert answer.json()["message"]["content"] == SPEECH


async def test_log_probabilities_come_with_the_text(server):
    asked = CHAT | {"logprobs": True, "top_logprobs": 2, "options": {"num_predict": 9}}
    whole = (await server.post("/api/chat", asked | {"stream": False})).json()
    assert len(whole["logprobs"]) == 9
    assert {score["logprob"] for score in whole["logprobs"]} == {-1.0}
    told = [
        score for line in await streamed(server, "/api/chat", asked) for score in line.get("logprobs", ())
    ]
    assert told == whole["logprobs"]
    assert ollama.ChatResponse(**whole).logprobs[0].token == whole["logprobs"][0]["token"]


async def counted(server, body: dict[str, Any]) -> int:
    """How many tokens the prompt of a generation has."""
    answer = await server.post("/api/generate", body | {"stream": False, "options": {"num_predict": 1}})
    assert answer.status == 200, answer.body
    count: int = answer.json()["prompt_eval_count"]
    return count


async def test_a_prompt_is_a_message_in_the_template_unless_it_is_raw(server):
    encode = server.tokenizer.encode
    rendered = "<|im_start|>user\nA fox<|im_end|>\n<|im_start|>assistant\n"
    assert await counted(server, {"prompt": "A fox"}) == len(encode(rendered, add_special=False))
    assert await counted(server, {"prompt": "A fox", "raw": True}) == len(encode("A fox", add_special=True))
    systematic = "<|im_start|>system\nBe short.<|im_end|>\n" + rendered
    assert await counted(server, {"prompt": "A fox", "system": "Be short."}) == len(
        encode(systematic, add_special=False)
    )


async def test_a_suffix_asks_for_what_is_between(server):
    expected = len(server.tokenizer.fim_prompt("def f(", "return x"))
    assert await counted(server, {"prompt": "def f(", "suffix": "return x"}) == expected
    assert await counted(server, {"prompt": "", "suffix": "return x", "raw": True}) == len(
        server.tokenizer.fim_prompt("", "return x")
    )


async def test_options_are_honoured(server):
    body = CHAT | {"stream": False}

    async def said(**options: Any) -> dict[str, Any]:
        answer = await server.post("/api/chat", body | {"options": options})
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json()
        return found

    short = await said(num_predict=5)
    assert (short["eval_count"], short["done_reason"]) == (5, "length")
    for endless in (-1, -2, 0, 10**6):
        assert (await said(num_predict=endless))["eval_count"] > 5
    text = (await said(num_predict=60))["message"]["content"]
    stop = text[10:12]
    for stops in (stop, [stop, "never"]):
        stopped = await said(num_predict=60, stop=stops)
        assert stopped["message"]["content"] == text[: text.index(stop)]
    one, other = (
        await said(num_predict=9, temperature=1.0, seed=3),
        await said(num_predict=9, temperature=1.0, seed=3),
    )
    assert one["message"] == other["message"]


@pytest.mark.parametrize("stream", [None, False])
@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": None, "keep_alive": "5m"}])
async def test_a_conversation_without_messages_only_loads(server, body, stream):
    answer = await server.post("/api/chat", {"model": "local", "stream": stream} | body)
    (line,) = [json.loads(line) for line in answer.body.splitlines()]
    assert (line["done"], line["done_reason"], line["message"]["content"]) == (True, "load", "")
    assert server.unfinished == 0


@pytest.mark.parametrize(
    ("keep", "reason"), [(None, "load"), ("5m", "load"), (-1, "load"), (0, "unload"), ("0", "unload")]
)
async def test_an_empty_prompt_only_loads_or_unloads(server, listening, keep, reason):
    async with listening(server.app) as url, ollama.AsyncClient(host=url) as client:
        answer = await client.generate(model="local", prompt="", keep_alive=keep)
    assert (answer.done, answer.done_reason, answer.response) == (True, reason, "")
