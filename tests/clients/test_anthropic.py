"""Anthropic's own client against the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from anthropic.types import MessageParam, ToolParam
from pydantic import BaseModel

from tests.clients.conftest import ALIAS, CONTEXT, MODEL, Server

ASKED: list[MessageParam] = [{"role": "user", "content": "Write a function that adds two numbers."}]


ODD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "odd"}}}
GREEDY = {"temperature": 0.0}


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[10, 20]  # the client takes bounds of numbers out of a schema


WEATHER: ToolParam = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": Weather.model_json_schema(),
}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Anthropic]:
    with Anthropic(base_url=server.root, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[AsyncAnthropic]:
    async with AsyncAnthropic(base_url=server.root, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


def test_the_model_is_listed_and_found_by_every_name(client: Anthropic) -> None:
    names = [model.id for model in client.models.list()]
    assert names == [MODEL, ALIAS]
    assert [client.models.retrieve(name).max_input_tokens for name in names] == [CONTEXT, CONTEXT]


def test_a_message_that_was_cut_says_so_and_counts_its_tokens(client: Anthropic) -> None:
    message = client.messages.create(
        model=MODEL, messages=ASKED, max_tokens=5, system="Be brief.", extra_body=GREEDY
    )
    (block,) = message.content
    assert block.type == "text"
    assert block.text
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 5


def test_a_streamed_message_says_what_one_in_one_piece_does(client: Anthropic) -> None:
    asked = {"model": MODEL, "messages": ASKED, "max_tokens": 16, "extra_body": GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert [final.content[0].text] == [block.text for block in whole.content if block.type == "text"]
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    outer = [kind for kind in kinds if kind not in ("text", "content_block_delta")]
    assert outer == [
        "message_start",
        "content_block_start",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_the_async_client_streams_the_same_text(aclient: AsyncAnthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASKED, "max_tokens": 16, "extra_body": GREEDY}
    whole = await aclient.messages.create(**asked)
    async with aclient.messages.stream(**asked) as stream:
        text = "".join([piece async for piece in stream.text_stream])
    assert [text] == [block.text for block in whole.content if block.type == "text"]


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "any", "disable_parallel_tool_use": True},
        {"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    ],
)
def test_a_forced_call_fits_its_schema_and_its_result_goes_back(client: Anthropic, choice: Any) -> None:
    with client.messages.stream(
        model=MODEL, messages=ASKED, tools=[WEATHER], tool_choice=choice, max_tokens=100
    ) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        first = stream.get_final_message()
    assert first.stop_reason == "tool_use"
    (call,) = [block for block in first.content if block.type == "tool_use"]
    assert Weather.model_validate_json("".join(pieces)) == Weather.model_validate(call.input)
    second = client.messages.create(
        model=MODEL,
        messages=[
            *ASKED,
            {"role": "assistant", "content": first.content},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}],
            },
        ],
        tools=[WEATHER],
        tool_choice={"type": "none"},
        max_tokens=8,
        extra_body=GREEDY,
    )
    assert [block.type for block in second.content] == ["text"]


def test_the_tool_runner_calls_the_function_and_sends_its_result(client: Anthropic) -> None:
    called: list[tuple[str, int]] = []

    @beta_tool
    def weather(city: Literal["Paris", "Rome"], degrees: Literal[1, 2]) -> str:
        """The weather in a city."""
        called.append((city, degrees))
        return "sunny"

    runner = client.beta.messages.tool_runner(
        model=MODEL,
        messages=ASKED,
        tools=[weather],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        max_tokens=100,
        max_iterations=2,
    )
    messages = list(runner)
    assert [message.stop_reason for message in messages] == ["tool_use", "tool_use"]
    assert called
    assert {city for city, _ in called} <= {"Paris", "Rome"}
    first, second = (each.usage.input_tokens + (each.usage.cache_read_input_tokens or 0) for each in messages)
    assert second > first + messages[0].usage.output_tokens  # the call and its result are in the prompt


def test_parse_gives_an_object_of_the_model_that_was_asked_for(client: Anthropic) -> None:
    message = client.messages.parse(model=MODEL, messages=ASKED, output_format=Weather, max_tokens=100)
    assert message.stop_reason == "end_turn"
    assert isinstance(message.parsed_output, Weather)


async def test_a_stream_is_parsed_as_well(aclient: AsyncAnthropic) -> None:
    async with aclient.messages.stream(
        model=MODEL, messages=ASKED, output_format=Weather, max_tokens=100
    ) as stream:
        final = await stream.get_final_message()
    assert isinstance(final.parsed_output, Weather)


def test_the_tokens_of_a_prompt_are_counted_as_the_answer_counts_them(client: Anthropic) -> None:
    asked: dict[str, Any] = {"model": MODEL, "messages": ASKED, "system": "Be brief.", "tools": [WEATHER]}
    counted = client.messages.count_tokens(**asked)
    usage = client.messages.create(**asked, max_tokens=1).usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


@pytest.mark.parametrize(
    ("change", "error", "kind", "words"),
    [
        ({"model": "claude-0"}, anthropic.NotFoundError, "not_found_error", "does not exist here"),
        (
            {"messages": [{"role": "user", "content": "x " * 2 * CONTEXT}]},
            anthropic.BadRequestError,
            "invalid_request_error",
            "prompt is too long",
        ),
        (
            {
                "tools": [{"name": "odd", "strict": True, "input_schema": ODD}],
                "tool_choice": {"type": "any"},
            },
            anthropic.BadRequestError,
            "invalid_request_error",
            "tools",
        ),
    ],
)
def test_an_error_is_of_the_client_s_own_kind(
    client: Anthropic, change: dict[str, Any], error: type[anthropic.APIStatusError], kind: str, words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        client.messages.create(**{"model": MODEL, "messages": ASKED, "max_tokens": 4, **change})
    assert raised.value.body["error"]["type"] == kind
