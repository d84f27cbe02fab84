"""Instructor, in the modes that hold a model to a schema, against the real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import instructor
import openai
import pytest
from instructor import Mode
from pydantic import BaseModel

from tests.clients.conftest import MODEL, Server

ASKED: list[Any] = [{"role": "user", "content": "Write a function that adds two numbers."}]


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: Literal[10, 20]


HOW: dict[str, Any] = {"model": MODEL, "response_model": Weather, "max_retries": 0}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.v1, api_key="none", max_retries=0, timeout=60) as opened:
        yield opened


@pytest.mark.parametrize("mode", [Mode.TOOLS, Mode.TOOLS_STRICT, Mode.JSON_SCHEMA])
def test_an_answer_is_of_the_type_whole_and_in_parts(client: openai.OpenAI, mode: Mode) -> None:
    wrapped = instructor.from_openai(client, mode=mode)
    asked = {**HOW, "messages": ASKED, "max_tokens": 100, "temperature": 0}
    whole = wrapped.chat.completions.create(**asked)
    assert isinstance(whole, Weather)
    parts = list(wrapped.chat.completions.create_partial(**asked))
    assert parts[-1].model_dump() == whole.model_dump()


def test_a_response_is_of_the_type(client: openai.OpenAI) -> None:
    wrapped = instructor.from_openai(client, mode=Mode.RESPONSES_TOOLS)
    asked = ASKED[0]["content"]
    assert isinstance(wrapped.responses.create(**HOW, input=asked, max_output_tokens=100), Weather)


def test_a_message_is_of_the_type(server: Server) -> None:
    with anthropic.Anthropic(base_url=server.root, api_key="none", max_retries=0) as client:
        wrapped = instructor.from_anthropic(client, mode=Mode.ANTHROPIC_TOOLS)
        assert isinstance(wrapped.messages.create(**HOW, messages=ASKED, max_tokens=100), Weather)
