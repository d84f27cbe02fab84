"""What is not generation: models, health, paths as clients really write them, and the size of a body."""

from __future__ import annotations

import httpx
import openai
import pytest

from tokenspeed.api.options import ServerOptions
from tokenspeed.core.policy import SchedulerOptions

SMALL = {"prompt": "hi", "max_tokens": 1}
MIB = 1024 * 1024


async def test_the_model_is_listed_with_its_context_under_every_name(client):
    (card,) = (await client.models.list()).data
    assert (card.id, card.object, card.created) == ("org/tiny", "model", 1_700_000_000)
    more = card.model_extra
    assert [more[name] for name in ("max_model_len", "context_length", "context_window")] == [512] * 3
    assert more["meta"] == {"n_ctx_train": 512}


@pytest.mark.parametrize("name", ["org/tiny", "local"])
async def test_one_model_is_found_by_its_name_with_slashes_and_by_its_alias(client, name):
    assert (await client.models.retrieve(name)).id == name


async def test_an_unknown_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as told:
        await client.models.retrieve("fake")
    assert told.value.code == "model_not_found"


@pytest.mark.parametrize("name", ["org/tiny", "local", "", None])
async def test_the_served_model_answers_to_its_name_to_local_and_to_none(server, name):
    answer = await server.post("/v1/completions", SMALL | {"model": name})
    assert answer.json()["model"] == ("local" if name == "local" else "org/tiny")


@pytest.mark.parametrize("path", ["/v1/completions", "/completions", "/v1/completions/", "//v1//completions"])
async def test_a_route_is_found_with_and_without_v1_and_stray_slashes(server, path):
    assert (await server.post(path, SMALL)).status == 200


@pytest.mark.parametrize("path", ["/models", "/v1/models/", "//models", "/models/org/tiny"])
async def test_models_are_found_on_every_such_path(server, path):
    assert (await server.get(path)).status == 200


@pytest.mark.parametrize("path", ["/", "/health", "/version", "/ready", "/metrics", "/v1"])
async def test_the_server_tells_that_it_lives(server, path):
    assert (await server.get(path)).status == 200


async def test_head_of_the_root_is_answered_without_a_body(server):
    answer = await server.get("/", method="HEAD")
    assert (answer.status, answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")


async def test_a_draining_server_lives_but_is_not_ready_and_takes_nothing(server):
    await server.engine.drain(1.0)
    assert (await server.get("/health")).status == 200
    assert (await server.get("/ready")).status == 503
    answer = await server.post("/v1/completions", SMALL)
    assert (answer.status, answer.error["code"]) == (503, "shutting_down")


async def test_metrics_are_what_prometheus_reads(server):
    await server.post("/v1/completions", SMALL)
    answer = await server.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"# TYPE" in answer.body


async def test_a_body_announced_as_too_large_is_refused_unread(server):
    call = server.call("/v1/completions", SMALL, headers={"content-length": str(100 * MIB)})
    answer = await call.answer()
    assert (answer.status, answer.error["code"]) == (413, "body_too_large")
    assert not call.incoming.empty()


async def test_a_body_that_grows_too_large_is_refused_when_it_does(serving):
    async with serving(options=ServerOptions(max_body_bytes=1024)) as server:
        call = server.call("/v1/completions", b"x")
        call.incoming.get_nowait()
        for _ in range(10):
            call.incoming.put_nowait({"type": "http.request", "body": b" " * 500, "more_body": True})
        answer = await call.answer()
    assert answer.status == 413
    assert call.incoming.qsize() == 7


async def test_a_real_client_that_sends_100_mb_is_told_so_and_the_server_goes_on(server, listening):
    async with listening(server.app) as url, httpx.AsyncClient(base_url=url) as client:
        refused = await client.post("/v1/completions", content=b" " * (100 * MIB))
        assert refused.status_code == 413
        assert (await client.post("/v1/completions", json=SMALL)).status_code == 200


async def test_any_key_is_taken_where_none_is_set(server):
    for headers in ({"authorization": "Bearer x"}, {"x-api-key": "x"}):
        call = server.call("/v1/completions", SMALL, headers=headers)
        assert (await call.answer()).status == 200


async def test_a_full_queue_is_429_with_retry_after(serving):
    few = SchedulerOptions(max_running=1, max_waiting=1)
    async with serving(scheduler_options=few) as server:
        server.gate.shut()
        first = server.call("/v1/completions", SMALL)
        second = server.call("/v1/completions", SMALL)
        await server.until(lambda: server.unfinished == 2)
        for stream in (False, True):
            refused = await server.post("/v1/completions", SMALL | {"stream": stream})
            assert (refused.status, refused.error["type"]) == (429, "rate_limit_error")
            assert int(refused.headers["retry-after"]) >= 1
        server.gate.open()
        assert [(await call.answer()).status for call in (first, second)] == [200, 200]
        assert server.idle()


async def test_a_large_body_is_read_like_a_small_one(server):
    padding = {"user": "x" * (2 * MIB)}
    small, large = [(await server.post("/v1/completions", SMALL | more)).json() for more in ({}, padding)]
    assert small["choices"] == large["choices"]
    refused = await server.post("/v1/completions", padding | {"prompt": 7})
    assert (refused.status, refused.error["param"]) == (400, "prompt")
