"""A wrong request gets an error in Ollama's shape, and nothing else notices."""

from __future__ import annotations

import ollama
import pytest

from tests.api.ollama_asking import (
    CHAT,
    HI,
    SPEECH,
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


BAD_OPTIONS = [
    {"temperature": -1},
    {"temperature": "hot"},
    {"top_p": 2},
    {"top_k": 10**20},
    {"seed": 2**64},
    {"num_predict": "many"},
    {"num_predict": 1.5},
    {"stop": ["a", ""]},
    {"stop": [1]},
    {"stop": ["x"] * 99},
    {"repeat_penalty": 0},
    {"repeat_penalty": 1.1, "repeat_last_n": 64},
    {"presence_penalty": 3},
    {"typical_p": 0.5},
    {"tfs_z": 0.5},
    {"mirostat": 1},
    {"dry_multiplier": 0.8},
]
BAD_BOTH = [
    *({"options": options} for options in BAD_OPTIONS),
    {"options": []},
    {"stream": "yes"},
    {"format": "xml"},
    {"format": 3},
    {"format": {"type": "object", "not": {}}},
    {"think": "deeply"},
    {"think": 3},
    {"top_logprobs": 3},
    {"logprobs": True, "top_logprobs": 99},
    {"keep_alive": []},
    {"model": 7},
]
BAD_CHAT = [
    {"messages": "hi"},
    {"messages": [{"content": "hi"}]},
    {"messages": [{"role": "wizard", "content": "hi"}]},
    {"messages": [{"role": "user", "content": ["hi"]}]},
    {"messages": [{"role": "user", "content": "hi", "images": ["aGk="]}]},
    {"messages": [{"role": "assistant", "tool_calls": [3]}]},
    {"messages": [{"role": "user", "content": "raise"}]},
    {"messages": [{"role": "user", "content": "fox " * 9000}]},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "function", "function": {"name": ""}}]},
    {"tools": {}},
]
BAD_GENERATE = [
    {"prompt": 3},
    {"images": ["aGk="]},
    {"template": "{{ .Prompt }}"},
    {"context": [1, 2]},
    {"raw": True, "system": "Be short."},
    {"suffix": "x", "system": "Be short."},
    {"prompt": "fox " * 9000},
]
BAD = [
    *(("/api/chat", CHAT | fields) for fields in (*BAD_BOTH, *BAD_CHAT)),
    *(("/api/generate", {"prompt": "hi"} | fields) for fields in (*BAD_BOTH, *BAD_GENERATE)),
    ("/api/show", {}),
    ("/api/show", {"model": 3}),
    ("/api/pull", {}),
    ("/api/embed", {}),
    ("/api/embed", {"input": 3}),
    ("/api/embed", {"input": ["a", ""]}),
    ("/api/embed", {"input": "a", "dimensions": 0}),
    ("/api/embed", {"input": "a" * 5000, "truncate": False}),
    ("/api/embeddings", {"prompt": []}),
]


@pytest.mark.parametrize(("path", "body"), BAD)
async def test_what_is_wrong_is_told_in_ollamas_shape(server, path, body):
    answer = await server.post(path, body)
    assert answer.status == 400, answer.body
    assert answer.json().keys() == {"error"}
    assert isinstance(answer.json()["error"], str)
    assert server.idle()


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b"[" * 9999])
@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/embed", "/api/show", "/api/pull"])
async def test_what_is_not_json_is_told(server, path, raw):
    answer = await server.post(path, raw)
    assert (answer.status, answer.json().keys()) == (400, {"error"})


async def test_values_that_switch_an_option_off_are_taken(speaking):
    off = {
        "typical_p": 1.0,
        "tfs_z": 1,
        "mirostat": 0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 64,
        "min_keep": 0,
        "num_gpu": 99,
        "penalize_newline": True,
        "seed": -1,
    }
    answer = await speaking.post("/api/chat", CHAT | {"options": off})
    assert answer.status == 200, answer.body
    without = {"repeat_penalty": 1.3, "repeat_last_n": 0}
    assert (await speaking.post("/api/chat", CHAT | {"options": without})).status == 200


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate", "/api/show", "/api/pull", "/api/embed"])
async def test_another_model_is_not_found(server, path):
    body = {"model": "llama9", "messages": HI, "prompt": "hi", "input": "hi"}
    answer = await server.post(path, body)
    assert answer.status == 404
    assert answer.json()["error"].startswith('model "llama9" not found')


async def test_ollamas_client_raises_what_the_server_says(client):
    with pytest.raises(ollama.ResponseError, match="not found") as raised:
        await client.chat(model="llama9", messages=HI)
    assert raised.value.status_code == 404


@pytest.mark.parametrize("name", ["org/tiny", "org/tiny:latest", "local", "local:latest"])
async def test_a_name_with_the_tag_latest_is_the_same_model(speaking, name):
    answer = await speaking.post("/api/chat", CHAT | {"model": name, "stream": False})
    assert answer.json()["model"] == name
