"""Pydantic AI's agents, in each protocol that they speak, against the real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, Embedder, NativeOutput, ToolOutput
from pydantic_ai.direct import model_request
from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelRequest, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.ollama import OllamaModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.ollama import OllamaProvider
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.usage import UsageLimits

from tests.clients.conftest import MODEL, Server

ASKED = "Write a function that adds two numbers."
KINDS = ["chat", "responses", "messages", "ollama"]
ONCE = UsageLimits(request_limit=1)


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[10, 20]


WEATHER = ToolDefinition(name="weather", parameters_json_schema=Weather.model_json_schema())


@pytest.fixture
async def openai_client(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.fixture(params=KINDS)
async def model(
    request: pytest.FixtureRequest, server: Server, openai_client: AsyncOpenAI
) -> AsyncIterator[Model]:
    async with AsyncAnthropic(base_url=server.root, api_key="none", max_retries=0, timeout=60) as anthropic:
        match request.param:
            case "chat":
                yield OpenAIChatModel(MODEL, provider=OpenAIProvider(openai_client=openai_client))
            case "responses":
                yield OpenAIResponsesModel(MODEL, provider=OpenAIProvider(openai_client=openai_client))
            case "messages":
                provider = AnthropicProvider(anthropic_client=anthropic)
                # By the names that it knows it tells what models can; of others this must be said.
                yield AnthropicModel(MODEL, provider=provider, profile={"supports_json_schema_output": True})
            case "ollama":
                yield OllamaModel(MODEL, provider=OllamaProvider(openai_client=openai_client))


def settings(model: Model, most: int) -> ModelSettings:
    """Anthropic's client has no temperature, so there it goes into the body."""
    if isinstance(model, AnthropicModel):
        return ModelSettings(max_tokens=most, extra_body={"temperature": 0})
    return ModelSettings(max_tokens=most, temperature=0)


async def test_an_agent_streams_what_it_says_in_one_piece(model: Model) -> None:
    agent = Agent(model, model_settings=settings(model, 24))
    whole = await agent.run(ASKED, usage_limits=ONCE)
    async with agent.run_stream(ASKED, usage_limits=ONCE) as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert "".join(pieces) == whole.output
    assert stream.usage.output_tokens == whole.usage.output_tokens > 0


@pytest.mark.parametrize("mode", [ToolOutput, NativeOutput])
async def test_an_output_is_of_the_type_that_was_asked_for(model: Model, mode: Any) -> None:
    asked = settings(model, 100) | {"parallel_tool_calls": False}
    agent = Agent(model, output_type=mode(Weather), model_settings=asked, retries=0)
    assert isinstance((await agent.run(ASKED, usage_limits=ONCE)).output, Weather)


async def test_an_output_is_streamed_and_parsed_on_its_way(model: Model) -> None:
    agent = Agent(
        model,
        output_type=ToolOutput(Weather),
        model_settings=settings(model, 100) | {"parallel_tool_calls": False},
        retries=0,
    )
    async with agent.run_stream(ASKED, usage_limits=ONCE) as stream:
        assert isinstance(await stream.get_output(), Weather)


async def test_a_forced_call_is_answered_and_the_model_goes_on(model: Model) -> None:
    asked = settings(model, 100) | {"parallel_tool_calls": False}
    history: list[Any] = [ModelRequest.user_text_prompt(ASKED)]
    must = ModelRequestParameters(function_tools=[WEATHER], allow_text_output=False)
    first = await model_request(model, history, model_settings=asked, model_request_parameters=must)
    (call,) = (part for part in first.parts if isinstance(part, ToolCallPart))
    Weather.model_validate(call.args_as_dict())
    result = ToolReturnPart(tool_name="weather", content="sunny", tool_call_id=call.tool_call_id)
    may = ModelRequestParameters(function_tools=[WEATHER])
    second = await model_request(
        model,
        [*history, first, ModelRequest(parts=[result])],
        model_settings=settings(model, 8),
        model_request_parameters=may,
    )
    assert all(isinstance(part, TextPart | ToolCallPart) for part in second.parts)
    assert second.usage.input_tokens > first.usage.input_tokens


async def test_the_tokens_of_a_prompt_are_counted_before_it_is_sent(
    server: Server, openai_client: AsyncOpenAI
) -> None:
    model = OpenAIResponsesModel(MODEL, provider=OpenAIProvider(openai_client=openai_client))
    history: list[Any] = [ModelRequest.user_text_prompt(ASKED)]
    counted = await model.count_tokens(history, None, ModelRequestParameters())
    answer = await model_request(model, history, model_settings=settings(model, 1))
    assert counted.input_tokens == answer.usage.input_tokens > 0


async def test_texts_are_embedded(openai_client: AsyncOpenAI) -> None:
    embedder = Embedder(OpenAIEmbeddingModel(MODEL, provider=OpenAIProvider(openai_client=openai_client)))
    found = await embedder.embed_documents(["def add(a, b):", "import os"])
    assert len(found.embeddings) == 2
    assert found.usage.input_tokens


async def test_an_unknown_model_is_an_error_of_the_client_s_own_kind(openai_client: AsyncOpenAI) -> None:
    model = OpenAIChatModel("gpt-0", provider=OpenAIProvider(openai_client=openai_client))
    with pytest.raises(ModelHTTPError, match="does not exist here") as raised:
        await Agent(model).run(ASKED, usage_limits=ONCE)
    assert raised.value.status_code == 404
