"""OpenAI's agents, over both of their protocols, against the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Literal

import pytest
from agents import (
    Agent,
    MaxTurnsExceeded,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI, NotFoundError
from pydantic import BaseModel

from tests.clients.conftest import MODEL, Server

ASKED = "Write a function that adds two numbers."


class Weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[10, 20]


@pytest.fixture(scope="module", autouse=True)
def _untraced() -> None:
    """Else they would tell a hosted service of their runs."""
    set_tracing_disabled(True)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture(params=[OpenAIChatCompletionsModel, OpenAIResponsesModel])
def model(request: pytest.FixtureRequest, client: AsyncOpenAI) -> Model:
    made: Model = request.param(model=MODEL, openai_client=client)
    return made


def settings(most: int, choice: str | None = None) -> ModelSettings:
    single = None if choice is None else False
    return ModelSettings(temperature=0, max_tokens=most, tool_choice=choice, parallel_tool_calls=single)


async def test_a_run_streams_what_it_says_in_one_piece(model: Model) -> None:
    agent = Agent(name="a", instructions="Be brief.", model=model, model_settings=settings(40))
    whole = await Runner.run(agent, ASKED, max_turns=1)
    stream = Runner.run_streamed(agent, ASKED, max_turns=1)
    text = ""
    async for event in stream.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            text += event.data.delta
    assert text == stream.final_output == whole.final_output != ""
    assert whole.context_wrapper.usage.output_tokens > 0


async def test_an_output_is_of_the_type_that_was_asked_for(model: Model) -> None:
    agent = Agent(name="a", model=model, model_settings=settings(100), output_type=Weather)
    result = await Runner.run(agent, ASKED, max_turns=1)
    assert isinstance(result.final_output, Weather)


async def test_a_forced_call_is_run_and_its_result_is_sent_back(model: Model) -> None:
    called: list[str] = []

    @function_tool
    def weather(city: Literal["Paris", "Rome"]) -> str:
        """Tell the weather."""
        called.append(city)
        return "sunny"

    # After the call the choice is the model's again, which says something or calls once more.
    agent = Agent(name="a", model=model, model_settings=settings(60, "required"), tools=[weather])
    try:
        result = await Runner.run(agent, ASKED, max_turns=3)
        inputs = [each.usage.input_tokens for each in result.raw_responses]
        assert inputs[1] > inputs[0]
    except MaxTurnsExceeded:
        assert len(called) == 3
    assert called
    assert set(called) <= {"Paris", "Rome"}


async def test_an_unknown_model_is_an_error_of_the_client_s_own_kind(client: AsyncOpenAI) -> None:
    agent = Agent(name="a", model=OpenAIResponsesModel(model="gpt-0", openai_client=client))
    with pytest.raises(NotFoundError, match="does not exist here"):
        await Runner.run(agent, ASKED, max_turns=1)
