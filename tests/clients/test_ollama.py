"""Ollama's own client against the real server."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import ollama
import pytest
from ollama import AsyncClient, Client
from pydantic import BaseModel, Field

from tests.clients.conftest import CONTEXT, MODEL, Server

ASKED = [{"role": "user", "content": "Write a function that adds two numbers."}]
GREEDY = {"temperature": 0, "num_predict": 16}


class Weather(BaseModel, extra="forbid"):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]
    degrees: int = Field(ge=0, le=40)


def weather(city: str) -> str:
    """Tell the weather.

    Args:
        city: Where.
    """
    return f"sunny in {city}"


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Client]:
    with Client(host=server.root, timeout=60) as opened:
        yield opened


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(host=server.root, timeout=60) as opened:
        yield opened


def test_the_model_is_listed_running_and_shown_with_what_it_can(client: Client) -> None:
    (model, *_) = client.list().models
    assert model.model is not None
    assert model.model.partition(":")[0] == MODEL
    assert model.size
    assert next(iter(client.ps().models)).model == model.model
    shown = client.show(model.model)
    assert shown.modelinfo is not None
    assert [size for name, size in shown.modelinfo.items() if name.endswith(".context_length")] == [CONTEXT]
    assert {"completion", "tools", "insert"} <= set(shown.capabilities or ())


def test_a_chat_that_was_cut_says_so_and_counts_its_tokens(client: Client) -> None:
    answer = client.chat(MODEL, ASKED, options={**GREEDY, "num_predict": 5})
    assert answer.message.content
    assert (answer.done, answer.done_reason, answer.eval_count) == (True, "length", 5)
    assert answer.prompt_eval_count
    assert answer.total_duration


def test_a_streamed_chat_says_what_one_in_one_piece_does(client: Client) -> None:
    whole = client.chat(MODEL, ASKED, options=GREEDY)
    pieces = list(client.chat(MODEL, ASKED, options=GREEDY, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == whole.eval_count


async def test_the_async_client_streams_the_same_text(aclient: AsyncClient) -> None:
    whole = await aclient.generate(MODEL, "def f(", raw=True, options=GREEDY)
    stream = await aclient.generate(MODEL, "def f(", raw=True, options=GREEDY, stream=True)
    assert "".join([piece.response async for piece in stream]) == whole.response


def test_a_gap_is_filled(client: Client) -> None:
    answer = client.generate(MODEL, "def f(", suffix="    return x\n", options=GREEDY)
    assert answer.done
    assert answer.eval_count


def test_an_answer_fits_the_schema_that_was_asked_for(client: Client) -> None:
    answer = client.chat(MODEL, ASKED, format=Weather.model_json_schema(), options={"num_predict": 100})
    assert answer.done_reason == "stop"
    Weather.model_validate_json(answer.message.content or "")


def test_an_answer_in_json_is_an_object(client: Client) -> None:
    pieces = client.generate(MODEL, "JSON, please.", format="json", stream=True, options=GREEDY)
    text = "".join(piece.response for piece in pieces)
    assert text.lstrip().startswith("{")


def test_calls_and_results_that_a_client_sends_are_read(client: Client) -> None:
    """This API cannot force a call: the conversation has one already, as the client writes it."""
    call = ollama.Message.ToolCall(
        function=ollama.Message.ToolCall.Function(name="weather", arguments={"city": "Rome"})
    )
    messages: list[Any] = [
        *ASKED,
        ollama.Message(role="assistant", content="", tool_calls=[call]),
        {"role": "tool", "tool_name": "weather", "content": weather("Rome")},
    ]
    told = client.chat(MODEL, messages, tools=[weather], options=GREEDY)
    without = client.chat(MODEL, ASKED, tools=[weather], options=GREEDY)
    assert told.message.content or told.message.tool_calls
    assert (told.prompt_eval_count or 0) > (without.prompt_eval_count or 0)


@pytest.mark.parametrize("given", ["def add(a, b):", ["def add(a, b):", "import os"]])
def test_each_text_is_embedded_as_one_vector(client: Client, given: Any) -> None:
    answer = client.embed(MODEL, given)
    texts = [given] if isinstance(given, str) else given
    assert len(answer.embeddings) == len(texts)
    assert len({len(vector) for vector in answer.embeddings}) == 1
    assert answer.prompt_eval_count


@pytest.mark.parametrize(
    ("model", "change", "status"),
    [
        ("gpt-0", {}, 404),
        (MODEL, {"format": {"type": "odd"}}, 400),
        (MODEL, {"messages": [{"role": "user", "content": "x " * 2 * CONTEXT}]}, 400),
    ],
)
def test_an_error_is_of_the_client_s_own_kind(
    client: Client, model: str, change: dict[str, Any], status: int
) -> None:
    with pytest.raises(ollama.ResponseError) as raised:
        client.chat(model, **{"messages": ASKED, **change})
    assert raised.value.status_code == status
    assert not raised.value.error.startswith("{"), json.loads(raised.value.error)
