"""smolagents against the real server."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel
from smolagents import OpenAIModel, tool

from tests.clients.conftest import MODEL, Server

ASKED: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}]


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[10, 20]


@tool
def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    return f"sunny in {city}"


@pytest.fixture
def model(server: Server) -> OpenAIModel:
    return OpenAIModel(model_id=MODEL, api_base=server.v1, api_key="none", temperature=0, max_tokens=100)


def test_a_streamed_answer_says_what_one_in_one_piece_does(model: OpenAIModel) -> None:
    pieces = [delta.content or "" for delta in model.generate_stream(ASKED)]
    assert "".join(pieces) == model.generate(ASKED).content != ""


def test_a_tool_that_is_given_is_called(model: OpenAIModel) -> None:
    message = model.generate(ASKED, tools_to_call_from=[weather], max_tokens=400, parallel_tool_calls=False)
    (call,) = message.tool_calls or ()
    assert call.function.name == "weather"


def test_an_answer_fits_the_schema_that_was_asked_for(model: OpenAIModel) -> None:
    schema = {"name": "weather", "schema": Weather.model_json_schema()}
    message = model.generate(ASKED, response_format={"type": "json_schema", "json_schema": schema})
    Weather.model_validate_json(message.content)
