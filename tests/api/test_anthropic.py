"""Anthropic's API, judged by its own client over a real socket and byte by byte."""

from __future__ import annotations

import asyncio
import json

import anthropic
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import ThreadUnsupportedRequestError

from tests.api.anthropic_shapes import COUNT, ERROR, MODEL, checked, checked_events, checked_message, told
from tokenspeed.api.options import KeyOptions, ServerOptions
from tokenspeed.core.policy import SchedulerOptions
from tokenspeed.generation.request import Limits
from tokenspeed.generation.weight import INLINE_CHARACTERS

PATH = "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
ASKED = {"model": "local", "max_tokens": 100, "messages": HI}
LONG = {"model": "local", "max_tokens": 400, "messages": HI}
SPEECH = "Größe, naïve, 你好 🙂. The quick brown fox."
TOOLS = [{"name": "f", "description": "Does f.", "input_schema": {"type": "object", "properties": {"x": {}}}}]
VERSION = {"anthropic-version": "2023-06-01"}


@pytest.fixture
async def speaking(serving):
    """A server whose model says `SPEECH` whatever it is asked."""
    async with serving(script=[SPEECH] * 9) as server:
        yield server


@pytest.fixture
def connect(listening):
    """Anthropic's own client of a server."""
    return lambda url, key="any": AsyncAnthropic(base_url=url, api_key=key, max_retries=0)


@pytest.fixture
async def claude(speaking, listening, connect):
    async with listening(speaking.app) as url, connect(url) as made:
        yield made


async def test_a_message_is_answered(claude):
    answer = await claude.messages.create(**ASKED)
    assert [block.to_dict() for block in answer.content] == [{"type": "text", "text": SPEECH}]
    assert (answer.stop_reason, answer.model, answer.role) == ("end_turn", "local", "assistant")
    assert answer.id.startswith("msg_")
    assert answer._request_id == answer.id


async def test_a_streamed_message_says_what_the_whole_one_says(claude):
    whole = await claude.messages.create(**ASKED)
    async with claude.messages.stream(**ASKED) as stream:
        text = "".join([piece async for piece in stream.text_stream])
        final = await stream.get_final_message()
    assert text == SPEECH
    assert [block.to_dict() for block in final.content] == [block.to_dict() for block in whole.content]
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)
    total = final.usage.input_tokens + final.usage.cache_read_input_tokens
    assert total == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    assert final.usage.cache_read_input_tokens > 0  # the whole one has left it there


