"""Streams, judged by OpenAI's own client and byte by byte."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest
from sse_starlette.sse import AppStatus, EventSourceResponse

from tokenspeed.api.options import ServerOptions
from tokenspeed.api.sse import PING, EventStream

MESSAGES = [{"role": "user", "content": "Tell me of foxes."}]
CHAT = {"model": "local", "messages": MESSAGES, "max_tokens": 60}
TEXT = {"model": "local", "prompt": "The quick", "max_tokens": 60}
VARIANTS = [
    {},
    {"n": 3, "temperature": 1.0, "seed": 7},
    {"stop": ["e", "."]},
    {"temperature": 1.0, "seed": -5, "top_p": 0.5, "presence_penalty": 1.0},
    {"extra_body": {"ignore_eos": True, "min_tokens": 60}},
]


def rendered(server, text="Tell me of foxes."):
    prompt = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return server.tokenizer.encode(prompt, add_special=False)


def data_lines(raw: bytes) -> list[str]:
    """What follows `data: ` in every event, as a client that counts lines sees it."""
    return [line.removeprefix("data: ") for line in raw.decode().split("\n") if line.startswith("data: ")]


async def streamed(server, path, body) -> tuple[dict[str, str], list[str]]:
    answer = await server.post(path, body | {"stream": True})
    assert answer.status == 200
    return answer.headers, data_lines(answer.body)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("logprobs", [False, True])
async def test_a_streamed_chat_says_what_the_whole_answer_says(client, variant, logprobs):
    asked = CHAT | variant | {"logprobs": logprobs}
    whole = await client.chat.completions.create(**asked)
    texts, tokens, reasons = {}, {}, {}
    stream = await client.chat.completions.create(**asked, stream=True)
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            if choice.logprobs is not None:
                tokens.setdefault(choice.index, []).extend(choice.logprobs.content)
            if choice.finish_reason is not None:
                assert reasons.setdefault(choice.index, choice.finish_reason) == choice.finish_reason
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert reasons[choice.index] == choice.finish_reason
        if logprobs:
            assert tokens[choice.index] == choice.logprobs.content
    assert len(texts) == len(whole.choices)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("echo", [False, True])
async def test_a_streamed_completion_says_what_the_whole_answer_says(client, variant, echo):
    asked = TEXT | variant | {"echo": echo, "logprobs": 1, "prompt": ["The quick", "A lazy"]}
    whole = await client.completions.create(**asked)
    texts, tokens = {}, {}
    async for chunk in await client.completions.create(**asked, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] = texts.get(choice.index, "") + choice.text
        if choice.logprobs is not None:
            tokens.setdefault(choice.index, []).extend(choice.logprobs.tokens)
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert tokens == {choice.index: choice.logprobs.tokens for choice in whole.choices}


async def test_the_text_is_what_the_tokenizer_makes_of_all_tokens(server):
    expected = server.tokenizer.decode(server.continuation(rendered(server), 60), skip_special=True)
    body = CHAT | {"ignore_eos": True}
    _, lines = await streamed(server, "/v1/chat/completions", body)
    chunks = [json.loads(line) for line in lines[:-1]]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected


async def test_the_first_chunk_has_the_role_and_text(server):
    _, lines = await streamed(server, "/v1/chat/completions", CHAT)
    first, *later, last = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert first["delta"]["role"] == "assistant"
    assert first["delta"]["content"]
    assert all("role" not in choice["delta"] for choice in [*later, last])
    assert all(choice["delta"]["content"] for choice in later)
    assert last["delta"] == {}


async def test_an_empty_reply_still_has_its_role(server):
    (first,) = server.continuation(rendered(server), 1)
    _, lines = await streamed(server, "/v1/chat/completions", CHAT | {"stop_token_ids": [first]})
    (only,) = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert only["delta"] == {"role": "assistant", "content": ""}
    assert only["finish_reason"] == "stop"


async def test_every_chunk_has_the_same_heading_and_one_has_the_reason(server):
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)):
        _, lines = await streamed(server, path, body)
        assert lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in lines[:-1]]
        headings = {(c["id"], c["created"], c["model"], c["object"], c["system_fingerprint"]) for c in chunks}
        assert len(headings) == 1
        assert sum(c["choices"][0]["finish_reason"] is not None for c in chunks) == 1


async def test_a_stream_says_that_it_is_not_to_be_stored_or_buffered(server):
    headers, _ = await streamed(server, "/v1/completions", TEXT)
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", TEXT)])
async def test_usage_comes_in_a_chunk_of_its_own_and_only_if_asked_for(server, path, body):
    whole = (await server.post(path, body)).json()["usage"]
    for asked in ({}, {"stream_options": {}}, {"stream_options": {"include_usage": False}}):
        _, lines = await streamed(server, path, body | asked)
        assert all(chunk.get("usage") is None and chunk["choices"] for chunk in map(json.loads, lines[:-1]))
    _, lines = await streamed(server, path, body | {"stream_options": {"include_usage": True}})
    *chunks, last = [json.loads(line) for line in lines[:-1]]
    assert all("usage" not in chunk for chunk in chunks)
    assert last["choices"] == []
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    assert [last["usage"][name] for name in names] == [whole[name] for name in names]


async def test_usage_counts_exactly(server):
    ids = rendered(server)
    body = CHAT | {"ignore_eos": True, "n": 2}
    first = (await server.post("/v1/chat/completions", body)).json()["usage"]
    assert first == {
        "prompt_tokens": len(ids),
        "completion_tokens": 120,
        "total_tokens": len(ids) + 120,
        "prompt_tokens_details": {"cached_tokens": first["prompt_tokens_details"]["cached_tokens"]},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    second = (await server.post("/v1/chat/completions", body)).json()["usage"]
    assert second["prompt_tokens_details"]["cached_tokens"] == len(ids) // 16 * 16


async def test_continuous_usage_grows_with_every_chunk(server):
    options = {"include_usage": True, "continuous_usage_stats": True}
    _, lines = await streamed(server, "/v1/completions", TEXT | {"stream_options": options})
    usages = [json.loads(line)["usage"] for line in lines[:-1]]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    assert all(usage["prompt_tokens"] == usages[0]["prompt_tokens"] for usage in usages)


async def test_silence_is_broken_by_comments_and_by_nothing_else(serving):
    async with serving(options=ServerOptions(ping_seconds=0.01)) as server:
        server.gate.shut()
        call = server.call("/v1/completions", TEXT | {"stream": True})
        assert [await call.chunk(), await call.chunk()] == [b": ping\n\n"] * 2
        server.gate.open()
        answer = await call.answer_after_chunks()
    assert data_lines(answer)[-1] == "[DONE]"


async def test_a_step_that_fails_ends_its_whole_request_with_an_error_and_no_other(server):
    server.failing.append("now")
    answer = await server.post("/v1/chat/completions", CHAT)
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    server.failing.clear()
    assert (await server.post("/v1/chat/completions", CHAT)).status == 200
    assert server.idle()


async def test_a_step_that_fails_amid_a_stream_is_an_event_and_then_the_end(server):
    call = server.call("/v1/completions", TEXT | {"stream": True})
    assert (await call.chunk()).startswith(b"data: {")
    server.failing.append("now")
    lines = data_lines(await call.answer_after_chunks())
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2])["error"]["code"] == "internal_error"
    server.failing.clear()
    assert (await server.post("/v1/completions", TEXT)).status == 200


async def test_openais_client_raises_what_a_stream_says(server, client):
    stream = await client.completions.create(**TEXT, stream=True)
    server.failing.append("now")
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass
    assert server.idle()


async def test_a_client_that_counts_lines_over_a_socket_sees_one_event_in_each(server, listening):
    async with (
        listening(server.app) as url,
        httpx.AsyncClient(base_url=url) as client,
        client.stream("POST", "/v1/completions", json=TEXT | {"stream": True}) as response,
    ):
        lines = [line async for line in response.aiter_lines()]
    assert {line.startswith("data: ") for line in lines[::2]} == {True}
    assert set(lines[1::2]) == {""}
    assert lines[-2] == "data: [DONE]"


async def test_a_client_that_reads_slowly_holds_up_nobody_and_gets_fewer_larger_chunks(server):
    body = TEXT | {"stream": True, "ignore_eos": True}
    slow = server.call("/v1/completions", body, most_unread=1)
    await server.until(lambda: server.unfinished == 1)
    await server.until(server.idle)
    texts = []
    while not (chunk := await slow.chunk()).endswith(b"[DONE]\n\n"):
        texts += [json.loads(line)["choices"][0]["text"] for line in data_lines(chunk)]
    texts += [json.loads(line)["choices"][0]["text"] for line in data_lines(chunk)[:-1]]
    whole = await server.post("/v1/completions", TEXT | {"ignore_eos": True})
    assert "".join(texts) == whole.json()["choices"][0]["text"]
    assert len(texts) < 6


async def test_a_process_that_is_asked_to_stop_lets_its_streams_end(server, monkeypatch):
    monkeypatch.setattr(AppStatus, "should_exit", True)
    _, lines = await streamed(server, "/v1/completions", TEXT)
    assert lines[-1] == "[DONE]"


async def test_a_ping_on_its_way_is_not_overtaken():
    pinged, released = asyncio.Event(), asyncio.Event()
    sent = []

    async def send(message):
        if message.get("body") == b": ping\n\n":
            pinged.set()
            await released.wait()
        sent.append(message.get("body"))

    async def events():
        await pinged.wait()
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, released.set)
        yield b"data: 1\n\n"

    stream = EventStream(events(), headers={}, ping_seconds=0.01, close=lambda: None, ping=lambda: PING)
    await stream({"type": "http", "method": "POST"}, asyncio.Event().wait, send)
    assert sent == [None, b": ping\n\n", b"data: 1\n\n", b""]


async def test_an_end_that_waits_for_a_slow_client_is_not_cut_off_by_a_ping():
    sent = []

    async def send(message):
        if message.get("body") == b"":
            await asyncio.sleep(0.05)  # a few times the ping's turn
        sent.append(message.get("body"))

    async def events():
        yield b"data: 1\n\n"

    stream = EventStream(events(), headers={}, ping_seconds=0.01, close=lambda: None, ping=lambda: PING)
    await stream({"type": "http", "method": "POST"}, asyncio.Event().wait, send)
    assert sent == [None, b"data: 1\n\n", b""]


@pytest.mark.parametrize("name", ["__call__", "_stream_response", "_ping"])
def test_the_parts_of_sse_starlette_that_are_replaced_are_there(name):
    assert getattr(EventSourceResponse, name) is not getattr(EventStream, name)
