"""A client that asks why its request was slow is told, and told of its own requests only."""

from __future__ import annotations

import json

import pytest

from tokenspeed.api.options import KeyOptions
from tokenspeed.core.policy import SchedulerOptions

PATH = "/v1/completions"
SHORT = {"prompt": "hi", "max_tokens": 2}
LONG = {"prompt": [5] * 400, "max_tokens": 2}
# Steps of a fixed number of tokens, so that the long prompt takes eight, whatever the machine.
CHUNKS = SchedulerOptions(target_step_ms=0.0, step_tokens=64)
KEYS = {"alice": KeyOptions("sk-alice-0001"), "bob": KeyOptions("sk-bob-longer-0002")}
ALICE, BOB = ({"x-api-key": options.secret} for options in KEYS.values())


async def timeline(server, request_id, **headers):
    answer = await server.get(f"/v1/requests/{request_id}/timeline", **headers)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    return answer.json()


async def begin(server, body, **headers):
    """A stream that has begun, and its id."""
    call = server.call(PATH, body | {"stream": True}, headers=headers)
    start = await call.outgoing.get()
    return call, dict(start["headers"])[b"x-request-id"].decode()


async def both(server, long_key, short_key):
    """The ids of a long request, and of a short one that came while the long one prefilled."""
    server.gate.shut()
    long, long_id = await begin(server, LONG, **long_key)
    await server.until(lambda: server.engine.scheduler.running == 1)
    short, short_id = await begin(server, SHORT, **short_key)
    server.gate.open()
    for call in (long, short):
        assert (await call.answer_after_chunks()).endswith(b"data: [DONE]\n\n")
    return long_id, short_id


async def test_the_timeline_of_a_short_request_beside_a_long_one_names_the_long_one(serving):
    async with serving(scheduler_options=CHUNKS) as server:
        long_id, short_id = await both(server, {}, {})
        told = await timeline(server, short_id)
        assert long_id in told["why"]
        assert [other["request"] for other in told["ran_instead"]["requests"]] == [long_id]
        assert (told["id"], told["state"], told["completion_tokens"]) == (short_id, "length", 2)
        assert (await timeline(server, long_id))["prompt_tokens"] == 400


async def test_a_request_that_queues_has_a_timeline_already(serving):
    async with serving(scheduler_options=SchedulerOptions(max_running=1)) as server:
        server.gate.shut()
        first, first_id = await begin(server, LONG)
        await server.until(lambda: server.engine.scheduler.running == 1)
        second, second_id = await begin(server, SHORT)
        assert (await timeline(server, first_id))["ttft_ms"] is None
        assert (await timeline(server, second_id))["state"] == "queued"
        server.gate.open()
        for call in (first, second):
            await call.task


async def test_an_answers_id_finds_its_timeline_and_those_of_its_other_prompts(server):
    answer = (await server.post(PATH, SHORT | {"prompt": ["a", "a b c d", "hi"]})).json()
    tokens = [(await timeline(server, answer["id"] + ending))["prompt_tokens"] for ending in ("", "-1", "-2")]
    assert sum(tokens) == answer["usage"]["prompt_tokens"]
    assert len(set(tokens)) > 1


async def test_the_timeline_says_the_same_prediction_as_the_answer(server):
    answer = await server.post(PATH, LONG)
    told = await timeline(server, answer.headers["x-request-id"])
    predicted = float(answer.headers["x-tokenspeed-predicted-ttft-ms"])
    assert told["predicted_ttft_ms"] == pytest.approx(predicted, abs=0.06)


@pytest.mark.parametrize("name", ["unknown", "cmpl-0", "%00", "ü", "x" * 5000])
async def test_a_request_that_is_not_known_is_404_and_told_why(server, name):
    answer = await server.get(f"/v1/requests/{name}/timeline")
    assert (answer.status, answer.error["code"]) == (404, "request_not_found")
    assert "only the latest ones are kept" in answer.error["message"]
    assert len(answer.error["message"]) < 300


async def test_a_key_sees_the_timelines_of_its_own_requests_only(serving):
    async with serving(keys=KEYS) as server:
        request_id = (await server.post(PATH, SHORT, **ALICE)).headers["x-request-id"]
        assert (await timeline(server, request_id, **ALICE))["id"] == request_id
        for path in (f"/v1/requests/{request_id}/timeline", "/v1/requests/unknown/timeline"):
            answer = await server.get(path, **BOB)
            assert (answer.status, answer.error["code"]) == (404, "request_not_found")


async def test_a_key_learns_that_it_waited_for_another_but_not_for_which_request(serving):
    async with serving(keys=KEYS, scheduler_options=CHUNKS) as server:
        long_id, short_id = await both(server, ALICE, BOB)
        told = await timeline(server, short_id, **BOB)
        assert [other["tokens"] > 0 for other in told["ran_instead"]["requests"]] == [True]
        assert long_id not in json.dumps(told)
        assert "alice" not in json.dumps(told)