async def test_events_come_in_their_order(claude):
    kinds = [event.type async for event in await claude.messages.create(**ASKED, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


async def test_answers_are_of_the_clients_types_to_the_letter(speaking):
    assert checked_message((await speaking.post(PATH, ASKED)).body)["stop_reason"] == "end_turn"
    streamed = await speaking.post(PATH, ASKED | {"stream": True})
    assert streamed.headers["content-type"].startswith("text/event-stream")
    assert told(checked_events(streamed.body)) == [{"type": "text", "text": SPEECH}]
    assert b"[DONE]" not in streamed.body


async def test_an_answer_without_a_word_has_no_content(serving):
    async with serving(script=["", ""]) as server:
        answer = checked_message((await server.post(PATH, ASKED)).body)
        assert (answer["content"], answer["stop_reason"]) == ([], "end_turn")
        assert told(checked_events((await server.post(PATH, ASKED | {"stream": True})).body)) == []


async def test_a_stop_sequence_is_told_and_cut_off(claude):
    answer = await claude.messages.create(**ASKED, stop_sequences=["quick", "never"])
    assert answer.content[0].text == SPEECH.partition("quick")[0]
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", "quick")


async def test_max_tokens_ends_an_answer(claude):
    answer = await claude.messages.create(**ASKED | {"max_tokens": 3})
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 3)


@pytest.mark.parametrize("stream", [False, True])
async def test_no_tokens_at_all_only_remember_the_prompt(speaking, stream):
    asked = ASKED | {"max_tokens": 0, "messages": [{"role": "user", "content": "fox " * 40}]}
    answer = await speaking.post(PATH, asked | {"stream": stream})
    assert answer.status == 200
    if not stream:
        assert checked_message(answer.body)["content"] == []
    later = checked_message((await speaking.post(PATH, asked | {"max_tokens": 1})).body)
    assert later["usage"]["input_tokens"] <= 16 < later["usage"]["cache_read_input_tokens"]  # a block at most


@pytest.mark.parametrize("asked", [10_000, 10**30])
async def test_the_end_of_the_context_is_told_from_max_tokens(serving, asked):
    async with serving(limits=Limits(max_tokens=500), script=["fox " * 600]) as server:
        answer = checked_message((await server.post(PATH, ASKED | {"max_tokens": asked})).body)
        assert answer["stop_reason"] == "model_context_window_exceeded"
        assert answer["usage"]["input_tokens"] + answer["usage"]["output_tokens"] == 512


async def test_the_servers_own_limit_counts_as_max_tokens(serving):
    async with serving(limits=Limits(max_tokens=9), script=["fox " * 600]) as server:
        answer = checked_message((await server.post(PATH, ASKED)).body)
        assert (answer["stop_reason"], answer["usage"]["output_tokens"]) == ("max_tokens", 9)


async def test_sampling_is_as_asked_for(server):
    fields = {"temperature": 0.5, "top_k": 7, "top_p": 0.9}
    assert (await server.post(PATH, ASKED | fields)).status == 200
    sampling = server.gate.inner.plans[-1].rows[0].draw.sampling
    assert {name: getattr(sampling, name) for name in fields} == fields


async def test_a_reply_goes_on_where_its_beginning_ends(claude, speaking):
    begun = [*HI, {"role": "assistant", "content": "Well, I"}]
    answer = await claude.messages.create(**ASKED | {"messages": begun})
    assert answer.content[0].text == SPEECH


async def test_a_whole_round_of_tools_can_be_sent_back(claude):
    use = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}}
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "unsigned"}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "sunny"}]}
    messages = [
        *HI,
        {"role": "assistant", "content": [thinking, {"type": "text", "text": "Let me see."}, use]},
        {"role": "user", "content": [result]},
    ]
    answer = await claude.messages.create(**ASKED | {"messages": messages}, tools=TOOLS)
    assert answer.content[0].text == SPEECH


# -- counting ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"system": "Be brief."},
        {"tools": TOOLS},
        {"tools": TOOLS, "tool_choice": {"type": "none"}},
        {"messages": [*HI, {"role": "assistant", "content": "Well, I"}]},
        {"thinking": {"type": "disabled"}},
    ],
)
async def test_a_count_is_what_the_message_would_have(claude, fields):
    asked = {name: value for name, value in ASKED.items() if name != "max_tokens"} | fields
    count = await claude.messages.count_tokens(**asked)
    answer = await claude.messages.create(**asked, max_tokens=1)
    assert count.input_tokens == answer.usage.input_tokens + answer.usage.cache_read_input_tokens


async def test_a_client_that_would_have_its_conversation_kept_is_told_to_send_it_whole(claude):
    thread = claude.beta.messages.thread(model="local", max_tokens=1, messages=HI)
    with pytest.raises(ThreadUnsupportedRequestError, match="send the whole of it"):
        await thread.send()


async def test_a_count_is_of_the_clients_type_and_runs_nothing(server):
    answer = await server.post("/v1/messages/count_tokens", {"messages": HI})
    assert checked(COUNT, answer.body).keys() == {"input_tokens"}
    assert not server.gate.inner.plans


async def test_what_is_too_long_to_answer_can_still_be_counted(server):
    body = {"messages": [{"role": "user", "content": "fox " * INLINE_CHARACTERS}]}
    assert (await server.post("/v1/messages/count_tokens", body)).json()["input_tokens"] > INLINE_CHARACTERS


@pytest.mark.parametrize("body", [{}, {"messages": []}, {"messages": HI, "model": "other"}, b"{", b"[]"])
async def test_a_wrong_count_is_refused_in_anthropics_shape(server, body):
    answer = await server.post("/v1/messages/count_tokens", body)
    assert answer.status in (400, 404)
    checked(ERROR, answer.body)


