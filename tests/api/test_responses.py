"""`POST /responses` by OpenAI's own client: what it answers, and how a conversation goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types.responses import Response

from tokenspeed.api.options import KeyOptions
from tokenspeed.api.responses_store import ResponseStore
from tokenspeed.generation.request import ChatPrompt, GenerationRequest

PATH = "/v1/responses"
Talk = Callable[..., AbstractAsyncContextManager[tuple[Any, AsyncOpenAI]]]


def store_in(folder: Path, most_bytes: int = 2**20) -> ResponseStore:
    return ResponseStore(folder, most_bytes=most_bytes, max_age=3600.0)


def overhear(server: Any) -> list[GenerationRequest]:
    """All that is asked of the model from now on."""
    heard: list[GenerationRequest] = []
    start = server.generator.start

    async def starting(request: GenerationRequest, arrival: float | None = None) -> Any:
        heard.append(request)
        return await start(request, arrival)

    server.generator.start = starting
    return heard


def messages_of(request: GenerationRequest) -> list[tuple[str, str]]:
    (prompt,) = request.prompts
    assert isinstance(prompt, ChatPrompt)
    return [(message["role"], message["content"]) for message in prompt.messages]


@pytest.fixture
def talking(serving: Any, listening: Any, tmp_path: Path) -> Talk:
    """A server that keeps responses and says its script, and a client of it."""

    @asynccontextmanager
    async def talk(
        *script: str, store: ResponseStore | None = None, key: str = "any", **how: Any
    ) -> AsyncIterator[tuple[Any, AsyncOpenAI]]:
        async with (
            serving(script=script, store=store or store_in(tmp_path), context=4096, **how) as server,
            listening(server.app) as url,
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
        ):
            yield server, client

    return talk


async def test_an_answer_has_all_that_the_client_knows_of_it(talking):
    async with talking("Größe, 你好 🙂") as (_, client):
        asked = {"model": "local", "input": "hi", "instructions": "Be brief."}
        more = {
            "temperature": 0.5,
            "top_p": 0.9,
            "metadata": {"a": "b"},
            "user": "me",
            "max_output_tokens": 90,
        }
        raw = await client.responses.with_raw_response.create(**asked, **more)
        answer = Response.model_validate(json.loads(raw.text), strict=True)
        assert answer.output_text == "Größe, 你好 🙂"
        assert answer.model_dump(include=asked.keys() - {"input"} | more.keys()) == {
            **more,
            "model": "local",
            "instructions": "Be brief.",
        }
        assert answer.id.startswith("resp_")
        assert answer.status == "completed"
        assert answer.completed_at >= answer.created_at
        (message,) = answer.output
        assert message.id.startswith("msg_")
        usage = answer.usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert not answer.model_extra or answer.model_extra.keys() == {"store"}


async def test_the_token_limit_makes_an_answer_incomplete(talking):
    async with talking("one two three four") as (_, client):
        answer = await client.responses.create(model="local", input="hi", max_output_tokens=2)
        assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert answer.usage.output_tokens == 2
        assert answer.output[0].status == "incomplete"


async def test_a_conversation_goes_on_over_three_turns_from_what_is_kept(talking):
    async with talking("one", "two", "three") as (server, client):
        heard = overhear(server)
        first = await client.responses.create(model="local", input="1?", instructions="Count.")
        second = await client.responses.create(model="local", input="2?", previous_response_id=first.id)
        stream = await client.responses.create(
            model="local", input="3?", previous_response_id=second.id, instructions="Go on.", stream=True
        )
        last = [event async for event in stream][-1].response
        assert last.output_text == "three"
        assert last.previous_response_id == second.id
        said = [("user", "1?"), ("assistant", "one"), ("user", "2?")]
        assert [messages_of(request) for request in heard] == [
            [("system", "Count."), ("user", "1?")],
            said,
            [("system", "Go on."), *said, ("assistant", "two"), ("user", "3?")],
        ]


async def test_what_is_kept_is_there_as_soon_as_its_end_is(talking):
    async with talking(*["text"] * 8) as (_, client):
        previous = None
        for _turn in range(8):
            asked = {"input": "go on", "previous_response_id": previous, "stream": True}
            async for event in await client.responses.create(model="local", **asked):
                if event.type == "response.completed":
                    previous = event.response.id
                    assert (await client.responses.retrieve(previous)).output_text == "text"


async def test_files_are_read_and_written_beside_the_loop(talking, tmp_path, monkeypatch):
    store, threads = store_in(tmp_path), []

    def noting(use: Callable[..., Any], *given: Any) -> Any:
        threads.append(threading.current_thread())
        return use(*given)

    for name in ("save", "load", "delete"):
        monkeypatch.setattr(store, name, partial(noting, getattr(store, name)))
    async with talking("one", "two", store=store) as (_, client):
        first = await client.responses.create(model="local", input="1?")
        item = {"type": "item_reference", "id": first.output[0].id}
        await client.responses.create(model="local", input=[item], previous_response_id=first.id)
        await client.responses.retrieve(first.id)
        await client.responses.input_items.list(first.id)
        await client.responses.delete(first.id)
    assert len(threads) == 7
    assert threading.main_thread() not in threads


async def test_what_is_kept_can_be_read_listed_and_deleted(talking):
    async with talking("one", "two") as (_, client):
        items = [{"role": "user", "content": text} for text in ("a", "b", "c")]
        made = await client.responses.create(model="local", input=items)
        assert (await client.responses.retrieve(made.id)) == made
        listed = await client.responses.input_items.list(made.id, order="asc", limit=2)
        assert [item.content[0].text for item in listed.data] == ["a", "b"]
        assert (listed.has_more, listed.last_id) == (True, listed.data[-1].id)
        texts = [item.content[0].text async for item in client.responses.input_items.list(made.id, limit=1)]
        assert texts == ["c", "b", "a"]
        await client.responses.delete(made.id)
        for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
            with pytest.raises(openai.NotFoundError, match=made.id):
                await gone(made.id)
        with pytest.raises(openai.BadRequestError) as caught:
            await client.responses.create(model="local", input="go on", previous_response_id=made.id)
        assert caught.value.code == "previous_response_not_found"
        assert caught.value.param == "previous_response_id"


async def test_only_what_runs_in_the_background_could_be_cancelled(talking):
    async with talking("one") as (_, client):
        made = await client.responses.create(model="local", input="hi")
        with pytest.raises(openai.BadRequestError, match="background"):
            await client.responses.cancel(made.id)


async def test_what_went_on_from_a_deleted_response_is_lost_with_it(talking):
    async with talking("one", "two") as (_, client):
        first = await client.responses.create(model="local", input="1?")
        second = await client.responses.create(model="local", input="2?", previous_response_id=first.id)
        await client.responses.delete(first.id)
        assert (await client.responses.retrieve(second.id)).output_text == "two"
        with pytest.raises(openai.BadRequestError, match=first.id) as caught:
            await client.responses.create(model="local", input="3?", previous_response_id=second.id)
        assert caught.value.code == "previous_response_not_found"


async def test_what_shall_not_be_kept_is_not(talking, tmp_path):
    async with talking("one") as (_, client):
        made = await client.responses.create(model="local", input="hi", store=False)
        assert made.model_extra["store"] is False
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)
        assert not list(tmp_path.rglob("*.json"))


async def test_a_failed_response_is_not_kept(talking, tmp_path):
    async with talking("one") as (server, client):
        server.failing.append("now")
        with pytest.raises(openai.InternalServerError):
            await client.responses.create(model="local", input="hi")
        assert not list(tmp_path.rglob("*.json"))


async def test_a_server_that_keeps_nothing_says_so(server):
    answer = await server.post(PATH, {"input": "hi", "previous_response_id": "resp_" + "0" * 24})
    assert (answer.status, answer.error["code"]) == (400, "previous_response_not_found")
    assert "keeps no responses" in answer.error["message"]
    made = (await server.post(PATH, {"input": "hi", "max_output_tokens": 1, "store": True})).json()
    assert made["store"] is False
    assert (await server.get(f"{PATH}/{made['id']}")).status == 404


async def test_a_conversation_outlives_the_server(talking, tmp_path):
    async with talking("one", store=store_in(tmp_path)) as (_, client):
        first = await client.responses.create(model="local", input="1?")
    async with talking("two", store=store_in(tmp_path)) as (server, client):
        heard = overhear(server)
        await client.responses.create(model="local", input="2?", previous_response_id=first.id)
        assert messages_of(heard[0]) == [("user", "1?"), ("assistant", "one"), ("user", "2?")]


async def test_each_key_finds_its_own_alone(talking):
    keys = {"alice": KeyOptions(secret="alices-secret"), "bob": KeyOptions(secret="bobs-secret")}
    async with talking("one", key="alices-secret", keys=keys) as (_, alice):
        made = await alice.responses.create(model="local", input="hi")
        item = {"type": "item_reference", "id": made.output[0].id}
        bob = alice.with_options(api_key="bobs-secret")
        for use in (bob.responses.retrieve, bob.responses.delete, bob.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                await use(made.id)
        with pytest.raises(openai.BadRequestError, match="previous_response_id"):
            await bob.responses.create(model="local", input="hi", previous_response_id=made.id)
        with pytest.raises(openai.BadRequestError, match="no item"):
            await bob.responses.create(model="local", input=[item])
        assert (await alice.responses.retrieve(made.id)).output_text == "one"


async def test_a_reference_stands_for_the_item_that_it_names(talking):
    async with talking("one", "two", "three") as (server, client):
        first = await client.responses.create(model="local", input="1?")
        question = (await client.responses.input_items.list(first.id)).data[0].id
        references = [{"type": "item_reference", "id": each} for each in (question, first.output[0].id)]
        more = [*references, {"role": "user", "content": "2?"}]
        heard = overhear(server)
        second = await client.responses.create(model="local", input=more)
        said = [("user", "1?"), ("assistant", "one"), ("user", "2?")]
        assert messages_of(heard[0]) == said
        await client.responses.delete(first.id)  # what was referred to has its own place by now
        await client.responses.create(model="local", input="3?", previous_response_id=second.id)
        assert messages_of(heard[1]) == [*said, ("assistant", "two"), ("user", "3?")]


async def test_a_query_of_what_is_kept_is_held_to_its_bounds(talking):
    async with talking("one") as (server, client):
        made = await client.responses.create(model="local", input="hi")
        path = f"/v1/responses/{made.id}"
        queries = ["limit=0", "limit=101", "limit=x", "limit=" + "9" * 5000, "order=up", "after=nobody"]
        for query in queries:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.get(f"/responses/{made.id}/input_items?{query}", cast_to=object)
            assert caught.value.param == query.partition("=")[0]
        with pytest.raises(openai.BadRequestError, match="stream"):
            await client.get(f"/responses/{made.id}?stream=true", cast_to=object)
        assert (await server.get(path + "/nothing")).status == 404


@pytest.mark.parametrize(
    "name", ["resp_", "resp_0", "..%2f..%2fetc%2fpasswd", "resp_" + "0" * 24, "x" * 3000]
)
async def test_what_is_no_id_is_not_found(talking, name):
    async with talking() as (server, _):
        for method, path in [("GET", ""), ("DELETE", ""), ("GET", "/input_items"), ("POST", "/cancel")]:
            answer = await server.get(f"{PATH}/{name}{path}", method)
            assert (answer.status, answer.error["type"]) == (404, "invalid_request_error")


async def test_log_probabilities_are_told_to_who_includes_them(client):
    asked = {"model": "local", "input": "hi", "max_output_tokens": 4}
    include = ["message.output_text.logprobs"]
    answer = await client.responses.create(**asked, include=include, top_logprobs=2)
    (part,) = answer.output[0].content
    assert {score.logprob for score in part.logprobs} == {-1.0}
    text = b"".join([bytes(score.bytes) for score in part.logprobs])
    assert text.decode(errors="replace") == part.text
    assert answer.top_logprobs == 2
    plain = await client.responses.create(**asked)
    assert plain.output[0].content[0].logprobs == []


def request_of_an_agent() -> dict[str, Any]:
    """What a coding agent sends on its second turn: about 40 kB."""

    def message(role: str, text: str) -> dict[str, Any]:
        part = {"type": "output_text" if role == "assistant" else "input_text", "text": text}
        return {"type": "message", "role": role, "content": [part]}

    def function(name: str) -> dict[str, Any]:
        properties = {
            f"argument_{i}": {"type": "string", "description": "what it is " * 24} for i in range(6)
        }
        schema = {"type": "object", "properties": properties, "additionalProperties": False}
        return {"type": "function", "name": name, "description": "It does. " * 40, "strict": False} | {
            "parameters": schema
        }

    nested = [function("spawn"), function("wait")]
    return {
        "model": "local",
        "stream": True,
        "input": [
            {**message("developer", "You are careful. " * 1000), "id": "msg_1"},
            message("user", "<environment_context>\n  <cwd>/tmp</cwd>\n</environment_context>"),
            message("user", "What is in here?"),
            {
                "type": "reasoning",
                "id": "rs_1",
                "summary": [{"type": "summary_text", "text": "I look."}],
                "encrypted_content": None,
            },
            {
                "type": "function_call",
                "id": "fc_1",
                "name": "shell",
                "arguments": '{"command": ["ls"]}',
                "call_id": "call_1",
            },
            {"type": "function_call_output", "call_id": "call_1", "output": "README.md\n"},
        ],
        "tools": [
            *[function(name) for name in ("shell", "plan", "view", "ask", "stop")],
            {"type": "namespace", "name": "agents", "description": "Others.", "tools": nested},
            {"type": "web_search", "external_web_access": False},
        ],
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"summary": "auto"},
        "store": False,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0195-abc",
        "client_metadata": {"installation": "x"},
        "text": {"verbosity": "low"},
    }


async def test_a_coding_agents_turn_is_taken_as_it_is(serving):
    async with serving(script=["There is a README."], context=65_536) as server:
        asked, heard = request_of_an_agent(), overhear(server)
        assert 30_000 < len(json.dumps(asked)) < 60_000
        answer = await server.post(PATH, asked)
        assert answer.status == 200
        last = json.loads(answer.body.rpartition(b"data: ")[2])
        assert last["type"] == "response.completed"
        assert last["response"]["output"][0]["content"][0]["text"] == "There is a README."
        assert [tool["type"] for tool in last["response"]["tools"]] == ["function"] * 5 + ["namespace"]
        (request,) = heard
        (prompt,) = request.prompts
        names = ["shell", "plan", "view", "ask", "stop", "agents__spawn", "agents__wait"]
        assert [tool["function"]["name"] for tool in prompt.tools] == names
        developer, _, question, assistant, output = prompt.messages
        assert (developer["role"], developer["content"]) == ("system", "You are careful. " * 1000)
        assert question == {"role": "user", "content": "What is in here?"}
        function = {"name": "shell", "arguments": {"command": ["ls"]}}
        assert assistant == {
            "role": "assistant",
            "content": "",
            "reasoning_content": "I look.",
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        }
        assert output == {
            "role": "tool",
            "tool_call_id": "call_1",
            "name": "shell",
            "content": "README.md\n",
        }


@pytest.mark.parametrize("given", ["", []])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_empty_input_warms_the_server_up(server, given, stream):
    heard = overhear(server)
    answer = await server.post(PATH, {"input": given, "max_output_tokens": 1, "stream": stream})
    assert answer.status == 200
    assert messages_of(heard[0]) == [("user", "")]


@pytest.mark.parametrize(
    "fields",
    [{}, {"instructions": "Be brief."}, {"tools": [{"type": "function", "name": "f", "parameters": {}}]}],
)
async def test_a_count_is_what_the_response_would_have(talking, fields):
    async with talking("Hello", "Hello") as (_, client):
        before = await client.responses.create(model="local", input="hi")
        asked = {"model": "local", "input": "and now?", "previous_response_id": before.id, **fields}
        counted = await client.responses.input_tokens.count(**asked)
        answer = await client.responses.create(**asked, max_output_tokens=1)
        assert counted.input_tokens == answer.usage.input_tokens > before.usage.total_tokens
        with pytest.raises(openai.NotFoundError):
            await client.responses.input_tokens.count(**{**asked, "model": "other"})
