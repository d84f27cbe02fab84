"""What is known of a request before it runs: its id, when its first token will come, and whether in time."""

from __future__ import annotations

import openai
import pytest

from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.errors import RequestError
from tokenspeed.generation.request import GenerationRequest, TokenPrompt

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
BODIES = {
    CHAT: {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    TEXT: {"prompt": "hi", "max_tokens": 2},
}
BOTH = pytest.mark.parametrize("path", [CHAT, TEXT])
PREDICTED = "x-tokenspeed-predicted-ttft-ms"
LONG = {"prompt": "The quick", "max_tokens": 400, "ignore_eos": True}


@pytest.fixture
async def busy(serving):
    """A server whose one slot is taken by a long answer."""
    async with serving(scheduler_options=SchedulerOptions(max_running=1)) as server:
        server.gate.shut()
        running = server.call(TEXT, LONG)
        await server.until(lambda: server.engine.scheduler.running == 1)
        yield server
        server.gate.open()
        assert (await running.answer()).status == 200


@BOTH
async def test_an_answer_carries_its_id_and_the_prediction(server, path):
    answer = await server.post(path, BODIES[path])
    assert answer.headers["x-request-id"] == answer.json()["id"]
    whole, point, tenth = answer.headers[PREDICTED].partition(".")
    assert (whole.isdecimal(), point, len(tenth)) == (True, ".", 1)


@BOTH
async def test_a_stream_carries_them_before_its_first_token(server, path):
    server.gate.shut()
    call = server.call(path, BODIES[path] | {"stream": True})
    start = await call.outgoing.get()
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert float(headers[PREDICTED]) > 0.0
    server.gate.open()
    assert headers["x-request-id"].encode() in await call.answer_after_chunks()


async def test_openais_client_finds_the_id_of_its_request(client):
    raw = await client.completions.with_raw_response.create(model="local", **BODIES[TEXT])
    assert raw.headers["x-request-id"] == raw.parse().id
    assert float(raw.headers[PREDICTED]) > 0.0


async def test_more_is_predicted_where_more_is_before_it(busy, serving):
    async with serving() as idle:
        alone = await idle.post(TEXT, BODIES[TEXT])
    call = busy.call(TEXT, BODIES[TEXT] | {"stream": True})
    start = await call.outgoing.get()
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert float(headers[PREDICTED]) > 2 * float(alone.headers[PREDICTED])
    call.disconnect()
    await call.task


async def test_the_prediction_of_several_prompts_is_that_of_the_last(server):
    prompts = (TokenPrompt((5,)), TokenPrompt((6,) * 300))
    one, both = [
        await server.generator.start(GenerationRequest(name, some, max_tokens=1), server.generator.now())
        for name, some in (("one", prompts[:1]), ("both", prompts))
    ]
    assert both.predicted > one.predicted
    for generation in (one, both):
        generation.close()


async def test_the_prediction_counts_from_the_arrival(server):
    request = GenerationRequest("r", (TokenPrompt((5,)),), max_tokens=1)
    generation = await server.generator.start(request, server.generator.now() - 100.0)
    assert 100.0 < generation.predicted < 130.0
    generation.close()


# -- deadlines ----------------------------------------------------------------------------------------


@BOTH
async def test_a_deadline_with_time_to_spare_changes_nothing(server, path):
    plain = (await server.post(path, BODIES[path])).json()["choices"]
    for deadline in (60_000, 1e9, 30_000.5):
        answer = await server.post(path, BODIES[path] | {"deadline_ms": deadline})
        assert answer.json()["choices"] == plain


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_an_idle_server_would_miss_is_a_wrong_request(server, path, stream):
    answer = await server.post(path, BODIES[path] | {"deadline_ms": 0.001, "stream": stream})
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert (answer.error["param"], answer.error["code"]) == ("deadline_ms", "deadline_unreachable")
    assert "retry-after" not in answer.headers
    assert server.idle()


@BOTH
@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_that_only_others_make_it_miss_may_be_tried_again(busy, path, stream):
    answer = await busy.post(path, BODIES[path] | {"deadline_ms": 100, "stream": stream})
    assert (answer.status, answer.error["type"]) == (429, "rate_limit_error")
    assert (answer.error["param"], answer.error["code"]) == ("deadline_ms", "deadline_unreachable")
    seconds, milliseconds = (int(answer.headers[name]) for name in ("retry-after", "retry-after-ms"))
    assert 0 < milliseconds <= 1000 * seconds < milliseconds + 1000
    assert busy.unfinished == 1


async def test_openais_client_is_told_when_to_try_again(busy, listening):
    async with (
        listening(busy.app) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client,
    ):
        with pytest.raises(openai.RateLimitError) as told:
            await client.completions.create(
                model="local", prompt="hi", extra_body={"deadline_ms": 100, "priority": 1}
            )
    assert told.value.code == "deadline_unreachable"
    assert float(told.value.response.headers["retry-after-ms"]) > 0


async def test_time_before_the_prompt_was_tokens_counts_against_the_deadline(server):
    request = GenerationRequest("r", (TokenPrompt((5,)),), max_tokens=1, deadline=30.0)
    with pytest.raises(RequestError) as told:
        await server.generator.start(request, server.generator.now() - 31.0)
    assert told.value.code == "deadline_unreachable"
    generation = await server.generator.start(request, server.generator.now())
    generation.close()