# -- models ------------------------------------------------------------------------------------------


async def test_models_are_listed_and_found(claude):
    (model,) = [model async for model in claude.models.list(limit=1)]
    assert (model.id, model.display_name, model.max_input_tokens) == ("org/tiny", "org/tiny", 512)
    assert model.created_at.timestamp() == 1_700_000_000
    assert (await claude.models.retrieve("org/tiny")) == model
    assert (await claude.models.retrieve("local")).id == "local"


async def test_models_are_of_the_clients_types_to_the_letter(server):
    page = (await server.get("/v1/models", **VERSION)).json()
    assert page.keys() == {"data", "has_more", "first_id", "last_id"}
    assert (page["has_more"], page["first_id"], page["last_id"]) == (False, "org/tiny", "org/tiny")
    (model,) = page["data"]
    assert checked(MODEL, (await server.get("/v1/models/org/tiny", **VERSION)).body) == model
    assert model["created_at"] == "2023-11-14T22:13:20Z"


async def test_the_model_is_listed_and_answers_under_its_aliases(serving):
    async with serving(aliases=("claude-local",), script=["yes"]) as server:
        page = (await server.get("/v1/models", **VERSION)).json()
        assert [model["id"] for model in page["data"]] == ["org/tiny", "claude-local"]
        assert (page["first_id"], page["last_id"]) == ("org/tiny", "claude-local")
        answer = checked_message((await server.post(PATH, ASKED | {"model": "claude-local"})).body)
    assert answer["model"] == "claude-local"


async def test_others_still_read_models_as_openai_has_them(server):
    assert (await server.get("/v1/models")).json()["object"] == "list"
    assert (await server.get("/v1/models/org/tiny")).json()["object"] == "model"


async def test_a_model_that_is_not_there_is_told_in_either_shape(server, claude):
    with pytest.raises(anthropic.NotFoundError, match="org/tiny"):
        await claude.models.retrieve("gpt-99")
    assert (await server.get("/v1/models/gpt-99")).error["code"] == "model_not_found"


# -- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"model": "other"}, anthropic.NotFoundError, "not_found_error.*other"),
        ({"max_tokens": -1}, anthropic.BadRequestError, "invalid_request_error.*max_tokens"),
        ({"extra_body": {"temperature": 9}}, anthropic.BadRequestError, "invalid_request_error.*temperature"),
    ],
)
async def test_an_error_is_of_the_class_that_the_client_has_for_it(claude, fields, kind, words, stream):
    with pytest.raises(kind, match=words):
        await claude.messages.create(**ASKED | fields | {"stream": stream})


async def test_a_long_prompt_is_told_in_the_words_that_agents_know(claude):
    with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: \d{4} tokens > 512 maximum"):
        await claude.messages.create(**ASKED | {"messages": [{"role": "user", "content": "fox " * 2000}]})


@pytest.mark.parametrize(("length", "told_maximum"), [(511, None), (512, 511), (513, 512)])
async def test_a_prompt_is_too_long_where_nothing_fits_behind_it(serving, length, told_maximum):
    async with serving(script=["a"]) as server:
        empty = {"messages": [{"role": "user", "content": ""}], "max_tokens": 5}
        around = (await server.post("/v1/messages/count_tokens", empty)).json()["input_tokens"]
        asked = empty | {"messages": [{"role": "user", "content": "\x01" * (length - around)}]}
        answer = await server.post(PATH, asked)
        if told_maximum is None:
            assert answer.status == 200
        else:
            words = f"prompt is too long: {length} tokens > {told_maximum} maximum"
            assert checked(ERROR, answer.body)["error"]["message"] == words


async def test_a_server_that_takes_shorter_prompts_tells_its_own_maximum(serving):
    async with serving(limits=Limits(max_prompt_tokens=10)) as server:
        answer = await server.post(PATH, ASKED)
    assert checked(ERROR, answer.body)["error"]["message"].endswith("tokens > 10 maximum")


