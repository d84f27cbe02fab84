"""Whatever the built-in model draws, an answer that has ended is what its schema or its tools describe."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from typing import Any

import httpx
import pytest

from tests.schemas import DIGIT, SCALARS, STRUCTURES, WORD, Schema, schemas, validator
from tests.test_server_process import Running, running

pytestmark = pytest.mark.slow
AT_ONCE = 32
HOT = 1.5
MOST_TOKENS = 300


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running() as started:
        yield started


@asynccontextmanager
async def asking(server: Running) -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=100)
    async with httpx.AsyncClient(base_url=server.url, timeout=120.0, limits=limits) as client:
        yield client


async def ask(client: httpx.AsyncClient, turn: asyncio.Semaphore, **body: Any) -> httpx.Response:
    body = {
        "model": "local",
        "messages": [{"role": "user", "content": "Anything."}],
        "temperature": HOT,
        "max_tokens": MOST_TOKENS,
        **body,
    }
    async with turn:
        return await client.post("/v1/chat/completions", json=body)


def as_format(schema: Schema | bool) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}}


async def answers(server: Running, bodies: Sequence[dict[str, Any]]) -> list[httpx.Response]:
    turn = asyncio.Semaphore(AT_ONCE)
    async with asking(server) as client:
        return await asyncio.gather(*(ask(client, turn, **body) for body in bodies))


def choice_of(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    [choice] = response.json()["choices"]
    found: dict[str, Any] = choice
    return found


async def test_every_answer_that_has_ended_fits_its_schema(server: Running) -> None:
    named = list(schemas())
    bodies = [
        {"response_format": as_format(schema), "seed": number} for number, (_, schema) in enumerate(named)
    ]
    ended = 0
    for (name, schema), response in zip(named, await answers(server, bodies), strict=True):
        if "schema of the rest" in name:  # how many there may be of names that are not listed
            assert response.status_code == 400
            assert "min/maxProperties" in response.json()["error"]["message"]
            assert response.json()["error"]["param"] == "response_format"
            continue
        choice = choice_of(response)
        if choice["finish_reason"] == "stop":
            ended += 1
            wrong = list(validator(schema).iter_errors(json.loads(choice["message"]["content"])))
            assert not wrong, (name, choice["message"]["content"])
        else:
            assert choice["finish_reason"] == "length"
    assert ended > 0.9 * len(named)


UNHELD: dict[str, Schema] = {
    "uniqueItems": {"type": "array", "uniqueItems": True},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 3}},
    "contains": {"type": "array", "contains": DIGIT},
    "not": {"not": DIGIT},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "dependentSchemas": {"type": "object", "dependentSchemas": {"a": {}}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "then": {"if": DIGIT, "then": {"minimum": 3}},
    "$dynamicRef": {"$dynamicRef": "#a"},
    "oneOf": {"oneOf": [DIGIT, {"type": "integer", "maximum": 3, "minimum": 0}]},
    "format": {"type": "string", "format": "colour"},
    "minimum": {"type": "integer", "minimum": -(10**20), "maximum": -(10**20)},
}


async def test_a_schema_that_cannot_be_held_to_is_refused_by_the_name_of_its_keyword(server: Running) -> None:
    bodies = [{"response_format": as_format(schema)} for schema in UNHELD.values()]
    for keyword, response in zip(UNHELD, await answers(server, bodies), strict=True):
        assert response.status_code == 400, keyword
        error = response.json()["error"]
        assert keyword in error["message"]
        assert (error["param"], error["code"]) == ("response_format", "invalid_grammar")


def tool(name: str, parameters: Schema, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


async def test_arguments_of_calls_that_must_be_made_fit_their_tools(server: Running) -> None:
    """One that is named, or any of several."""
    parts = {**SCALARS, **STRUCTURES}
    made = {
        re.sub(r"\W", "_", name): {
            "type": "object",
            "properties": {"it": schema, "n": DIGIT},
            "required": ["it"],
            "additionalProperties": False,
        }
        for name, schema in islice(parts.items(), 0, None, 2)
        if "$ref" not in str(schema) and name != "schema of the rest"
    }
    tools = [tool(name, schema, strict=True) for name, schema in made.items()]
    bodies: list[dict[str, Any]] = []
    for number, one in enumerate(tools):
        name = {"type": "function", "function": {"name": one["function"]["name"]}}
        bodies.append({"tools": [one], "tool_choice": name, "seed": number})
        some = tools[number : number + 3]
        several = number % 4 == 0  # which go on until they are cut, mostly
        bodies.append(
            {"tools": some, "tool_choice": "required", "seed": number, "parallel_tool_calls": several}
        )
    called = 0
    for body, response in zip(bodies, await answers(server, bodies), strict=True):
        choice = choice_of(response)
        if choice["finish_reason"] == "length":
            continue
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        calls = [call["function"] for call in choice["message"]["tool_calls"]]
        assert calls
        assert len(calls) == 1 or body.get("parallel_tool_calls")
        for call in calls:
            called += 1
            assert call["name"] in {each["function"]["name"] for each in body["tools"]}
            wrong = list(validator(made[call["name"]]).iter_errors(json.loads(call["arguments"])))
            assert not wrong, call
    assert called > len(tools)


async def test_one_call_is_made_where_they_may_not_be_several(server: Running) -> None:
    tools = [tool(name, {"type": "object", "properties": {"n": DIGIT}}) for name in ("first", "second")]
    body = {"tools": tools, "tool_choice": "required", "parallel_tool_calls": False}
    for response in await answers(server, [{**body, "seed": seed} for seed in range(8)]):
        choice = choice_of(response)
        assert choice["finish_reason"] != "tool_calls" or len(choice["message"]["tool_calls"]) == 1


async def test_text_fits_its_regular_expression_choice_and_rules(server: Running) -> None:
    ways = [
        ({"structured_outputs": {"regex": "[a-f]{3}-[0-9]{2,4}"}}, "[a-f]{3}-[0-9]{2,4}"),
        ({"guided_choice": ["red", "green", "dark green"]}, "red|(dark )?green"),
        ({"guided_regex": "(ab|cd)+x?"}, "(ab|cd)+x?"),
        ({"structured_outputs": {"grammar": 'root ::= "<" [a-z] [a-z]? ">"'}}, "<[a-z]{1,2}>"),
        ({"response_format": {"type": "grammar", "grammar": 'start: "a" /b+/ "c"?'}}, "ab+c?"),
    ]
    bodies = [{**body, "seed": seed} for body, _ in ways for seed in range(6)]
    fits = [pattern for _, pattern in ways for _ in range(6)]
    ended = 0
    for pattern, response in zip(fits, await answers(server, bodies), strict=True):
        choice = choice_of(response)
        if choice["finish_reason"] == "stop":
            ended += 1
            assert re.fullmatch(pattern, choice["message"]["content"])
    assert ended > 20


async def test_choices_and_penalties_and_log_probabilities_stay_within_the_schema(server: Running) -> None:
    schema = {"type": "array", "items": {"enum": ["yes", "no"]}, "minItems": 3, "maxItems": 3}
    body = {
        "response_format": as_format(schema),
        "n": 4,
        "seed": 5,
        "presence_penalty": 2,
        "frequency_penalty": 2,
    }
    more = [{}, {"logprobs": True, "top_logprobs": 3}, {"top_p": 0.5}, {"min_p": 0.3}, {"temperature": 0}]
    for response in await answers(server, [body | each for each in more]):
        assert response.status_code == 200
        for choice in response.json()["choices"]:
            if choice["finish_reason"] == "stop":
                validator(schema).validate(json.loads(choice["message"]["content"]))


async def test_an_answer_is_the_same_alone_and_among_many(server: Running) -> None:
    """64 at once, held to different schemas, each with its seed."""
    named = [(name, schema) for name, schema in schemas() if "schema of the rest" not in name][::9][:64]
    bodies = [
        {"response_format": as_format(schema), "seed": number, "temperature": 1.0, "max_tokens": 60}
        for number, (_, schema) in enumerate(named)
    ]
    turn = asyncio.Semaphore(64)
    async with asking(server) as client:
        together = await asyncio.gather(*(ask(client, turn, **body) for body in bodies))
        for place in range(0, len(bodies), 8):
            alone = await ask(client, turn, **bodies[place])
            assert choice_of(alone)["message"] == choice_of(together[place])["message"], named[place][0]


async def test_a_client_that_vanishes_amid_a_held_answer_leaves_the_others_theirs(server: Running) -> None:
    endless = as_format({"type": "array", "items": DIGIT, "minItems": 400})
    async with asking(server) as client:

        async def vanishes() -> None:
            body = {
                "model": "local",
                "messages": [{"role": "user", "content": "Count."}],
                "response_format": endless,
                "max_tokens": 1000,
                "stream": True,
            }
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                assert response.status_code == 200
                lines = response.aiter_lines()
                for _ in range(6):
                    await anext(lines)

        turn = asyncio.Semaphore(AT_ONCE)
        staying = {"response_format": as_format({"type": "array", "items": WORD, "maxItems": 2})}
        _, *stayed = await asyncio.gather(
            asyncio.gather(*(vanishes() for _ in range(8))),
            *(ask(client, turn, **staying, seed=seed) for seed in range(8)),
        )
        assert all(choice_of(response)["finish_reason"] in ("stop", "length") for response in stayed)
        async with asyncio.timeout(30.0):
            while server.metric("tokenspeed_kv_blocks_held"):  # it works on those that vanished no more
                await ask(client, turn, response_format=as_format(DIGIT))


async def test_an_answer_that_is_cut_says_so(server: Running) -> None:
    schema = {"type": "string", "minLength": 2000}
    [response] = await answers(server, [{"response_format": as_format(schema), "max_tokens": 20}])
    choice = choice_of(response)
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"].startswith('"')
    assert response.json()["usage"]["completion_tokens"] == 20
