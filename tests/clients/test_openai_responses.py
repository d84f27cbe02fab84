"""OpenAI's own client against the real server: responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Literal

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.responses import FunctionToolParam, ParsedResponseFunctionToolCall
from pydantic import BaseModel, Field

from tests.clients.conftest import CONTEXT, MODEL, Server

ASKED = "Write a function that adds two numbers."


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: int = Field(ge=0, le=40)


WEATHER: FunctionToolParam = openai.pydantic_function_tool(Weather, name="weather")["function"] | {
    "type": "function"
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


def test_a_response_that_was_cut_says_so_and_counts_its_tokens(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=ASKED, max_output_tokens=5, temperature=0)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens == 5
    assert answer.usage.total_tokens == answer.usage.input_tokens + 5


def test_a_streamed_response_is_the_one_that_is_kept(client: OpenAI) -> None:
    with client.responses.stream(
        model=MODEL, input=ASKED, text_format=Weather, max_output_tokens=100
    ) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == final.output_text
    assert client.responses.retrieve(final.id).output_text == text


async def test_the_async_client_streams_events_of_one_response(aclient: AsyncOpenAI) -> None:
    stream = await aclient.responses.create(
        model=MODEL, input=ASKED, max_output_tokens=8, temperature=0, stream=True
    )
    kinds = [event.type async for event in stream]
    assert kinds[0] == "response.created"
    assert kinds.count("response.output_text.done") == 1
    assert kinds[-1] in ("response.completed", "response.incomplete")


def test_parse_gives_an_object_of_the_model_that_was_asked_for(client: OpenAI) -> None:
    answer = client.responses.parse(model=MODEL, input=ASKED, text_format=Weather, max_output_tokens=100)
    assert answer.status == "completed"
    assert isinstance(answer.output_parsed, Weather)


async def test_the_async_stream_helper_parses_what_it_streamed(aclient: AsyncOpenAI) -> None:
    async with aclient.responses.stream(
        model=MODEL, input=ASKED, text_format=Weather, max_output_tokens=100
    ) as stream:
        final = await stream.get_final_response()
    assert isinstance(final.output_parsed, Weather)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_a_forced_call_is_parsed_and_its_output_goes_on_from_the_stored_response(
    client: OpenAI, choice: object
) -> None:
    first = client.responses.parse(
        model=MODEL,
        input=ASKED,
        tools=[WEATHER],
        tool_choice=choice,
        parallel_tool_calls=False,
        max_output_tokens=100,
    )
    (call,) = first.output
    assert isinstance(call, ParsedResponseFunctionToolCall)
    assert isinstance(Weather.model_validate(call.parsed_arguments), Weather)
    second = client.responses.create(
        model=MODEL,
        previous_response_id=first.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}],
        tools=[WEATHER],
        tool_choice="none",
        max_output_tokens=8,
        temperature=0,
    )
    assert second.previous_response_id == first.id
    assert second.output_text
    alone = client.responses.input_tokens.count(model=MODEL, input=ASKED)
    assert second.usage is not None
    assert second.usage.input_tokens > alone.input_tokens + 10


def test_a_call_and_its_output_can_be_sent_back_without_the_store(client: OpenAI) -> None:
    asked = {"model": MODEL, "tools": [WEATHER], "max_output_tokens": 100, "temperature": 0, "store": False}
    first = client.responses.create(**asked, input=ASKED, tool_choice="required", parallel_tool_calls=False)
    calls = [item for item in first.output if item.type == "function_call"]
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
    second = client.responses.create(
        **asked,
        input=[{"role": "user", "content": ASKED}, *first.output, *results],
        tool_choice="none",
    )
    assert second.output_text
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)


def test_the_tokens_of_an_input_are_counted_as_the_answer_counts_them(client: OpenAI) -> None:
    asked = {"model": MODEL, "input": ASKED, "instructions": "Be brief.", "tools": [WEATHER]}
    counted = client.responses.input_tokens.count(**asked)
    answer = client.responses.create(**asked, max_output_tokens=1)
    assert answer.usage is not None
    assert counted.input_tokens == answer.usage.input_tokens


def test_what_was_kept_is_listed_and_deleted(client: OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input=ASKED, max_output_tokens=2)
    (item,) = client.responses.input_items.list(answer.id)
    assert item.type == "message"
    client.responses.delete(answer.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


@pytest.mark.parametrize(
    ("change", "error", "code"),
    [
        ({"model": "gpt-0"}, openai.NotFoundError, "model_not_found"),
        ({"previous_response_id": "resp_0"}, openai.BadRequestError, "previous_response_not_found"),
        ({"input": "x " * 2 * CONTEXT}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
def test_an_error_is_of_the_client_s_own_kind(
    client: OpenAI, change: dict[str, object], error: type[openai.APIStatusError], code: str
) -> None:
    with pytest.raises(error) as raised:
        client.responses.create(**{"model": MODEL, "input": ASKED, "max_output_tokens": 4, **change})
    assert raised.value.code == code