async def test_a_key_is_wanted_in_either_header(serving, listening, connect):
    async with (
        serving(keys={"me": KeyOptions("sk-mine")}, script=["yes"] * 2) as server,
        listening(server.app) as url,
    ):
        async with connect(url, "sk-other") as stranger:
            with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
                await stranger.messages.create(**ASKED)
            with pytest.raises(anthropic.AuthenticationError, match="authentication_error"):
                await stranger.models.list()
        async with connect(url, "sk-mine") as known:
            assert (await known.messages.create(**ASKED)).content[0].text == "yes"
        answer = await server.post(PATH, ASKED, **{"x-api-key": "sk-mine"})
        assert checked_message(answer.body)["content"][0]["text"] == "yes"


async def test_a_message_counts_against_its_key(serving):
    async with serving(keys={"me": KeyOptions("sk-mine"), "you": KeyOptions("sk-yours")}) as server:
        answer = await server.post(PATH, ASKED, **{"x-api-key": "sk-mine"})
        timeline = f"/v1/requests/{answer.headers['request-id']}/timeline"
        assert (await server.get(timeline, **{"x-api-key": "sk-mine"})).status == 200
        assert (await server.get(timeline, **{"x-api-key": "sk-yours"})).status == 404


async def test_a_full_queue_says_when_to_come_back(serving):
    async with serving(scheduler_options=SchedulerOptions(max_running=1, max_waiting=0)) as server:
        server.gate.shut()
        first = server.call(PATH, LONG)
        await server.until(lambda: server.engine.scheduler.running == 1)
        answer = await server.post(PATH, ASKED)
        assert (answer.status, checked(ERROR, answer.body)["error"]["type"]) == (429, "rate_limit_error")
        assert int(answer.headers["retry-after"]) >= 1
        server.gate.open()
        await first.answer()


async def test_a_body_that_is_too_large_is_told(serving):
    async with serving(options=ServerOptions(max_body_bytes=1024)) as server:
        answer = await server.post(PATH, ASKED | {"system": "x" * 2000})
    assert (answer.status, json.loads(answer.body)["error"]["type"]) == (413, "request_too_large")


async def test_a_step_that_fails_amid_a_stream_raises_in_the_client(speaking, claude):
    stream = aiter(await claude.messages.create(**ASKED, stream=True))
    speaking.gate.shut()
    assert (await anext(stream)).type == "message_start"
    speaking.failing.append("now")
    speaking.gate.open()
    with pytest.raises(anthropic.APIStatusError, match="api_error"):
        async for _ in stream:
            pass


async def test_a_path_below_messages_that_is_not_there_is_told_in_anthropics_shape(server):
    answer = await server.post("/v1/messages/batches", {})
    assert (answer.status, checked(ERROR, answer.body)["error"]["type"]) == (404, "not_found_error")


# -- silence and vanishing ---------------------------------------------------------------------------


async def test_a_silent_stream_is_kept_alive_by_events(serving):
    async with serving(options=ServerOptions(ping_seconds=1.0), script=[SPEECH]) as server:
        server.gate.shut()
        call = server.call(PATH, ASKED | {"stream": True})
        start = await call.chunk()
        ping = await asyncio.wait_for(call.chunk(), 10.0)
        assert ping == b'event: ping\ndata: {"type":"ping"}\n\n'
        server.gate.open()
        raw = start + ping + await call.answer_after_chunks()
    assert told(checked_events(raw)) == [{"type": "text", "text": SPEECH}]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_vanishes_frees_its_blocks(server, stream):
    server.gate.shut()
    call = server.call(PATH, LONG | {"stream": stream})
    await server.until(lambda: server.engine.held_blocks > 0)
    call.disconnect()
    await call.task
    assert server.idle()


async def test_closing_a_real_stream_early_frees_its_blocks(server, listening, connect):
    async with listening(server.app) as url, connect(url) as client:
        stream = await client.messages.create(**LONG, stream=True)
        await anext(aiter(stream))
        server.gate.shut()
        await stream.close()
        await server.until(server.idle)
