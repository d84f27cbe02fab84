"""Keys say who may use the server, in which class, and how much of it at once."""

from __future__ import annotations

import asyncio

import openai
import pytest

from tokenspeed.api.options import KeyOptions
from tokenspeed.core.policy import SchedulerOptions

ALICE, BOB = "sk-alice-0001", "sk-bob-longer-0002"
KEYS = {"alice": KeyOptions(ALICE), "bob": KeyOptions(BOB, priority=3)}
PATH = "/v1/completions"
SMALL = {"prompt": "hi", "max_tokens": 1}


def key(secret):
    return {"authorization": f"Bearer {secret}"}


@pytest.fixture
async def locked(serving):
    async with serving(keys=KEYS) as server:
        yield server


@pytest.fixture
async def connect(locked, listening):
    """OpenAI's own client with a key of one's choice."""
    async with listening(locked.app) as url:
        yield lambda secret: openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/models", "/metrics", "/version", "/v1/requests/x/timeline", "/nothing", "/health/x"],
)
async def test_every_route_but_two_wants_a_key(locked, path):
    refused = await locked.get(path)
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert (await locked.get(path, **key(ALICE))).status in (200, 404)


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/health", "//ready/"])
async def test_a_probe_needs_no_key(locked, path):
    assert (await locked.get(path)).status == 200


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", PATH])
async def test_nothing_of_a_request_without_a_key_is_read(locked, path, stream):
    call = locked.call(path, SMALL | {"stream": stream})
    refused = await call.answer()
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert refused.error["type"] == "invalid_request_error"
    assert "'Authorization: Bearer KEY'" in refused.error["message"]
    assert not call.incoming.empty()
    assert locked.idle()


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {BOB}"},
        {"authorization": f"bearer   {BOB} "},
        {"x-api-key": BOB},
        {"authorization": "Basic Ym9iOnB3", "x-api-key": BOB},
    ],
)
async def test_a_key_is_taken_from_either_header(locked, headers):
    assert (await locked.post(PATH, SMALL, **headers)).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ALICE},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": f"Basic {ALICE}"},
        {"authorization": f"Bearer {ALICE[:-1]}"},
        {"authorization": f"Bearer {ALICE}{BOB}"},
        {"authorization": f"Bearer {ALICE.upper()}"},
        {"authorization": "Bearer alice"},
        {"authorization": "Bearer sk-über-ÿ"},
        {"x-api-key": ""},
        {"x-api-key": "x" * 60_000},
    ],
)
async def test_what_is_not_a_key_is_refused(locked, headers):
    call = locked.call(PATH, SMALL, headers=headers)
    refused = await call.answer()
    assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
    assert b"sk-" not in refused.body


async def test_openais_client_is_let_in_with_a_key_and_told_without(connect):
    async with connect(ALICE) as client:
        assert (await client.completions.create(model="local", **SMALL)).choices
    async with connect("sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError, match="not one of this server's") as told:
            await client.completions.create(model="local", **SMALL)
    assert told.value.code == "invalid_api_key"


# -- classes ------------------------------------------------------------------------------------------


async def test_requests_get_the_class_of_their_key(serving):
    async with serving(keys=KEYS, scheduler_options=SchedulerOptions(max_running=1)) as server:
        server.gate.shut()
        first = server.call(PATH, SMALL, headers=key(ALICE))
        await server.until(lambda: server.engine.scheduler.running == 1)
        later = server.call(PATH, SMALL, headers=key(BOB))
        await server.until(lambda: server.unfinished == 2)
        sooner = server.call(PATH, SMALL, headers=key(ALICE))
        await server.until(lambda: server.unfinished == 3)
        server.gate.open()
        done, _ = await asyncio.wait((later.task, sooner.task), return_when=asyncio.FIRST_COMPLETED)
        assert done == {sooner.task}
        assert [(await call.answer()).status for call in (first, later)] == [200, 200]


@pytest.mark.parametrize("path", ["/v1/chat/completions", PATH])
async def test_a_request_may_be_less_urgent_than_its_key_but_not_more(connect, locked, path):
    body = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    for priority, status in ((3, 200), (10, 200), (2, 400), (-10, 400), (-11, 400), (11, 400)):
        answer = await locked.post(path, body | {"priority": priority}, **key(BOB))
        assert answer.status == status
        if status == 400:
            assert (answer.error["param"], answer.error["code"]) == ("priority", "invalid_value")
            bounds = "at least 3" if -10 <= priority <= 10 else "between -10 and 10"
            assert f"priority must be {bounds}" in answer.error["message"]


async def test_without_keys_a_request_may_be_in_any_class(server):
    for priority in (-10, 0, 10):
        assert (await server.post(PATH, SMALL | {"priority": priority})).status == 200


# -- caps ---------------------------------------------------------------------------------------------


async def test_a_key_that_has_enough_in_the_queue_is_told_of_its_own_cap(serving):
    keys = {"alice": KeyOptions(ALICE, max_running=1, max_waiting=1), "bob": KeyOptions(BOB)}
    async with serving(keys=keys) as server:
        server.gate.shut()
        calls = []
        for count in (1, 2):
            calls.append(server.call(PATH, SMALL, headers=key(ALICE)))
            await server.until(lambda count=count: server.unfinished == count)
        assert server.engine.scheduler.running == 1
        for stream in (False, True):
            refused = await server.post(PATH, SMALL | {"stream": stream}, **key(ALICE))
            assert (refused.status, refused.error["code"]) == (429, "key_overloaded")
            assert refused.error["type"] == "rate_limit_error"
            assert "'alice'" in refused.error["message"]
            assert int(refused.headers["retry-after"]) >= 1
            assert float(refused.headers["retry-after-ms"]) > 0
        calls.append(server.call(PATH, SMALL, headers=key(BOB)))
        await server.until(lambda: server.unfinished == 3)
        server.gate.open()
        assert [(await call.answer()).status for call in calls] == [200] * 3
        assert server.idle()


async def test_a_key_without_room_for_all_choices_of_a_request_gets_none(serving):
    async with serving(keys={"alice": KeyOptions(ALICE, max_running=2, max_waiting=1)}) as server:
        for body in (SMALL | {"n": 4}, SMALL | {"prompt": ["a", "b", "c", "d"]}):
            assert (await server.post(PATH, body, **key(ALICE))).status == 429
            assert server.idle()
        assert (await server.post(PATH, SMALL | {"n": 3}, **key(ALICE))).status == 200
