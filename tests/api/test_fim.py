"""Mistral's endpoint for gaps: a chat's shape around what fills one."""

from __future__ import annotations

import json
from typing import Any

import pytest

FIM = {"model": "local", "prompt": "def f(", "suffix": "return x", "max_tokens": 30}
PATHS = ["/v1/fim/completions", "/fim/completions"]


def chunks_of(body: bytes) -> list[dict[str, Any]]:
    *events, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("path", PATHS)
async def test_a_gap_is_filled(server, path):
    ids = server.tokenizer.fim_prompt("def f(", "return x")
    answer = (await server.post(path, FIM)).json()
    (choice,) = answer["choices"]
    text = server.tokenizer.decode(server.continuation(ids, 30), skip_special=True)
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "length",
    }
    assert answer["object"] == "chat.completion"
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (len(ids), 30)


async def test_a_stream_says_the_same_and_every_chunk_has_a_choice_with_a_text(server):
    whole = (await server.post(PATHS[0], FIM)).json()
    chunks = chunks_of((await server.post(PATHS[0], FIM | {"stream": True})).body)
    texts = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert "".join(texts) == whole["choices"][0]["message"]["content"]
    assert texts[-1] == ""
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["length"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert "usage" not in chunks[0]
    assert chunks[-1]["usage"]["completion_tokens"] == 30


@pytest.mark.parametrize("suffix", [{}, {"suffix": None}, {"suffix": ""}])
async def test_without_a_suffix_the_text_goes_on(server, suffix):
    body = {"prompt": "The quick", "max_tokens": 9} | suffix
    answer = (await server.post(PATHS[0], body)).json()
    plain = (await server.post("/v1/completions", {"prompt": "The quick", "max_tokens": 9})).json()
    assert answer["choices"][0]["message"]["content"] == plain["choices"][0]["text"]


async def test_fields_are_honoured(server):
    async def said(**fields: Any) -> str:
        answer = await server.post(PATHS[0], FIM | fields)
        assert answer.status == 200, answer.body
        text: str = answer.json()["choices"][0]["message"]["content"]
        return text

    drawn = {"temperature": 1.0, "top_p": 0.9}
    assert await said(random_seed=3, **drawn) == await said(random_seed=3, **drawn)
    assert await said(random_seed=3, **drawn) != await said(random_seed=4, **drawn)
    text = await said()
    assert await said(stop=[text[5:7]]) == text[: text.index(text[5:7])]
    assert await said(min_tokens=2) == text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": 3}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"suffix": 3}, "suffix"),
        ({"random_seed": 0.5}, "random_seed"),
        ({"random_seed": 2**64}, "random_seed"),
        ({"temperature": 9}, "temperature"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": [""]}, "stop"),
        ({"min_tokens": 31}, "min_tokens"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
async def test_a_wrong_field_is_named(server, fields, param):
    answer = await server.post(PATHS[0], FIM | fields)
    assert (answer.status, answer.error["param"]) == (400, param), answer.body


async def test_a_model_without_fill_in_the_middle_says_so(serving):
    async with serving(special=["<s>", "</s>"]) as server:
        answer = await server.post(PATHS[0], FIM)
    assert (answer.status, answer.error["param"]) == (400, "suffix")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_vanishes_ends_the_work(server, stream):
    server.gate.shut()
    call = server.call(PATHS[0], FIM | {"stream": stream})
    await server.until(lambda: server.engine.held_blocks > 0)
    call.disconnect()
    await call.task
    assert server.idle()
