"""Models and vectors, as Ollama's own client asks for them."""

from __future__ import annotations

import asyncio

import numpy as np
import ollama
import pytest

from tests.api.ollama_asking import (
    HI,
    SPEECH,
    THINKS,
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


@pytest.fixture
async def embedding(server, listening):
    """The same, of a server whose model gives vectors."""
    async with listening(server.app) as url, ollama.AsyncClient(host=url) as made:
        yield made


async def test_ollamas_client_finds_the_model_and_what_it_can_do(client):
    (listed,) = (await client.list()).models
    assert listed.model == "org/tiny"
    assert listed.details.format == "safetensors"
    assert len(listed.digest) == 64
    shown = await client.show("org/tiny")
    architecture = shown.modelinfo["general.architecture"]
    assert shown.modelinfo[f"{architecture}.context_length"] == 512
    assert shown.capabilities == ["completion", "tools", "insert", "embedding"]
    assert ".Suffix" in shown.template
    assert ".Tools" in shown.template
    (running,) = (await client.ps()).models
    assert (running.name, running.context_length) == ("org/tiny", 512)
    assert running.expires_at.year > 2100


async def test_the_synchronous_client_works_as_well(speaking, listening):
    def use(url: str) -> tuple[str, str, str]:
        with ollama.Client(host=url) as client:
            parts = [part.message.content for part in client.chat(model="local", messages=HI, stream=True)]
            return client.list().models[0].model, client.generate("local", "hi").response, "".join(parts)

    async with listening(speaking.app) as url:
        assert await asyncio.to_thread(use, url) == ("org/tiny", SPEECH, SPEECH)


async def test_a_model_tells_only_what_it_can_do(serving):
    async with serving(special=["<s>", "</s>"], template=THINKS) as server:
        shown = (await server.post("/api/show", {"name": "org/tiny:latest"})).json()
    assert shown["capabilities"] == ["completion", "tools", "thinking", "embedding"]
    assert ".Suffix" not in shown["template"]


async def test_a_pull_of_the_model_that_is_here_succeeds(client, speaking):
    lines = [part.status async for part in await client.pull("org/tiny", stream=True)]
    assert lines[-1] == "success"
    assert (await client.pull("local")).status == "success"
    assert (await streamed(speaking, "/api/pull", {"name": "org/tiny"}))[-1] == {"status": "success"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "create"),
        ("POST", "copy"),
        ("POST", "push"),
        ("DELETE", "delete"),
        ("POST", "blobs/sha256:1"),
    ],
)
async def test_models_are_not_managed_here(server, method, path):
    answer = await server.get(f"/api/{path}", method)
    assert answer.status == 400
    assert path.split("/")[0] in answer.json()["error"]


async def test_the_version_is_one_that_clients_accept(server):
    version = (await server.get("/api/version")).json()
    assert tuple(map(int, version["version"].split("."))) >= (0, 13, 4)
    assert version["server"].startswith("tokenspeed/")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_root_answers(server, method):
    assert (await server.get("/", method)).status == 200


async def test_a_path_that_ollama_does_not_have_is_not_found_in_its_shape(server):
    answer = await server.post("/api/chat/api/show", {"name": "x"})
    assert (answer.status, answer.json().keys()) == (404, {"error"})


async def test_lm_studios_clients_read_how_long_the_context_is(server):
    (card,) = (await server.get("/api/v0/models")).json()["data"]
    assert (card["id"], card["type"], card["state"]) == ("org/tiny", "llm", "loaded")
    assert card["max_context_length"] == card["loaded_context_length"] == 512
    assert (await server.get("/api/v0/models/org/tiny")).json() == card
    assert (await server.get("/api/v0/models/other")).status == 404


# -- embeddings ---------------------------------------------------------------------------------------


async def test_ollamas_client_embeds(embedding):
    answer = await embedding.embed(model="local", input=["A fox", "A dog"])
    vectors = np.array(answer.embeddings)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert answer.prompt_eval_count > 2
    assert answer.total_duration > 0
    alone = await embedding.embed(model="local", input="A dog", dimensions=4)
    assert len(alone.embeddings[0]) == 4
    older = np.array((await embedding.embeddings(model="local", prompt="A fox")).embedding)
    assert np.allclose(older / np.linalg.norm(older), vectors[0], atol=1e-5)


async def test_an_input_that_is_too_long_is_cut(embedding):
    long = await embedding.embed(model="local", input="fox " * 2000)
    assert long.prompt_eval_count == 512


async def test_nothing_embeds_to_nothing(embedding):
    assert (await embedding.embed(model="local", input="")).embeddings == []
    assert (await embedding.embeddings(model="local", prompt="")).embedding == []


@pytest.mark.parametrize(("path", "field"), [("/api/embed", "input"), ("/api/embeddings", "prompt")])
async def test_a_client_that_vanishes_amid_its_embedding_ends_the_work(server, path, field):
    server.gate.shut()
    call = server.call(path, {field: "A fox"})
    await server.until(lambda: server.engine.held_blocks > 0)
    call.disconnect()
    await call.task
    assert server.idle()
