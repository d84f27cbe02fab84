"""OpenAI's own client against the real server: completions, embeddings and models."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from typing import Literal

import numpy as np
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel, Field

from tests.clients.conftest import CONTEXT, MODEL, Server

ASKED: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "Write a function that adds two numbers."}
]


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: int = Field(ge=0, le=40)
    remark: str = Field(max_length=8)


WEATHER: ChatCompletionToolParam = openai.pydantic_function_tool(Weather, name="weather")


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


def test_the_model_is_listed_and_found_by_every_name(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[0] == MODEL
    assert [client.models.retrieve(name).id for name in (*names, "local")] == [*names, "local"]


def test_a_chat_ends_where_it_was_told_and_counts_its_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=5, temperature=0)
    (choice,) = answer.choices
    assert choice.finish_reason == "length"
    assert choice.message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 5


def test_a_streamed_chat_says_what_one_in_one_piece_does(client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=16, temperature=0)
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=ASKED,
            max_tokens=16,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert not chunks[-1].choices


async def test_the_async_client_reads_the_same_stream(aclient: AsyncOpenAI, client: OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ASKED, max_tokens=16, temperature=0)
    stream = await aclient.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=16, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_forced_call_fits_its_schema_and_its_answer_goes_back(client: OpenAI, choice: object) -> None:
    first = client.chat.completions.create(
        model=MODEL,
        messages=ASKED,
        tools=[WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_tokens=100,
    )
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    (call,) = message.tool_calls or ()
    assert call.type == "function"
    assert call.function.name == "weather"
    Weather.model_validate_json(call.function.arguments)
    result: ChatCompletionMessageParam = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    second = client.chat.completions.create(
        model=MODEL,
        messages=[*ASKED, message, result],
        tools=[WEATHER],
        tool_choice="none",
        max_tokens=8,
        temperature=0,
    )
    assert second.choices[0].message.tool_calls is None
    assert second.choices[0].message.content


def test_the_stream_helper_builds_a_parsed_call_from_its_pieces(client: OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=ASKED,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
    ) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.delta" in kinds
    assert kinds.count("tool_calls.function.arguments.done") == 1
    (call,) = final.choices[0].message.tool_calls or ()
    assert isinstance(call.function.parsed_arguments, Weather)


def test_parse_gives_an_object_of_the_model_that_was_asked_for(client: OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASKED, response_format=Weather, max_tokens=100
    )
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(answer.choices[0].message.parsed, Weather)


async def test_the_async_stream_helper_parses_what_it_streamed(aclient: AsyncOpenAI) -> None:
    async with aclient.chat.completions.stream(
        model=MODEL, messages=ASKED, response_format=Weather, max_tokens=100
    ) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert isinstance(final.choices[0].message.parsed, Weather)


def test_an_answer_that_was_cut_is_told_as_such_by_parse(client: OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=MODEL, messages=ASKED, response_format=Weather, max_tokens=2)


def test_log_probabilities_of_a_chat_belong_to_its_text(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ASKED, max_tokens=6, temperature=0, logprobs=True, top_logprobs=2
    )
    scores = answer.choices[0].logprobs
    assert scores is not None
    assert scores.content is not None
    assert (
        b"".join(bytes(each.bytes or ()) for each in scores.content).decode()
        == answer.choices[0].message.content
    )
    assert {len(each.top_logprobs) for each in scores.content} == {2}


def test_a_completion_fills_a_gap_in_a_stream_as_in_one_piece(client: OpenAI) -> None:
    asked = {
        "model": MODEL,
        "prompt": "def f(",
        "suffix": "    return x\n",
        "max_tokens": 16,
        "temperature": 0,
    }
    whole = client.completions.create(**asked)
    stream = client.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == whole.choices[0].text
    assert chunks[-1].usage is not None


def test_prompts_are_scored_in_a_batch(client: OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt=["import os", "import sys"], echo=True, logprobs=1, max_tokens=0
    )
    assert [choice.text for choice in answer.choices] == ["import os", "import sys"]
    for choice in answer.choices:
        scores = choice.logprobs
        assert scores is not None
        assert "".join(scores.tokens or ()) == choice.text
        assert (scores.token_logprobs or [0])[0] is None


def test_embeddings_are_the_same_in_both_encodings(client: OpenAI) -> None:
    texts = ["def add(a, b):", "import os"]
    usual = client.embeddings.create(model=MODEL, input=texts)  # base64, which the client decodes
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    coded = client.embeddings.create(model=MODEL, input=texts, encoding_format="base64")
    decoded = [np.frombuffer(base64.b64decode(str(each.embedding)), "<f4") for each in coded.data]
    for one, two, three in zip(usual.data, plain.data, decoded, strict=True):
        assert np.array_equal(np.float32(one.embedding), np.float32(two.embedding))
        assert np.array_equal(np.float32(one.embedding), three)
    assert usual.usage.prompt_tokens == usual.usage.total_tokens > 2


@pytest.mark.parametrize(
    ("change", "error", "code", "param"),
    [
        ({"model": "gpt-0"}, openai.NotFoundError, "model_not_found", "model"),
        ({"max_tokens": 0}, openai.BadRequestError, "invalid_value", "max_tokens"),
        ({"temperature": -1}, openai.BadRequestError, "invalid_value", "temperature"),
        (
            {"messages": [{"role": "user", "content": "x " * 2 * CONTEXT}]},
            openai.BadRequestError,
            "context_length_exceeded",
            "messages",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "odd"}},
                }
            },
            openai.BadRequestError,
            "invalid_grammar",
            "response_format",
        ),
    ],
)
def test_an_error_is_of_the_client_s_own_kind(
    client: OpenAI, change: dict[str, object], error: type[openai.APIStatusError], code: str, param: str
) -> None:
    with pytest.raises(error) as raised:
        client.chat.completions.create(**{"model": MODEL, "messages": ASKED, "max_tokens": 4, **change})
    assert (raised.value.code, raised.value.param) == (code, param)
